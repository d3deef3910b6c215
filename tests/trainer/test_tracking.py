"""What a run leaves: JSON that is JSON, and where everything lies."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.trainer.kept_tracker import Kept
from trainer.display import Screen
from trainer.trackers.opening import Trackers
from trainer.tracking import Folders, Journal, rounded, write_line


def journal_in(folder: Path, out: io.StringIO, trackers: Trackers | None = None) -> Journal:
    """A journal that needs no tokenizer."""
    console = Console(file=out, width=80)
    return Journal(Folders(*[folder] * 4), None, Screen(console), 2, trackers or Trackers())  # type: ignore[arg-type]


# ------------------------------------------------------------------ the run's own files


def test_a_number_that_is_none_becomes_null_and_never_zero() -> None:
    file = io.StringIO()
    write_line(file, rounded({"a": float("nan"), "b": 1 / 3, "c": 3}))
    assert json.loads(file.getvalue()) == {"a": None, "b": 0.333333333, "c": 3}


def test_metrics_are_appended_a_line_a_step(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, io.StringIO())
    for step in (1, 2):
        journal.remember(step, {"critic/rewards/mean": 0.5}, {"timing_s/step": 0.1})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert journal.seconds_left(1) == pytest.approx(0.1)


def test_response_tokens_per_second_leave_out_validation_and_saving(tmp_path: Path) -> None:
    journal = journal_in(tmp_path, io.StringIO())
    journal.sampled = (160, 100)
    journal.remember(
        1, {}, {"timing_s/sample": 2.0, "timing_s/validate": 3.0, "timing_s/save": 1.0, "timing_s/step": 6.0}
    )
    journal.remember(2, {}, {"timing_s/step": 1.0})
    assert journal.history[0]["perf/response_tokens_per_s"] == 50
    assert journal.history[0]["perf/throughput"] == 80
    assert not any(name.startswith("perf/") for name in journal.history[1])


def test_the_farewell_names_every_place_on_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("long-name-" * 12)
    folder.mkdir()
    out = io.StringIO()
    journal = journal_in(folder, out, Trackers({"wandb": Kept()}))
    journal.remember(2, {"critic/rewards/mean": 0.25, "critic/success_rate": 0.5}, {"timing_s/step": 0.1})
    journal.farewell(folder / "step_2")
    lines = [line.split(maxsplit=1) for line in out.getvalue().splitlines()[1:]]
    told = dict(lines)
    assert told["steps"].startswith("2 of 2 in 0:00:0")
    assert "reward 0.250, success 50%" in told["last"]
    assert told["metrics"] == str(folder / "metrics.jsonl")
    assert told["wandb"] == "with the tests"
    assert told["model"] == str(folder / "step_2" / "hf")


def test_trackers_get_a_step_without_what_was_not_measured(tmp_path: Path) -> None:
    kept = Kept()
    with Trackers({"kept": kept}) as trackers:
        journal_in(tmp_path, io.StringIO(), trackers).remember(1, {"a": 1, "b": float("nan")}, {"timing_s/step": 0.5})
    assert kept.steps == {1: {"a": 1.0, "timing_s/step": 0.5}}
