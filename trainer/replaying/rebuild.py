"""A step of a past run built again in one process: prompts, peers, views, and the update of student and teacher."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from mopd.types import Group, Rollout, Segment
from trainer.assemble import build_parts, context_builder, custom_reward, packing_of
from trainer.checkpoint import Checkpoint
from trainer.config.schema import Config
from trainer.contexts import Context
from trainer.errors import BadInputError
from trainer.inputs import MODEL_KEY, TEACHER_KEY, load_renderers, model_faults, summary_instruction, too_few
from trainer.packing import Sample
from trainer.parts import Learned, Parts
from trainer.prompts import load
from trainer.recorded import Recorded
from trainer.replaying.records import Line, PastRun, PastStep, outcome_of
from trainer.sampling import Asked
from trainer.schedule import Schedule
from trainer.services import Policy
from trainer.settings import loss_settings, optim_settings, teacher_forwards, teacher_settings
from trainer.tracking import Journal
from trainer.workers.policy import PolicyWorker


class LocalPolicy(Policy):
    """The actor as a single rank in this process."""

    def begin(
        self, samples: Sequence[Sample], step: int, record: frozenset[int], taught: Mapping[int, Any] | None = None
    ) -> Callable[[], tuple[dict[str, float], dict[int, Recorded]]]:
        """One training step, done at once; metrics, and what is kept of `record`."""
        starts = range(0, len(samples), self.mini_batch_rollouts)
        [plans] = zip(*[self.plan(samples[start : start + self.mini_batch_rollouts]) for start in starts], strict=True)
        update = self.workers[0].update(list(plans) * self.epochs, step, record)
        return lambda: (self.metrics([update], samples, step), update.recorded)


class NoVerification:
    """Stands where verdicts are read from the record."""

    def report(self) -> dict[str, float]:
        """Nothing was verified."""
        return {}


@dataclass(frozen=True)
class Rebuilt:
    """A step as its settings and recorded rollouts make it."""

    parts: Parts
    """Of the run; what samples, verifies and saves is missing."""
    groups: tuple[Group, ...]
    contexts: list[Context]

    def figures(self) -> dict[str, float]:
        """The metrics that need no model."""
        return self.parts.figures(self.groups, self.contexts, self.parts.streams(self.groups, self.contexts))


def rebuild(run: PastRun, past: PastStep) -> Rebuilt:
    """Prompts, groups and teacher prompts of a past step.

    Raises:
        BadInputError: model, tokenizer or data are not there any more, or a prompt is none that the step draws.
    """
    config = past.config
    other = config.actor_rollout_ref.ref.model.path
    faults = model_faults(config, MODEL_KEY, config.actor_rollout_ref.model.path)
    faults += model_faults(config, TEACHER_KEY, other) if other is not None else []
    if faults:
        raise BadInputError(faults)
    renderers = load_renderers(config)
    prompts = load(
        config.data.train_files,
        "data.train_files",
        renderers.student,
        max_prompt_length=config.data.max_prompt_length,
        drop_overlong=config.data.filter_overlong_prompts,
        instruction=summary_instruction(config),
        check_truth=custom_reward(config) is None,
    )
    if faults := too_few(config, len(prompts)):
        raise BadInputError(faults)
    absent: Any = None
    parts = build_parts(
        config,
        renderers,
        train=prompts,
        held_out=prompts,
        services=(local_policy(config, []), absent, cast(Any, NoVerification())),
        journal=Journal(run.folders, renderers.student, absent, past.step),
        schedule=Schedule(past.step, 0, False),
        saver=absent,
        stopper=absent,
    )
    # Published orders depend on how many ranks the run had.
    parts = replace(parts, contexts=context_builder(config, renderers, past.ranks), early=None)
    groups = groups_of(past, {item.uid: item for item in occurrences(parts, past.step)})
    try:
        return Rebuilt(parts, groups, parts.contexts.build(groups, past.step))
    except ValueError as error:
        raise BadInputError([f"step {past.step}: its teacher prompts cannot be built again ({error})"]) from None


def occurrences(parts: Parts, step: int) -> Iterator[Asked]:
    """Every prompt that a step may meet, those of later draws included."""
    rows = parts.rows(step)
    used = set(rows)
    yield from parts.asked(rows, step)
    for draw in range(1, parts.sizes.draws):
        rows = parts.other_rows(step, draw, used)
        used |= set(rows)
        yield from parts.asked(rows, step, draw)


def groups_of(past: PastStep, known: dict[str, Asked]) -> tuple[Group, ...]:
    """The groups of a past step: prompts and names as its settings give them, responses and verdicts as recorded.

    Where the tokens were not kept, only their number is right.

    Raises:
        BadInputError: a line belongs to no prompt that the step draws.
    """
    groups = []
    for uid, members in groupby(range(len(past.lines)), key=lambda index: past.lines[index]["uid"]):
        if uid not in known:
            raise BadInputError(
                [f"rollouts/{past.step}.jsonl: uid {uid!r} names no prompt that the settings draw in step {past.step}"]
            )
        indices = list(members)
        rollouts = tuple(rollout_of(past, index, f"{uid}-{number}") for number, index in enumerate(indices))
        outcomes = tuple(outcome_of(past.lines[index]) for index in indices)
        groups.append(Group(uid, known[uid].prompt, known[uid].prompt_ids, rollouts, outcomes))
    return tuple(groups)


def rollout_of(past: PastStep, index: int, name: str) -> Rollout:
    """One recorded response under the name that it should have."""
    line = past.lines[index]
    if past.tokens is None:
        count = max(0, line["response_length"])
        segment = Segment(np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.float32))
    else:
        segment = Segment(past.tokens.token_ids[index], past.tokens.logprobs[index])
    return Rollout(name, (segment,), line["output"], line["finish_reason"], version_of(past, line))


def version_of(past: PastStep, line: Line) -> int:
    """The version that a response should be of; in the overlapped loop that of the step before will do."""
    newest, found = past.step - 1, line["policy_version"]
    return found if past.config.trainer.overlap and found == max(0, newest - 1) else newest


def local_policy(config: Config, workers: Sequence[PolicyWorker]) -> LocalPolicy:
    """The actor's planning as the run had it, on one rank."""
    actor, data, loss = config.actor_rollout_ref.actor, config.data, loss_settings(config)
    return LocalPolicy(
        workers,
        epochs=actor.ppo_epochs,
        mini_batch_rollouts=min(actor.ppo_mini_batch_size, data.train_batch_size) * config.actor_rollout_ref.rollout.n,
        packing=packing_of(config, loss),
        lr_at=optim_settings(config).rate,
        deadline_s=config.trainer.deadline_s,
        counts=loss.counts,
        teacher_forwards=teacher_forwards(config),
    )


