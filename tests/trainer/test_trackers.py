"""Trackers: asked for by name, going on where they were, and never in a run's way."""

from __future__ import annotations

import importlib.abc
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.kept_tracker import Kept, line
from trainer.trackers import opening
from trainer.trackers.aside import LONGEST_QUEUE, Aside
from trainer.trackers.base import SHOWN_CHARACTERS, SHOWN_ROLLOUTS, Memory, Run, sample_of, told
from trainer.trackers.opening import Trackers, missing_trackers, open_trackers

ROOT = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------ all of them


def test_trackers_get_the_exit_code() -> None:
    good, failed = Kept(), Kept()
    with Trackers({"good": good}):
        pass
    with pytest.raises(ValueError), Trackers({"failed": failed}):
        raise ValueError
    assert (good.codes, failed.codes) == ([0], [1])


def test_a_tracker_that_fails_is_told_once_and_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Kept(fails=2), Kept()
    with caplog.at_level(logging.WARNING, "mopd"), Trackers({"bad": bad, "good": good}) as trackers:
        for step in (1, 2, 3):
            trackers.rollouts(step, [line()])
            trackers.log({"step": step, "timing_s/step": 0.5})
    assert [record.getMessage() for record in caplog.records] == [
        "bad failed and is switched off; metrics.jsonl goes on (OSError: the disk is full)"
    ]
    assert (list(bad.steps), list(good.steps), list(good.samples)) == ([1], [1, 2, 3], [1, 2, 3])
    assert (bad.codes, good.codes) == ([], [0])


def test_a_tracker_that_cannot_be_opened_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    (tmp_path / "mlflow").write_text("and another")
    with caplog.at_level(logging.WARNING, "mopd"):
        assert open_trackers(["tensorboard", "mlflow"], Run(tmp_path, "mopd", {})).open == {}
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" and is ")[0] for message in messages] == ["tensorboard failed", "mlflow failed"]


def test_a_sample_is_bounded_and_can_be_written_anywhere() -> None:
    long, odd = "a" * 5000 + "the end", "half a surrogate \ud800"
    first, second, *rest = sample_of([line(output=long), line(output=odd, score=None), *[line()] * 1000])
    assert len(rest) + 2 == SHOWN_ROLLOUTS
    assert len(first["response"]) <= SHOWN_CHARACTERS
    assert first["response"].startswith("aaa")
    assert first["response"].endswith("the end")
    assert second["response"].encode() == b"half a surrogate \\ud800"
    assert (second["reward"], second["verdict"], second["teacher prompt"]) == (None, "right", "peers")


def test_an_error_tells_no_password_and_is_one_short_line() -> None:
    error = OSError("https://user:secret@host.org/api does not answer\nat all" + "." * 1000)
    assert told(error) == "OSError: https://host.org/api does not answer"
    assert len(told(OSError("." * 1000))) < 300


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
    names = ["console", *opening.NAMES]
    assert missing_trackers(names) == []
    for name in opening.NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hiding(*opening.NAMES)])
    assert missing_trackers(["console", "file"]) == []
    assert missing_trackers(names) == [
        f"trainer.logger=[console,tensorboard,wandb,mlflow]: {name} is not installed; "
        f"pip install -r {ROOT / 'requirements-trackers.txt'}, or leave it out"
        for name in opening.NAMES
    ]


def test_a_folder_of_that_name_is_not_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert len(missing_trackers(["wandb"])) == 1


# ------------------------------------------------------------------ what is remembered for a resumed run


def test_ids_and_last_steps_are_kept_until_a_run_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "trackers.json"
    memory = Memory(file, fresh=True)
    memory.begin("wandb", "one")
    memory.tell("wandb", 3)
    memory.begin("mlflow", "two")
    again = Memory(file, fresh=False)
    again.begin("wandb", "one")
    assert [(again.run_id(name), again.last_step(name)) for name in ("wandb", "mlflow")] == [("one", 3), ("two", -1)]
    again.begin("wandb", "other")
    assert again.last_step("wandb") == -1, "steps of another run"
    assert Memory(file, fresh=True).run_id("wandb") is None


def test_a_damaged_memory_begins_new_curves_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for damaged in ('{"wandb": {"id"', "[]", '{"wandb": 3}'):
        (tmp_path / "trackers.json").write_text(damaged)
        with caplog.at_level(logging.WARNING, "mopd"):
            assert Memory(tmp_path / "trackers.json", fresh=False).run_id("wandb") is None
    assert len(caplog.records) == 3


# ------------------------------------------------------------------ a tracker that works aside


class Slow(Kept):
    """Does nothing before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def log(self, step: int, metrics: Any) -> None:
        self.go.wait()
        super().log(step, metrics)


def test_a_slow_server_does_not_hold_up_steps_and_is_told_all_in_order(tmp_path: Path) -> None:
    slow = Slow()
    aside = Aside("slow", lambda: slow, Memory(tmp_path / "trackers.json", fresh=True), 30.0)
    for step in range(1, 6):
        aside.rollouts(step, [])
        aside.log(step, {"a": 1.0})
    assert slow.steps == {}
    slow.go.set()
    aside.close(1)
    assert (list(slow.steps), list(slow.samples), slow.codes) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1])


def test_a_server_that_hangs_is_left_behind_at_the_end_and_when_too_much_waits(tmp_path: Path) -> None:
    slow = Slow()
    aside = Aside("slow", lambda: slow, Memory(tmp_path / "trackers.json", fresh=True), 0.1)
    for step in range(LONGEST_QUEUE):
        aside.log(step, {})
    while not aside.calls.full():  # the thread has taken one
        aside.log(LONGEST_QUEUE, {})
    with pytest.raises(TimeoutError, match="calls wait"):
        aside.log(LONGEST_QUEUE + 1, {})
    slow = Slow()
    aside = Aside("slow", lambda: slow, Memory(tmp_path / "trackers.json", fresh=True), 0.1)
    aside.log(1, {})
    with pytest.raises(TimeoutError, match="no answer"):
        aside.close(0)


def test_a_run_begins_while_a_server_still_makes_up_its_mind(tmp_path: Path) -> None:
    kept, go = Kept(), threading.Event()
    aside = Aside("late", lambda: go.wait() and kept, Memory(tmp_path / "trackers.json", fresh=True), 0.1)  # type: ignore[arg-type, return-value]
    aside.log(1, {"a": 1.0})
    go.set()
    aside.close(0)
    assert kept.steps == {1: {"a": 1.0}}


def test_what_fails_aside_is_raised_by_the_next_call(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "trackers.json", fresh=True)
    aside = Aside("bad", lambda: Kept(fails=2), memory, 30.0)
    aside.log(1, {})
    aside.log(2, {})
    aside.thread.join(30.0)
    with pytest.raises(OSError, match="full"):
        aside.log(3, {})
    assert memory.last_step("bad") == 1


def test_steps_that_a_killed_run_told_are_not_told_again(tmp_path: Path) -> None:
    for steps in ((1, 2, 3), (3, 4)):
        kept = Kept()
        aside = Aside("kept", lambda kept=kept: kept, Memory(tmp_path / "trackers.json", fresh=False), 30.0)  # type: ignore[misc]
        for step in steps:
            aside.rollouts(step, [])
            aside.log(step, {})
        aside.close(0)
    assert (list(kept.steps), list(kept.samples)) == ([4], [4])
