"""The report in a real browser: what is shown, that nothing overflows, and that what a model says stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.browser import BROWSER, DRIVER, WHY_NOT, Browser, browser
from tests.trainer.report_runs import as_seen, pieces, run_in
from trainer import report
from trainer.recorded import Side, recorded_in
from trainer.report import write_report

pytestmark = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason=WHY_NOT)

TABS = ("curves", "validation", "time", "settings", "rollouts")
OPENED = "document.querySelector('.card.chosen')"
TIP = "(document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent)"
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
    page.point(".token", 3)
    told = page.until(TIP)
    assert "token 4 of" in told
    assert f"divergence {float(f'{values[3]:.4g}'):g}"[:14] in told
    assert "probability 0.607" in told


def lists_at(run: Path, at: int) -> list[list[tuple[str, str, bool]]]:
    """What the run recorded at a token of its first rollout: text, probability and whether it was sampled, by side."""
    with np.load(run / "rollouts/1.npz") as arrays:
        recorded, token = recorded_in(arrays)[0], int(arrays["token_ids"][at])
    columns = []
    for side in (recorded["student"], recorded["teacher"]):
        parts = np.rint(1000 * np.exp(side.logprobs[at].astype(float)))
        chances = [f"{part / 10:.1f}\u00a0%" if part else "<\u20090.1\u00a0%" for part in parts]
        texts = [quoted(chr(name)) for name in side.ids[at]]
        columns.append(list(zip(texts, chances, [int(name) == token for name in side.ids[at]], strict=True)))
    return columns


def columns_of(page: Browser) -> list[list[tuple[str, str, bool]]]:
    """The two lists of the tip as they are seen."""
    found = page.run(
        "return [...document.querySelectorAll('.likely > div')].map((side) => [...side.querySelectorAll('li')].map("
        "(row) => [row.querySelector('code').textContent, row.querySelector(':scope > span').textContent,"
        " row.className === 'own']))"
    )
    return [[(text, chance, own) for text, chance, own in side] for side in found]


def quoted(text: str) -> str:
    """A text as JSON has it, and as the page shows that."""
    half = "\ud800" <= text <= "\udfff"
    return as_seen(json.dumps(text, ensure_ascii=half))


def test_under_the_pointer_both_lists_are_told_with_the_sampled_token_marked(page: Browser, run: Path) -> None:
    for at in range(12):  # at two of these neither side lists the sampled token
        page.point(".token", at)
        page.until(f"{TIP}.includes('token {at + 1} of')")
        assert columns_of(page) == lists_at(run, at)
        assert ("none of these" in page.run(f"return {TIP}")) == (at % 6 == 5)
    assert page.run("return [...document.querySelectorAll('.likely h5')].map((node) => node.textContent)") == [
        "student",
        "teacher",
    ]
    page.point(".card.chosen .title")
    page.until("document.getElementById('tip').hidden")


def test_keys_and_a_finger_tell_the_same(page: Browser, run: Path) -> None:
    page.press("i")
    page.until(f"{TIP}.includes('token 1 of')")
    for key, number in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("Home", 1)):
        page.press(key)
        page.until(f"{TIP}.includes('token {number} of')")
    assert page.run(f"return {CHOSEN}") == "1-0-0"  # the arrows stay in the response
    page.press("Escape")
    page.until("document.getElementById('tip').hidden")
    page.press("ArrowRight")
    page.until(f"{OPENED} && {CHOSEN} === '1-1-0'")
    page.press("h")
    page.until(f"{CHOSEN} === '1-0-0'")
    at = 7
    page.tap(".token", at)
    page.until(f"{TIP}.includes('token {at + 1} of')")
    assert columns_of(page) == lists_at(run, at)
    page.tap(".card.chosen h4")
    page.until("document.getElementById('tip').hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_what_is_told_of_a_token_stays_in_the_window(window: Browser, run: Path, width: int, scheme: str) -> None:
    window.look(width, scheme=scheme)
    window.open(run / "report.html", "#rollouts")
    window.until(OPENED)
    for at in range(12):
        window.point(".token", at)
        window.until(f"{TIP}.includes('token {at + 1} of')")
        inside, ground, text = window.run(
            "const tip = document.getElementById('tip'), look = getComputedStyle(tip);"
            "const box = tip.getBoundingClientRect();"
            "return [box.left >= 0 && box.right <= document.documentElement.clientWidth && box.top >= 0 &&"
            " box.bottom <= innerHeight && tip.scrollWidth <= tip.clientWidth, look.backgroundColor, look.color]"
        )
        assert inside
    assert (brightness(ground) > brightness(text)) == (scheme == "light")
    window.look(1280)


def brightness(colour: str) -> float:
    """Of a computed colour, 0 to 255."""
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3


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
@pytest.mark.parametrize("width", [1280, 420, 390])
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


@pytest.mark.parametrize(
    ("mode", "sides", "shares", "seen"),
    [
        ("sdpo", ("student",), (0.35, 0.25), "student"),
        ("dpo", ("student", "teacher"), (0.35, 0.25), "student reference"),
        ("sdpo", ("student", "teacher"), (0.35, 0.0), "likeliest tokens: left out of this page"),
        ("sdpo", (), (0.35, 0.25), "likeliest tokens: not recorded"),
        ("sdpo", ("student", "teacher"), (0.0, 0.25), "Divergences and likeliest tokens: left out of this page"),
    ],
)
def test_the_page_says_whose_lists_it_has_and_why_it_has_none(
    window: Browser,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    sides: tuple[Side, ...],
    shares: tuple[float, float],
    seen: str,
) -> None:
    folder = run_in(tmp_path / "run", steps=1, groups=1, sides=sides)
    settings = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(settings.replace("loss_mode: sdpo", f"loss_mode: {mode}"))
    monkeypatch.setattr(report, "SHARES", dict(zip(("tokens", "likeliest"), shares, strict=True)))
    window.open(write_report(folder, pieces=pieces), "#rollouts")
    window.until(OPENED)
    if not shares[0]:
        assert window.run("return document.querySelectorAll('.token').length") == 0
        assert seen in window.run("return document.querySelector('.card.chosen').textContent")
        return
    window.point(".token", 1)
    told = window.until(TIP)
    titles = window.run("return [...document.querySelectorAll('.likely h5')].map((node) => node.textContent)")
    assert seen in (" ".join(titles) or told)
    assert window.complaints() == []


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


def test_an_interval_is_a_band_behind_its_curve_and_no_curve_of_its_own(window: Browser, tmp_path: Path) -> None:
    folder = run_in(tmp_path / "gauged", steps=1)
    values = [{"step": step, "gauges/auc": 0.5, "gauges/auc_low": 0.25, "gauges/auc_high": 0.75} for step in (1, 2)]
    lone = {"step": 3, "gauges/alone_low": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*values, lone]))
    window.open(write_report(folder), "#curves")
    names = "return [...document.querySelectorAll('.chart')].map((chart) => chart.title)"
    assert [name for name in window.run(names) if name.startswith("gauges/")] == ["gauges/alone_low", "gauges/auc"]
    window.until("document.querySelector('.chart[title=\"gauges/auc\"] .band')")
    boxes = (
        "[...document.querySelectorAll('.chart[title=\"gauges/auc\"] path:not(.rule)')].map((path) => path.getBBox())"
    )
    band, curve = window.run(f"return {boxes}.map((box) => [box.x, box.y, box.width, box.height])")
    assert band == pytest.approx([curve[0], 4, curve[2], 92], abs=0.1)
    assert curve[1] == pytest.approx(50, abs=0.1)
    assert window.complaints() == []


def test_a_step_without_an_interval_parts_the_band(window: Browser, tmp_path: Path) -> None:
    folder = run_in(tmp_path / "gapped", steps=1)
    values: list[dict[str, float]] = [{"step": step, "gauges/auc": 0.5} for step in range(1, 6)]
    for record in (value for value in values if value["step"] != 3):
        record |= {"gauges/auc_low": 0.25, "gauges/auc_high": 0.75}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in values))
    window.open(write_report(folder), "#curves")
    window.until("document.querySelector('.chart[title=\"gauges/auc\"] .band')")
    shape = window.run("return document.querySelector('.chart[title=\"gauges/auc\"] .band').getAttribute('d')")
    assert shape.count("M") == shape.count("Z") == 2
    assert window.complaints() == []
