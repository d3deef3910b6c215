"""`python -m trainer.evaluate model=PATH data=PARQUET n=8 output=DIR`: samples, verifies, reports per data source.

`model` is a Hugging Face folder, or a checkpoint of a run; then lengths, sampling and thinking mode are those of that
run, unless said otherwise. Writes `results.json` and `responses.jsonl` into `output`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.table import Table

from mopd.types import Group
from trainer import cluster
from trainer.assemble import custom_reward, place_sampler, place_verifiers, worker_environment
from trainer.config.compose import PROJECT, nearest, read_yaml, resolve
from trainer.config.schema import Config
from trainer.config.strict import STRICT
from trainer.errors import BAD_INPUT, DONE, FAILURE, INTERRUPTED, BadInputError
from trainer.folders import fresh
from trainer.inputs import load_tokenizer, missing_engine, reward_faults, summary_instruction, unknown_sources
from trainer.placement import Placement
from trainer.prompts import Renderer, load
from trainer.sampling import StandingSampling
from trainer.tracking import open_lines, write_responses
from trainer.validate import Validator
from trainer.workers.sampler_types import SamplingSettings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluation:
    """What is evaluated, and how."""

    model: str
    """Folder of a model, or `checkpoints/step_N` of a run."""
    data: str
    """Parquet of prompts."""
    n: int = Field(ge=1)
    """Responses per prompt: the k of mean@k and pass@k."""
    output: str
    """Folder of the results."""
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_prompt_length: int = Field(ge=1)
    max_response_length: int = Field(ge=1)
    seed: int = Field(ge=0)
    template_arguments: dict[str, Any]
    """The chat template's arguments: those of training; `enable_thinking=true|false` changes the thinking mode."""
    instruction: str
    """What the student is asked beside the task; by default as in training (a summary, where summaries are shown)."""
    rollout_backend: Literal["vllm", "hf", "sglang"]
    """What samples, as actor_rollout_ref.rollout.name; by default ROLLOUT_BACKEND, or what the run sampled with."""
    kv_cache_mib: int = Field(ge=1)
    """Key-value cache of the sampler on a machine without a GPU, in MiB."""
    deadline_s: float = Field(gt=0)
    """Longest wait for any answer of a worker, in seconds."""


def run_configuration(model: Path) -> Config:
    """The configuration that a checkpoint was trained with; the defaults for any other model."""
    beside = model.resolve().parent / "config.yaml"
    if model.name == "hf" and beside.is_file():
        try:
            return TypeAdapter(Config).validate_python(read_yaml(beside))
        except (ValueError, BadInputError) as error:
            first = str(error).splitlines()[0]
            raise BadInputError([f"model={model}: {beside} is not the config.yaml of a run ({first})"]) from None
    embedded = model.resolve() == PROJECT / "datasets" / "chain" / "model"
    return resolve("mopd", [f"profile={'embedded' if embedded else 'published'}"], {}).config


def model_folder(path: str) -> Path:
    """The folder with the weights: `path` itself, or `hf` inside a checkpoint."""
    inner = Path(path) / "hf"
    return inner if inner.is_dir() else Path(path)


def settings_of(arguments: Sequence[str]) -> Evaluation:
    """The evaluation that a command line asks for.

    Raises:
        BadInputError: unknown keys, wrong values, or what is needed and missing; all at once.
    """
    pairs = [argument.partition("=") for argument in arguments]
    names = [field.name for field in fields(Evaluation) if field.name != "template_arguments"] + ["enable_thinking"]
    problems = [
        f"{key}: every argument has the form key=value, with a key of {', '.join(names)}"
        for key, equals, _ in pairs
        if not equals
    ]
    problems += [f"{key}: unknown key{nearest(key, names)}" for key, equals, _ in pairs if equals and key not in names]
    given = {key: value for key, _, value in pairs}
    if given.get("enable_thinking", "true") not in ("true", "false"):
        problems.append(f"enable_thinking={given['enable_thinking']}: must be true or false")
    if problems:
        raise BadInputError(problems)
    model = model_folder(given.get("model", str(PROJECT / "datasets" / "chain" / "model")))
    trained = run_configuration(model)
    data, rollout = trained.data, trained.actor_rollout_ref.rollout
    by_default = {
        "data": data.val_files,
        "output": str(fresh(Path("outputs") / "evaluation")),
        "n": rollout.val_kwargs.n,
        "temperature": rollout.val_kwargs.temperature,
        "top_p": rollout.val_kwargs.top_p,
        "seed": data.seed,
        "max_prompt_length": data.max_prompt_length,
        "max_response_length": data.max_response_length,
        "instruction": summary_instruction(trained),
        "rollout_backend": os.environ.get("ROLLOUT_BACKEND") or rollout.name,
        "kv_cache_mib": rollout.kv_cache_mib,
        "deadline_s": trained.trainer.deadline_s,
        "template_arguments": data.apply_chat_template_kwargs,
    }
    if (thinking := given.pop("enable_thinking", None)) is not None:
        by_default["template_arguments"] = {**data.apply_chat_template_kwargs, "enable_thinking": thinking == "true"}
    try:
        return TypeAdapter(Evaluation).validate_python({**by_default, **given, "model": str(model)})
    except ValidationError as error:
        faults = [f"{fault['loc'][0]}={fault['input']!r}: {fault['msg'].lower()}" for fault in error.errors()]
        raise BadInputError(faults) from None


