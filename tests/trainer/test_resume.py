"""Where a run begins: never silently at step 0, never in another run's folder, never with what is damaged."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mopd.health import HealthSettings, Monitor
from tests.trainer.test_parts import parts_with
from trainer import checkpoint, resume
from trainer.checkpoint import aside_of, seal
from trainer.config.compose import as_yaml
from trainer.errors import BadInputError, RunUnhealthyError
from trainer.health import Health
from trainer.resume import (
    AlreadyDone,
    Start,
    Wanted,
    describe_run,
    history,
    holds_run,
    lock,
    start_of,
    take_back,
    traces,
)
from trainer.tracking import Folders, open_lines, write_line

SETTINGS = {
    "data": {"seed": 1, "train_files": "train.parquet"},
    "actor_rollout_ref": {"actor": {"optim": {"lr": 1e-6}}, "model": {"path": "model"}},
    "trainer": {"total_training_steps": 9, "output_dir": None},
}
FACTS = {"model": "m", "data": "d"}


def wanted(mode: str = "auto", *, method: str = "mopd", last: int = 9, facts: Any = FACTS, **changes: Any) -> Wanted:
    """The run that is asked for; `changes` are sections of the settings."""
    return Wanted(method, {**SETTINGS, **changes}, last, mode, facts)


def folders_in(output: Path) -> Folders:
    return Folders(output, output / "checkpoints", output / "rollouts", output / "validation")


def text_of(asked: Wanted) -> str:
    return f"{resume.METHOD_LINE} {asked.method}\n{as_yaml(asked.settings)}"


def described(folders: Folders, asked: Wanted | None = None) -> Folders:
    """Folders of a run that has not taken a step."""
    describe_run(folders, text_of(asked or wanted()))
    return folders


def saved(folder: Path, step: int, asked: Wanted | None = None) -> Path:
    """A whole checkpoint."""
    asked = asked or wanted()
    final = folder / f"step_{step}"
    (aside_of(final) / "state").mkdir(parents=True)
    (aside_of(final) / "state" / "shard").write_bytes(b"weights" * step)
    (aside_of(final) / "config.yaml").write_text(text_of(asked))
    seal(final, step, dict(asked.facts), keep=5)
    return final


def took(folders: Folders, last: int) -> None:
    """What a run leaves of its steps beside checkpoints."""
    with (folders.output / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step}) + "\n" for step in range(last + 1))
    for step in range(1, last + 1):
        for suffix in ("jsonl", "npz"):
            (folders.rollouts / f"{step}.{suffix}").write_text("")


def refused(folders: Folders, asked: Wanted) -> str:
    with pytest.raises(BadInputError) as found:
        start_of(folders, asked)
    return str(found.value)


@pytest.fixture
def run(tmp_path: Path) -> Folders:
    """A run that was killed in step 5, after the checkpoint of step 4."""
    folders = described(folders_in(tmp_path / "run"))
    took(folders, 5)
    for step in (2, 4):
        saved(folders.checkpoints, step)
    return folders


def test_a_fresh_folder_begins_at_the_beginning_unless_that_is_forbidden(tmp_path: Path) -> None:
    folders = folders_in(tmp_path / "run")
    assert start_of(folders, wanted()) == start_of(folders, wanted("disable")) == Start()
    assert "holds no checkpoint to go on from" in refused(folders, wanted("must"))
    folders.output.mkdir()
    lock(folders.output).close()
    assert start_of(folders, wanted()) == Start()


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_a_run_goes_on_after_its_newest_checkpoint_and_says_so(
    run: Folders, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    start = start_of(run, wanted(mode))
    assert (start.step, start.checkpoint and start.checkpoint.folder) == (4, run.checkpoints / "step_4")
    assert "going on after step 4" in caplog.text


def test_a_run_without_a_checkpoint_begins_again_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = described(folders_in(tmp_path / "run"))
    took(folders, 3)
    assert start_of(folders, wanted()) == Start()
    assert "it begins again at step 0" in caplog.text
    assert "holds no checkpoint" in refused(folders, wanted("must"))


def test_what_was_written_after_the_checkpoint_is_taken_back(run: Folders) -> None:
    (run.output / "metrics.jsonl").open("a").write('{"step": 6, "los')
    aside = aside_of(run.checkpoints / "step_5")
    aside.mkdir()
    take_back(run, 4)
    assert [record["step"] for record in history(run.output)] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in run.rollouts.iterdir()) == sorted(
        f"{step}.{suffix}" for step in (1, 2, 3, 4) for suffix in ("jsonl", "npz")
    )
    assert not aside.exists()
    before = (run.output / "metrics.jsonl").read_bytes()
    take_back(run, 4)
    assert (run.output / "metrics.jsonl").read_bytes() == before


def test_curves_of_a_run_that_begins_again_begin_again(run: Folders) -> None:
    for name in ("tensorboard", "mlflow"):
        (run.output / name).mkdir()
    take_back(run, 4)
    assert (run.output / "tensorboard").exists()
    assert (run.output / "mlflow").exists()
    take_back(run, 0)
    assert not (run.output / "tensorboard").exists()
    assert not (run.output / "mlflow").exists()
    assert history(run.output) == [], "step 0 is measured again, too"


def test_a_name_that_parts_lines_elsewhere_parts_no_records(run: Folders) -> None:
    record = {"step": 0, "val-core/a\u2028b\x85c/acc/mean@8": 0.5}
    with open_lines(run.output / "metrics.jsonl", "w") as file:
        write_line(file, record)
    take_back(run, 4)
    assert history(run.output) == [record]


def test_a_damaged_newest_checkpoint_is_passed_over_aloud_and_refused_by_name(
    run: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    shard = run.checkpoints / "step_4" / "state" / "shard"
    os.truncate(shard, shard.stat().st_size - 1)
    assert start_of(run, wanted()).step == 2
    assert f"passing over a checkpoint: {shard} is damaged: 27 bytes instead of 28" in caplog.text
    assert "is damaged" in refused(run, wanted(str(run.checkpoints / "step_4")))


def test_a_run_of_damaged_checkpoints_alone_is_never_silently_begun_again(run: Folders) -> None:
    for step in (2, 4):
        (run.checkpoints / f"step_{step}" / "manifest.json").write_text("")
    assert "none of its checkpoints is whole" in refused(run, wanted())


def test_a_named_checkpoint_begins_a_fresh_folder_which_then_goes_on_from_its_own(
    run: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fresh, asked = folders_in(tmp_path / "fresh"), wanted("run/checkpoints/step_2")
    assert start_of(fresh, asked).step == 2
    described(fresh, asked)
    assert start_of(fresh, asked).step == 2  # killed before its first checkpoint
    saved(fresh.checkpoints, 3, asked)
    start = start_of(fresh, asked)  # the same command again, as a requeued job gives it
    assert start.checkpoint is not None
    assert start.checkpoint.folder == fresh.checkpoints / "step_3"


def test_going_back_in_the_same_folder_is_refused_for_it_would_delete_what_is_there(run: Folders) -> None:
    assert start_of(run, wanted(str(run.checkpoints / "step_4"))).step == 4
    assert "name a fresh OUTPUT_DIR" in refused(run, wanted(str(run.checkpoints / "step_2")))
    assert len(checkpoint.listed(run.checkpoints)) == 2


def test_a_path_to_anything_but_a_checkpoint_is_explained(run: Folders, tmp_path: Path) -> None:
    fresh = folders_in(tmp_path / "fresh")
    for whole in (run.output, run.checkpoints):
        assert "name one of its checkpoints, like" in refused(fresh, wanted(str(whole)))
    assert "there is no such folder" in refused(fresh, wanted("step_4"))
    assert "no whole checkpoint" in refused(fresh, wanted(str(tmp_path)))
    assert not fresh.output.exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"method": "grpo"}, "method mopd there, grpo asked"),
        ({"data": {"seed": 2, "train_files": "train.parquet"}}, "data.seed=1 there, 2 asked"),
        ({"facts": {"model": "other", "data": "d"}}, "configuration, tokenizer or weights are not those"),
        ({"facts": {"model": "m", "data": "other"}}, "the training prompts are not those"),
    ],
)
def test_another_run_is_refused_with_what_sets_it_apart(
    run: Folders, tmp_path: Path, other: Mapping[str, Any], said: str
) -> None:
    assert said in refused(run, wanted(**other))
    named = wanted(str(run.checkpoints / "step_4"), **other)
    assert said in refused(folders_in(tmp_path / "fresh"), named)


def test_a_learning_rate_may_change_and_that_is_told(run: Folders, caplog: pytest.LogCaptureFixture) -> None:
    asked = wanted(actor_rollout_ref={"actor": {"optim": {"lr": 5e-6}}, "model": {"path": "model"}})
    assert start_of(run, asked).step == 4
    assert "going on with another setting: actor_rollout_ref.actor.optim.lr=1e-06 there, 5e-06 asked" in caplog.text


def test_more_or_fewer_steps_go_without_saying_and_fewer_than_taken_are_nothing_to_do(
    run: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert start_of(run, wanted(last=20, trainer={"total_training_steps": 20, "output_dir": "run"})).step == 4
    assert "another setting" not in caplog.text
    for last in (3, 4):
        with pytest.raises(AlreadyDone, match=rf"already holds 4 steps of {last} asked"):
            start_of(run, wanted(last=last))


def test_checkpoints_of_another_run_are_neither_taken_nor_deleted(run: Folders, tmp_path: Path) -> None:
    """CKPT_DIR names the folder of a run whose OUTPUT_DIR is another."""
    fresh = Folders(tmp_path / "fresh", run.checkpoints, tmp_path / "r", tmp_path / "v")
    assert "name another CKPT_DIR" in refused(fresh, wanted())
    elsewhere = tmp_path / "elsewhere"
    saved(elsewhere, 7, wanted(data={"seed": 3, "train_files": "train.parquet"}))
    moved = Folders(run.output, elsewhere, run.rollouts, run.validation)
    assert "step_7 is of another run" in refused(moved, wanted())


def test_a_run_killed_while_it_made_its_folder_is_no_foreign_one(tmp_path: Path) -> None:
    folders = folders_in(tmp_path / "run")
    folders.output.mkdir()
    lock(folders.output).close()
    (folders.output / resume.ASIDE).write_text("# meth")
    assert not holds_run(folders.output)
    described(folders)
    assert holds_run(folders.output)
    assert sorted(path.name for path in folders.output.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "rollouts",
        "validation",
    ]


def test_the_folder_of_a_process_that_trains_is_refused(run: Folders) -> None:
    held = lock(run.output)
    with pytest.raises(BadInputError, match="another process trains in this folder"):
        lock(run.output)
    held.close()
    lock(run.output).close()


def test_what_the_controller_remembers_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """A run that stops after three steps without signal stops after three, wherever it was broken off."""

    def health() -> Health:
        monitor = Monitor("policy", HealthSettings(window=2))
        return Health(monitor, tmp_path / "health.jsonl", patience=3, remind_every=9, stop_on=frozenset({"no_signal"}))

    figures = {"critic/informative_group_fraction": 0.0, "response_length/mean": 7.25}
    sampler = SimpleNamespace(lengths={"row 1": 7.25})
    whole, broken = (parts_with(health=health(), sampler=sampler) for _ in range(2))
    for step in (1, 2):
        whole.health.watch(step, figures)
        broken.health.watch(step, figures)
    resumed = parts_with(health=health(), sampler=SimpleNamespace(lengths={}))
    resumed.restore(json.loads(json.dumps(broken.state())))
    for parts in (whole, resumed):
        parts.health.watch(3, figures)
    assert resumed.state() == whole.state()
    assert whole.health.fatal is not None
    assert resumed.health.fatal == whole.health.fatal


def test_a_run_that_no_longer_learns_says_which_batch_it_ended_with(tmp_path: Path) -> None:
    class Unwell:
        def ending(self, step: int) -> RunUnhealthyError:
            return RunUnhealthyError("the loss is not finite", step)

    class Settled:
        def settle(self, *, wait: bool) -> None:
            pass

    journal = SimpleNamespace(folders=folders_in(tmp_path))
    parts = parts_with(health=Unwell(), saver=Settled(), journal=journal)
    assert str(parts.ending(7)) == f"the loss is not finite; what it was trained on lies in {tmp_path}/rollouts/7.jsonl"


def test_traces_change_with_every_step_and_checkpoint(run: Folders) -> None:
    first = traces(run)
    took(run, 1)
    second = traces(run)
    saved(run.checkpoints, 6)
    assert len({str(one) for one in (first, second, traces(run))}) == 3
