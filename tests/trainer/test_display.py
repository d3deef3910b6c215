"""What a person sees: readable at 80 and at 140 columns, whole after an error, plain where there is no terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from rich.console import Console

from trainer.display import LiveScreen, Screen, clock_time, final_table, open_screen, step_line
from trainer.loop import Clock, PhaseError

ROOT = Path(__file__).resolve().parents[2]
MOPD = {
    "step": 7,
    "critic/rewards/mean": 0.3671875,
    "critic/success_rate": 0.36,
    "self_distillation/reprompt_sample_fraction": 1.0,
    "self_distillation/divergence": 0.0066,
    "actor/grad_norm": 0.05,
    "perf/response_tokens_per_s": 123456.7,
    "timing_s/step": 12.34,
}
GRPO = {name: value for name, value in MOPD.items() if not name.startswith("self_distillation/")}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def validated(step: int, mean: float, sources: Sequence[str] = ("chain",)) -> dict[str, Any]:
    """A step with held-out quality."""
    scores = {f"val-core/{source}/acc/{name}@8": mean for source in sources for name in ("mean", "pass")}
    return {"step": step, **scores, "timing_s/step": 1.0}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(width: int, records: Sequence[dict[str, Any]], height: int = 24) -> list[str]:
    """The lines of the live display after these steps, of 60, in the phase `learn`."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    screen = LiveScreen(console)
    for record in records:
        screen.step(record, 60, 65.4)
    screen.phase(8, 60, "learn")
    return ["".join(part.text for part in line) for line in console.render_lines(screen.panel(), pad=False)]


# ------------------------------------------------------------------ the live display


@pytest.mark.parametrize("width", [80, 140])
def test_everything_is_shown_unbroken_at_both_widths(width: int) -> None:
    lines = drawn(width, [validated(0, 0.25), validated(5, 0.5), MOPD])
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for shown in ("step 8/60", "0:01:05 left", "learn  0 s", "held-out, per cent", "step 0", "step 5", "+25.0"):
        assert shown in text
    [headings] = [line for line in lines if "reward" in line]
    assert headings.strip("│ ").split("  ") == [
        "reward", "success", "usable views", "divergence", "tokens/s", "step time"
    ]  # fmt: skip
    values = lines[lines.index(headings) + 1]
    assert values.strip("│ ").split() == ["0.367", "36%", "100%", "0.0066", "123,457", "12.3", "s"]


@pytest.mark.parametrize("width", [80, 140])
def test_many_data_sources_fit_into_24_lines_and_the_rest_is_counted(width: int) -> None:
    sources = [f"{number}-a-data-source-with-{'a-very-' * 10}long/name" for number in range(20)]
    lines = drawn(width, [validated(0, 0.25, sources), validated(5, 0.5, sources), MOPD])
    assert len(lines) <= 24
    assert all(len(line) <= width for line in lines)
    shown = sum(bool(re.search(r"[@]8 +25\.0 +50\.0 +[+]25\.0", line)) for line in lines)
    assert 1 < shown < 40
    assert any(f"{40 - shown} more" in line for line in lines)


def test_what_a_method_does_not_measure_is_absent() -> None:
    text = "\n".join(drawn(80, [{**GRPO, "critic/rewards/mean": None}]))
    assert "success" in text
    for absent in ("reward", "usable", "divergence", "held-out", "0.000"):
        assert absent not in text


def test_the_start_is_told_with_its_seconds() -> None:
    screen = LiveScreen(Console(file=io.StringIO(), width=80, force_terminal=True))
    screen.stage("starting Ray")
    screen.since -= 9
    out = io.StringIO()
    Console(file=out, width=80).print(screen.panel())
    assert "starting Ray  9 s" in out.getvalue()


