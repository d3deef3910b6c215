"""Evaluation: where its settings come from, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config.compose import as_yaml, resolve
from trainer.errors import BAD_INPUT, BadInputError
from trainer.evaluate import main, settings_of


def checkpoint(folder: Path, *overrides: str) -> Path:
    """The folder of a checkpoint in a run with these settings."""
    inner = folder / "checkpoints" / "step_3" / "hf"
    inner.mkdir(parents=True)
    (inner.parent / "config.yaml").write_text(as_yaml(resolve("mopd", overrides, {}).tree))
    return inner.parent


def test_a_checkpoint_is_evaluated_as_its_run_validated(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path,
        "data.max_response_length=77",
        "actor_rollout_ref.rollout.val_kwargs.n=3",
        "actor_rollout_ref.rollout.val_kwargs.temperature=0.3",
        "data.apply_chat_template_kwargs.enable_thinking=true",
    )
    asked = settings_of([f"model={folder}"])
    assert asked.model == str(folder / "hf")
    assert (asked.max_response_length, asked.n, asked.temperature) == (77, 3, 0.3)
    assert asked.template_arguments == {"enable_thinking": True}
    changed = settings_of([f"model={folder}", "n=5", "enable_thinking=false"])
    assert (changed.n, changed.template_arguments) == (5, {"enable_thinking": False})


def test_a_summary_is_asked_for_exactly_where_training_asked(tmp_path: Path) -> None:
    shown = ["include_another_solution=false", "include_failure_solution=false", "summarize_solutions=true"]
    overrides = [f"actor_rollout_ref.actor.self_distillation.{setting}" for setting in shown]
    asked = settings_of([f"model={checkpoint(tmp_path / 'a', *overrides)}"])
    assert "<summary>" in asked.instruction
    vanilla = checkpoint(tmp_path / "b", *overrides, "actor_rollout_ref.actor.policy_loss.loss_mode=vanilla")
    assert settings_of([f"model={vanilla}"]).instruction == ""


def test_any_other_model_gets_the_published_settings(tmp_path: Path) -> None:
    asked = settings_of([f"model={tmp_path}"])
    assert (asked.max_response_length, asked.temperature) == (4096, 0.6)


def test_the_embedded_model_is_the_default() -> None:
    asked = settings_of([])
    assert asked.model.endswith("datasets/chain/model")
    assert asked.max_response_length == 32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["modle=x"], "did you mean model?"),
        (["n=0"], "n='0'"),
        (["n=many"], "n='many'"),
        (["top_p=2"], "top_p='2'"),
        (["x"], "form key=value"),
        (["enable_thinking=maybe"], "must be true or false"),
    ],
)
def test_nonsense_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(BadInputError, match="problem") as refused:
        settings_of(arguments)
    assert said in str(refused.value)


def test_a_folder_that_is_no_model_ends_with_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"model={tmp_path}"]) == BAD_INPUT
    assert "no config.json" in capsys.readouterr().err
