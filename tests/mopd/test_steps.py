"""A step ends with the token that completes a separator of the text, wherever the tokens are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopd.steps import step_ids

TEXTS = st.text(alphabet="a.\n", max_size=30)
SEPARATORS = st.sampled_from(["\n\n", ".\n", "\n", "a", "aa"])


@st.composite
def tokenised(draw: st.DrawFn) -> list[str]:
    """A text cut anywhere, with empty tokens among the rest."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def plain(pieces: list[str], separator: str) -> list[int]:
    """Token by token: what is left of the text is searched for a whole separator after each."""
    ids, step, waiting = [], 0, ""
    for piece in pieces:
        ids.append(step)
        waiting += piece
        if separator in waiting:
            step += 1
            while separator in waiting:
                waiting = waiting.split(separator, 1)[1]
    return ids


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], []),
        (["a", "b"], [0, 0]),
        (["a", "\n\n", "b"], [0, 0, 1]),
        (["a.", "\n", "\n", "b"], [0, 0, 0, 1]),  # spans tokens
        (["a.\n", "\nb", "c"], [0, 0, 1]),  # begins in one, ends inside another
        (["a.\n\nb", "c"], [0, 1]),  # sits inside one
        (["a\n\nb\n\nc", "d"], [0, 1]),  # two in one token end one step
        (["\n\n\n", "\nb"], [0, 1]),  # "\n\n" twice; "\nb" completes the second
        (["\n\n\n", "b"], [0, 1]),
        (["a\n\n", "", "b", ""], [0, 1, 1, 1]),  # tokens without text stand in the next step
        (["a\n", "", "\n", "b"], [0, 0, 0, 1]),
        (["a", "\n\n"], [0, 0]),  # a trailing separator opens no empty step
    ],
)
def test_examples(pieces: list[str], expected: list[int]) -> None:
    assert step_ids(pieces, "\n\n") == expected


@settings(max_examples=300, deadline=None)
@given(pieces=tokenised(), separator=SEPARATORS)
def test_matches_the_plain_search(pieces: list[str], separator: str) -> None:
    assert step_ids(pieces, separator) == plain(pieces, separator)


@settings(max_examples=200, deadline=None)
@given(pieces=tokenised(), separator=SEPARATORS)
def test_ids_count_up_from_zero_one_per_token(pieces: list[str], separator: str) -> None:
    ids = step_ids(pieces, separator)
    assert len(ids) == len(pieces)
    assert all(later - earlier in (0, 1) for earlier, later in zip([0, *ids], ids, strict=False))
    assert ids[:1] in ([], [0])


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, separator=SEPARATORS)
def test_token_by_character_the_steps_are_the_split_text(text: str, separator: str) -> None:
    ids = step_ids(list(text), separator)
    steps = [
        "".join(c for c, i in zip(text, ids, strict=True) if i == step) for step in range(max(ids, default=-1) + 1)
    ]
    *ended, last = text.split(separator)
    assert steps == [part + separator for part in ended] + ([last] if last else [])


@settings(max_examples=200, deadline=None)
@given(pieces=tokenised(), separator=SEPARATORS)
def test_a_coarser_tokenisation_only_merges_steps(pieces: list[str], separator: str) -> None:
    """Tokens in different steps hold characters of different steps."""
    by_character = step_ids(list("".join(pieces)), separator)
    ids, position = step_ids(pieces, separator), 0
    firsts: dict[int, int] = {}
    for piece, step in zip(pieces, ids, strict=True):
        if piece:
            firsts.setdefault(step, by_character[position])
        position += len(piece)
    assert list(firsts.values()) == sorted(firsts.values())


def test_an_empty_separator_is_refused_and_others_are_literal() -> None:
    with pytest.raises(ValueError, match="separator is empty"):
        step_ids(["a"], "")
    assert step_ids(["a", ".", "b"], ".") == [0, 0, 1]
    assert step_ids(["a", "b"], ".") == [0, 0]
