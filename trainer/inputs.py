"""Everything a run reads, read or refused before anything is started: devices, model, prompts. All faults at once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mopd.rewards import VERIFIERS, code, sandbox, verifier_of
from mopd.rewards.custom import check
from mopd.teacher import check_vocabulary
from mopd.types import Prompt
from trainer.assemble import Renderers, custom_reward
from trainer.attention import PACKED, check_packable
from trainer.config.compose import PROJECT, contradictions, distils
from trainer.config.schema import Config
from trainer.errors import BadInputError
from trainer.placement import PLACEMENT_KEY, Placement, distance_faults, placement_faults, placement_of
from trainer.planning.adapters import adapter_faults, target_faults
from trainer.prompts import PromptSet, Renderer, load, read_tasks
from trainer.trackers.opening import missing_trackers

MODEL_KEY = "actor_rollout_ref.model.path"
TEACHER_KEY = "actor_rollout_ref.ref.model.path"
FLAG_OF = {MODEL_KEY: "MODEL_PATH", TEACHER_KEY: "TEACHER_MODEL_PATH"}


@dataclass(frozen=True)
class Inputs:
    """What a run starts from."""

    placement: Placement
    renderers: Renderers
    train: PromptSet
    held_out: PromptSet
    isolation: sandbox.Probe | None
    """What this machine offers to run programs in; None where no row needs that."""


def read_inputs(config: Config) -> Inputs:
    """Reads what the configuration names.

    Raises:
        BadInputError: every fault of configuration, devices, model and data, together.
    """
    inputs, problems = examined(config, torch.cuda.device_count())
    problems += missing_engine("actor_rollout_ref.rollout.name", config.actor_rollout_ref.rollout.name)
    if inputs is None or problems:
        raise BadInputError(problems)
    return inputs


def examined(config: Config, gpus: int, *, weights: bool = True) -> tuple[Inputs | None, list[str]]:
    """What the configuration names, and every fault of it on a machine of so many GPUs; None where there are any.

    Without `weights` a model's folder may lack them.
    """
    problems = [*contradictions(config), *placement_faults(config, gpus), *distance_faults(config, gpus)]
    problems += [*missing_packages(config), *adapter_faults(config)]
    model, teacher = config.actor_rollout_ref.model.path, config.actor_rollout_ref.ref.model.path
    faults = model_faults(config, MODEL_KEY, model, weights=weights)
    if teacher is not None:
        faults += model_faults(config, TEACHER_KEY, teacher, weights=weights)
    if faults:
        return None, [*problems, *faults, *row_faults(config, untokenized=True)]
    try:
        renderers = load_renderers(config)
        problems += [*breadth_faults(config), *target_faults(config)]
    except BadInputError as error:
        return None, [*problems, *error.problems, *row_faults(config, untokenized=True)]
    try:
        sets = load_prompts(config, renderers.student)
    except BadInputError as error:
        faults = [*error.problems, *row_faults(config, untokenized=False)]
        return None, list(dict.fromkeys([*problems, *faults]))
    if problems:
        return None, problems
    return Inputs(placement_of(config, gpus), renderers, *sets, isolation(config, sets)), []


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


def missing_engine(key: str, name: str) -> list[str]:
    """A sentence where the engine that is to sample, the value of `key`, is not installed or cannot be."""
    if name == "sglang":
        return [
            f"{key}=sglang: no version of SGLang has both the torch and the transformers of this project "
            f"(docs/setup.md); set ROLLOUT_BACKEND=vllm or hf"
        ]
    if name != "vllm" or importlib.util.find_spec("vllm") is not None:
        return []
    return [
        f"{key}=vllm: vLLM is not installed in this Python; install it (docs/setup.md), or set ROLLOUT_BACKEND=hf, "
        f"which samples with transformers alone"
    ]


def model_faults(config: Config, name: str, path: str, *, weights: bool = True) -> list[str]:
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
    files = sorted(folder.glob("*.safetensors"))
    if weights and not files:
        return [f"{key}: the folder has no weights (*.safetensors)"]
    for file in files:
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
    try:
        if config.actor_rollout_ref.model.attn_implementation == PACKED:
            check_packable(AutoConfig.from_pretrained(path).get_text_config())
    except ValueError as error:
        return [f"{key}: {error}"]
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


def row_faults(config: Config, *, untokenized: bool) -> list[str]:
    """Sentences for what is wrong with the data whatever the tokenizer; with `untokenized` for their number too."""
    faults = []
    for key, path in (("data.train_files", config.data.train_files), ("data.val_files", config.data.val_files)):
        with contextlib.suppress(BadInputError):
            convert_beside(Path(path))
        prompts, told = read_tasks(path, key, check_truth=custom_reward(config) is None)
        faults += [*told, *unknown_sources(config, key, path, prompts)]
        if untokenized and prompts and key == "data.train_files":
            faults += too_few(config, len(prompts))
    return faults


def too_few(config: Config, prompts: int) -> list[str]:
    """A sentence where the training file has fewer prompts than a step takes."""
    data = config.data
    if prompts >= data.train_batch_size:
        return []
    return [
        f"data.train_batch_size={data.train_batch_size}: {data.train_files} has {prompts} prompts that fit; "
        f"lower TRAIN_BATCH_SIZE"
    ]


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
                check_truth=custom_reward(config) is None,
            )
        except BadInputError as error:
            problems += error.problems
            continue
        problems += unknown_sources(config, key, path, found.prompts)
        sets.append((key, found))
    for key, found in sets:
        problems += too_few(config, len(found)) if key == "data.train_files" else []
    problems += reward_faults(config, [found for _, found in sets])
    if problems:
        raise BadInputError(list(dict.fromkeys(problems)))
    return sets[0][1], sets[1][1]


def summary_instruction(config: Config) -> str:
    """What the student is asked beside the task; empty where summaries are not shown."""
    distill = config.actor_rollout_ref.actor.self_distillation
    wanted = distill.summarize_solutions and distils(config.actor_rollout_ref.actor) and distill.view == "peers"
    return distill.summary_instruction if wanted else ""


def unknown_sources(config: Config, key: str, path: str, prompts: Iterable[Prompt]) -> list[str]:
    """A sentence for every data source without a verifier; a function of the user's own serves them all."""
    if custom_reward(config) is not None:
        return []
    names = sorted(name for name in {prompt.data_source for prompt in prompts} if verifier_of(name) is None)
    return [
        f"{key}={path}: data_source {name!r} has no verifier; known: {', '.join(sorted(VERIFIERS))}" for name in names
    ]


