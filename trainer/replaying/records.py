"""What a run has left of one step, read back: its settings, its metrics, its rollouts with their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic import TypeAdapter, ValidationError

import mopd
from mopd.types import FloatArray, IntArray, Outcome
from trainer import checkpoint
from trainer.config.compose import explained, read_yaml
from trainer.config.schema import Config
from trainer.errors import BadInputError
from trainer.recorded import Likeliest, Side, recorded_in
from trainer.resume import METHOD_LINE, history
from trainer.tracking import Folders

NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "uid": str,
    "rollout_id": str,
    "output": str,
    "finish_reason": str,
    "status": str,
    "feedback": str,
    "response_length": int,
    "score": (float, int, type(None)),
    "success": (bool, type(None)),
}
"""What a rollout line must hold to be replayed, and of which type."""

Line = Mapping[str, Any]
"""A rollout line."""


@dataclass(frozen=True)
class PastRun:
    """A run as its folder tells of it."""

    folders: Folders
    manifest: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    """A record per step."""

    @property
    def version(self) -> str:
        """The version of this project that ran it."""
        return str(told(self.manifest, "versions", "mopd"))


@dataclass(frozen=True)
class Tokens:
    """The tokens of a step's rollouts, in sampling order."""

    token_ids: tuple[IntArray, ...]
    """[T] each."""
    logprobs: tuple[FloatArray, ...]
    """[T] each, the sampler's."""
    likeliest: Mapping[int, Mapping[Side, Likeliest]] = field(default_factory=dict)
    """Of the recorded rollouts, by index."""


@dataclass(frozen=True)
class PastStep:
    """One step of a past run."""

    step: int
    config: Config
    """The settings it was taken with."""
    device: str
    ranks: int
    """Ranks of the actor."""
    metrics: Mapping[str, Any]
    lines: tuple[Line, ...]
    tokens: Tokens | None
    """None where the run did not keep them."""


def told(tree: Mapping[str, Any], *path: str) -> Any:
    """What stands in a nested dictionary; None where nothing does."""
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def past_run(output: Path) -> PastRun:
    """The run in a folder.

    Raises:
        BadInputError: there is none, or its files cannot be read.
    """
    settings = output / "config.yaml"
    if not output.is_dir():
        raise BadInputError([f"{output}: no such folder; name the OUTPUT_DIR of a run"])
    try:
        if not settings.read_text().startswith(METHOD_LINE):
            raise BadInputError([f"{output}: holds no run of this project; name an OUTPUT_DIR"])
        manifest = json.loads((output / "manifest.json").read_text())
        records = history(output)
    except OSError as error:
        raise BadInputError([f"{error.filename}: {error.strerror}; {output} is no OUTPUT_DIR of a run"]) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInputError([f"{output}: its records cannot be read ({type(error).__name__}: {error!s:.80})"]) from None

    def folder(name: str) -> Path:
        # A run that was moved or copied has its parts beside it, whatever its manifest says.
        beside, named = output / name, told(manifest, "folders", name)
        return beside if beside.is_dir() or not isinstance(named, str) else Path(named)

    return PastRun(
        Folders(output, *map(folder, ("checkpoints", "rollouts", "validation"))),
        manifest if isinstance(manifest, dict) else {},
        records,
    )


def past_step(run: PastRun, step: int) -> PastStep:
    """One step of a run.

    Raises:
        BadInputError: the step was not recorded, or what was recorded cannot be read.
    """
    steps = [int(record["step"]) for record in run.history if record["step"]]
    if step not in steps:
        there = f"steps {min(steps)} to {max(steps)}" if steps else "no step yet"
        raise BadInputError([f"--step {step}: {run.folders.output / 'metrics.jsonl'} has {there}"])
    # Settings that may change when a run goes on are those of the process that wrote the next checkpoint.
    later = [path for number, path in checkpoint.listed(run.folders.checkpoints) if number >= step]
    of_checkpoint = told(facts_of(later[0]) if later else {}, "ranks")
    ranks = of_checkpoint or told(run.manifest, "actors", "ranks") or 1
    lines = read_lines(run.folders.rollouts / f"{step}.jsonl")
    return PastStep(
        step=step,
        config=stored_config((later[0] if later else run.folders.output) / "config.yaml", run.version),
        device=str(told(run.manifest, "actors", "device") or "cpu"),
        ranks=int(ranks),
        metrics=next(record for record in run.history if record["step"] == step),
        lines=lines,
        tokens=read_tokens(run.folders.rollouts / f"{step}.npz", lines),
    )


