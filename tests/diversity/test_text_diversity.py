"""The measures are what their formulas say, do not depend on order, and fall where texts repeat."""

import difflib
import math
from collections import Counter
from itertools import combinations

import pytest
import text_diversity as measures
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = settings(max_examples=60, deadline=None)
words = st.lists(st.sampled_from(["a", "b", "c", "=", "7"]), min_size=1, max_size=9)
groups = st.lists(words, min_size=2, max_size=5)


def plain_bleu(text, references):
    """BLEU-4 as it is told: an order at a time, a reference at a time."""
    logs = []
    for n in range(1, 5):
        own = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        if not own:
            continue
        matched = 0
        for gram in set(own):
            there = [sum(tuple(r[i : i + n]) == gram for i in range(len(r) - n + 1)) for r in references]
            matched += min(own.count(gram), max(there))
        logs.append(math.log((matched + 1) / (len(own) + 1)))
    closest = sorted(references, key=lambda r: (abs(len(r) - len(text)), len(r)))[0]
    penalty = 1.0 if len(text) >= len(closest) else math.exp(1 - len(closest) / len(text))
    return penalty * math.exp(sum(logs) / len(logs))


def plain_common_length(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def all_measures(texts):
    """Every measure of some token lists."""
    joined = [" ".join(text) for text in texts]
    return {
        "self_bleu": measures.self_bleu(texts),
        "distinct1": measures.distinct(texts, 1),
        "distinct2": measures.distinct(texts, 2),
        "subsequence": measures.mean_distance(joined, measures.subsequence_distance),
        "difflib": measures.mean_distance(joined, measures.difflib_distance),
        "unique": measures.unique_ratio(joined),
    }


@SMALL
@given(groups)
def test_self_bleu_is_the_mean_bleu_of_each_against_the_others(texts):
    plain = [plain_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert measures.self_bleu(texts) == pytest.approx(sum(plain) / len(plain), abs=1e-12)


@SMALL
@given(st.text("abc d", max_size=14), st.text("abc d", max_size=14))
def test_the_common_subsequence_is_the_longest(first, second):
    assert measures.common_length(first, second) == plain_common_length(first, second)


@SMALL
@given(st.text("ab\n", max_size=40), st.text("ab\n", max_size=40))
def test_no_heuristic_finds_a_longer_one(first, second):
    ratio = difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
    if first or second:
        assert 1 - measures.subsequence_distance(first, second) >= ratio - 1e-12


def test_difflib_leaves_out_frequent_characters_of_long_texts_and_the_subsequence_does_not():
    first = "x = 1\n" * 60
    second = first.replace("1", "2", 1)
    assert measures.subsequence_distance(first, second) < 0.01
    assert measures.difflib_distance(first, second) > 0.5


@SMALL
@given(groups, st.randoms())
def test_the_order_of_attempts_changes_nothing(texts, random):
    shuffled = list(texts)
    random.shuffle(shuffled)
    before, after = all_measures(texts), all_measures(shuffled)
    assert before == pytest.approx(after, abs=1e-12, nan_ok=True)


@SMALL
@given(groups)
def test_repeats_lower_diversity(texts):
    once, twice = all_measures(texts), all_measures(texts * 2)
    assert twice["self_bleu"] == pytest.approx(1.0)
    assert twice["unique"] == pytest.approx(once["unique"] / 2)
    assert twice["distinct1"] == pytest.approx(once["distinct1"] / 2)
    n = len(texts)
    for name in ("subsequence", "difflib"):  # of all pairs, those of a text with itself are at 0
        assert twice[name] == pytest.approx(once[name] * 2 * (n - 1) / (2 * n - 1))


def test_bigrams_lie_within_responses_unless_asked_for_otherwise():
    texts = [["a", "b"], ["a", "b"], ["a", "b"]]
    assert measures.distinct(texts, 2) == 1 / 3  # a b, three times
    assert measures.distinct(texts, 2, across=True) == 2 / 5  # and b a, which nobody wrote, twice


def test_what_is_not_defined_is_none():
    assert measures.self_bleu([["a"]]) is None
    assert measures.self_bleu([["a"], []]) is None  # an empty response has no tokens to compare
    assert measures.distinct([["a"], ["b"]], 2) is None
    assert measures.mean_distance(["a"], measures.subsequence_distance) is None
    assert measures.unique_ratio([]) is None
    assert measures.mean_tree_distance([Counter(a=1)]) is None


def test_empty_responses_are_alike():
    assert measures.mean_distance(["", ""], measures.subsequence_distance) == 0.0
    assert measures.mean_distance(["", "a"], measures.subsequence_distance) == 1.0
    assert measures.unique_ratio(["", " \n"]) == 0.5


def test_short_answers_that_differ_are_not_taken_for_alike():
    """Orders that a text of one token does not have would count as matched."""
    assert measures.self_bleu([["A"], ["B"]]) == pytest.approx(0.5)


def test_tokens_are_words_digits_and_signs():
    assert measures.tokens_of("x1 += 20*_y\n") == ["x1", "+", "=", "20", "*", "_y"]


def test_trees_are_compared_by_their_nodes():
    trees = [measures.node_counts(text) for text in ("x = 1", "y = 2", "x = 1 + 1")]
    assert measures.mean_tree_distance(trees[:2]) == 0.0
    # Module, Assign, Name, Store, Constant against the same with BinOp, Add and a second Constant.
    assert measures.mean_tree_distance([trees[0], trees[2]]) == pytest.approx(1 - 5 / 8)
    pairs = [1 - (a & b).total() / (a | b).total() for a, b in combinations(trees, 2)]
    assert measures.mean_tree_distance(trees) == pytest.approx(sum(pairs) / 3)


@pytest.mark.parametrize(
    "text", ["def f(:", "print 1", "a\0b", "(" * 5000, "-" * 50_000 + "1", "1" + "+1" * 50_000, "1" * 5000, "\ud800"]
)
def test_a_program_that_cannot_be_parsed_has_no_tree(text):
    counts = measures.node_counts(text)
    assert counts is None or counts.total() > 0


def test_broken_programs_have_no_tree():
    assert measures.node_counts("def f(:") is None
    assert measures.node_counts("a\0b") is None
