"""Finished or running runs as their folders tell of them, and which of them differ in their seed only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.compose import leaves, read_yaml
from trainer.errors import BadInputError
from trainer.replaying.records import past_run, told

CORE = "val-core/"
SEED = "data.seed"
NEUTRAL = (
    SEED,
    "trainer.total_training_steps",
    "trainer.total_epochs",
    "trainer.time_budget_s",
    "trainer.test_freq",
    "trainer.val_before_train",
    "trainer.save_freq",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.on_save_error",
    "trainer.resume_mode",
    "trainer.deadline_s",
    "trainer.logger",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.experiment_suffix",
    "trainer.output_dir",
    "trainer.default_local_dir",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
)
"""Settings in which runs of one group may differ: the seed, names and folders, and how long a run is and when it is
looked at. Learning-rate schedules do not depend on a run's length."""
NAMED_SETTINGS = 3
"""Settings that a group's name tells, where its method alone does not tell it apart."""


@dataclass(frozen=True)
class Moment:
    """Held-out quality at one step."""

    step: int
    tokens: float | None
    """Response tokens sampled for training up to here; None where the run did not count them."""
    figures: Mapping[str, float]
    """By `SOURCE: mean@k` or `SOURCE: pass@k`."""


@dataclass(frozen=True)
class Run:
    """One run."""

    folder: Path
    method: str
    seed: int | None
    name: str | None
    """As the command line has it; None where it has none."""
    settings: Mapping[str, str]
    """What decides how it learns, by dotted key, as JSON."""
    moments: tuple[Moment, ...]
    commit: str | None


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed only, or that the command line gives one name."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int | None]:
        """Of its runs, in their order."""
        return [run.seed for run in self.runs]


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """The runs that the command line names, as `FOLDER` or `NAME=FOLDER`.

    Raises:
        BadInputError: one cannot be read, holds no held-out quality, or is there twice; all faults at once.
    """
    runs: list[Run] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for argument in arguments:
        name, folder = named_folder(argument)
        if folder.resolve() in seen:
            problems.append(f"{folder}: is there twice; each run counts once")
            continue
        seen.add(folder.resolve())
        try:
            runs.append(read_run(folder, name))
        except BadInputError as error:
            inner = inner_runs(folder)
            for problem in [inner] if inner else error.problems:
                problems.append(problem if problem.startswith(f"{argument}:") else f"{argument}: {problem}")
    if problems:
        raise BadInputError(problems)
    return runs


def inner_runs(folder: Path) -> str:
    """How to name the runs inside a folder that is none itself, such as a suite's; empty where there are none."""
    if (folder / "config.yaml").exists():
        return ""
    names = sorted(file.parent.name for file in folder.glob("*/manifest.json"))
    # A suite's folder has `logs` and `report` beside its runs.
    pattern = "*-seed*" if all("-seed" in name for name in names) else "*"
    return f"is no run, but holds {len(names)} of them; name those: {folder}/{pattern}" if names else ""


def named_folder(argument: str) -> tuple[str | None, Path]:
    """Name and folder of `NAME=FOLDER`; a folder that is there as it stands has no name."""
    name, equals, folder = argument.partition("=")
    if not equals or not name or Path(argument).is_dir():
        return None, Path(argument)
    return name, Path(folder)


def read_run(folder: Path, name: str | None = None) -> Run:
    """The run in a folder.

    Raises:
        BadInputError: there is none, or it was never validated.
    """
    past = past_run(folder)
    tree = read_yaml(folder / "config.yaml")
    moments = moments_of(past.history)
    if not moments:
        raise BadInputError(
            [
                f"{folder}: {folder / 'metrics.jsonl'} has no held-out quality yet ({CORE}.../acc/mean@k);"
                " trainer.test_freq says how often it is measured"
            ]
        )
    settings = {key: json.dumps(told(tree, *key.split(".")), default=str) for key in leaves(tree)}
    seed, commit = told(past.manifest, "seed"), told(past.manifest, "commit")
    return Run(
        folder=folder,
        method=str(told(past.manifest, "method") or "run"),
        seed=seed if isinstance(seed, int) else None,
        name=name,
        settings={key: value for key, value in settings.items() if key not in NEUTRAL},
        moments=moments,
        commit=commit if isinstance(commit, str) else None,
    )


