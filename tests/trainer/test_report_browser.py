"""The report in a real browser: what is shown, that nothing overflows, and that what a model says stays text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.trainer.browser import BROWSER, DRIVER, WHY_NOT, Browser, browser
from tests.trainer.report_runs import as_seen, pieces, run_in
from trainer.report import write_report

pytestmark = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason=WHY_NOT)

TABS = ("curves", "validation", "time", "settings", "rollouts")
OPENED = "document.querySelector('.card.chosen')"
CHOSEN = "document.querySelector('.card.chosen .title b').textContent"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as found:
        found.look(1280)
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 1,008 rollouts that say hostile things."""
    folder = run_in(tmp_path_factory.mktemp("runs") / "hostile", steps=6, groups=21, siblings=8)
    other = run_in(folder.parent / "beside", steps=4, overrides=["data.seed=7"])
    write_report(folder, [other], rollouts=1008, pieces=pieces)
    return folder


@pytest.fixture
def page(window: Browser, run: Path) -> Browser:
    """The rollouts of the report, opened anew."""
    window.open(run / "report.html", "#rollouts")
    window.until(OPENED)
    return window


def line_of(run: Path, step: int, number: int) -> dict[str, object]:
    with (run / f"rollouts/{step}.jsonl").open(encoding="utf-8") as stream:
        found = [json.loads(line) for line in stream][number]
    assert isinstance(found, dict)
    return found


def test_a_step_is_chosen_a_group_opened_and_its_teacher_prompt_read(page: Browser, run: Path) -> None:
    page.run(
        "const s = document.querySelectorAll('aside select')[0]; s.value = '4'; s.dispatchEvent(new Event('change'))"
    )
    page.run("document.querySelectorAll('.row:not(.head)')[1].click()")
    page.until(f"{OPENED} && {CHOSEN} === '4-0-1'")
    line = line_of(run, 4, 1)
    told = page.run(
        "const text = (name) => document.querySelector(name).textContent;"
        "return ['pre.teacher', 'pre.prompt', '.card.chosen .response', '.card.chosen .feedback'].map(text)"
    )
    assert told == [
        as_seen(str(line["teacher_prompt"])),
        as_seen(str(line["input"])),
        as_seen(str(line["output"])),
        as_seen(f"Feedback {line['feedback']}"),
    ]
    cards = page.run("return [...document.querySelectorAll('.card .title b')].map((node) => node.textContent)")
    assert cards == [f"4-0-{index}" for index in range(8)]
    (peer,) = page.run("return [...document.querySelectorAll('.card.chosen tbody tr')].map((row) => row.textContent)")
    assert "primary" in peer
    assert "4-0-2" in peer


def test_what_a_model_says_stays_text(page: Browser) -> None:
    for tab in TABS:
        page.run("document.querySelector(`#tabs [data-tab=${arguments[0]}]`).click()", tab)
    for number in range(20):
        page.press("l" if number % 3 else "j")
    page.until(OPENED)
    harm = "document.querySelectorAll('img, iframe, main script, link, form, b b, i').length"
    assert page.run(f"return [window.harmed === undefined, {harm}]") == [True, 0]
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    assert page.complaints() == []


def test_colours_scale_with_divergence_and_the_value_is_told(page: Browser, run: Path) -> None:
    tokens = page.run(
        "return [...document.querySelectorAll('.token')].map((node) => {"
        "  const alpha = /\\/ ([\\d.e-]+)\\)/.exec(getComputedStyle(node).backgroundColor);"
        "  return alpha ? Number(alpha[1]) : 0; })"
    )
    line = line_of(run, 1, 0)
    values = line["divergence"]
    assert isinstance(values, list)
    assert len(tokens) == len(values)
    order = sorted(range(1, len(values)), key=lambda at: values[at])
    strengths = [tokens[at] for at in order]
    assert all(one <= other + 0.005 for one, other in pairwise(strengths))
    assert strengths[-1] > 0.7 > 0.3 > strengths[0]
    tell = "arguments[0].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    page.run(f"((...arguments) => {{ {tell} }})(document.querySelectorAll('.token')[3])")
    told = page.run("return document.getElementById('tip').textContent")
    assert "token 4 of" in told
    assert f"divergence {float(f'{values[3]:.4g}'):g}"[:14] in told
    assert "probability 0.607" in told
    assert "not recorded" in told


