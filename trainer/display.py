"""What a person sees of a run: a live display in a terminal, plain lines anywhere else."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

log = logging.getLogger("mopd")

Record = Mapping[str, Any]
"""A step as `metrics.jsonl` has it; what was not measured is absent or None."""


class Figure(NamedTuple):
    """How a metric is shown."""

    heading: str
    """In the live display; empty: only in plain lines."""
    form: str
    plain: str
    """In a plain line, as wide for every step."""


FIGURES = {
    "critic/rewards/mean": Figure("reward", "{:.3f}", "reward {}"),
    "critic/success_rate": Figure("success", "{:.0%}", "success {:>4}"),
    "self_distillation/reprompt_sample_fraction": Figure("usable views", "{:.0%}", "usable {:>4}"),
    "self_distillation/divergence": Figure("divergence", "{:.4f}", "divergence {}"),
    "actor/grad_norm": Figure("", "{:.2f}", "grad {}"),
    "rollout_corr/publish_max_abs_diff": Figure("", "{:.0e}", "sync {}"),
    "perf/response_tokens_per_s": Figure("tokens/s", "{:,.0f}", "{:>7} tokens/s"),
    "timing_s/step": Figure("step time", "{:.1f} s", "{:>7}"),
}
"""What is shown of a step, in this order."""
HELD_OUT = "val-core/"
TICK_S = 0.25
"""The live display is drawn anew this often."""
WIDEST = 100
"""Columns beyond these stay empty: figures far apart are hard to compare."""
LONGEST_NAME = 32
"""A longer name of a data source is cut, so that 80 columns hold the figures behind it."""
FRAME_LINES = 11
"""Lines of the live display besides the rows of held-out quality."""


def open_screen(stream: TextIO, environment: Mapping[str, str], *, steps: bool) -> Screen:
    """A live display where `stream` is a terminal that can redraw; plain lines elsewhere.

    Without `steps` the run's steps are not shown at all; what starts and what comes out is.
    """
    heard = cast(TextIO, Unbroken(stream))
    if steps and stream.isatty() and environment.get("TERM", "dumb") not in ("dumb", "unknown"):
        return LiveScreen(Console(file=heard, force_terminal=True, highlight=False))
    return Screen(Console(file=heard, force_terminal=False, color_system=None, highlight=False), steps=steps)


class Unbroken:
    """A stream whose reader may go away, or whose disk may be full: from then on it swallows what it is given.

    No run ends for want of a listener; everything that counts is in its files.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Takes a text, heard or not."""
        try:
            self.stream.write(text)
        except OSError as error:
            self.swallow(error)
        return len(text)

    def flush(self) -> None:
        """Hands on what was taken."""
        try:
            self.stream.flush()
        except OSError as error:
            self.swallow(error)

    def swallow(self, error: OSError) -> None:
        """Turns the stream away, so that what it still holds can be written when the process ends."""
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())
        log.warning("what the run tells cannot be written (%s); it goes on, and its files have it all", error)


class Screen:
    """Plain lines: one for every step of the start and of the run, without control characters."""

    def __init__(self, console: Console, *, steps: bool = True) -> None:
        self.console = console
        self.steps = steps
        self.started = time.monotonic()
        self.runs = False
        """True once the first phase has begun."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(keep=kind is not None)

    def close(self, *, keep: bool = False) -> None:
        """Gives the terminal back; `keep` leaves the last state of a live display where it is."""

    def say(self, text: str) -> None:
        """A line that stays. Where it is too long the terminal wraps it, not we: so that paths can be copied."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """A table that stays."""
        self.console.print(table)

    def stage(self, doing: str) -> None:
        """Something begins that takes seconds before the first step."""
        self.say(f"  {doing} ...")

    def phase(self, step: int, last_step: int, name: str) -> None:
        """A phase of a step begins."""
        if not self.runs:
            self.runs = True
            self.say(f"  ready after {time.monotonic() - self.started:.0f} s")

    def step(self, record: Record, last_step: int, seconds_left: float) -> None:
        """A step is done."""
        if self.steps:
            self.say(step_line(record, last_step, seconds_left))


class LiveScreen(Screen):
    """A panel that is redrawn at the bottom of a terminal; lines that stay go above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.doing, self.since = "starting", self.started
        self.now: tuple[int, int] | None = None
        """The step, and the last one."""
        self.record: Record | None = None
        self.first: Record | None = None
        self.latest: Record | None = None
        """The first and the latest records with held-out quality."""
        self.ends = math.nan
        """When the last step is expected to be done."""
        self.live = Live(
            get_renderable=self.panel,
            console=console,
            auto_refresh=False,
            vertical_overflow="crop",
            redirect_stderr=False,
        )
        self.chatter: Chatter | None = None
        self.closing = threading.Event()
        self.ticker = threading.Thread(target=self.tick, name="display", daemon=True)

    def __enter__(self) -> Self:
        if os.isatty(2):
            self.chatter = Chatter()
        self.live.start(refresh=True)
        self.ticker.start()
        return self

    def close(self, *, keep: bool = False) -> None:
        """Stops drawing, shows the cursor again and gives stderr back; a second call does nothing."""
        if self.closing.is_set():
            return
        self.closing.set()
        try:
            self.ticker.join()
            self.live.transient = not keep
            self.live.stop()
        finally:
            if self.chatter:
                self.chatter.release()

    def tick(self) -> None:
        """Draws until closed."""
        while not self.closing.wait(TICK_S):
            for line in self.chatter.lines() if self.chatter else ():
                self.console.print(Text.from_ansi(line))
            self.live.refresh()

    def stage(self, doing: str) -> None:
        """Says in the panel what is going on."""
        self.doing, self.since = doing, time.monotonic()

    def phase(self, step: int, last_step: int, name: str) -> None:
        """Says in the panel which phase of which step it is."""
        self.now = (step, last_step)
        self.stage(name)

    def step(self, record: Record, last_step: int, seconds_left: float) -> None:
        """Takes over a step's figures; held-out quality also stays as a line."""
        self.record = record
        self.ends = time.monotonic() + seconds_left
        if any(held_out(record)):
            self.first, self.latest = self.first or record, record
            self.say(step_line({name: record[name] for name in record if name not in FIGURES}, last_step, math.nan))

    def panel(self) -> RenderableType:
        """The display at this moment."""
        rows: list[RenderableType] = [self.progress(*self.now)] if self.now else []
        rows.append(self.activity())
        if self.record and any(measured(self.record)):
            rows += ["", figures_table(self.record)]
        if self.first and self.latest:
            rows += ["", quality_table(self.first, self.latest, self.console.height - FRAME_LINES)]
        width = min(self.console.width, WIDEST)
        return Panel(Group(*rows), title="mopd", title_align="left", width=width, border_style="dim")

    def progress(self, step: int, last: int) -> Table:
        """Steps done, as a bar, and the time left."""
        done = self.record["step"] if self.record else 0
        left = self.ends - time.monotonic()
        line = Table.grid(expand=True, padding=(0, 2, 0, 0))
        for ratio in (None, 1, None):
            line.add_column(ratio=ratio, no_wrap=True)
        remaining = f"{clock_time(max(left, 0))} left" if done and math.isfinite(left) else ""
        line.add_row(f"step {step}/{last}", ProgressBar(total=last, completed=done), remaining)
        return line

    def activity(self) -> Table:
        """What is going on and for how long."""
        now = time.monotonic()
        line = Table.grid(expand=True)
        line.add_column(ratio=1, no_wrap=True)
        line.add_column(justify="right", no_wrap=True)
        doing = Text.assemble((self.doing, "bold"), f"  {now - self.since:.0f} s")
        line.add_row(doing, Text(f"{clock_time(now - self.started)} since the start", "dim"))
        return line