def learn_again(past: PastStep, rebuilt: Rebuilt, before: Checkpoint | None, device: str) -> Learned:
    """The step's update, from the checkpoint before it (None: from the initial model), on `device`."""
    with actor(past.config, device) as worker:
        if before is not None:
            with warnings.catch_warnings():
                # torch takes note that one process reads what several may have written; so it is meant.
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                worker.restore(str(before.folder))
        parts = replace(rebuilt.parts, policy=local_policy(past.config, [worker]))
        return parts.begin(rebuilt.groups, rebuilt.contexts, past.step)()


@contextmanager
def actor(config: Config, device: str) -> Iterator[PolicyWorker]:
    """A single rank of the actor in this process, in a process group of its own."""
    model, threads = config.actor_rollout_ref.model, torch.get_num_threads()
    gpu_only = device == "cpu" and model.attn_implementation.startswith("flash")
    worker = PolicyWorker(
        rank=0,
        ranks=1,
        device=device,
        model_path=model.path,
        attn_implementation="sdpa" if gpu_only else model.attn_implementation,
        gradient_checkpointing=model.enable_gradient_checkpointing,
        loss=loss_settings(config),
        optim=optim_settings(config),
        teacher=teacher_settings(config),
        seed=config.data.seed,
        deadline_s=config.trainer.deadline_s,
    )
    worker.store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    if device == "cpu":
        torch.set_num_threads(1)  # as in the run: sums depend on it
    try:
        worker.join("127.0.0.1", 0)
        yield worker
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)
