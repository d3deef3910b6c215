"""Figures of groups of rollouts: equal to their definitions written out, and absent where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd.gauges import (
    HEDGES,
    LEAST_PROMPTS,
    NGRAM,
    auc,
    copied_share,
    ngrams,
    over_prompts,
    pairwise_accuracy,
    uncertainty,
)

Row = tuple[float, float]
SCORES = st.sampled_from([-3.0, -1.5, -1.0, -0.25, 0.0])
ROWS = st.lists(st.tuples(SCORES, st.sampled_from([0.0, 0.5, 1.0, math.nan])), max_size=10)
JUDGED = st.lists(st.tuples(SCORES, st.sampled_from([0.0, 1.0])), max_size=12)
WORDS = st.lists(st.sampled_from("abc"), max_size=14)


@given(ROWS)
def test_pairwise_accuracy_counts_pairs(rows: list[Row]) -> None:
    pairs = [(a, b) for a, worth in rows for b, other in rows if worth > other]
    wanted = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else None
    found = pairwise_accuracy([score for score, _ in rows], [reward for _, reward in rows])
    assert found == (None if wanted is None else pytest.approx(wanted))


@given(JUDGED)
def test_auc_is_the_area_under_the_curve(rows: list[Row]) -> None:
    right = [score for score, label in rows if label]
    wrong = [score for score, label in rows if not label]
    found = auc([score for score, _ in rows], [label for _, label in rows])
    if not right or not wrong:
        assert found is None
        return
    bounds = [math.inf, *sorted({score for score, _ in rows}, reverse=True)]
    hits = [sum(score >= bound for score in right) / len(right) for bound in bounds]
    alarms = [sum(score >= bound for score in wrong) / len(wrong) for bound in bounds]
    area = sum((alarms[at] - alarms[at - 1]) * (hits[at] + hits[at - 1]) / 2 for at in range(1, len(bounds)))
    assert found == pytest.approx(area)


def test_a_score_that_is_no_number_takes_no_part() -> None:
    assert pairwise_accuracy([math.nan, -1.0, -2.0], [0.0, 1.0, 0.0]) == 1.0
    assert auc([-1.0, math.nan], [1.0, 0.0]) is None
    with pytest.raises(ValueError, match="must be"):
        auc([-1.0], [1.0, 0.0])


@settings(max_examples=30)
@given(st.lists(st.none() | st.floats(0, 1), max_size=16))
def test_an_interval_holds_its_mean_of_what_is_known(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    found = over_prompts(values, draws=200)
    if not known:
        assert found is None
        return
    assert found is not None
    assert (found.mean, found.prompts) == (pytest.approx(sum(known) / len(known)), len(known))
    if len(known) < LEAST_PROMPTS:
        assert found.low is None
        assert found.high is None
        return
    assert found.low is not None
    assert found.high is not None
    assert min(known) - 1e-9 <= found.low <= found.high <= max(known) + 1e-9


def test_an_interval_is_that_of_prompts_drawn_with_replacement() -> None:
    values = [0.1, 0.9, 0.4, 0.7, 0.2, 0.6, 0.3, 0.8]
    drawn = np.random.default_rng(3).integers(8, size=(500, 8))
    low, high = np.percentile([np.mean([values[at] for at in draw]) for draw in drawn], [5, 95])
    found = over_prompts(values, draws=500, seed=3, confidence=0.9)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    for wrong in ({"draws": 0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match="need draws"):
            over_prompts(values, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompts", "least"), [(2, None), (7, None), (8, 0.86), (32, 0.91)])
def test_an_interval_is_given_only_where_it_holds_the_truth_about_as_often_as_it_says(
    prompts: int, least: float | None
) -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        estimate = over_prompts(rng.normal(size=prompts).tolist(), draws=500)
        assert estimate is not None
        assert estimate.prompts == prompts
        if least is None:
            assert (estimate.low, estimate.high) == (None, None)
            continue
        assert estimate.low is not None
        assert estimate.high is not None
        found.append(estimate.low <= 0.0 <= estimate.high)
    assert least is None or least <= np.mean(found) <= 0.98


@pytest.mark.parametrize("signal", [0.0, 1.0])
def test_a_signal_is_found_and_none_where_there_is_none(signal: float) -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        areas = []
        for _ in range(24):
            right = rng.integers(2, size=8)
            areas.append(auc(rng.normal(size=8) + signal * right, right))
        found = over_prompts(areas)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.5 <= found.high
    assert held == 0 if signal else 50 <= held <= 60


@given(WORDS, st.lists(WORDS, max_size=3), WORDS)
def test_what_is_copied_stands_in_a_shown_text_and_not_in_the_prompt(
    response: list[str], shown: list[list[str]], prompt: list[str]
) -> None:
    def runs(words: list[str]) -> list[str]:
        return [" ".join(words[at : at + 3]) for at in range(len(words) - 2)]

    def grams(words: list[str]) -> list[tuple[str, ...]]:
        return ngrams(" ".join(words), 3)

    copied = [run in {each for text in shown for each in runs(text)} - set(runs(prompt)) for run in runs(response)]
    found = copied_share(grams(response), [frozenset(grams(text)) for text in shown], frozenset(grams(prompt)))
    assert found == (sum(copied) / len(copied) if copied and shown else None)


def test_words_and_signs_are_counted_and_blanks_are_not() -> None:
    text = "x = f(1);  return x"
    assert [len(gram) for gram in ngrams(text)] == [NGRAM] * 2
    assert ngrams(text)[1] == ("=", "f", "(", "1", ")", ";", "return", "x")
    assert ngrams("one two three") == []


@pytest.mark.parametrize(
    ("text", "hedges", "words"),
    [
        ("Wait, maybe 7 is right.", 2, 5),
        ("I'm not sure; let me check: it is double-checked.", 2, 10),
        ("It awaits the mighty lunch, likelihood one.", 0, 7),
        ("Hmm... HMM", 2, 2),
    ],
)
def test_hesitation_is_counted_in_a_thousand_words(text: str, hedges: int, words: int) -> None:
    assert uncertainty([text, "so be it"]) == pytest.approx(1000 * hedges / (words + 3))


def test_every_hedge_is_found_and_no_words_have_no_rate() -> None:
    assert all(uncertainty([f"so {hedge} so"]) == pytest.approx(1000 / (2 + len(hedge.split()))) for hedge in HEDGES)
    assert uncertainty(["4 - 6"]) == 0.0
    assert uncertainty(["", ";"]) is None
