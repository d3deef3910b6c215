"""What a run leaves behind: its own files, and what the trackers take. The one door to TensorBoard and wandb."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import netrc
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO
from urllib.parse import urlsplit

import numpy as np

from mopd.types import FloatArray, Group, Outcome, Rollout
from trainer.accounting import step_metrics
from trainer.contexts import Context
from trainer.display import Record, Screen, final_table, summary
from trainer.prompts import Renderer

log = logging.getLogger("mopd")

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements-trackers.txt"
NO_ANSWER_S = 20.0
"""The longest that wandb's server may keep a run waiting, at its start and at its end."""


@dataclass(frozen=True)
class Folders:
    """Where the parts of a run lie."""

    output: Path
    checkpoints: Path
    rollouts: Path
    validation: Path


class Tracker(Protocol):
    """Takes a run's metrics elsewhere."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes one step."""

    def close(self, code: int) -> None:
        """Ends the run there, with its exit code."""


@dataclass
class Trackers:
    """The trackers of a run. One that fails is told once and dropped: no run is lost for the sake of its curves."""

    open: dict[str, Tracker] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in list(self.open):
            self.guarded(name, lambda tracker: tracker.close(0 if kind is None else 1))

    def log(self, record: Record) -> None:
        """A step to every tracker, without what was not measured."""
        metrics = {name: float(value) for name, value in record.items() if name != "step" and value is not None}
        for name in list(self.open):
            self.guarded(name, lambda tracker: tracker.log(record["step"], metrics))

    def guarded(self, name: str, call: Callable[[Tracker], None]) -> None:
        """Calls one tracker."""
        try:
            call(self.open[name])
        except Exception as error:  # whatever it is, it is the tracker's and not the run's
            del self.open[name]
            log.warning("%s failed and is switched off; metrics.jsonl goes on (%s)", name, told(error))


def open_trackers(
    names: Sequence[str], folder: Path, project: str, settings: Mapping[str, Any], first_step: int = 0
) -> Trackers:
    """Opens those of `names` that are trackers; their files go to `folder`. `first_step`: where a resumed run goes on.

    A library that was not asked for is not imported.
    """
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", first_step),
        "wandb": lambda: Wandb(folder, project, settings),
    }
    trackers = Trackers()
    for name in (name for name in makers if name in names):
        try:
            trackers.open[name] = makers[name]()
        except Exception as error:  # as in Trackers
            log.warning("%s failed and is switched off; metrics.jsonl goes on (%s)", name, told(error))
    return trackers


def missing_trackers(names: Sequence[str]) -> list[str]:
    """A sentence for every tracker of `names` that is not installed, with the line that installs it."""
    # A folder `wandb` where the command is started, which wandb itself makes, looks like a package without origin.
    specs = {name: importlib.util.find_spec(name) for name in ("tensorboard", "wandb") if name in names}
    asked = ",".join(names)
    return [
        f"trainer.logger=[{asked}]: {name} is not installed; pip install -r {REQUIREMENTS}, or leave it out"
        for name, spec in specs.items()
        if spec is None or spec.origin is None
    ]


class TensorBoard:
    """Scalars as TensorBoard's event files."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A run that was killed may have written steps that it now repeats; they are to be forgotten.
        self.writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one step, to the disk: what is read while the run goes on is complete."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, code: int) -> None:
        """Ends the file."""
        self.writer.close()


class Wandb:
    """A run of wandb: online where a key is known and the server answers, else kept in the folder."""

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        for name, value in wandb_environment(folder / "wandb").items():
            os.environ.setdefault(name, value)
        import wandb

        mode = wandb_mode(os.environ)
        arguments: dict[str, Any] = {
            "project": project,
            "name": folder.name,
            "id": run_id(folder / "trackers.json"),
            "resume": "allow",
            "dir": str(folder),
            "config": dict(settings),
            "settings": wandb.Settings(
                silent=True,
                console="off",
                init_timeout=NO_ANSWER_S,
                login_timeout=NO_ANSWER_S,
                finish_timeout=NO_ANSWER_S,
            ),
        }
        try:
            self.run = wandb.init(mode=mode, **arguments)
        except (wandb.Error, OSError) as error:
            if mode != "online":
                raise
            place = folder / "wandb"
            log.warning("wandb does not answer; this run is kept in %s for `wandb sync` (%s)", place, told(error))
            wandb.teardown()  # frees the run's id
            self.run = wandb.init(mode="offline", **arguments)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands over one step; wandb sends it in a process of its own."""
        self.run.log(dict(metrics), step=step)

    def close(self, code: int) -> None:
        """Ends the run; what is not sent within `NO_ANSWER_S` stays in the folder."""
        self.run.finish(exit_code=code)


