"""The trackers' own libraries: silent, in the run's folder, and going on in the same curves."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.kept_tracker import line
from tests.trainer.wandb_server import wandb_server
from trainer.trackers.base import NO_ANSWER_S, Run
from trainer.trackers.mlflow import allowed
from trainer.trackers.opening import open_trackers
from trainer.trackers.wandb import mode_of

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"data": {"seed": 1, "shuffle": True}, "trainer": {"logger": ["console"]}}


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


# ------------------------------------------------------------------ TensorBoard


def events(folder: Path) -> Any:
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    return shown


def scalars(folder: Path, name: str) -> dict[int, float]:
    """A curve."""
    return {event.step: event.value for event in events(folder).Scalars(name)}


def texts(folder: Path) -> dict[int, str]:
    """The rollouts."""
    found = events(folder).Tensors("rollouts/text_summary")
    return {event.step: event.tensor_proto.string_val[0].decode() for event in found}


def test_tensorboard_reads_back_what_was_written_also_while_the_run_goes_on(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], Run(tmp_path, "mopd", {})) as trackers:
        trackers.rollouts(1, [line(output="# no heading"), line(status="wrong", score=0.0, teacher_prompt=None)])
        trackers.log({"step": 1, "critic/rewards/mean": 0.25, "actor/loss": None})
        assert scalars(tmp_path, "critic/rewards/mean") == {1: 0.25}
        trackers.log({"step": 2, "critic/rewards/mean": 0.5})
    assert scalars(tmp_path, "critic/rewards/mean") == {1: 0.25, 2: 0.5}
    text = texts(tmp_path)[1]
    assert all(
        part in text for part in ("**1-0: right, reward 1.0**", "**1-0: wrong, reward 0.0**", "\n    # no heading")
    )
    assert text.count("teacher prompt\n") == 1


def test_a_resumed_run_goes_on_in_the_same_curve(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], Run(tmp_path, "mopd", {})) as trackers:
        for step in (1, 2, 3):
            trackers.rollouts(step, [line()])
            trackers.log({"step": step, "a": 0.25})
    time.sleep(1.1)  # event files are ordered by their second
    with open_trackers(["tensorboard"], Run(tmp_path, "mopd", {}, first_step=3)) as trackers:
        trackers.rollouts(3, [line(output="another")])
        trackers.log({"step": 3, "a": 0.5})
    assert scalars(tmp_path, "a") == {1: 0.25, 2: 0.25, 3: 0.5}
    assert ["another" in text for _, text in sorted(texts(tmp_path).items())] == [False, False, True]


# ------------------------------------------------------------------ MLflow


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is asked for."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    """A client of the folder's store, and the run of `trackers.json`."""
    from mlflow import MlflowClient

    client = MlflowClient((folder / "mlflow").as_uri())
    return client, client.get_run(json.loads((folder / "trackers.json").read_text())["mlflow"]["id"])


@pytest.mark.usefixtures("no_server")
def test_mlflow_keeps_settings_and_curves_and_goes_on_in_the_same_run(tmp_path: Path) -> None:
    record = {"timing_s/learn": 2.0, "timing_s/learn/forward": 1.0, "val-core/a b/acc/mean@8": 0.5, "none": None}
    with open_trackers(["mlflow"], Run(tmp_path, "mopd", SETTINGS | {"long": "x" * 9000})) as trackers:
        for step in (1, 2, 3):
            trackers.log({"step": step, **record})
    changed = {**SETTINGS, "data": {"seed": 2, "more": 3}}
    trackers = open_trackers(["mlflow"], Run(tmp_path, "mopd", changed, first_step=3))
    for step in (3, 4):
        trackers.log({"step": step, "timing_s/learn": 4.0})
    trackers.__exit__(ValueError, ValueError(), None)
    client, run = mlflow_run(tmp_path)
    assert [run.info.run_id] == [found.info.run_id for found in client.search_runs([run.info.experiment_id])]
    assert (run.info.status, run.info.run_name) == ("FAILED", tmp_path.name)
    told = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "timing_s/learn")}
    assert told == {1: 2.0, 2: 2.0, 3: 2.0, 4: 4.0}
    assert set(run.data.metrics) == {"timing_s/learn", "timing_s/learn.forward", "val-core/a b.acc.mean_at_8"}
    assert (run.data.params["data.seed"], run.data.params["data.more"]) == ("1", "3"), "what was said stays said"
    assert run.data.params["trainer.logger"] == "['console']"


@pytest.mark.usefixtures("no_server")
def test_a_run_that_begins_anew_is_a_new_run(tmp_path: Path) -> None:
    for _ in range(2):
        with open_trackers(["mlflow"], Run(tmp_path, "mopd", SETTINGS)) as trackers:
            trackers.log({"step": 1, "a": 1.0})
    client, run = mlflow_run(tmp_path)
    assert len(client.search_runs([run.info.experiment_id])) == 2
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "a")] == [1]


