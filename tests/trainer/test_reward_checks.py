"""What is refused before a run: a reward function that cannot be used, and programs that cannot be isolated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mopd.rewards import VERIFIERS, code
from mopd.rewards.base import Verifier
from mopd.rewards.sandbox import Probe
from tests.mopd.groups import PROMPT
from trainer import inputs
from trainer.config.compose import resolve
from trainer.config.schema import Config
from trainer.inputs import isolation, reward_faults, unknown_sources
from trainer.prompts import PromptSet

NONE = Probe(4, "no namespaces, no seccomp", 0, {1: "no user namespaces", 2: "no Landlock", 3: "no seccomp"})
THIRD = Probe(3, "tier 3", 0, {1: "no user namespaces", 2: "no Landlock"})
SECOND = Probe(2, "tier 2", 5, {1: "no user namespaces"})


def config_with(*overrides: str) -> Config:
    return resolve("grpo", overrides, {}).config


def prompts(data_source: str) -> PromptSet:
    return PromptSet((replace(PROMPT, data_source=data_source),), (np.zeros(1, dtype=np.int32),), 0)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> PromptSet:
    """A data set whose responses are programs."""
    monkeypatch.setitem(VERIFIERS, "programs", Verifier(code.verify, code.check))
    return prompts("programs")


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """A machine that offers what the test's parameter says."""
    offered: Probe = request.param
    monkeypatch.setattr(inputs.sandbox, "probe", lambda: offered)
    return offered


@pytest.mark.parametrize("machine", [NONE], indirect=True)
def test_programs_without_isolation_are_refused_unless_allowed(machine: Probe, programs: PromptSet) -> None:
    [fault] = reward_faults(config_with(), [prompts("chain"), programs])
    assert machine.reason in fault
    assert "set reward.allow_unsandboxed=true" in fault
    assert reward_faults(config_with("reward.allow_unsandboxed=true"), [programs]) == []
    assert isolation(config_with(), [programs]) == machine


@pytest.mark.parametrize("machine", [THIRD], indirect=True)
def test_isolation_that_lets_programs_read_takes_the_users_word(machine: Probe, programs: PromptSet) -> None:
    [fault] = reward_faults(config_with(), [programs])
    assert "reward.sandbox_tier=3 accepts" in fault
    for word in ("reward.sandbox_tier=3", "reward.allow_unsandboxed=true"):
        assert reward_faults(config_with(word), [programs]) == []


@pytest.mark.parametrize("machine", [NONE], indirect=True)
def test_other_data_needs_no_isolation(machine: Probe) -> None:
    assert isolation(config_with(), [prompts("chain"), prompts("sciknoweval")]) is None
    assert reward_faults(config_with(), [prompts("chain")]) == []


@pytest.mark.parametrize("machine", [SECOND], indirect=True)
def test_a_tier_that_the_machine_does_not_offer_is_refused(machine: Probe, programs: PromptSet) -> None:
    [fault] = reward_faults(config_with("reward.sandbox_tier=1"), [programs])
    assert "reward.sandbox_tier=1" in fault
    assert "no user namespaces" in fault
    for tier in ("null", "2", "3"):
        assert reward_faults(config_with(f"reward.sandbox_tier={tier}"), [programs]) == []


def test_a_function_of_ones_own_serves_every_data_source_and_is_looked_at_first(
    tmp_path: Path, programs: PromptSet
) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def mine(**fields):\n    raise RuntimeError('never called here')\n")
    named = f"custom_reward_function.path={file}"
    good = config_with(named, "custom_reward_function.name=mine")
    assert reward_faults(good, [programs]) == []
    assert isolation(good, [programs]) is None
    assert unknown_sources(good, "data.train_files", "x", prompts("nowhere").prompts) == []
    assert len(unknown_sources(config_with(), "data.train_files", "x", prompts("nowhere").prompts)) == 1
    [fault] = reward_faults(config_with(named), [programs])
    assert fault.startswith(f"{named}, custom_reward_function.name=compute_score: has no function compute_score")
    [fault] = reward_faults(config_with("custom_reward_function.path=/none.py"), [])
    assert "no such file" in fault