class Chatter:
    """What anything in this process, C libraries too, writes to stderr meanwhile: kept, and handed out by line."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the display
        self.read = 0
        self.terminal = os.dup(2)
        os.dup2(self.file.fileno(), 2)

    def lines(self) -> list[str]:
        """Whole lines that have come since the last call."""
        fresh = os.pread(self.file.fileno(), 1 << 20, self.read)
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.read += len(whole)
        return whole.decode(errors="replace").splitlines()

    def release(self) -> None:
        """Gives stderr back, and to it what has not been handed out."""
        os.dup2(self.terminal, 2)
        os.close(self.terminal)
        while rest := os.pread(self.file.fileno(), 1 << 20, self.read):
            self.read += os.write(2, rest)
        self.file.close()


def measured(record: Record) -> Iterator[tuple[Figure, str]]:
    """Every figure that was measured, with its text."""
    for name, figure in FIGURES.items():
        if record.get(name) is not None:
            yield figure, figure.form.format(record[name])


def held_out(record: Record) -> Iterator[tuple[str, str, float]]:
    """Data source, metric and per cent of every held-out figure that was measured; a source's name may have slashes."""
    for name, value in record.items():
        if name.startswith(HELD_OUT) and value is not None:
            source, _, metric = name.removeprefix(HELD_OUT).rsplit("/", 2)
            yield source, metric, 100 * float(value)


