"""Environment flags: what the launch scripts' users set, and the key that each one fills.

A flag is an override written before those of the command line, so the command line wins. An unset
or empty variable says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DISTILL = "actor_rollout_ref.actor.self_distillation"

FLAGS: dict[str, str] = {
    "MODEL_PATH": "actor_rollout_ref.model.path",
    "ATTN_IMPLEMENTATION": "actor_rollout_ref.model.attn_implementation",
    "TRAIN_BATCH_SIZE": "data.train_batch_size",
    "ROLLOUT_PROMPT_LENGTH": "data.max_prompt_length",
    "ROLLOUT_RESPONSE_LENGTH": "data.max_response_length",
    "SEED": "data.seed",
    "LR": "actor_rollout_ref.actor.optim.lr",
    "ALPHA": f"{DISTILL}.alpha",
    "INCLUDE_PRIMARY_SOLUTION": f"{DISTILL}.include_primary_solution",
    "INCLUDE_ANOTHER_SOLUTION": f"{DISTILL}.include_another_solution",
    "INCLUDE_FAILURE_SOLUTION": f"{DISTILL}.include_failure_solution",
    "FAILURE_SOLUTION_CONDITION": f"{DISTILL}.failure_solution_condition",
    "DONTS_REPROMPT_ON_SELF_SUCCESS": f"{DISTILL}.dont_reprompt_on_self_success",
    "ROLLOUT_BATCH_SIZE": "actor_rollout_ref.rollout.n",
    "ROLLOUT_BACKEND": "actor_rollout_ref.rollout.name",
    "ROLLOUT_MAX_MODEL_LEN": "actor_rollout_ref.rollout.max_model_len",
    "TOTAL_STEPS": "trainer.total_training_steps",
    "N_GPUS_PER_NODE": "trainer.n_gpus_per_node",
    "NNODES": "trainer.nnodes",
    "OUTPUT_DIR": "trainer.output_dir",
    "CKPT_DIR": "trainer.default_local_dir",
    "ROLLOUT_DATA_DIR": "trainer.rollout_data_dir",
    "VALIDATION_DATA_DIR": "trainer.validation_data_dir",
}

NEUTRAL: dict[str, tuple[str, ...]] = {
    "SUMMARIZE_SOLUTIONS": ("False", "false", "0"),
    "PEER_CONTROL_MODE": ("none",),
    "PEER_CONTROL_MATCH": ("block",),
}
"""Flags of options that this version does not have: only the value that means `off` is taken."""


def overrides_from(environment: Mapping[str, str]) -> dict[str, str]:
    """The overrides `key=value` that the environment's flags stand for, by flag name.

    DATA_PATH names a folder with train and test parquet; VAL_DATA_PATH another one (or a file) for
    the held-out prompts.
    """
    given = {name: environment[name] for name in FLAGS if environment.get(name)}
    found = {name: f"{FLAGS[name]}={quoted(value)}" for name, value in given.items()}
    if folder := environment.get("DATA_PATH"):
        found["DATA_PATH"] = f"data.train_files={quoted(str(Path(folder) / 'train.parquet'))}"
    if held_out := environment.get("VAL_DATA_PATH") or environment.get("DATA_PATH"):
        path = Path(held_out)
        file = path if path.suffix == ".parquet" else path / "test.parquet"
        found["VAL_DATA_PATH"] = f"data.val_files={quoted(str(file))}"
    return found


def unsupported(environment: Mapping[str, str]) -> list[str]:
    """A sentence for every flag that asks for an option this version does not have."""
    return [
        f"{name}={environment[name]}: this version has no such option; leave {name} unset or set it to {off[0]}"
        for name, off in NEUTRAL.items()
        if environment.get(name) and environment[name] not in off
    ]


def quoted(value: str) -> str:
    """The value as Hydra reads it back unchanged, a text for the schema to convert; `null` stays null."""
    if value == "null":
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return f"'{escaped}'"