def moments_of(history: Iterable[Mapping[str, Any]]) -> tuple[Moment, ...]:
    """The steps of a run that were validated, with the tokens sampled up to each."""
    moments = []
    tokens: float | None = 0.0
    for record in history:
        step = int(record["step"])
        if step > 0:
            drawn = response_tokens(record)
            tokens = None if tokens is None or drawn is None else tokens + drawn
        if figures := held_out(record):
            moments.append(Moment(step, tokens, figures))
    return tuple(moments)


def response_tokens(record: Mapping[str, Any]) -> float | None:
    """Response tokens of a step's attempts: of all its tokens the share that responses have; None where untold."""
    names = ("perf/total_num_tokens", "prompt_length/mean", "response_length/mean")
    every, prompt, response = (number(record.get(name)) for name in names)
    if every is None or prompt is None or response is None or prompt + response <= 0:
        return None
    return every * response / (prompt + response)


def held_out(record: Mapping[str, Any]) -> dict[str, float]:
    """mean@k and pass@k of every data source that a step's record has."""
    figures = {}
    for name, value in record.items():
        source, _, figure = name.removeprefix(CORE).rpartition("/acc/")
        known = number(value)
        if name.startswith(CORE) and figure.startswith(("mean@", "pass@")) and known is not None:
            figures[f"{source}: {figure}"] = known
    return figures


def number(value: Any) -> float | None:
    """A finite number, or None."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def grouped(runs: Sequence[Run]) -> list[RunGroup]:
    """Runs that have one name, or else one method and the same settings, in the order in which they were given."""
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        settings = json.dumps(run.settings, sort_keys=True)
        members.setdefault(("name", run.name) if run.name else ("method", run.method, settings), []).append(run)
    named: list[RunGroup] = []
    for own in members.values():
        like = [other[0] for other in members.values() if other[0].method == own[0].method and not other[0].name]
        name = own[0].name or method_name(own[0], like)
        taken = [group.name for group in named]
        while name in taken:
            name += "'"
        named.append(RunGroup(name, tuple(own)))
    return named


def method_name(run: Run, like: Sequence[Run]) -> str:
    """A run's method, with the settings that tell it apart from others of the same method."""
    keys = sorted({key for other in like for key in {**run.settings, **other.settings} if differs(run, other, key)})
    told_settings = [f"{key.rpartition('.')[2]}={run.settings.get(key, 'unset')}" for key in keys[:NAMED_SETTINGS]]
    more = ["..."] if len(keys) > NAMED_SETTINGS else []
    return " ".join([run.method, *told_settings, *more]).replace('"', "")


def differs(run: Run, other: Run, key: str) -> bool:
    """Whether two runs have different values of a setting."""
    return run.settings.get(key) != other.settings.get(key)


def cautions(groups: Sequence[RunGroup]) -> list[str]:
    """What makes intervals or comparisons doubtful: sentences for people."""
    told_of = []
    for group in groups:
        known = [seed for seed in group.seeds if seed is not None]
        if len(set(known)) < len(known):
            told_of.append(f"{group.name}: a seed is there more than once {known}; its interval is too narrow")
        if len({json.dumps(run.settings, sort_keys=True) for run in group.runs}) > 1:
            told_of.append(f"{group.name}: its runs differ in more than the seed; it was put together by name")
        commits = sorted({run.commit for run in group.runs if run.commit})
        if len(commits) > 1:
            told_of.append(f"{group.name}: its runs are of different commits ({', '.join(commits)})")
    return told_of
