"""Everything a run reads, read or refused before anything is started: devices, model, prompts. All faults at once."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mopd.rewards import VERIFIERS, verifier_of
from mopd.teacher import check_vocabulary
from trainer.assemble import Placement, Renderers
from trainer.config.compose import PROJECT, contradictions, distils, missing_files
from trainer.config.schema import Config
from trainer.errors import BadInputError
from trainer.prompts import PromptSet, Renderer, load
from trainer.tracking import missing_trackers

MODEL_KEY = "actor_rollout_ref.model.path"
TEACHER_KEY = "actor_rollout_ref.ref.model.path"
PLACEMENT_KEY = "actor_rollout_ref.ref.placement"
FLAG_OF = {MODEL_KEY: "MODEL_PATH", TEACHER_KEY: "TEACHER_MODEL_PATH"}


@dataclass(frozen=True)
class Inputs:
    """What a run starts from."""

    placement: Placement
    renderers: Renderers
    train: PromptSet
    held_out: PromptSet


def read_inputs(config: Config) -> Inputs:
    """Reads what the configuration names.

    Raises:
        BadInputError: every fault of configuration, devices, model and data, together.
    """
    problems = [*contradictions(config), *placement_faults(config), *distance_faults(config), *missing_packages(config)]
    model, teacher = config.actor_rollout_ref.model.path, config.actor_rollout_ref.ref.model.path
    faults = model_faults(config, MODEL_KEY, model)
    if teacher is not None:
        faults += model_faults(config, TEACHER_KEY, teacher)
    if faults:
        raise BadInputError([*problems, *faults, *missing_data(config)])
    try:
        renderers = load_renderers(config)
        problems += breadth_faults(config)
        sets = load_prompts(config, renderers.student)
    except BadInputError as error:
        raise BadInputError([*problems, *error.problems]) from None
    if problems:
        raise BadInputError(problems)
    return Inputs(placement_of(config), renderers, *sets)


def device_of(config: Config) -> str:
    """cuda where it is asked for, or where a GPU is visible and nothing was said."""
    asked = config.trainer.device
    return ("cuda" if torch.cuda.device_count() else "cpu") if asked == "auto" else asked


def placement_of(config: Config) -> Placement:
    """The devices of the workers."""
    device = device_of(config)
    asked, beside = config.actor_rollout_ref.ref.n_gpus, config.actor_rollout_ref.ref.placement == "colocate"
    teachers = 0 if beside else asked
    by_default = max(torch.cuda.device_count() - teachers, 1) if device == "cuda" else 1
    return Placement(device, config.trainer.n_gpus_per_node or by_default, teachers)


def placement_faults(config: Config) -> list[str]:
    """Sentences for devices that are not there."""
    asked, visible, faults = config.trainer, torch.cuda.device_count(), []
    if device_of(config) == "cuda" and (asked.n_gpus_per_node or 1) > visible:
        faults.append(
            f"trainer.device={asked.device}, trainer.n_gpus_per_node={asked.n_gpus_per_node}: {visible} GPUs are "
            f"visible; lower N_GPUS_PER_NODE, or set trainer.device=cpu"
        )
    rollouts, ranks = config.data.train_batch_size * config.actor_rollout_ref.rollout.n, placement_of(config).ranks
    if config.reference_compat and distils(config.actor_rollout_ref.actor) and rollouts % ranks:
        faults.append(
            f"reference_compat=true: a step's {rollouts} rollouts (TRAIN_BATCH_SIZE x ROLLOUT_BATCH_SIZE) cannot be "
            f"dealt evenly to {ranks} devices, as the published order wants; choose a multiple of {ranks}"
        )
    if asked.nnodes > 1:
        faults.append(f"trainer.nnodes={asked.nnodes}: this version runs on one node; set NNODES=1")
    return faults


def distance_faults(config: Config) -> list[str]:
    """Sentences for what a teacher with a placement of its own cannot do, and for devices that it would lack."""
    ref, actor = config.actor_rollout_ref.ref, config.actor_rollout_ref.actor
    if ref.placement != "own":
        return []
    asked, distill, placement = f"{PLACEMENT_KEY}=own", actor.self_distillation, placement_of(config)
    if not distils(actor):
        return [f"{asked}: the loss {actor.policy_loss.loss_mode} asks no teacher of its own; set it to colocate"]
    faults = []
    if distill.teacher_regularization != "frozen":
        faults.append(
            f"{asked}: a teacher with teacher_regularization={distill.teacher_regularization} needs the student's "
            f"weights or logits, so it computes beside it; set it to frozen, or placement to colocate"
        )
    if distill.full_logit_distillation and distill.distillation_topk is None:
        faults.append(
            f"{asked}: with self_distillation.distillation_topk=null whole distributions would have to be sent for "
            f"every token; name a number (published: 100), or set placement to colocate"
        )
    if placement.teachers > placement.ranks:
        faults.append(
            f"actor_rollout_ref.ref.n_gpus={placement.teachers}: {placement.ranks} actor processes ask one teacher "
            f"each, so others would idle; lower it"
        )
    visible = torch.cuda.device_count()
    if placement.device == "cuda" and placement.ranks + placement.teachers > visible:
        faults.append(
            f"{asked}: {placement.ranks} actor processes and {placement.teachers} of the teacher need as many GPUs, "
            f"and {visible} are visible; lower N_GPUS_PER_NODE or actor_rollout_ref.ref.n_gpus, or set it to colocate"
        )
    return faults


def breadth_faults(config: Config) -> list[str]:
    """A sentence where the entries asked of a distant teacher are the whole vocabulary."""
    distill, rows = config.actor_rollout_ref.actor.self_distillation, rows_of(config.actor_rollout_ref.model.path)
    topk = distill.distillation_topk
    sent = config.actor_rollout_ref.ref.placement == "own" and distill.full_logit_distillation
    if not sent or topk is None or topk < rows:
        return []
    return [
        f"{PLACEMENT_KEY}=own: self_distillation.distillation_topk={topk} is the whole vocabulary of {rows} entries; "
        f"lower it, or set placement to colocate"
    ]


def missing_packages(config: Config) -> list[str]:
    """Sentences for packages that are asked for by a setting and are not installed."""
    faults = missing_trackers(config.trainer.logger)
    attention = config.actor_rollout_ref.model.attn_implementation
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        faults.append(
            "actor_rollout_ref.model.attn_implementation=flash_attention_2: the package flash-attn is not installed; "
            "docs/setup.md says how, or set ATTN_IMPLEMENTATION=sdpa"
        )
    return faults


def model_faults(config: Config, name: str, path: str) -> list[str]:
    """Sentences for a model folder that cannot be a model, or that is too short for the lengths asked."""
    key, folder = f"{name}={path}", Path(path)
    if not folder.is_dir():
        hub = re.fullmatch(r"[\w.-]+/[\w.-]+", path)
        fetch = f"; to fetch it from the hub: hf download {path} --local-dir FOLDER" if hub else ""
        return [f"{key}: no such folder; it must be a Hugging Face model folder ({FLAG_OF[name]}){fetch}"]
    try:
        described: Any = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return [f"{key}: the folder has no config.json; it must be a Hugging Face model folder ({FLAG_OF[name]})"]
    except (OSError, ValueError) as error:
        return [f"{key}: its config.json cannot be read ({error})"]
    except RecursionError:
        return [f"{key}: its config.json cannot be read (nested too deeply)"]
    if not isinstance(described, dict):
        return [f"{key}: its config.json must be an object; got {type(described).__name__}"]
    if described.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or described.get("is_encoder_decoder"):
        return [f"{key}: model_type={described.get('model_type')!r} is no causal language model"]
    if not (weights := sorted(folder.glob("*.safetensors"))):
        return [f"{key}: the folder has no weights (*.safetensors)"]
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return [f"{key}: {file.name} cannot be read ({error})"]
    most, wanted = described.get("max_position_embeddings"), longest_sequence(config)
    if isinstance(most, int) and wanted > most:
        return [
            f"{key}: the model reads {most} tokens, and the lengths asked come to {wanted}; lower "
            f"ROLLOUT_PROMPT_LENGTH, ROLLOUT_RESPONSE_LENGTH or self_distillation.max_reprompt_len"
        ]
    return []


def longest_sequence(config: Config) -> int:
    """Tokens of the longest sequence that any forward may see."""
    data, distill = config.data, config.actor_rollout_ref.actor.self_distillation
    reprompts = distils(config.actor_rollout_ref.actor) and distill.view != "prompt"
    prompt = max(data.max_prompt_length, distill.max_reprompt_len if reprompts else 0)
    return max(prompt + data.max_response_length, config.actor_rollout_ref.rollout.max_model_len or 0)


def load_renderers(config: Config) -> Renderers:
    """The student's chat template, and the teacher's own where that is another model of the same vocabulary.

    Raises:
        BadInputError: a tokenizer cannot be used, or the vocabularies differ.
    """
    arguments, paths = config.data.apply_chat_template_kwargs, config.actor_rollout_ref
    tokenizer = load_tokenizer(MODEL_KEY, paths.model.path)
    student = Renderer(tokenizer, arguments)
    if paths.ref.model.path is None:
        return Renderers(student, student)
    other = load_tokenizer(TEACHER_KEY, paths.ref.model.path)
    try:
        check_vocabulary(
            tokenizer.get_vocab(), other.get_vocab(), rows_of(paths.model.path), rows_of(paths.ref.model.path)
        )
    except ValueError as error:
        raise BadInputError([f"{TEACHER_KEY}={paths.ref.model.path}: {error}"]) from None
    return Renderers(student, Renderer(other, arguments))


def rows_of(path: str) -> int:
    """Rows of a model's output layer."""
    return int(AutoConfig.from_pretrained(path).get_text_config().vocab_size)