def facts_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint's manifest tells of the run; nothing where it cannot be read."""
    try:
        return dict(json.loads((folder / checkpoint.MANIFEST).read_text())["facts"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def stored_config(file: Path, version: str) -> Config:
    """The settings in a run's `config.yaml`; `version` is that of the project that wrote it.

    Raises:
        BadInputError: this version knows other settings.
    """
    tree = read_yaml(file)
    try:
        return TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        why = f"{file}: written by version {version} of this project, and this is {mopd.__version__}; replay it there"
        raise BadInputError([why, *explained(error, tree)]) from None


def read_lines(file: Path) -> tuple[Line, ...]:
    """The rollout lines of a step, in sampling order.

    Raises:
        BadInputError: the file is not there, or a line is no rollout.
    """
    lines = []
    try:
        # Line by line, since a response may hold characters at which `splitlines` would part it.
        with file.open(encoding="utf-8") as stream:
            for number, text in enumerate(stream, start=1):
                lines.append(checked(json.loads(text), f"{file}, line {number}"))
    except OSError as error:
        raise BadInputError([f"{file}: cannot be read ({error.strerror}); the step cannot be replayed"]) from None
    except (ValueError, RecursionError) as error:
        raise BadInputError([f"{file}, line {len(lines) + 1}: is no JSON ({error!s:.80})"]) from None
    if not lines:
        raise BadInputError([f"{file}: holds no rollouts"])
    return tuple(lines)


def checked(line: Any, where: str) -> Line:
    """A line, if it is a rollout's.

    Raises:
        BadInputError: it is not.
    """
    for name, kind in NEEDED.items():
        value = line.get(name, ...) if isinstance(line, dict) else ...
        if not isinstance(value, kind):
            got = "nothing" if value is ... else repr(value)[:60]
            raise BadInputError([f"{where}: no rollout of this version ({name}: {got})"])
    return dict(line)


def read_tokens(file: Path, lines: Sequence[Line]) -> Tokens | None:
    """The tokens of the rollouts of `lines`, as `trainer.tracking.write_tokens` wrote them; None where it did not.

    Raises:
        BadInputError: the file cannot be read, or is not of these rollouts.
    """
    if not file.is_file():
        return None
    try:
        with np.load(file) as arrays:
            lengths, token_ids, logprobs = (arrays[name] for name in ("lengths", "token_ids", "sampler_logprobs"))
            likeliest = recorded_in(arrays)
        ends = np.cumsum(lengths)[:-1]
    except (OSError, ValueError, LookupError, EOFError, BadZipFile) as error:
        raise BadInputError([f"{file}: cannot be read ({type(error).__name__}: {error!s:.80})"]) from None
    if len(lengths) != len(lines) or not sum(lengths) == len(token_ids) == len(logprobs):
        many = f"the tokens of {len(lengths)} rollouts, and {file.with_suffix('.jsonl').name} has {len(lines)} lines"
        raise BadInputError([f"{file}: has {many}; one of the two was changed"])
    return Tokens(tuple(np.split(token_ids, ends)), tuple(np.split(logprobs, ends)), likeliest)


def outcome_of(line: Line) -> Outcome:
    """The verdict that a line tells."""
    return Outcome(line["score"], line["success"], line["status"], line["feedback"])