def test_the_list_holds_no_more_rows_than_are_in_view(page: Browser) -> None:
    assert "1,008 rollouts of 1,008, in 126 groups" in page.run("return document.querySelector('.count').textContent")
    assert page.run("return document.querySelectorAll('.row').length") < 80
    page.run("document.querySelector('.list').scrollTop = 1e6")
    page.until("[...document.querySelectorAll('.row .name')].some((node) => node.textContent === '6-20-7')")
    assert page.run("return document.querySelectorAll('.row').length") < 80


@pytest.mark.parametrize(("control", "value", "found"), [(1, "a/b <i>c", 480), (2, "right", 336), (0, "3", 168)])
def test_filters(page: Browser, control: int, value: str, found: int) -> None:
    page.run(
        "const s = document.querySelectorAll('aside select')[arguments[0]]; s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'))",
        control,
        value,
    )
    assert page.run("return document.querySelector('.count').textContent").startswith(f"{found} rollouts")


def test_every_text_is_searched(page: Browser) -> None:
    page.press("/")
    for key in "5-13-3 SAYS":
        page.press(key)
    page.until("document.querySelector('.count').textContent.startsWith('2 rollouts')")  # itself, and its peer's prompt


def test_keys(page: Browser) -> None:
    for key, name in [("j", "1-0-1"), ("ArrowDown", "1-0-2"), ("k", "1-0-1"), ("l", "1-1-0"), ("ArrowRight", "1-2-0")]:
        page.press(key)
        page.until(f"{OPENED} && {CHOSEN} === '{name}'")
    page.press("h")
    page.until(f"{CHOSEN} === '1-1-0'")
    page.until("location.hash === '#rollouts/1-1-0'")
    page.press("?")
    assert page.run("return document.getElementById('help').open")
    page.press("?")
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    page.press("t")
    assert page.run("return getComputedStyle(document.body).backgroundColor") != before
    page.press("t")
    page.press("2")
    assert page.run("return document.querySelector('[aria-selected=true]').textContent") == "Validation"


def test_an_address_leads_to_a_rollout(window: Browser, run: Path) -> None:
    window.open(run / "report.html", "#rollouts/5-7-3")
    window.until(f"{OPENED} && {CHOSEN} === '5-7-3'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(window: Browser, run: Path, width: int, scheme: str) -> None:
    window.look(width, scheme=scheme)
    for tab in TABS:
        window.open(run / "report.html", f"#{tab}")
        window.until("document.querySelector('.tab:not([hidden]) :is(.card, table, svg)')")
        wider = window.run(
            "return [...document.querySelectorAll('html, main, header, .group, .card, aside, pre, figure, .row .text')]"
            ".filter((node) => node.scrollWidth > node.clientWidth + 1)"
            ".filter((node) => getComputedStyle(node).overflowX !== 'hidden')"
            ".map((node) => node.tagName + '.' + node.className)"
        )
        assert wider == [], f"{tab} at {width}"
    assert window.complaints() == []
    window.look(1280)


def test_a_run_with_nothing_in_it_has_a_page(window: Browser, tmp_path: Path) -> None:
    folder = run_in(tmp_path / "bare", steps=1)
    for file in (folder / "rollouts").iterdir():
        file.unlink()
    (folder / "metrics.jsonl").write_text("")
    window.open(write_report(folder), "#curves")
    for tab in TABS:
        window.run("document.querySelector(`#tabs [data-tab=${arguments[0]}]`).click()", tab)
    assert "No rollouts" in window.run("return document.querySelector('.tab:not([hidden])').textContent")
    assert window.complaints() == []
