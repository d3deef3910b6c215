"""`python -m trainer.export CHECKPOINT|RUN --output DIR`: a checkpoint as a plain Hugging Face folder.

Adapters (LoRA) come merged into their base, or with `--adapter` alone, in PEFT's format.

The folder holds weights (safetensors), configuration, generation config, tokenizer with its chat template, and a model
card; transformers and vLLM load it as it is. It is written beside and renamed, so that half of one never has its name.
Nothing leaves the machine unless `--upload` asks for it.

Exit codes: 0 written, 1 failure, 2 bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from trainer import checkpoint
from trainer.adapters import FACTORS, Adapter, AdapterSettings, last_name, merged_state
from trainer.checkpoint import Checkpoint, CheckpointError
from trainer.config.compose import read_yaml
from trainer.errors import BAD_INPUT, DONE, FAILURE, INTERRUPTED, BadInputError
from trainer.model_card import Exported, base_model, card_of
from trainer.replaying.records import PastRun, past_run, told
from trainer.workers.reading import Planner, Reader

SHARD = "5GB"
"""Most bytes of a file of weights."""

Weights = Literal["student", "teacher"]


@dataclass(frozen=True)
class Source:
    """What is exported."""

    checkpoint: Checkpoint
    settings: dict[str, Any]
    """The checkpoint's `config.yaml`."""
    run: PastRun | None
    """The run that wrote it; None where its folder is not at hand."""

    @property
    def hf(self) -> Path:
        """The student's weights as the run published them; may not be there."""
        return self.checkpoint.folder / "hf"

    @property
    def described(self) -> Path:
        """A folder with configuration and tokenizer: the checkpoint's own, or else the initial model's."""
        return self.hf if self.hf.is_dir() else Path(str(told(self.settings, "actor_rollout_ref", "model", "path")))


# ------------------------------------------------------------------ what is asked for


def source_of(path: Path, step: int | None) -> Source:
    """The checkpoint that is meant by its own folder, or by that of a run: there the newest, or that of `step`.

    Raises:
        BadInputError: there is none, or it is damaged.
    """
    if path.name == "hf" and (path.parent / checkpoint.MANIFEST).is_file():
        path = path.parent
    if checkpoint.NAME.fullmatch(path.name):
        if step is not None:
            raise BadInputError([f"--step {step}: {path} is one checkpoint already; leave --step out, or name the run"])
        found, settings = whole(path), read_yaml(path / "config.yaml")
        return Source(found, settings, run_of(path, settings))
    run = past_run(path)
    listed = dict(checkpoint.listed(run.folders.checkpoints))
    if not listed:
        raise BadInputError(
            [f"{run.folders.checkpoints}: holds no checkpoint (trainer.save_freq says when one is kept)"]
        )
    chosen = max(listed) if step is None else step
    if chosen not in listed:
        raise BadInputError([f"--step {step}: {run.folders.checkpoints} has the steps {', '.join(map(str, listed))}"])
    return Source(whole(listed[chosen]), read_yaml(listed[chosen] / "config.yaml"), run)