def isolation(config: Config, sets: Iterable[PromptSet]) -> sandbox.Probe | None:
    """What this machine offers to run programs in; None where no row needs that."""
    if custom_reward(config) is not None:
        return None
    verifiers = [verifier_of(name) for name in {prompt.data_source for found in sets for prompt in found.prompts}]
    needed = any(verifier is not None and verifier.verify is code.verify for verifier in verifiers)
    return sandbox.probe() if needed else None


def reward_faults(config: Config, sets: Iterable[PromptSet]) -> list[str]:
    """Sentences for a reward function that cannot be used, and for an isolation that cannot be had."""
    asked, custom = config.custom_reward_function, custom_reward(config)
    if custom is not None:
        try:
            check(custom)
        except ValueError as error:
            return [f"custom_reward_function.path={asked.path}, custom_reward_function.name={asked.name}: {error}"]
    offered = isolation(config, sets)
    if offered is None:
        return []
    tier = config.reward.sandbox_tier
    if tier is not None and tier < offered.tier:
        why = offered.missing.get(tier, offered.reason)
        return [f"reward.sandbox_tier={tier}: this machine does not offer it ({why}); set it to null"]
    if tier is None and offered.tier >= 3 and not config.reward.allow_unsandboxed:
        accepts = " (reward.sandbox_tier=3 accepts what there is)" if offered.tier == 3 else ""
        return [
            f"reward.allow_unsandboxed=false: the data asks for programs to be run, and this machine cannot isolate "
            f"them ({offered.reason}); run it where user namespaces or Landlock work{accepts}, or, on a machine that "
            f"holds nothing of value, set reward.allow_unsandboxed=true"
        ]
    return []


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
