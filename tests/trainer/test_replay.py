"""What a replay reads back, what it holds for the same, and what it says where it cannot look."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mopd.credit import CreditSettings
from mopd.horizon import Constant
from mopd.types import Rollout, Segment
from tests.mopd.groups import PROMPT
from tests.trainer.test_parts import LONGEST, Sampler, TellingVerifier, parts_with
from trainer.checkpoint import aside_of, seal
from trainer.config.compose import as_yaml, resolve
from trainer.errors import BadInputError
from trainer.parts import Sizes
from trainer.prompts import PromptSet
from trainer.replay import arguments, no_checkpoint, start_of
from trainer.replaying.checks import Comparison, Tolerance, alike, compare_metrics, near, told_apart, tolerance_of
from trainer.replaying.rebuild import occurrences
from trainer.replaying.records import past_run, past_step, read_lines, read_tokens
from trainer.resume import METHOD_LINE
from trainer.tracking import write_line, write_tokens
from trainer.workers.sampler_types import SamplingSettings

LINE = {
    "uid": "1-0",
    "rollout_id": "1-0-0",
    "output": "a",
    "finish_reason": "stop",
    "status": "unknown",
    "feedback": "",
    "response_length": 2,
    "score": None,
    "success": None,
}


def rollout(token_ids: list[int], logprobs: list[float]) -> Rollout:
    segment = Segment(np.asarray(token_ids, np.int32), np.asarray(logprobs, np.float32))
    return Rollout("1-0-0", (segment,), "", "stop", 0)


def run_in(folder: Path, steps: int, *overrides: str, ranks: int = 1) -> Path:
    """The folder of a run of so many steps, as far as a replay reads it before it needs a model."""
    tree = resolve("mopd", overrides, {}).tree
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"{METHOD_LINE} mopd\n{as_yaml(tree)}")
    manifest = {"actors": {"device": "cpu", "ranks": ranks}, "versions": {"mopd": "0.0.1"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with (folder / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            write_line(metrics, {"step": step, "actor/loss": 0.5})
            (folder / "rollouts" / f"{step}.jsonl").write_text(json.dumps(LINE) + "\n")
            write_tokens(folder / "rollouts" / f"{step}.npz", [rollout([1, 2], [-0.5, -0.25])])
    return folder


def save(folder: Path, step: int, ranks: int, *overrides: str) -> None:
    """A checkpoint, without weights."""
    final = folder / "checkpoints" / f"step_{step}"
    aside_of(final).mkdir(parents=True)
    (aside_of(final) / "config.yaml").write_text(as_yaml(resolve("mopd", overrides, {}).tree))
    seal(final, step, {"ranks": ranks}, keep=100)


# ------------------------------------------------------------------ reading back


def test_tokens_come_back_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = [3, 1, 0, 7]
    rollouts = [
        rollout(rng.integers(0, 2**31 - 1, length).tolist(), (-rng.exponential(5, length)).tolist())
        for length in lengths
    ]
    write_tokens(tmp_path / "1.npz", rollouts)
    found = read_tokens(tmp_path / "1.npz", [{}] * len(rollouts))
    assert found is not None
    for one, token_ids, logprobs in zip(rollouts, found.token_ids, found.logprobs, strict=True):
        assert token_ids.tobytes() == one.token_ids.tobytes()
        assert logprobs.tobytes() == one.logprobs.tobytes()
    write_tokens(tmp_path / "2.npz", rollouts)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half of one"])
def test_tokens_that_cannot_be_read_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1.npz").write_bytes(content)
    with pytest.raises(BadInputError, match=r"1\.npz: cannot be read"):
        read_tokens(tmp_path / "1.npz", [LINE])


def test_a_response_may_hold_any_character(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\r\nfour\x1c"
    with (tmp_path / "1.jsonl").open("w") as file:
        write_line(file, {**LINE, "output": text})
    [line] = read_lines(tmp_path / "1.jsonl")
    assert line["output"] == text


@pytest.mark.parametrize("name", LINE)
def test_a_line_without_what_a_replay_needs_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "1.jsonl"
    file.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, name: ["x"]}) + "\n")
    with pytest.raises(BadInputError, match=rf"line 2: no rollout of this version \({name}: \['x'\]\)"):
        read_lines(file)
    file.write_text(json.dumps({key: value for key, value in LINE.items() if key != name}) + "\n")
    with pytest.raises(BadInputError, match=rf"line 1: no rollout of this version \({name}: nothing\)"):
        read_lines(file)


def test_settings_and_ranks_are_those_the_step_was_taken_with(tmp_path: Path) -> None:
    """A run that goes on may have other ranks and learning rates; its folder tells of the last ones only."""
    folder = run_in(tmp_path / "run", 5, "actor_rollout_ref.actor.optim.lr=3e-3", ranks=4)
    save(folder, 2, 1, "actor_rollout_ref.actor.optim.lr=1e-3")
    save(folder, 4, 2, "actor_rollout_ref.actor.optim.lr=2e-3")
    run = past_run(folder)
    found = {step: past_step(run, step) for step in range(1, 6)}
    assert {step: past.ranks for step, past in found.items()} == {1: 1, 2: 1, 3: 2, 4: 2, 5: 4}
    rates = {step: past.config.actor_rollout_ref.actor.optim.lr for step, past in found.items()}
    assert rates == {1: 1e-3, 2: 1e-3, 3: 2e-3, 4: 2e-3, 5: 3e-3}


def test_a_copy_is_read_and_not_what_it_was_copied_from(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "run", 1)
    (tmp_path / "moved").mkdir()
    named = {"rollouts": str(tmp_path / "elsewhere"), "checkpoints": str(tmp_path / "moved")}
    (folder / "manifest.json").write_text(json.dumps({"folders": named}))
    folders = past_run(folder).folders
    assert folders.rollouts == folder / "rollouts"
    assert folders.checkpoints == tmp_path / "moved"


# ------------------------------------------------------------------ every prompt of a step


@pytest.mark.parametrize("telling", [set(), {0, 5, 9}, {0, 1, 4, 5, 6, 7, 8, 9}, set(range(10))])
def test_prompts_of_later_draws_are_found_again_by_name(telling: set[int]) -> None:
    prompts = PromptSet(
        tuple(replace(PROMPT, prompt_id=str(row)) for row in range(10)), (np.zeros(1, np.int32),) * 10, 0
    )
    parts = parts_with(
        sizes=Sizes(4, 2, True, 3, None, 9),
        sampling=SamplingSettings(1.0, 1.0, LONGEST),
        horizon=Constant(LONGEST),
        credit=CreditSettings(),
        prompts=prompts,
        sampler=Sampler(),
        verifier=TellingVerifier(telling),
    )
    for step in (1, 2, 3):
        groups, _ = parts.redraw(parts.verify(parts.sample(step), step), step)
        known = {item.uid: item.prompt for item in occurrences(parts, step)}
        assert [known[group.uid].prompt_id for group in groups] == [group.prompt.prompt_id for group in groups]


# ------------------------------------------------------------------ what counts as the same


def test_without_a_tolerance_numbers_are_equal_or_differ() -> None:
    exact, loose = Tolerance(0.0, ""), Tolerance(1e-4, "")
    assert exact.holds(0.1, 0.1)
    assert not exact.holds(0.1, np.nextafter(0.1, 1))
    assert loose.holds(1000.0, 1000.05)
    assert not loose.holds(1000.0, 1000.2)
    assert not loose.holds(0.0, 1e-9)
    assert loose.holds(0.0, 1e-9, least=1.0)
    for tolerance in (exact, loose):
        assert tolerance.holds(None, None)
        assert not tolerance.holds(None, 0.0)
        assert not tolerance.holds(0.0, None)


def test_divergences_with_six_decimals_may_round_apart_only_with_a_tolerance() -> None:
    assert near(0.000002, 0.000003, Tolerance(1e-4, ""))
    assert not near(0.000002, 0.000003, Tolerance(0.0, ""))
    assert not near(0.5, 0.5001, Tolerance(1e-4, ""))


def test_a_metric_that_was_not_logged_or_is_no_number_differs(tmp_path: Path) -> None:
    past = past_step(past_run(run_in(tmp_path / "run", 1)), 1)
    for logged in ({}, {"actor/loss": "low"}, {"actor/loss": None}):
        result = Comparison()
        compare_metrics(replace(past, metrics=logged), {"actor/loss": 0.5}, Tolerance(1e-4, ""), result)
        assert len(result.differences) == 1
        assert not result.rows[0].same
    result = Comparison()
    figures = {"actor/loss": 0.5, "perf/tokens_forwarded": 3.0}
    compare_metrics(past, figures, Tolerance(0.0, ""), result)
    assert result.differences == []


def test_texts_are_told_apart_where_they_part() -> None:
    said = told_apart(LINE, "output", "x" * 100 + "seven", "x" * 100 + "eight")
    assert said == (
        f"rollout 1-0-0: output, character 101: logged {'x' * 20 + 'seven'!r}, replayed {'x' * 20 + 'eight'!r}"
    )
    assert "character 4: logged 'abc', replayed 'abcd'" in told_apart(LINE, "output", "abc", "abcd")


def test_bytes_that_are_no_character_do_not_tell_texts_apart() -> None:
    assert alike("half of \ufffd", "half of ")
    assert alike(" one", "one")
    assert not alike("half of", "half of ")
    assert not alike("o ne", "one")


def test_a_tolerance_says_why_it_is_one(tmp_path: Path) -> None:
    run = past_run(run_in(tmp_path / "run", 1, ranks=2))
    found = tolerance_of(past_step(run, 1), run, "cpu", None)
    assert found.relative == 1e-4
    assert "recorded on 2 ranks" in found.why
    assert "another machine" in found.why
    assert tolerance_of(past_step(run, 1), run, "cpu", 0.25).relative == 0.25


# ------------------------------------------------------------------ where it cannot look


@pytest.mark.parametrize(
    ("step", "freq", "kept", "said"),
    [
        (13, 5, (), "save_freq=5 wrote none; one of 1, 2, 3, 4, 6, 12 would have"),
        (8, 5, (), "save_freq=5 wrote none; one of 1, 7 would have"),
        (11, 5, (), "max_actor_ckpt_to_keep=2 has let it go"),
        (3, 0, (), "save_freq=0 wrote none; one of 1, 2 would have"),
        (3, 0, (5, 9, 14), "Steps that can be replayed whole: 1, 6, 10"),
    ],
)
def test_a_missing_checkpoint_is_explained(
    tmp_path: Path, step: int, freq: int, kept: tuple[int, ...], said: str
) -> None:
    folder = run_in(tmp_path / "run", 14, f"trainer.save_freq={freq}")
    for number in kept:
        save(folder, number, 1, f"trainer.save_freq={freq}")
    run = past_run(folder)
    past = past_step(run, step)
    before, why = start_of(run, past)
    assert before is None
    assert why == no_checkpoint(run, past, folder / "checkpoints" / f"step_{step - 1}")
    # Of many divisors some are left out.
    assert said.replace("1, 2, 3, 4, 6, 12", "1, 2, 3, ..., 12") in why


def test_the_first_step_begins_with_the_initial_model(tmp_path: Path) -> None:
    run = past_run(run_in(tmp_path / "run", 1))
    assert start_of(run, past_step(run, 1)) == (None, None)


@pytest.mark.parametrize("argv", [["RUN"], ["RUN", "--step", "x"], ["RUN", "--step", "1", "--tolerance", "2"]])
def test_a_command_that_makes_no_sense_is_bad_input(argv: list[Any]) -> None:
    with pytest.raises(SystemExit) as stopped:
        arguments(argv)
    assert stopped.value.code == 2