def whole(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, compared with its checksums; somebody may have deleted its `hf` to save room.

    Raises:
        BadInputError: there is none, or it is damaged.
    """
    try:
        return checkpoint.read(folder, but="" if (folder / "hf").is_dir() else "hf")
    except CheckpointError as error:
        raise BadInputError([f"{error}; name another checkpoint (checkpoints/step_N of a run)"]) from None


def run_of(folder: Path, settings: dict[str, Any]) -> PastRun | None:
    """The run that a checkpoint lies in, or else the one that wrote it; None where neither is at hand."""
    for output in (folder.resolve().parent.parent, told(settings, "trainer", "output_dir")):
        with contextlib.suppress(BadInputError, TypeError):
            return past_run(Path(output))
    return None


def dtype_of(asked: str | None, source: Source) -> torch.dtype:
    """The precision of the exported weights: what is asked for, or else that in which the run's sampler had them."""
    on_gpu = source.run is not None and told(source.run.manifest, "actors", "device") == "cuda"
    dtype: torch.dtype = getattr(torch, asked or ("bfloat16" if on_gpu else "float32"))
    return dtype


def check_output(output: Path) -> None:
    """Refuses a folder that is there already, or that cannot be made.

    Raises:
        BadInputError: with the reason.
    """
    if os.path.lexists(output):
        raise BadInputError([f"--output {output}: is there already; name a folder that is not, or remove it"])
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError([f"--output {output}: cannot be made ({error.strerror}); name another"]) from None
    if not os.access(output.parent, os.W_OK):
        raise BadInputError([f"--output {output}: {output.parent} may not be written to; name another"])


# ------------------------------------------------------------------ the model


def model_of(source: Source, weights: Weights, dtype: torch.dtype) -> Any:
    """The model with the weights that were asked for, whole, on the CPU.

    Raises:
        BadInputError: the checkpoint does not keep these weights, or nothing says what they are the weights of.
    """
    if not (source.described / "config.json").is_file():
        raise BadInputError(
            [
                f"{source.checkpoint.folder}: has no hf/, and the initial model that would describe its weights is not"
                f" at {source.described}; bring it there"
            ]
        )
    if weights == "student" and source.hf.is_dir():
        model, told_of = AutoModelForCausalLM.from_pretrained(source.hf, dtype=dtype, output_loading_info=True)
    else:
        state = state_of(source, weights)
        config = AutoConfig.from_pretrained(source.described)
        architecture = getattr(transformers, config.architectures[0])
        model, told_of = architecture.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
        if source.described.joinpath("generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(source.described)
    if absent := sorted(told_of["missing_keys"]):
        raise BadInputError([f"{source.checkpoint.folder}: lacks the weights {', '.join(absent[:5])}; name another"])
    model.config.use_cache = True  # training switched the cache of keys and values off
    return model


def adapters_of(source: Source) -> AdapterSettings | None:
    """What the run adapted; None where it trained all weights."""
    model = told(source.settings, "actor_rollout_ref", "model") or {}
    if not model.get("lora_rank"):
        return None
    return AdapterSettings(model["lora_rank"], model["lora_alpha"], model["target_modules"])


def state_of(source: Source, weights: Weights) -> dict[str, Tensor]:
    """One model's weights by Hugging Face name, adapters merged into the initial model's.

    Raises:
        BadInputError: the checkpoint keeps no such model, or the initial model is not there.
    """
    settings = adapters_of(source)
    if settings is None:
        return sharded(source.checkpoint.folder / checkpoint.STATE, weights)
    path = str(told(source.settings, "actor_rollout_ref", "model", "path"))
    if not (Path(path) / "config.json").is_file():
        raise BadInputError(
            [f"{source.checkpoint.folder}: its adapters belong to {path}, which is not there; bring it"]
        )
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    own = {name: parameter.detach() for name, parameter in base.named_parameters()}
    return merged_state(own, added_of(source, weights), settings.scale, weights)


def added_of(source: Source, weights: Weights) -> dict[str, Tensor]:
    """The factors of student or teacher, by name; raises BadInputError where the checkpoint keeps none."""
    every = sharded(source.checkpoint.folder / checkpoint.STATE, "student")
    added = {name: factor for name, factor in every.items() if last_name(name) in FACTORS[weights]}
    return added or refuse_weights(weights)


def refuse_weights(weights: Weights) -> NoReturn:
    """Raises that a checkpoint does not keep a model."""
    raise BadInputError(
        [
            f"--weights {weights}: the checkpoint keeps no such weights; only a method whose teacher is the"
            " student's moving average (teacher_regularization=ema) has any of the teacher's"
        ]
    )


def sharded(state: Path, weights: Weights) -> dict[str, Tensor]:
    """One model's weights of a checkpoint's shards, by Hugging Face name; the file may be of however many ranks.

    Raises:
        BadInputError: the checkpoint keeps no such model.
    """
    reader = Reader(state)
    prefix = f"{weights}.model."
    every = reader.read_metadata().state_dict_metadata.items()
    kept = {
        name: entry for name, entry in every if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    if not kept:
        refuse_weights(weights)
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in kept.items()
    }
    with warnings.catch_warnings():  # of a load in one process, which is what is meant
        warnings.simplefilter("ignore", UserWarning)
        load(tensors, storage_reader=reader, planner=Planner(), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


# ------------------------------------------------------------------ the folder


def export(
    source: Source, output: Path, weights: Weights, dtype: torch.dtype, title: str, *, adapter: bool = False
) -> None:
    """Writes the folder `output`, all of it or nothing: a whole model, or an `adapter` alone.

    Raises:
        BadInputError: the checkpoint does not keep these weights.
        OSError: the disk is full or may not be written to.
    """
    write = adapter_writer(source, weights, dtype) if adapter else model_writer(source, weights, dtype)
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of an export that was killed
    try:
        aside.mkdir()
        write(aside)
        named = str(dtype).removeprefix("torch.")
        exported = Exported(title, source.checkpoint.step, weights, named, adapter=adapter)
        (aside / "README.md").write_text(card_of(exported, source.settings, source.run), encoding="utf-8")
        for path in sorted(aside.rglob("*")):
            checkpoint.flush(path)
        os.replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def model_writer(source: Source, weights: Weights, dtype: torch.dtype) -> Callable[[Path], None]:
    """What writes the model and its tokenizer into a folder; raises as `model_of` does."""
    model = model_of(source, weights, dtype)

    def write(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size=SHARD)
        AutoTokenizer.from_pretrained(source.described).save_pretrained(folder)
        mode = (folder / "config.json").stat().st_mode
        for file in folder.glob("*.safetensors"):
            file.chmod(mode)  # the library makes them for their owner alone

    return write


def adapter_writer(source: Source, weights: Weights, dtype: torch.dtype) -> Callable[[Path], None]:
    """What writes the adapter into a folder.

    Raises:
        BadInputError: the run trained all weights, or the checkpoint does not keep these.
    """
    settings = adapters_of(source)
    if settings is None:
        raise BadInputError(
            ["--adapter: the run trained all weights (actor_rollout_ref.model.lora_rank=0); leave it out"]
        )
    added = {name: factor.to(dtype) for name, factor in added_of(source, weights).items()}
    return Adapter(settings, added, base_model(source.settings)).save


# ------------------------------------------------------------------ the hub


def check_upload(repository: str) -> None:
    """Asks the hub who we are, before anything is written.

    Raises:
        BadInputError: the name is none, there is no token, or the hub does not answer.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise BadInputError(
            [f"--upload {repository}: {str(error).splitlines()[0]}; write NAME or OWNER/NAME"]
        ) from None
    later = f"leave --upload out, and later: hf upload {repository} DIR"
    if huggingface_hub.is_offline_mode():
        raise BadInputError([f"--upload {repository}: HF_HUB_OFFLINE forbids the network; {later}"])
    if huggingface_hub.get_token() is None:
        raise BadInputError(
            [f"--upload {repository}: no token; `hf auth login` stores one, HF_TOKEN gives one; {later}"]
        )
    try:
        huggingface_hub.whoami()
    except Exception as error:  # whatever the network or the hub had against it
        raise BadInputError(
            [f"--upload {repository}: the hub did not let us in ({type(error).__name__}); {later}"]
        ) from None


def upload(folder: Path, repository: str) -> str:
    """Sends a folder to the hub; returns its address. A repository that is new is private."""
    created = huggingface_hub.create_repo(repository, private=True, exist_ok=True)
    huggingface_hub.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Model and card")
    return str(created)


# ------------------------------------------------------------------ the command


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ends with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export", description="A checkpoint as a plain model folder."
    )
    parser.add_argument("source", metavar="CHECKPOINT|RUN", type=Path, help="checkpoints/step_N, or an OUTPUT_DIR")
    parser.add_argument("--step", type=int, metavar="N", help="of a run: this checkpoint; by default the newest")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="the folder to write; must not be there"
    )
    parser.add_argument("--weights", choices=("student", "teacher"), default="student", help="teacher: the EMA teacher")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--merged", action="store_true", help="of adapters (LoRA): merged into their base; the default")
    form.add_argument("--adapter", action="store_true", help="of adapters: these alone, in the format of PEFT")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="by default as the run's sampler had them")
    parser.add_argument("--upload", metavar="REPO", help="then send it to the hub; a new repository is private")
    return parser.parse_args(argv)


def run(asked: argparse.Namespace) -> None:
    """Does what the command line asks for.

    Raises:
        BadInputError: before anything is written.
    """
    transformers.utils.logging.disable_progress_bar()
    output = Path(os.path.abspath(asked.output))
    check_output(output)
    source = source_of(asked.source, asked.step)
    if asked.upload:
        check_upload(asked.upload)
    dtype = dtype_of(asked.dtype, source)
    export(source, output, asked.weights, dtype, title=asked.upload or output.name, adapter=asked.adapter)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{asked.output}: step {source.checkpoint.step}, {asked.weights}, {dtype}, {size / 1e6:,.1f} MB")
    print("  README.md is the model card; its licence line is yours to fill in")
    if asked.upload:
        print(f"  uploaded to {upload(output, asked.upload)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments(argv)
    try:
        run(asked)
        return DONE
    except BadInputError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        token = huggingface_hub.get_token() if asked.upload else None
        print(said.replace(token, "[token]") if token else said, file=sys.stderr)
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