def test_held_out_quality_stays_on_the_screen_as_a_line() -> None:
    out = Terminal()
    screen = LiveScreen(Console(file=out, width=80, force_terminal=True))
    screen.step(MOPD, 60, 1.0)
    screen.step({**MOPD, **validated(10, 0.5)}, 60, 1.0)
    assert out.getvalue().splitlines() == ["step 10/60  chain mean@8 50.0 pass@8 50.0"]


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def sequences() -> set[str]:
        out = Terminal()
        console = Console(file=out, width=80, force_terminal=True, color_system="standard")
        screen = LiveScreen(console)
        screen.step(MOPD, 60, 1.0)
        screen.phase(8, 60, "learn")
        console.print(screen.panel())
        return set(re.findall(r"\x1b\[([0-9;]*)m", out.getvalue()))

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = re.compile(r"(^|;)(3|4|9|10)\d")
    assert any(coloured.search(found) for found in sequences())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any(coloured.search(found) for found in sequences())


# ------------------------------------------------------------------ which of the two


@pytest.mark.parametrize(
    ("stream", "environment", "steps", "kind"),
    [
        (Terminal(), {"TERM": "xterm-256color"}, True, LiveScreen),
        (Terminal(), {"TERM": "dumb"}, True, Screen),
        (Terminal(), {}, True, Screen),
        (Terminal(), {"TERM": "xterm-256color"}, False, Screen),
        (io.StringIO(), {"TERM": "xterm-256color", "FORCE_COLOR": "1"}, True, Screen),
    ],
    ids=["terminal", "dumb", "no TERM", "no console", "pipe"],
)
def test_only_a_terminal_that_can_redraw_gets_the_live_display(
    stream: io.StringIO, environment: dict[str, str], steps: bool, kind: type[Screen]
) -> None:
    assert type(open_screen(stream, environment, steps=steps)) is kind


# ------------------------------------------------------------------ plain lines


def test_without_a_terminal_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with open_screen(out, os.environ, steps=True) as screen:
        screen.stage("starting Ray")
        screen.phase(0, 60, "validate")
        screen.step(validated(0, 0.25), 60, 1.0)
        screen.phase(1, 60, "sample")
        screen.step(MOPD, 60, 65.4)
        screen.say(f"a {'very/' * 40}long/path")
        screen.show(final_table([validated(0, 0.25), validated(60, 0.5)]))
    text = out.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    lines = text.splitlines()
    assert lines[:2] == ["  starting Ray ...", "  ready after 0 s"]
    assert lines[2] == "step  0/60    1.0 s  0:00:01 left  chain mean@8 25.0 pass@8 25.0"
    assert lines[3].startswith("step  7/60  reward 0.367  success  36%  usable 100%  divergence 0.0066")
    assert lines[4] == f"a {'very/' * 40}long/path"


def test_without_the_console_steps_are_not_shown_but_the_start_is() -> None:
    out = io.StringIO()
    screen = open_screen(out, {}, steps=False)
    screen.stage("starting Ray")
    screen.step(MOPD, 60, 1.0)
    assert out.getvalue().splitlines() == ["  starting Ray ..."]


def test_plain_lines_are_aligned() -> None:
    small = {**MOPD, "step": 12, "critic/success_rate": 0.0, "perf/response_tokens_per_s": 9.0, "timing_s/step": 1.0}
    large = {**MOPD, "step": 1, "critic/success_rate": 1.0}
    lines = [step_line(record, 100, 60.0) for record in (small, large)]
    columns = [[found.start() for found in re.finditer("[a-z]", line)] for line in lines]
    assert columns[0] == columns[1]


def test_a_plain_line_leaves_out_what_was_not_measured() -> None:
    line = step_line({"step": 3, "critic/rewards/mean": None, "timing_s/step": 2.0}, 10, 14.0)
    assert line == "step  3/10    2.0 s  0:00:14 left"