def wandb_environment(folder: Path) -> dict[str, str]:
    """What wandb reads while it is imported, where the user has not set it."""
    return {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",  # it reports on itself to its server, offline too, and waits for the answer
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder),
    }


def wandb_mode(environment: Mapping[str, str]) -> Literal["online", "offline", "disabled"]:
    """What WANDB_MODE asks for; online only with a key, so that wandb never asks for one."""
    asked = environment.get("WANDB_MODE", "online")
    if asked == "disabled":
        return "disabled"
    key = environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE")
    known = key or logged_in(environment.get("WANDB_BASE_URL", "https://api.wandb.ai"), environment.get("NETRC"))
    return "online" if asked == "online" and known else "offline"


def logged_in(url: str, file: str | None) -> bool:
    """True where `wandb login` has left a key for the server, which it does in the file `netrc`."""
    try:
        entries = netrc.netrc(file or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return entries.authenticators(urlsplit(url).netloc) is not None


def run_id(file: Path) -> str:
    """The run's name at wandb: made once, then the one in `file`, so that a resumed run goes on in the same curves."""
    if not file.is_file():
        file.write_text(json.dumps({"wandb": {"id": secrets.token_hex(4)}}) + "\n")
    return str(json.loads(file.read_text())["wandb"]["id"])


def told(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@dataclass
class Journal:
    """Writes metrics, rollouts and validation responses, and tells the screen and the trackers."""

    folders: Folders
    renderer: Renderer
    screen: Screen
    last_step: int
    trackers: Trackers = field(default_factory=Trackers)
    history: list[dict[str, Any]] = field(default_factory=list)
    devices: int = 1
    """That the actor takes."""
    sampled: tuple[int, int] | None = None
    """Tokens of all prompts and responses, and of the responses alone, of the step that is about to be remembered."""

    def begins(self, step: int, phase: str) -> None:
        """A phase of a step begins."""
        self.screen.phase(step, self.last_step, phase)

    def remember(self, step: int, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
        """Appends a step's flat record to `metrics.jsonl`, and tells the screen and the trackers."""
        figures = self.throughput({**metrics, **timings})
        record = {"step": step, **rounded(metrics), **rounded(figures), **rounded(timings)}
        self.history.append(record)
        with open_lines(self.folders.output / "metrics.jsonl", "a") as file:
            write_line(file, record)
        self.screen.step(record, self.last_step, self.seconds_left(step))
        self.trackers.log(record)

    def throughput(self, timings: Mapping[str, float]) -> dict[str, float]:
        """Tokens per second and the like, validation and saving aside; nothing where none were sampled."""
        sampled, self.sampled = self.sampled, None
        if sampled is None:
            return {}
        return step_metrics(timings, tokens=sampled[0], response_tokens=sampled[1], devices=self.devices)

    def seconds_left(self, step: int) -> float:
        """Seconds to the end at the mean pace of the steps so far."""
        took = [float(record["timing_s/step"]) for record in self.history if record["step"]]
        return (self.last_step - step) * sum(took) / len(took) if took else math.nan

    def rollouts(
        self,
        step: int,
        groups: Sequence[Group],
        contexts: Sequence[Context],
        divergences: Mapping[int, FloatArray],
    ) -> None:
        """Writes `rollouts/<step>.jsonl`, a line per rollout in sampling order, and their tokens beside it."""
        write_tokens(self.folders.rollouts / f"{step}.npz", [rollout for _, rollout, _ in every_rollout(groups)])
        with open_lines(self.folders.rollouts / f"{step}.jsonl", "w") as file:
            for index, (group, rollout, outcome) in enumerate(every_rollout(groups)):
                line = described(self.renderer, step, group, rollout, outcome) | context_fields(contexts[index])
                if index in divergences:
                    line["divergence"] = [
                        round(float(value), 6) if math.isfinite(value) else None for value in divergences[index]
                    ]
                write_line(file, line)
        lengths = [(len(group.prompt_ids), len(rollout.token_ids)) for group, rollout, _ in every_rollout(groups)]
        self.sampled = sum(prompt + response for prompt, response in lengths), sum(response for _, response in lengths)

    def validation(self, step: int, groups: Sequence[Group]) -> None:
        """Writes `validation/<step>.jsonl`, a line per response."""
        with open_lines(self.folders.validation / f"{step}.jsonl", "w") as file:
            write_responses(file, self.renderer, step, groups)

    def farewell(self, checkpoint: Path | None) -> None:
        """The table of before and after, how it went, and where everything lies."""
        self.screen.close()
        if table := final_table(self.history):
            self.screen.show(table)
        places = {
            "metrics": self.folders.output / "metrics.jsonl",
            "rollouts": self.folders.rollouts,
            "validation": self.folders.validation,
            "manifest": self.folders.output / "manifest.json",
            **{name: path for name, path in {"report": self.folders.output / "report.html"}.items() if path.exists()},
            **{name: self.folders.output / name for name in self.trackers.open},
        }
        if checkpoint is not None:
            places["model"] = checkpoint / "hf"
        told = summary(self.history, self.last_step, time.monotonic() - self.screen.started)
        for name, text in {**told, **places}.items():
            self.screen.say(f"  {name:<11} {text}")


def every_rollout(groups: Sequence[Group]) -> Iterator[tuple[Group, Rollout, Outcome]]:
    """Every rollout with its group and outcome, in sampling order."""
    for group in groups:
        for rollout, outcome in zip(group.rollouts, group.outcomes, strict=True):
            yield group, rollout, outcome


def described(renderer: Renderer, step: int, group: Group, rollout: Rollout, outcome: Outcome) -> dict[str, Any]:
    """The published fields of a rollout, and what identifies it."""
    return {
        "input": renderer.tokenizer.decode(group.prompt_ids, skip_special_tokens=True),
        "output": rollout.text,
        "gts": group.prompt.ground_truth,
        "score": outcome.reward,
        "step": step,
        "uid": group.uid,
        "prompt_id": group.prompt.prompt_id,
        "rollout_id": rollout.rollout_id,
        "data_source": group.prompt.data_source,
        "success": outcome.success,
        "status": outcome.status,
        "feedback": outcome.feedback,
        "finish_reason": rollout.finish_reason,
        "response_length": len(rollout.token_ids),
        "policy_version": rollout.policy_version,
    }


def write_tokens(file: Path, rollouts: Sequence[Rollout]) -> None:
    """Every rollout's tokens and the sampler's log-probs of them, end to end: 8 bytes a token, exact to the last bit.

    `lengths` [N] int32, `token_ids` [sum of T] int32, `sampler_logprobs` [sum of T] fp32.
    """
    np.savez(
        file,
        lengths=np.asarray([len(rollout.token_ids) for rollout in rollouts], dtype=np.int32),
        token_ids=np.concatenate([rollout.token_ids for rollout in rollouts]),
        sampler_logprobs=np.concatenate([rollout.logprobs for rollout in rollouts]),
    )


def write_responses(file: TextIO, renderer: Renderer, step: int, groups: Sequence[Group]) -> None:
    """A line per response, in sampling order."""
    for group, rollout, outcome in every_rollout(groups):
        write_line(file, described(renderer, step, group, rollout, outcome))


def context_fields(context: Context) -> dict[str, Any]:
    """Which peers the teacher saw and why, and the exact prompt."""
    peers = context.view.peers
    return {
        "peers": [
            {"slot": choice.slot, "rollout_id": choice.rollout_id, "reason": choice.reason} for choice in peers.choices
        ],
        "fallbacks": list(peers.fallbacks),
        "teacher_prompt": context.text,
        "teacher_prompt_sha256": None if context.text is None else sha256_of(context.text),
        "usable": context.view.usable,
    }


def sha256_of(text: str) -> str:
    """The SHA-256 of a text as UTF-8, half surrogates as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def open_lines(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """A file for `write_line`. Half a surrogate, which UTF-8 cannot hold, becomes what JSON writes for it."""
    return path.open(mode, encoding="utf-8", errors="backslashreplace")


def write_line(file: TextIO, record: Mapping[str, Any]) -> None:
    """One JSON object on one line."""
    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def rounded(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: integers as they are, others to 9 significant digits, not-a-number as null."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.9g}") if math.isfinite(value) else None
        for name, value in metrics.items()
    }
