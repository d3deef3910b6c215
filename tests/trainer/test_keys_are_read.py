"""Every configuration key is read on the way to a run, and not by its validation alone."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from trainer import cluster, inputs, session
from trainer.config.compose import PROJECT, resolve
from trainer.config.reference import leaves
from trainer.config.schema import Config
from trainer.sampling import Sampling
from trainer.services import Policy

UNREAD: dict[str, str] = {}
DISTILL = "actor_rollout_ref.actor.self_distillation"
RUNS: list[tuple[str, list[str]]] = [
    ("mopd", [f"{DISTILL}.step_level_kl=true"]),
    ("mopd", ["reference_compat=true", "actor_rollout_ref.rollout.horizon.kind=ratio"]),
    ("popd", [f"actor_rollout_ref.ref.model.path={PROJECT}/datasets/chain/model"]),
    (
        "grpo",
        [
            "algorithm.filter_groups=true",
            "custom_reward_function.path=judge.py",
            "actor_rollout_ref.model.lora_rank=4",
        ],
    ),
]


class Started(Exception):
    """The run would begin now."""


class Watched:
    """A configuration that notes the dotted name of every value that is read."""

    def __init__(self, inside: Any, name: str, read: set[str]) -> None:
        self.__dict__.update(_inside=inside, _name=name, _read=read)

    def __getattr__(self, part: str) -> Any:
        name = f"{self._name}.{part}".lstrip(".")
        value = getattr(self._inside, part)
        self._read.add(name)
        return Watched(value, name, self._read) if is_dataclass(value) else value


def keys_read(method: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys that a run of `method` reads until its first step."""
    read: set[str] = set()
    resolved = resolve(method, overrides, {})

    def begin(parts: object) -> None:
        raise Started

    monkeypatch.setattr(inputs, "contradictions", lambda config: [])
    monkeypatch.setattr(session, "train", begin)
    monkeypatch.setattr(cluster, "start", lambda *_, **__: None)
    monkeypatch.setattr(cluster, "spawn", lambda *_, **__: MagicMock())
    monkeypatch.setattr(Policy, "join", lambda self: {"parameters": 1, "attention": "none"})
    monkeypatch.setattr(Sampling, "describe", lambda self: {"vllm": "0"})
    with pytest.raises(Started):
        session.train_session(method, replace(resolved, config=Watched(resolved.config, "", read)), MagicMock())
    return read


def test_every_key_is_read_on_the_way_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text("def compute_score(data_source, solution_str, ground_truth, extra_info): ...")
    read: set[str] = set()
    for method, overrides in RUNS:
        read |= keys_read(method, overrides, monkeypatch)
    unread = {key for key, _, _ in leaves(Config)} - read
    assert unread == set(UNREAD)