def evaluate(asked: Evaluation) -> dict[str, float]:
    """Samples and verifies; writes the responses, and returns the figures by published metric name.

    Raises:
        BadInputError: model or data cannot be used; before anything is started.
    """
    if not Path(asked.model).is_dir():
        raise BadInputError([f"model={asked.model}: no such folder; name a model's, or checkpoints/step_N of a run"])
    if not (Path(asked.model) / "config.json").is_file():
        raise BadInputError(
            [f"model={asked.model}: has no config.json; name a model's folder, or checkpoints/step_N of a run"]
        )
    trained = run_configuration(Path(asked.model))
    renderer = Renderer(load_tokenizer("model", asked.model), asked.template_arguments)
    prompts = load(
        asked.data,
        "data",
        renderer,
        max_prompt_length=asked.max_prompt_length,
        drop_overlong=True,
        instruction=asked.instruction,
        check_truth=custom_reward(trained) is None,
    )
    faults = [*unknown_sources(trained, "data", asked.data, prompts.prompts), *reward_faults(trained, [prompts])]
    if faults := [*faults, *missing_engine("rollout_backend", asked.rollout_backend)]:
        raise BadInputError(faults)
    output = Path(asked.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError([f"output={asked.output}: cannot be made ({error.strerror}); name another"]) from None
    placement = Placement("cuda" if torch.cuda.device_count() else "cpu", 1, engine=asked.rollout_backend)

    def record(step: int, groups: Sequence[Group]) -> None:
        with open_lines(output / "responses.jsonl", "w") as file:
            write_responses(file, renderer, step, groups)

    try:
        cluster.start(worker_environment(placement.device, offline=True), num_cpus=max(os.cpu_count() or 1, 2))
        spawn = partial(
            place_sampler,
            placement,
            model_path=asked.model,
            max_model_len=asked.max_prompt_length + asked.max_response_length,
            seed=asked.seed,
            enable_prefix_caching=True,
            gpu_memory_utilization=0.9,
            kv_cache_mib=asked.kv_cache_mib,
        )
        verification = place_verifiers(trained)
        validator = Validator(
            sampler=StandingSampling(spawn, seed=asked.seed, deadline_s=asked.deadline_s, verification=verification),
            verifier=verification,
            prompts=prompts,
            settings=SamplingSettings(asked.temperature, asked.top_p, asked.max_response_length),
            k=asked.n,
            record=record,
            bootstrap=False,
        )
        return {"dropped_prompts": prompts.dropped, **validator(step=0)}
    finally:
        cluster.stop()


def table_of(figures: Mapping[str, float]) -> Table:
    """The core figures in per cent, a row per data source and metric."""
    table = Table(title="held-out quality, per cent")
    for heading in ("data source", "metric", "value"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for name, value in figures.items():
        if name.startswith("val-core/"):
            source, _, metric = name.removeprefix("val-core/").rpartition("/acc/")
            table.add_row(source, metric, f"{100 * value:.1f}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    console, errors = Console(), Console(stderr=True)
    try:
        asked = settings_of(sys.argv[1:] if argv is None else argv)
        console.print(f"evaluating {asked.model} on {asked.data}, {asked.n} responses each ...", soft_wrap=True)
        figures = evaluate(asked)
        result = {"settings": TypeAdapter(Evaluation).dump_python(asked), "metrics": figures}
        results = Path(asked.output) / "results.json"
        results.write_text(json.dumps(result, indent=2) + "\n")
        console.print(table_of(figures))
        console.print(f"  results   {results}\n  responses {results.with_name('responses.jsonl')}", soft_wrap=True)
        return DONE
    except BadInputError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        errors.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