def clock_time(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def step_line(record: Record, last_step: int, seconds_left: float) -> str:
    """A step in one line; without what was not measured."""
    parts = [f"step {record['step']:>{len(str(last_step))}}/{last_step}"]
    parts += [figure.plain.format(text) for figure, text in measured(record)]
    if record["step"] < last_step and math.isfinite(seconds_left):
        parts.append(f"{clock_time(seconds_left)} left")
    sources: dict[str, list[str]] = {}
    for source, metric, value in held_out(record):
        sources.setdefault(source, []).append(f"{metric} {value:.1f}")
    parts += [f"{source} {' '.join(values)}" for source, values in sources.items()]
    return "  ".join(parts)


def figures_table(record: Record) -> Table:
    """The figures of a step under their headings."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    shown = [(figure.heading, text) for figure, text in measured(record) if figure.heading]
    for heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(*(text for _, text in shown))
    return table


def quality(first: Record, latest: Record) -> list[tuple[str, ...]]:
    """Data source, metric, quality then and now in per cent, gain; of a single validation no gain."""
    before = {(source, metric): value for source, metric, value in held_out(first)}
    rows: list[tuple[str, ...]] = []
    for source, metric, now in held_out(latest):
        then = before.get((source, metric))
        if first is latest:
            rows.append((source, metric, f"{now:.1f}"))
        elif then is None:
            rows.append((source, metric, "", f"{now:.1f}", ""))
        else:
            rows.append((source, metric, f"{then:.1f}", f"{now:.1f}", f"{now - then:+.1f}"))
    return rows


def quality_table(first: Record, latest: Record, room: int) -> Table:
    """Held-out quality for the live display; what has no room is counted."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    headings = (
        [f"step {latest['step']}"] if first is latest else [f"step {first['step']}", f"step {latest['step']}", "gain"]
    )
    add_columns(table, "held-out, per cent", headings)
    rows = quality(first, latest)
    shown = rows if len(rows) <= room else rows[: max(room - 1, 0)]
    for row in shown:
        table.add_row(*map(Text, row))  # no markup: a name may have brackets
    if len(shown) < len(rows):
        table.add_row(f"{len(rows) - len(shown)} more")
    return table


def final_table(history: Sequence[Record]) -> Table | None:
    """Held-out quality before and after; None where it was never measured."""
    validated = [record for record in history if any(held_out(record))]
    if not validated:
        return None
    first, last = validated[0], validated[-1]
    table = Table(title="held-out quality, per cent")
    table.caption = f"step {last['step']}" if first is last else f"steps {first['step']} and {last['step']}"
    add_columns(table, "data source", ["after"] if first is last else ["before", "after", "gain"])
    for row in quality(first, last):
        table.add_row(*map(Text, row))  # no markup: a name may have brackets
    return table


def add_columns(table: Table, name: str, numbers: Sequence[str]) -> None:
    """A column of names, one of metrics, and columns of numbers; only a name is ever shortened."""
    table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=LONGEST_NAME)
    table.add_column("metric", no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)


def summary(history: Sequence[Record], last_step: int, seconds: float) -> dict[str, str]:
    """How the run went, by name."""
    steps = [record for record in history if record["step"]]
    last: Record = steps[-1] if steps else {"step": 0}
    reward = [f"{figure.heading} {text}" for figure, text in measured(last) if figure.heading in ("reward", "success")]
    told = {"steps": f"{last['step']} of {last_step} in {clock_time(seconds)}"}
    return told | ({"last step": ", ".join(reward)} if reward else {})
