"""Configuration: shipped files hold, flags reach their keys, nonsense is refused with a remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.config.compose import METHODS, PROJECT, contradictions, resolve
from trainer.config.flags import FLAGS
from trainer.config.published import REASONS
from trainer.config.reference import leaves, lookup, page
from trainer.config.schema import Config
from trainer.errors import BadInputError

VALUES = {
    "actor_rollout_ref.model.path": "/models/some",
    "actor_rollout_ref.model.attn_implementation": "eager",
    "actor_rollout_ref.rollout.name": "hf",
    "actor_rollout_ref.actor.self_distillation.failure_solution_condition": "when_no_solution",
    "actor_rollout_ref.actor.self_distillation.alpha": "0.25",
    "actor_rollout_ref.actor.optim.lr": "3e-05",
    "actor_rollout_ref.rollout.max_model_len": "9999",
    "actor_rollout_ref.actor.self_distillation.peer_control_mode": "random_peer",
    "actor_rollout_ref.actor.self_distillation.peer_control_match": "token",
    "actor_rollout_ref.actor.self_distillation.summary_source": "all",
    "data.train_batch_size": "32",
}
"""A valid value for flags that do not take 3 or False."""


def problems(overrides: list[str], environment: dict[str, str] | None = None, method: str = "mopd") -> list[str]:
    with pytest.raises(BadInputError) as refused:
        resolve(method, overrides, environment or {})
    return refused.value.problems


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", ["embedded", "published"])
def test_every_shipped_configuration_holds(method: str, profile: str) -> None:
    assert resolve(method, [f"profile={profile}"], {}).config.data.seed == 42


def test_mopd_shows_two_successes_and_a_failure_always() -> None:
    distill = resolve("mopd", [], {}).config.actor_rollout_ref.actor.self_distillation
    assert (distill.include_primary_solution, distill.include_another_solution, distill.include_failure_solution) == (
        True,
        True,
        True,
    )
    assert distill.failure_solution_condition == "always"


def test_the_templates_of_the_files_are_those_of_the_method() -> None:
    from mopd.contexts import ContextSettings
    from trainer.config.compose import context_settings

    settings = context_settings(resolve("mopd", ["profile=published"], {}).config)
    assert settings == ContextSettings()


@pytest.mark.parametrize("value", ["nonsense", "console", "[console,nonsense]", "null", "[[wandb]]"])
def test_an_unknown_logger_is_refused_with_the_known_ones_and_the_form_of_a_list(value: str) -> None:
    with pytest.raises(BadInputError) as refused:
        resolve("mopd", [f"trainer.logger={value}"], {})
    (sentence,) = refused.value.problems
    assert sentence.startswith("trainer.logger=")
    assert "console, file, jsonl, tensorboard, wandb, mlflow is wanted, such as [console,wandb]" in sentence


def test_a_logger_that_is_named_twice_counts_once() -> None:
    found = resolve("mopd", ["trainer.logger=[wandb,console,wandb]"], {}).config.trainer.logger
    assert found == ("wandb", "console")


def test_methods_share_every_default_but_the_method_itself() -> None:
    trees = {method: resolve(method, ["profile=published"], {}).tree for method in METHODS}
    differing = {key for key, _, _ in leaves(Config) if len({str(lookup(tree, key)) for tree in trees.values()}) > 1}
    method_itself = (
        *("clip_ratio_low", "clip_ratio_high", "loss_agg_mode"),  # GSPO's
        *("self_distillation.include_", "failure_solution_condition", "loss_mode", "teacher_regularization", ".view"),
        *("full_logit_distillation", ".alpha", "horizon.", "adv_estimator"),
    )
    assert all(any(part in key for part in method_itself) for key in differing)


def test_a_named_model_brings_the_published_settings() -> None:
    assert resolve("mopd", [], {}).config.actor_rollout_ref.actor.optim.lr == pytest.approx(7e-4)
    assert resolve("mopd", [], {"MODEL_PATH": "/m"}).config.actor_rollout_ref.actor.optim.lr == pytest.approx(1e-5)


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_every_flag_reaches_its_key(flag: str) -> None:
    key = FLAGS[flag]
    default = lookup(resolve("mopd", [], {}).tree, key)
    by_type = {bool: "False", float: "0.125"}
    value = VALUES.get(key, by_type.get(type(default), "3"))
    extra = ["actor_rollout_ref.actor.ppo_mini_batch_size=1"]
    resolved = resolve("mopd", extra, {flag: value})
    assert str(lookup(resolved.tree, key)) == value
    assert f"{key}={value} ({flag})" in resolved.won


def test_data_path_names_a_folder_and_val_data_path_another() -> None:
    data = resolve("mopd", [], {"DATA_PATH": "/data/my set", "VAL_DATA_PATH": "/other/held.parquet"}).config.data
    assert (data.train_files, data.val_files) == ("/data/my set/train.parquet", "/other/held.parquet")
    assert resolve("mopd", [], {"DATA_PATH": "/d"}).config.data.val_files == "/d/test.parquet"


def test_the_command_line_wins_over_flags_and_both_are_told() -> None:
    resolved = resolve("mopd", ["actor_rollout_ref.actor.optim.lr=1e-4"], {"LR": "1e-3"})
    assert resolved.config.actor_rollout_ref.actor.optim.lr == pytest.approx(1e-4)
    assert len(resolved.won) == 2


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("actor_rollout_ref.actor.optim.lrr", "actor_rollout_ref.actor.optim.lr"),
        ("data.train_batchsize", "data.train_batch_size"),
        ("actor_rollout_ref.rollout.temprature", "actor_rollout_ref.rollout.temperature"),
        ("trainer.total_steps", "trainer.total_training_steps"),
        ("actor.self_distillation.alpha", "actor_rollout_ref.actor.self_distillation.alpha"),
    ],
)
def test_a_typo_gets_the_key_that_was_meant(typo: str, meant: str) -> None:
    [problem] = problems([f"{typo}=1"])
    assert f"did you mean {meant}?" in problem


def test_all_faults_are_told_at_once() -> None:
    found = problems(["trainer.total_training_steps=abc", "data.bogus=1", "actor_rollout_ref.actor.optim.lr=-1"])
    assert len(found) == 3
    assert any("'abc'" in problem for problem in found)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["lr"], "key=value"),
        (["trainer.total_training_steps="], "trainer.total_training_steps"),
        (["actor_rollout_ref.actor.optim.lr=nan"], "finite"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(overrides: list[str], said: str) -> None:
    assert any(said in problem for problem in problems(overrides))


DISTILL = "actor_rollout_ref.actor.self_distillation"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["actor_rollout_ref.rollout.n=1"], "a group of one has no peers"),
        (["actor_rollout_ref.actor.ppo_mini_batch_size=5"], "does not divide"),
        (["actor_rollout_ref.rollout.max_model_len=10"], "raise it, or set it to null"),
        ([f"{DISTILL}.max_reprompt_len=2048"], "leaves no room for peers"),
        (
            [f"{DISTILL}.include_{part}=false" for part in ("primary_solution", "another_solution")]
            + [f"{DISTILL}.include_{part}=false" for part in ("failure_solution", "environment_feedback")],
            "nothing to learn from",
        ),
        (
            [f"{DISTILL}.summarize_solutions=true", f"{DISTILL}.include_another_solution=false"],
            "replaces whole peers by summaries",
        ),
        ([f"{DISTILL}.solution_template=hello"], "solution_template"),
        ([f"{DISTILL}.view=reference", f"{DISTILL}.include_primary_solution=false"], "would be left out"),
        (["algorithm.overlong_buffer=8"], "learns from no reward"),
        ([f"{DISTILL}.view=prompt"], "set TEACHER_MODEL_PATH"),
        ([f"{DISTILL}.full_logit_distillation=false"], "set alpha=1"),
        (["actor_rollout_ref.ref.model.path=/m"], "never follows the student; set it to frozen"),
        (["trainer.overlap=true", "algorithm.rollout_correction.rollout_is=null"], "set it to token"),
    ],
)
def test_an_impossible_combination_is_refused(overrides: list[str], said: str) -> None:
    [fault] = contradictions(resolve("mopd", overrides, {}).config)
    assert said in fault


def test_shipped_methods_contradict_nothing_and_grpo_needs_no_view() -> None:
    for method in METHODS:
        teacher = ["actor_rollout_ref.ref.model.path=/m"] if method in ("opd", "topd", "popd", "ts_sdpo") else []
        assert contradictions(resolve(method, teacher, {}).config) == []
    assert contradictions(resolve("grpo", [f"{DISTILL}.max_reprompt_len=1"], {}).config) == []
    assert contradictions(resolve("grpo", ["actor_rollout_ref.rollout.n=1"], {}).config)
    assert contradictions(resolve("grpo", ["actor_rollout_ref.ref.model.path=/m"], {}).config)
    assert contradictions(resolve("dpo", ["reference_compat=true"], {}).config)


@pytest.mark.parametrize("key", sorted(REASONS))
def test_a_published_key_that_is_not_honoured_is_refused_with_the_reason(key: str) -> None:
    assert f"{key}: {REASONS[key]}" in problems([f"{key}=1"])


def test_a_typo_and_a_missing_file_are_told_together() -> None:
    found = problems(["data.sede=1"], {"DATA_PATH": "/nothing/here", "MODEL_PATH": "/no/model"})
    assert len(found) == 4


def test_the_configuration_reference_is_current() -> None:
    assert Path(PROJECT / "docs" / "configuration.md").read_text() == page()


@pytest.mark.parametrize("path", ["/a b/c", "1e3", "it's", "a,b=c", "${x}", "7", "a\\b", "a\\'b", "end\\"])
def test_a_path_in_a_flag_arrives_unchanged(path: str) -> None:
    assert resolve("mopd", [], {"OUTPUT_DIR": path}).config.trainer.output_dir == path


def test_the_list_of_keys_is_frozen_so_that_a_new_one_shows_in_review() -> None:
    frozen = Path(__file__).with_name("config_keys.txt").read_text().split()
    assert [key for key, _, _ in leaves(Config)] == frozen


@pytest.mark.parametrize(
    ("method", "overrides", "words"),
    [
        ("mopd", ["reference_compat=true", f"{DISTILL}.peer_policy=shortest"], "sets it to first"),
        ("mopd", ["reference_compat=true", f"{DISTILL}.reprompt_truncation=error"], "sets it to right"),
        ("grpo", ["algorithm.max_num_gen_batches=3"], "algorithm.filter_groups=true"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(method: str, overrides: list[str], words: str) -> None:
    [found] = contradictions(resolve(method, overrides, {}).config)
    assert re.search(words, found)