def test_seconds_become_hours_minutes_and_seconds() -> None:
    assert [clock_time(seconds) for seconds in (0.4, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


# ------------------------------------------------------------------ the final table


def printed(table: Any, width: int = 80) -> list[list[str]]:
    """The cells of a table, by line."""
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    lines = [line for line in out.getvalue().splitlines() if re.match("[│┃]", line)]
    return [[cell.strip() for cell in re.split("[│┃]", line.strip("│┃"))] for line in lines]


def test_the_final_table_compares_the_first_and_the_last_validation() -> None:
    table = final_table([validated(0, 0.25), MOPD, validated(5, 0.3), validated(9, 0.5)])
    assert printed(table) == [
        ["data source", "metric", "before", "after", "gain"],
        ["chain", "mean@8", "25.0", "50.0", "+25.0"],
        ["chain", "pass@8", "25.0", "50.0", "+25.0"],
    ]


def test_a_single_validation_has_no_gain_and_none_has_no_table() -> None:
    assert printed(final_table([MOPD, validated(9, 0.5)]))[1] == ["chain", "mean@8", "50.0"]
    assert final_table([MOPD]) is None


def test_a_source_that_was_not_measured_before_has_no_gain() -> None:
    first = {**validated(0, 0.25, ["org/a[x]", "b"]), "val-core/b/acc/mean@8": None}
    rows = printed(final_table([first, validated(9, 0.5, ["org/a[x]", "b"])]))
    assert ["org/a[x]", "mean@8", "25.0", "50.0", "+25.0"] in rows
    assert ["b", "mean@8", "", "50.0", ""] in rows


# ------------------------------------------------------------------ phases


def test_the_clock_tells_when_a_phase_begins_and_names_it_in_errors() -> None:
    begun: list[tuple[int, str]] = []

    def failing() -> None:
        assert begun == [(3, "sample")]
        raise ValueError("inner")

    clock = Clock(3, lambda step, phase: begun.append((step, phase)))
    with pytest.raises(PhaseError, match="step 3, sample: inner"), clock.turn("sample"):
        failing()


# ------------------------------------------------------------------ in a real terminal

RUN = """
import os, sys, time
from trainer.display import open_screen
record = {record!r}
with open_screen(sys.stdout, os.environ, steps=True) as screen:
    screen.stage("starting Ray")
    time.sleep(0.4)
    for step in range(1, 4):
        screen.phase(step, 3, "sample")
        os.write(2, b"words of a C library " * 8 + b"\\n")
        print("words of a Python library")
        time.sleep(0.4)
        screen.step({{**record, "step": step}}, 3, 1.0)
    os.write(2, b"last words")
    {end}
print("after the display")
"""


def in_terminal(end: str, columns: int, rows: int, key: bytes = b"") -> str:
    """Runs a small run in a terminal of this size; all that it wrote."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.format(record=MOPD, end=end)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env={**kept, "TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    said = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and select.select([leader], [], [], 60)[0]:
        try:
            said += os.read(leader, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if key and b"last words" in said:
            os.write(leader, key)
            key = b""
    os.close(leader)
    process.wait(timeout=60)
    return said.decode()


def assert_whole(said: str, columns: int) -> None:
    """The cursor is shown again, no drawn line is wider than the terminal, and nothing was written into one."""
    assert "\x1b[?25l" in said
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l")
    lines = re.split(r"[\r\n]+", ESCAPE.sub("", said))
    for line in lines:
        assert len(line) <= columns
        if "words of a" in line:
            assert "│" not in line
    framed = [line for line in lines if line.startswith(("│", "╭", "╰"))]
    assert {len(line) for line in framed} == {min(columns, 100)}


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (140, 40)])
def test_a_terminal_is_drawn_whole_and_given_back(columns: int, rows: int) -> None:
    said = in_terminal("pass", columns, rows)
    assert_whole(said, columns)
    plain = ESCAPE.sub("", said)
    for shown in ("starting Ray", "step 2/3", "sample", "0.0066", "words of a C library", "words of a Python library"):
        assert shown in plain
    assert plain.index("last words") < plain.index("after the display")


def test_an_error_is_printed_below_the_display() -> None:
    said = in_terminal("raise ValueError('the failure')", 80, 24)
    restored = said.rfind("\x1b[?25h")
    assert said.rfind("╰") < restored < said.index("Traceback") < said.index("ValueError: the failure")
    assert said.rfind("last words") > said.rfind("╰")


def test_control_c_gives_the_terminal_back() -> None:
    end = 'os.write(screen.chatter.terminal, b"last words\\n")\n    time.sleep(30)'
    said = in_terminal(end, 80, 24, key=b"\x03")
    assert said.rfind("\x1b[?25h") < said.index("KeyboardInterrupt")
    assert "after the display" not in said
