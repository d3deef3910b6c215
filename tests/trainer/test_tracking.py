"""What a run leaves: JSON that is JSON, and trackers that are asked for, real, silent and never in the way."""

from __future__ import annotations

import importlib.abc
import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer.display import Screen
from trainer.tracking import (
    Folders,
    Journal,
    Trackers,
    missing_trackers,
    open_trackers,
    rounded,
    run_id,
    wandb_mode,
    write_line,
)

ROOT = Path(__file__).resolve().parents[2]


def journal_in(folder: Path, out: io.StringIO, trackers: Trackers | None = None) -> Journal:
    """A journal that needs no tokenizer."""
    console = Console(file=out, width=80)
    return Journal(Folders(*[folder] * 4), None, Screen(console), 2, trackers or Trackers())  # type: ignore[arg-type]


class Kept:
    """A tracker that keeps what it is given; fails from the step `fails` on."""

    def __init__(self, fails: float = float("inf")) -> None:
        self.fails = fails
        self.steps: dict[int, Mapping[str, float]] = {}
        self.codes: list[int] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self.fails:
            raise OSError("the disk is full")
        self.steps[step] = metrics

    def close(self, code: int) -> None:
        self.codes.append(code)


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
    assert told["wandb"] == str(folder / "wandb")
    assert told["model"] == str(folder / "step_2" / "hf")


# ------------------------------------------------------------------ trackers in general


def test_trackers_get_what_was_measured_and_the_exit_code(tmp_path: Path) -> None:
    good, failed = Kept(), Kept()
    with Trackers({"good": good}) as trackers:
        journal_in(tmp_path, io.StringIO(), trackers).remember(1, {"a": 1, "b": float("nan")}, {"timing_s/step": 0.5})
    with pytest.raises(ValueError), Trackers({"failed": failed}):
        raise ValueError
    assert good.steps == {1: {"a": 1.0, "timing_s/step": 0.5}}
    assert (good.codes, failed.codes) == ([0], [1])


def test_a_tracker_that_fails_is_told_once_and_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Kept(fails=2), Kept()
    with caplog.at_level(logging.WARNING, "mopd"), Trackers({"bad": bad, "good": good}) as trackers:
        journal = journal_in(tmp_path, io.StringIO(), trackers)
        for step in (1, 2, 3):
            journal.remember(step, {}, {"timing_s/step": 0.5})
    assert [record.getMessage() for record in caplog.records] == [
        "bad failed and is switched off; metrics.jsonl goes on (OSError: the disk is full)"
    ]
    assert (list(bad.steps), list(good.steps)) == ([1], [1, 2, 3])
    assert (bad.codes, good.codes) == ([], [0])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_cannot_be_opened_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "mopd"):
        assert open_trackers(["tensorboard"], tmp_path, "mopd", {}).open == {}
    assert [record.getMessage()[:35] for record in caplog.records] == ["tensorboard failed and is switched "]


class Hiding(importlib.abc.MetaPathFinder):
    """Finds what the others find, but for some names."""

    def __init__(self, *hidden: str) -> None:
        self.hidden = hidden
        self.others = list(sys.meta_path)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in self.hidden:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.others if hasattr(finder, "find_spec"))
        return next((spec for spec in found if spec), None)


def test_a_tracker_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["console", "tensorboard", "wandb"]
    assert missing_trackers(names) == []
    for name in ("tensorboard", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hiding("wandb", "tensorboard")])
    assert missing_trackers(["console", "jsonl"]) == []
    assert missing_trackers(names) == [
        f"trainer.logger=[console,tensorboard,wandb]: {name} is not installed; "
        f"pip install -r {ROOT / 'requirements-trackers.txt'}, or leave it out"
        for name in ("tensorboard", "wandb")
    ]


def test_a_folder_of_that_name_is_not_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert len(missing_trackers(["wandb"])) == 1


# ------------------------------------------------------------------ TensorBoard, for real


def scalars(folder: Path, name: str) -> dict[int, float]:
    """The curve that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_reads_back_what_was_written_also_while_the_run_goes_on(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, "mopd", {}) as trackers:
        trackers.log({"step": 1, "critic/rewards/mean": 0.25, "actor/loss": None})
        assert scalars(tmp_path, "critic/rewards/mean") == {1: 0.25}
        trackers.log({"step": 2, "critic/rewards/mean": 0.5})
    assert scalars(tmp_path, "critic/rewards/mean") == {1: 0.25, 2: 0.5}


def test_a_resumed_run_goes_on_in_the_same_curve(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, "mopd", {}) as trackers:
        for step in (1, 2, 3):
            trackers.log({"step": step, "a": 0.25})
    time.sleep(1.1)  # event files are ordered by their second
    with open_trackers(["tensorboard"], tmp_path, "mopd", {}, first_step=3) as trackers:
        trackers.log({"step": 3, "a": 0.5})
    assert scalars(tmp_path, "a") == {1: 0.25, 2: 0.25, 3: 0.5}


# ------------------------------------------------------------------ wandb, for real


@pytest.mark.parametrize(
    ("environment", "entry", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k"}, "", "online"),
        ({}, "machine api.wandb.ai login user password k", "online"),
        ({}, "machine elsewhere.org login user password k", "offline"),
        ({"WANDB_BASE_URL": "https://elsewhere.org"}, "machine elsewhere.org login user password k", "online"),
        ({}, "not a netrc file", "offline"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "", "offline"),
        ({"WANDB_MODE": "online"}, "", "offline"),
        ({"WANDB_MODE": "disabled"}, "", "disabled"),
    ],
)
def test_wandb_is_online_only_with_a_key(environment: dict[str, str], entry: str, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text(entry)
    assert wandb_mode({**environment, "NETRC": str(file)}) == mode


def test_the_run_id_is_made_once(tmp_path: Path) -> None:
    first = run_id(tmp_path / "trackers.json")
    assert run_id(tmp_path / "trackers.json") == first
    assert run_id(tmp_path / "other.json") != first


SCRIPT = """
import logging, sys
from pathlib import Path
from trainer import tracking
logging.basicConfig(format="%(message)s")
tracking.NO_ANSWER_S = 2.0
with tracking.open_trackers({names}, Path(sys.argv[1]), "mopd", {{"data": {{"seed": 1}}}}) as trackers:
    trackers.log({{"step": 1, "critic/rewards/mean": 0.5}})
    assert list(trackers.open) == {open}, trackers.open
for name in ("wandb", "tensorboard"):
    assert (name in sys.modules) == (name in {names}), name
"""


def tracked(folder: Path, names: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A small run with these trackers in a process of its own, whose home is `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    script = SCRIPT.format(names=names, open=[name for name in names if name != "console"])
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        env={**kept, "HOME": str(folder / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_a_tracker_that_was_not_asked_for_is_not_imported(tmp_path: Path) -> None:
    done = tracked(tmp_path, ["console"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_wandb_is_silent_offline_and_stays_in_the_folder(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = tracked(tmp_path, ["wandb"], WANDB_BASE_URL=url)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]
    [kept] = tmp_path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb")
    assert b"critic/rewards/mean" in kept.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trackers.json", "wandb"]


@pytest.mark.slow
def test_with_a_key_and_a_server_that_never_answers_the_run_goes_on_offline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        done = tracked(tmp_path, ["wandb"], WANDB_BASE_URL=url, WANDB_API_KEY="k" * 40)
        assert time.monotonic() - started < 60
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"wandb does not answer; this run is kept in {tmp_path / 'wandb'} for `wandb sync`")
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