def test_names_for_mlflow_stay_apart() -> None:
    names = ["timing_s/learn", "timing_s/learn/forward", "val-core/x/acc/mean@8", "val-core/x/acc/mean@16", "step"]
    assert len({allowed(name) for name in names}) == len(names)
    assert allowed("val-core/ü:ß/acc") == "val-core/ü_ß.acc"


def test_an_mlflow_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1")
    with silent_server() as address, caplog.at_level(logging.WARNING):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//user:secret@"))
        with open_trackers(["mlflow"], Run(tmp_path, "mopd", {})) as trackers:
            assert trackers.open == {}
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("mlflow failed and is switched off")
    assert "secret" not in message


# ------------------------------------------------------------------ wandb


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
    assert mode_of({**environment, "NETRC": str(file)}) == mode


SCRIPT = """
import json, logging, sys
from pathlib import Path
from trainer.trackers.base import Run
from trainer.trackers.opening import open_trackers
logging.basicConfig(format="%(message)s")
lines = [json.loads({line!r})]
for first, steps in {processes}:
    run = Run(Path(sys.argv[1]), "mopd", {{"data": {{"seed": 123456}}}}, first, {patience})
    with open_trackers({names}, run) as trackers:
        for tracker in trackers.open.values():
            assert tracker.opened.wait(60)
        for step in steps:
            trackers.rollouts(step, lines)
            trackers.log({{"step": step, "critic/rewards/mean": 0.5 + step + len(steps) / 64}})
        assert list(trackers.open) == {open}, trackers.open
for name in ("wandb", "tensorboard", "mlflow"):
    assert (name in sys.modules) == (name in {names}), name
"""


def tracked(
    folder: Path,
    names: list[str],
    processes: Sequence[tuple[int, list[int]]] = ((0, [1]),),
    patience: float = NO_ANSWER_S,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs with these trackers in a process whose home is `folder`; `processes`: the first step and steps of each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    asked = [name for name in names if name != "console"]
    script = SCRIPT.format(names=names, open=asked, processes=processes, patience=patience, line=json.dumps(line()))
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


def test_without_a_server_mlflow_is_silent_and_stays_in_the_folder(tmp_path: Path) -> None:
    done = tracked(tmp_path, ["mlflow"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow", "trackers.json"]


def test_without_a_key_wandb_is_silent_offline_in_the_folder_and_keeps_its_id(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = tracked(tmp_path, ["wandb"], [(0, [1, 2, 3]), (3, [3, 4])], WANDB_BASE_URL=url)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]
    first, second = sorted(tmp_path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert all(name in first.read_bytes() for name in (b"critic/rewards/mean", b"seed", b"123456", b"rollouts"))
    assert b"3.546875" in first.read_bytes(), "0.5 + step 3 + 3 / 64"
    assert b"4.53125" in second.read_bytes()
    assert b"3.53125" not in second.read_bytes(), "step 3 was told already"
    table = json.loads(next(first.parent.glob("files/media/table/*.table.json")).read_text())
    assert table["columns"] == ["group", "prompt", "response", "verdict", "reward", "teacher prompt"]
    assert table["data"] == [["1-0", "2 + 2", "4", "right", 1.0, "peers"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trackers.json", "wandb"]


@pytest.mark.slow
def test_with_a_key_and_a_server_that_never_answers_the_run_goes_on_offline(tmp_path: Path) -> None:
    with silent_server() as address:
        started = time.monotonic()
        done = tracked(tmp_path, ["wandb"], patience=8.0, WANDB_BASE_URL=address, WANDB_API_KEY="k" * 40)
        assert time.monotonic() - started < 60
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    [told] = done.stderr.splitlines()
    assert told.startswith(f"wandb is not reached; this run is kept in {tmp_path / 'wandb'} for `wandb sync`")
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.slow
def test_with_a_key_that_the_server_refuses_the_run_goes_on_offline(tmp_path: Path) -> None:
    with wandb_server(accepts=False) as server:
        done = tracked(tmp_path, ["wandb"], WANDB_BASE_URL=server.address, WANDB_API_KEY="k" * 40)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    [told] = done.stderr.splitlines()
    assert told.startswith("wandb is not reached; this run is kept in")
    assert "k" * 40 not in told
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


@pytest.mark.slow
def test_with_a_key_a_resumed_run_goes_on_in_the_same_run_at_the_server(tmp_path: Path) -> None:
    with wandb_server() as server:
        key = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "k" * 40}
        for processes in ([(0, [1, 2, 3])], [(3, [3, 4])]):
            done = tracked(tmp_path, ["wandb"], processes, **key)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]
        assert server.names == {identity}
        assert any("123456" in config for config in server.configs), "the settings"
        assert [step["_step"] for step in server.history] == [1, 2, 3, 4]
        assert all(step["rollouts"]["_type"] == "table-file" for step in server.history)
        assert server.history[-1]["critic/rewards/mean"] == 0.5 + 4 + 2 / 64
