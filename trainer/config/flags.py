"""Environment flags: what the launch scripts' users set, and the key that each one fills.

A flag is an override written before those of the command line, so the command line wins. An unset
or empty variable says nothing.
"""

from __future__ import annotations

import re
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
    "SUMMARIZE_SOLUTIONS": f"{DISTILL}.summarize_solutions",
    "SUMMARY_K": f"{DISTILL}.summary_k",
    "SUMMARY_SOURCE": f"{DISTILL}.summary_source",
    "SUMMARY_FROM_ALL": f"{DISTILL}.summary_from_all",
    "DPO_BETA": "actor_rollout_ref.actor.policy_loss.dpo_beta",
    "SIMPO_BETA": "actor_rollout_ref.actor.policy_loss.simpo_beta",
    "SIMPO_GAMMA": "actor_rollout_ref.actor.policy_loss.simpo_gamma",
    "PREF_LABEL_SMOOTHING": "actor_rollout_ref.actor.policy_loss.label_smoothing",
    "SFT_SUCCESS_THRESHOLD": "actor_rollout_ref.actor.policy_loss.sft_success_threshold",
    "SFT_LENGTH_NORMALIZE": "actor_rollout_ref.actor.policy_loss.sft_length_normalize",
    "TEACHER_MODEL_PATH": "actor_rollout_ref.ref.model.path",
    "PEER_CONTROL_MODE": f"{DISTILL}.peer_control_mode",
    "PEER_CONTROL_MATCH": f"{DISTILL}.peer_control_match",
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


NAMES = frozenset((*FLAGS, "DATA_PATH", "VAL_DATA_PATH"))
"""Every flag."""


def settings_from(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The key and the value that each flag of the environment sets, by flag name.

    DATA_PATH names a folder with train and test parquet; VAL_DATA_PATH another one (or a file) for
    the held-out prompts.
    """
    found = {name: (key, environment[name]) for name, key in FLAGS.items() if environment.get(name)}
    if folder := environment.get("DATA_PATH"):
        found["DATA_PATH"] = ("data.train_files", str(Path(folder) / "train.parquet"))
    if held_out := environment.get("VAL_DATA_PATH") or environment.get("DATA_PATH"):
        path = Path(held_out)
        file = path if path.suffix == ".parquet" else path / "test.parquet"
        found["VAL_DATA_PATH"] = ("data.val_files", str(file))
    return found


def as_override(key: str, value: str) -> str:
    """`key=value` as Hydra reads the value back unchanged, a text for the schema to convert; `null` stays null."""
    if value == "null":
        return f"{key}=null"
    # Within quotes Hydra reads a backslash as one, unless a quote follows; OmegaConf reads ${ as a reference.
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'").replace("${", "\\${")
    return f"{key}='{escaped}'"
