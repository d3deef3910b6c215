"""docs/metrics.md: every metric that the code can make is explained, and nothing else is."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.metric_names import GLOSSARY, HOLE, Texts, code, glossary, pattern_of, spelled, undocumented

ENTRIES = glossary(GLOSSARY.read_text(encoding="utf-8"))
NAMES = [name for entry in ENTRIES for name in entry.names]


@pytest.fixture(scope="module")
def texts() -> Texts:
    return code()


def test_every_row_has_a_unit_a_meaning_and_what_is_bad() -> None:
    assert len(ENTRIES) > 80
    assert all(len(entry.texts) == 3 and all(entry.texts) for entry in ENTRIES)


def test_a_name_is_explained_once() -> None:
    assert [name for name, count in Counter(NAMES).items() if count > 1] == []


def test_what_is_explained_can_still_be_made(texts: Texts) -> None:
    assert [name for name in NAMES if not texts.can_make(name)] == []


def test_what_the_code_names_is_explained(texts: Texts) -> None:
    """A text may be the beginning of names, up to a slash or an underscore."""
    groups = {name.partition("/")[0] for name in NAMES}
    for text in texts.names(groups):
        pattern = pattern_of(f"{text}{HOLE}")
        begun = any(pattern.fullmatch(name) and name.removeprefix(text)[:1] in "/_" for name in NAMES)
        assert begun or any(pattern_of(text).fullmatch(name) for name in NAMES), f"{text!r} is not in docs/metrics.md"


def test_stale_and_missing_names_are_noticed(texts: Texts) -> None:
    for name in ("actor/gradient_norm", "self_distillation/fallback_primary_fraction", "perf/max_memory_used_gb"):
        assert not texts.can_make(name), name
        assert undocumented([name], ENTRIES) == {name}
    made = Texts(['x = {f"loss/{name}_mean": 1 for name in ("a", "b")}; y = "loss/other"'])
    assert [name for name in ("loss/a_mean", "loss/c_mean", "loss/other") if made.can_make(name)] == [
        "loss/a_mean",
        "loss/other",
    ]


def test_names_are_spelled_out() -> None:
    assert list(spelled("a/{b,c}_<d>/{e,f}")) == [f"a/{x}_{HOLE}/{y}" for x in "bc" for y in "ef"]
    assert undocumented(["step", "val-core/a/b: c/acc/mean@8", "reward/unknown_died"], ENTRIES) == set()
