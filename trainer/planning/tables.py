"""A plan as tables that fit eighty columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.planning.costs import GIB
from trainer.planning.estimate import Holder
from trainer.planning.planned import Plan

CELL = 22
"""Characters of a value that are shown."""


def show(plan: Plan, console: Console, *, every_setting: bool) -> None:
    """Prints the whole plan; what could not be computed is left out."""
    machine = plan.machine
    device = f"{machine.gpus} x {machine.device.name}" if machine.gpus else "CPU"
    where = "as described" if machine.elsewhere else "this machine"
    console.print(f"plan: method {plan.method}, on {device}, {machine.device.memory / GIB:.0f} GiB ({where})")
    for settings in settings_tables(plan, every_setting):
        console.print(settings)
    for table in (context_table(plan), packing_table(plan), memory_table(plan)):
        if table is not None:
            console.print(table)
    if plan.costs:
        console.print(cost_table(plan))
        console.print(
            "Estimates: no stragglers, no start-up, no verifier; docs/planning.md has the assumptions.", style="dim"
        )
    for note in plan.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    if plan.problems:
        count = len(plan.problems)
        console.print("1 problem:" if count == 1 else f"{count} problems:", style="red")
        for problem in plan.problems:
            console.print(Text(f"  - {problem}", style="red"), soft_wrap=True)
    else:
        console.print("This run can start.")


def settings_tables(plan: Plan, every: bool) -> Iterator[Table]:
    """Settings that stand out, or all, with their defaults and where they come from: a table for every section."""
    chosen = [setting for setting in plan.settings if every or setting.stands_out]
    for section, settings in groupby(chosen, key=lambda setting: setting.key.rpartition(".")[0]):
        table = Table(title=section or "all", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for heading, width in (("setting", 36), ("value", 14), ("default", 10), ("from", 17)):
            table.add_column(heading, width=width, overflow="fold")
        for setting in settings:
            name = setting.key.rpartition(".")[2]
            table.add_row(name, cell(setting.value), cell(setting.default), setting.origin)
        yield table


def cell(value: Any) -> str:
    """A value in a few characters; of a long one the end, where paths differ."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = text.replace("\n", "\\n").replace("[", "\\[")
    return text if len(text) <= CELL else f"...{text[3 - CELL :]}"


def context_table(plan: Plan) -> Table | None:
    """Tokens of prompts, and what becomes of peers."""
    if plan.prompts is None:
        return None
    columns = [f"responses of {context.response:,}" for context in plan.contexts] or ["any response"]
    table = Table("tokens", *columns, title="Context budget", title_justify="left")
    span = f"{plan.prompts.least:,} to {plan.prompts.most:,}, mean {plan.prompts.mean:,.0f}"
    table.add_row("student's prompts", *[span] * len(columns))
    table.add_row("of these over the limit, left out", *[f"{plan.left_out:,}"] * len(columns))
    if plan.contexts:
        every = plan.contexts
        lengths = [f"{one.lengths.least:,} to {one.lengths.most:,}" for one in every]
        table.add_row("teacher's prompts", *lengths)
        table.add_row("peers to show", *[f"{one.peers:,} in {one.prompts} prompts" for one in every])
        table.add_row("peers cut to fit", *[f"{one.cut:,}" for one in every])
        table.add_row("peers dropped", *[f"{one.dropped:,}" for one in every])
        if any(one.stopped for one in every):
            table.add_row("prompts that stop the run", *[f"{one.stopped:,}" for one in every])
    return table


def packing_table(plan: Plan) -> Table | None:
    """How a step's rollouts are cut."""
    if not plan.packing:
        return None
    columns = [f"responses of {one.response:,}" for one in plan.packing]
    table = Table("a step", *columns, title="Packing", title_justify="left")
    table.add_row("rollouts", *[f"{one.rollouts:,}" for one in plan.packing])
    table.add_row(
        "optimiser steps", *[f"{one.optimizer_steps} of {one.per_optimizer_step:,} rollouts" for one in plan.packing]
    )
    table.add_row(
        "micro-batches of a rank", *[f"{one.micro_batches}, of {one.largest} rollouts at most" for one in plan.packing]
    )
    table.add_row("tokens forwarded", *[f"{one.forwarded_tokens:,}" for one in plan.packing])
    saved = [f"{one.forwarded_tokens / one.asked_tokens - 1:+.0%}" for one in plan.packing]
    table.add_row("against every rollout alone", *saved)
    return table


def memory_table(plan: Plan) -> Table | None:
    """What every process holds at its peak, in GiB."""
    if not plan.memory:
        return None
    table = Table("GiB at the peak", "part", "needs", "has", title="Memory", title_justify="left")
    seen: dict[str, Holder] = {}
    for holder in plan.memory:
        alike = next((name for name, other in seen.items() if other.parts == holder.parts), None)
        add_holder(table, holder, alike)
        seen[holder.name] = holder
    table.caption = f"The sampler's cache holds {plan.cache_tokens:,.0f} tokens."
    table.caption_justify = "left"
    return table


def add_holder(table: Table, holder: Holder, alike: str | None) -> None:
    """The rows of one process; of one that needs what another does, the total alone."""
    shown = {} if alike else holder.parts
    for number, (part, size) in enumerate(shown.items()):
        table.add_row("" if number else holder.name, part, f"{size / GIB:.2f}", "")
    limit = f"{max(holder.limit, 0) / GIB:.1f}" if holder.limit else "?"
    mark = "bold" if holder.total <= holder.limit else "bold red"
    total = Text(f"{holder.total / GIB:.2f}", mark)
    table.add_row("" if shown else holder.name, Text("total", mark), total, limit, end_section=True)


def cost_table(plan: Plan) -> Table:
    """Seconds of a step by phase; the largest is marked."""
    columns = [f"responses of {one.response:,}" for one in plan.costs]
    table = Table(
        "seconds", *columns, title=f"Expected cost of a step ({plan.machine.device.name})", title_justify="left"
    )
    largest = [max(one.seconds.values()) for one in plan.costs]
    for phase in plan.costs[0].seconds:
        values = [(one.seconds[phase], most) for one, most in zip(plan.costs, largest, strict=True)]
        table.add_row(phase, *[Text(f"{value:,.2f}", "bold" if value == most else "") for value, most in values])
    table.add_section()
    table.add_row("the step", *[f"{one.total:,.1f}" for one in plan.costs])
    dominant = [max(one.seconds, key=lambda phase, one=one: one.seconds[phase]) for one in plan.costs]  # type: ignore[misc]
    table.add_row("most of it", *dominant)
    table.add_row("tokens sampled", *[f"{one.sampled_tokens:,}" for one in plan.costs])
    table.add_row("rollouts drawn at once", *[f"{one.at_once:,}" for one in plan.costs])
    return table
