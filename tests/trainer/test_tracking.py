"""What a run says and leaves: lines, tables, JSON that is JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from trainer.tracking import Folders, Journal, final_table, rounded, step_line, write_line

BEFORE = {"step": 0, "val-core/chain/acc/mean@8": 0.25, "val-core/chain/acc/pass@8": 0.75, "timing_s/step": 1.0}
AFTER = {"step": 9, "val-core/chain/acc/mean@8": 0.5, "val-core/chain/acc/pass@8": 1.0, "timing_s/step": 1.0}


def test_the_final_table_compares_the_first_and_the_last_validation() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(final_table([BEFORE, {"step": 5, "timing_s/step": 1.0}, AFTER]))
    [mean_line] = [line for line in out.getvalue().splitlines() if "mean@8" in line]
    assert [part.strip() for part in mean_line.strip("│ ").split("│")] == ["chain", "mean@8", "25.0", "50.0", "+25.0"]


def test_a_step_line_leaves_out_what_was_not_measured() -> None:
    line = step_line({"step": 3, "critic/rewards/mean": None, "timing_s/step": 2.0}, 10, 14.0)
    assert line == "step  3/10  2.0 s  14 s left"


def test_a_number_that_is_none_becomes_null_and_never_zero() -> None:
    file = io.StringIO()
    write_line(file, rounded({"a": float("nan"), "b": 1 / 3, "c": 3}))
    assert json.loads(file.getvalue()) == {"a": None, "b": 0.333333333, "c": 3}


def test_metrics_are_appended_a_line_a_step(tmp_path: Path) -> None:
    journal = Journal(Folders(*[tmp_path] * 4), renderer=None, console=Console(file=io.StringIO()), last_step=2)  # type: ignore[arg-type]
    for step in (1, 2):
        journal.remember(step, {"critic/rewards/mean": 0.5}, {"timing_s/step": 0.1})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert journal.seconds_left(1) == pytest.approx(0.1)