def load_tokenizer(name: str, path: str) -> Any:
    """The tokenizer of a model, by the key that named it.

    Raises:
        BadInputError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInputError([f"{name}={path}: no tokenizer could be loaded ({first_line})"]) from None
    if not tokenizer.chat_template:
        raise BadInputError([f"{name}={path}: its tokenizer has no chat template; take an instruct model"])
    return tokenizer


def missing_data(config: Config) -> list[str]:
    """Sentences for data files that are not there, for when nothing can be tokenized."""
    return missing_files({"data.train_files": config.data.train_files, "data.val_files": config.data.val_files})


def load_prompts(config: Config, renderer: Renderer) -> tuple[PromptSet, PromptSet]:
    """Training and held-out prompts.

    Raises:
        BadInputError: the faults of both files together.
    """
    data, sets, problems = config.data, [], []
    for key, path in (("data.train_files", data.train_files), ("data.val_files", data.val_files)):
        try:
            convert_beside(Path(path))
            found = load(
                path,
                key,
                renderer,
                max_prompt_length=data.max_prompt_length,
                drop_overlong=data.filter_overlong_prompts,
                instruction=summary_instruction(config),
            )
        except BadInputError as error:
            problems += error.problems
            continue
        problems += unknown_sources(key, path, found)
        sets.append((key, found))
    for key, found in sets:
        if key == "data.train_files" and len(found) < data.train_batch_size:
            problems.append(
                f"data.train_batch_size={data.train_batch_size}: {data.train_files} has {len(found)} prompts that fit; "
                f"lower TRAIN_BATCH_SIZE"
            )
    if problems:
        raise BadInputError(list(dict.fromkeys(problems)))
    return sets[0][1], sets[1][1]


def summary_instruction(config: Config) -> str:
    """What the student is asked beside the task; empty where summaries are not shown."""
    distill = config.actor_rollout_ref.actor.self_distillation
    wanted = distill.summarize_solutions and distils(config.actor_rollout_ref.actor) and distill.view == "peers"
    return distill.summary_instruction if wanted else ""


def unknown_sources(key: str, path: str, prompts: PromptSet) -> list[str]:
    """A sentence for every data source without a verifier."""
    names = sorted(name for name in {prompt.data_source for prompt in prompts.prompts} if verifier_of(name) is None)
    return [
        f"{key}={path}: data_source {name!r} has no verifier; known: {', '.join(sorted(VERIFIERS))}" for name in names
    ]


def convert_beside(file: Path) -> None:
    """Converts published JSON Lines that lie beside a missing parquet file.

    Raises:
        BadInputError: the conversion's own sentences.
    """
    script = PROJECT / "data" / "preprocess.py"
    known = file.name in ("train.parquet", "test.parquet") and script.is_file()
    if not known or os.path.lexists(file) or not file.with_suffix(".json").is_file():
        return
    command = [sys.executable, str(script), "--missing", "--data_source", str(file.parent)]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise BadInputError([line.strip() for line in done.stderr.splitlines() if line.strip()])
