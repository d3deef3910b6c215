"""Run health: every detector sees its illness and nothing else, a healthy run is left alone, and a sick one ends."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from mopd.health import KINDS, SIGNALS, Finding, HealthSettings, Kind, Monitor
from mopd.methods import Signal
from trainer import main
from trainer.config.compose import resolve
from trainer.config.reference import leaves
from trainer.config.schema import Config
from trainer.errors import UNHEALTHY, RunUnhealthyError
from trainer.health import REMEDIES, Health, advice, health_of

STEPS = [
    (0.320, 0.1152, 18.01, 0.00694, 0.0397, 0.539),
    (0.281, 0.1164, 17.99, 0.00736, 0.0484, 0.617),
    (0.328, 0.1142, 18.00, 0.00586, 0.0392, 0.594),
    (0.289, 0.1122, 18.00, 0.00620, 0.0409, 0.633),
    (0.266, 0.1090, 18.00, 0.00613, 0.0443, 0.609),
    (0.422, 0.1070, 18.00, 0.00642, 0.0429, 0.516),
    (0.297, 0.1051, 18.11, 0.01064, 0.0451, 0.594),
    (0.375, 0.1039, 18.00, 0.00694, 0.0479, 0.539),
    (0.383, 0.1002, 18.00, 0.00633, 0.0418, 0.516),
    (0.375, 0.1020, 18.00, 0.00538, 0.0402, 0.508),
    (0.398, 0.0949, 18.00, 0.00576, 0.0424, 0.500),
    (0.352, 0.0940, 18.00, 0.00587, 0.0408, 0.531),
    (0.563, 0.0927, 18.05, 0.00694, 0.0401, 0.438),
    (0.445, 0.0930, 18.11, 0.00500, 0.0404, 0.469),
    (0.430, 0.0926, 18.00, 0.00411, 0.0385, 0.453),
    (0.492, 0.0931, 18.00, 0.00412, 0.0393, 0.484),
    (0.523, 0.0848, 18.00, 0.00498, 0.0417, 0.391),
    (0.539, 0.0802, 18.00, 0.00339, 0.0327, 0.414),
    (0.531, 0.0831, 18.00, 0.00365, 0.0305, 0.391),
    (0.555, 0.0804, 18.11, 0.00466, 0.0337, 0.406),
    (0.586, 0.0798, 18.00, 0.00322, 0.0279, 0.422),
    (0.531, 0.0900, 18.11, 0.01288, 0.0363, 0.492),
]
"""Of a real run of MOPD on the embedded task, by step: success, entropy, length, divergence, gradient, distinct."""
DISTILL_SHARE = "self_distillation/reprompt_sample_fraction"
ILLNESSES: dict[Kind, dict[str, float]] = {
    "no_signal": {DISTILL_SHARE: 0.0},
    "non_finite": {"actor/skipped_steps": 1},
    "divergence": {"self_distillation/divergence": 0.5},
    "length": {"response_length/mean": 5.0},
    "cut": {"response_length/clip_ratio": 0.8},
    "entropy": {"actor/entropy": 0.005},
    "sampler": {"rollout_corr/k3_kl": 0.2},
    "unknown": {"critic/unknown_fraction": 0.4},
    "success": {"critic/success_rate": 0.0},
    "copying": {"rollout/distinct_fraction": 0.125},
}


def metrics_of(step: int) -> dict[str, float]:
    """The metrics of a healthy step, from 1."""
    success, entropy, length, divergence, norm, distinct = STEPS[step - 1]
    return {
        "critic/success_rate": success,
        "critic/unknown_fraction": 0.0,
        "critic/informative_group_fraction": 0.9,
        "actor/trained_fraction": 1.0,
        "actor/optimizer_steps": 2,
        "actor/skipped_steps": 0,
        "actor/loss": divergence,
        "actor/grad_norm": norm,
        "actor/entropy": entropy,
        "response_length/mean": length,
        "response_length/clip_ratio": 0.0,
        "rollout_corr/k3_kl": 1e-9,
        "rollout/distinct_fraction": distinct,
        "self_distillation/divergence": divergence,
        DISTILL_SHARE: 1.0,
    }


def flat(step: int) -> dict[str, float]:
    """The metrics of a run that stays where it was in its first step."""
    return metrics_of(1)


def observed(monitor: Monitor, steps: range, change: dict[str, float] | None = None) -> dict[int, list[Finding]]:
    """The findings of steps without progress, all of them with the same change."""
    return {step: monitor.observe(step, flat(step) | (change or {})) for step in steps}


# ------------------------------------------------------------------ detectors


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_healthy_run_is_left_alone(signal: Signal) -> None:
    monitor = Monitor(signal)
    assert [monitor.observe(step, metrics_of(step)) for step in range(1, len(STEPS) + 1)] == [[]] * len(STEPS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_illness_is_seen_and_no_other(kind: Kind) -> None:
    monitor = Monitor("divergence")
    assert not any(observed(monitor, range(1, 16)).values())
    sick = observed(monitor, range(16, 23), ILLNESSES[kind])
    assert {finding.kind for findings in sick.values() for finding in findings} == {kind}
    first = min(step for step, findings in sick.items() if findings)
    # A median must have moved before success is called lost; everything else shows at once.
    assert first == (16 if kind != "success" else 21)
    [found] = sick[first]
    assert found.metric in ILLNESSES[kind]
    assert found.value == ILLNESSES[kind][found.metric]


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_is_switched_off_by_null(kind: Kind) -> None:
    field = {
        "no_signal": "signal_fraction",
        "non_finite": "skipped_steps",
        "divergence": "divergence_factor",
        "length": "length_factor",
        "cut": "cut_fraction",
        "entropy": "entropy_fraction",
        "sampler": "sampler_kl",
        "unknown": "unknown_fraction",
        "success": "success_fraction",
        "copying": "distinct_fraction",
    }[kind]
    monitor = Monitor("divergence", HealthSettings(**{field: None}))
    observed(monitor, range(1, 16))
    assert not any(observed(monitor, range(16, 40), ILLNESSES[kind]).values())


@pytest.mark.parametrize("kind", ["divergence", "length", "entropy", "success", "copying"])
def test_nothing_is_compared_before_the_window_is_full(kind: Kind) -> None:
    monitor = Monitor("divergence")
    observed(monitor, range(1, 10))
    assert monitor.observe(10, flat(10) | ILLNESSES[kind]) == []


@pytest.mark.parametrize("factor", [9.9, 10.1])
def test_a_threshold_is_where_the_settings_put_it(factor: float) -> None:
    monitor = Monitor("divergence", HealthSettings(window=3))
    observed(monitor, range(1, 4))
    usual = flat(1)["self_distillation/divergence"]
    found = monitor.observe(4, flat(4) | {"self_distillation/divergence": factor * usual})
    assert [finding.kind for finding in found] == (["divergence"] if factor > 10 else [])
    assert all(finding.threshold == pytest.approx(10 * usual) for finding in found)


@pytest.mark.parametrize("length", [5.9, 55.0])
def test_lengths_may_neither_shrink_nor_leap(length: float) -> None:
    monitor = Monitor("policy")
    observed(monitor, range(1, 12))
    [found] = monitor.observe(12, flat(12) | {"response_length/mean": length})
    assert found.kind == "length"
    assert (found.value < found.threshold) == (length < 18)


@pytest.mark.parametrize("kind", ["entropy", "copying"])
def test_variety_may_be_given_up_for_success(kind: Kind) -> None:
    monitor = Monitor("policy")
    observed(monitor, range(1, 11))
    won = ILLNESSES[kind] | {"critic/success_rate": 0.9}
    observed(monitor, range(11, 17), {"critic/success_rate": 0.9})
    assert not any(observed(monitor, range(17, 30), won).values())


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(
    "nothing", [{"share": 0.0}, {"actor/grad_norm": 0.0}, {"actor/optimizer_steps": 0, "actor/skipped_steps": 0}]
)
def test_every_method_notices_that_nothing_teaches(signal: Signal, nothing: dict[str, float]) -> None:
    metric = SIGNALS[signal][0]
    changed = {metric if name == "share" else name: value for name, value in nothing.items()}
    [found] = Monitor(signal).observe(1, metrics_of(1) | changed)
    assert found.kind == "no_signal"
    assert found.metric in changed


def test_a_loss_that_is_no_number_is_an_illness_and_other_gaps_are_none() -> None:
    monitor = Monitor("divergence")
    [found] = monitor.observe(1, metrics_of(1) | {"actor/loss": math.nan})
    assert (found.kind, found.metric) == ("non_finite", "actor/loss")
    for name in metrics_of(1):
        without = {other: value for other, value in metrics_of(2).items() if other != name}
        assert monitor.observe(2, without) == []
        if name != "actor/loss":
            assert monitor.observe(3, metrics_of(3) | {name: math.nan}) == []


# ------------------------------------------------------------------ state


def random_run(seed: int) -> list[dict[str, float]]:
    """A run that falls ill and recovers at random."""
    draw = random.Random(seed)
    run = []
    for step in range(60):
        metrics = metrics_of(step % len(STEPS) + 1)
        for illness in ILLNESSES.values():
            metrics |= illness if draw.random() < 0.3 else {}
        run.append(metrics)
    return run


def health_in(folder: Path, said: list[str], **some: Any) -> Health:
    """A watch that keeps what it says."""
    options: dict[str, Any] = {"patience": 3, "remind_every": 5, "stop_on": frozenset({"no_signal"})} | some
    return Health(Monitor("divergence"), folder / "health.jsonl", **options, warn=said.append)


def test_a_resumed_run_finds_warns_and_stops_as_if_it_had_gone_on(tmp_path: Path) -> None:
    run, told = random_run(7), dict[int | None, list[Any]]()
    for resumed in (None, 1, 9, 20, 41):
        said: list[str] = []
        (tmp_path / str(resumed)).mkdir()
        health = health_in(tmp_path / str(resumed), said)
        told[resumed] = []
        for step, metrics in enumerate(run, start=1):
            added = health.watch(step, metrics)
            told[resumed].append((added, health.fatal, len(said)))
            if step == resumed:
                kept = json.loads(json.dumps(health.state_dict()))
                health = health_in(tmp_path / str(resumed), said)
                health.load_state_dict(kept)
    assert all(account == told[None] for account in told.values())
    assert any(fatal for _, fatal, _ in told[None])
    assert any(not fatal for _, fatal, _ in told[None])


# ------------------------------------------------------------------ warnings and the end


def test_a_run_ends_after_patience_steps_in_a_row_and_not_before(tmp_path: Path) -> None:
    health = health_in(tmp_path, [])
    sick = ILLNESSES["no_signal"] | {"critic/success_rate": 0.0}
    for step, ill in enumerate([True, True, False, True, True], start=1):
        health.watch(step, flat(step) | (sick if ill else {}))
        assert health.ending(step) is None
    health.watch(6, flat(6) | sick)
    ending = health.ending(6)
    assert isinstance(ending, RunUnhealthyError)
    assert ending.step == 6
    for words in (
        "in step 6 0.0% of the rollouts have a usable teacher view",
        "since step 4",
        "no attempt succeeds",
        "n)",
    ):
        assert words in str(ending)
    assert "trainer.health.patience" in str(ending)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "no_signal"])
def test_an_alarm_stops_a_run_only_where_it_is_asked_to(kind: Kind, tmp_path: Path) -> None:
    for stop_on in ({"no_signal"}, {kind}):
        health = health_in(tmp_path, [], stop_on=frozenset(stop_on))
        for step in range(1, 16):
            health.watch(step, flat(step))
        for step in range(16, 30):
            health.watch(step, flat(step) | ILLNESSES[kind])
            if health.ending(step):
                break
        assert (health.ending(step) is not None) == (kind in stop_on)


def test_a_warning_comes_once_in_so_many_steps_and_every_finding_is_counted(tmp_path: Path) -> None:
    said: list[str] = []
    health = health_in(tmp_path, said, stop_on=frozenset())
    counted = [health.watch(step, flat(step) | ILLNESSES["cut"])["health/warnings"] for step in range(1, 13)]
    assert counted == [1] * 12
    lines = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 6, 11]
    assert [line["sentence"] for line in lines] == said
    assert all(line["since"] == 1 and line["value"] == 0.8 and line["threshold"] == 0.5 for line in lines)
    assert "raise data.max_response_length" in said[0]


def test_a_healthy_run_leaves_no_file_and_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    health = health_in(tmp_path, said)
    assert [health.watch(step, metrics_of(step))["health/warnings"] for step in range(1, len(STEPS) + 1)] == [0] * 22
    assert said == []
    assert not health.file.exists()


def test_a_loss_that_is_no_number_can_be_written(tmp_path: Path) -> None:
    health = health_in(tmp_path, [])
    health.watch(1, flat(1) | {"actor/loss": math.nan})
    [line] = (tmp_path / "health.jsonl").read_text().splitlines()
    assert json.loads(line)["value"] is None


KEYS = {key for key, _, _ in leaves(Config)}
FIGURES = {
    "cut": {"response_length/clip_ratio": 1.0},
    "unknown": {"critic/unknown_fraction": 1.0},
    "all wrong": {"critic/success_rate": 0.0},
    "all right": {"critic/success_rate": 1.0},
    "between": {"critic/success_rate": 0.5},
    "skipped": {"actor/optimizer_steps": 0.0, "actor/skipped_steps": 2.0},
    "gradient": {"actor/grad_norm": 0.0},
}


@pytest.mark.parametrize("case", FIGURES)
def test_a_step_without_signal_is_explained_by_its_figures(case: str) -> None:
    """And no two of the cases alike, each with something to do."""
    texts = {}
    for name, figures in FIGURES.items():
        metric = next((metric for metric in ("actor/optimizer_steps", "actor/grad_norm") if metric in figures), "share")
        texts[name] = advice(Finding("no_signal", metric, 0.0, 0.0, ""), figures)
    assert sum(text == texts[case] for text in texts.values()) == 1
    assert re.search(r"raise|lower|take|mend|show", texts[case])


def test_the_keys_that_advice_names_are_keys() -> None:
    texts = [*REMEDIES.values()]
    texts += [
        advice(Finding("no_signal", metric, 0.0, 0.0, ""), figures)
        for metric in ("share", "actor/grad_norm")
        for figures in FIGURES.values()
    ]
    named = {
        name
        for text in texts
        for name in re.findall(r"\b(?:actor_rollout_ref|data|algorithm|reward|trainer\.health)(?:\.\w+)+", text)
    }
    assert len(named) > 8
    assert named - KEYS == {"actor_rollout_ref.actor.self_distillation"}
    assert REMEDIES.keys() == set(KINDS) - {"no_signal"}


def test_a_horizon_that_cuts_on_purpose_is_no_illness(tmp_path: Path) -> None:
    cutting = resolve("mopd", ["actor_rollout_ref.rollout.horizon.kind=ratio"], {}).config
    for config, alarms in ((resolve("mopd", [], {}).config, ["cut", "unknown"]), (cutting, [])):
        health = health_of(config, tmp_path)
        found = health.monitor.observe(1, flat(1) | ILLNESSES["cut"] | ILLNESSES["unknown"])
        assert [finding.kind for finding in found] == alarms


def test_the_defaults_of_the_files_are_those_of_the_detectors(tmp_path: Path) -> None:
    health = health_of(resolve("grpo", [], {}).config, tmp_path)
    assert health.monitor.settings == HealthSettings()
    assert health.monitor.signal == "policy"
    assert health.stop_on == {"no_signal"}


def test_the_command_ends_with_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(*_: object, **__: object) -> int:
        raise RunUnhealthyError("health, no_signal: [nothing] was learnt", 4)

    monkeypatch.setattr(main, "run", ends)
    assert main.main(["--config-name", "grpo"]) == UNHEALTHY == 3
    assert "health, no_signal: [nothing] was learnt" in capsys.readouterr().err
