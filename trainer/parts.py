"""What the loop calls: each phase of a step, with the parts that carry it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mopd.credit import CreditSettings, group_ids_N, informative, shaped_rewards_N, token_streams
from mopd.horizon import Horizon
from mopd.methods import Method
from mopd.steps import step_ids
from mopd.types import Group, IntArray, Outcome, Rollout, TokenStreams
from trainer.batch import Batch, kept, restored
from trainer.contexts import Context, ContextBuilder
from trainer.early import EarlyTeacher
from trainer.errors import RunUnhealthyError, StoppedError
from trainer.gauges import BARE_EVERY, asked_bare, text_gauges
from trainer.health import Health
from trainer.packing import Sample
from trainer.prompts import PromptSet, batch_at, other_rows
from trainer.recorded import Recorded
from trainer.sampling import Asked, Sampling
from trainer.saving import Saver
from trainer.schedule import Schedule
from trainer.services import Policy
from trainer.stopping import Stopper, how_to_go_on
from trainer.tracking import Journal, every_rollout
from trainer.validate import Validator
from trainer.verification import Verification
from trainer.workers.sampler_types import SamplingSettings

PROVED_ROLLOUTS, PROVED_TOKENS = 4, 128
"""Rollouts of a step, and tokens of each, by which a publish is proved."""
RECORDED_GROUPS = 2
"""Groups of a step of which `Recorded` is kept."""


@dataclass(frozen=True)
class Learned:
    """What a step's update tells."""

    metrics: dict[str, float]
    recorded: dict[int, Recorded]
    """Of the recorded rollouts, by index in sampling order."""


@dataclass(frozen=True)
class Sizes:
    """How much a step samples and what it measures by, as plain values."""

    prompts: int
    """Prompts of a step."""
    rollouts: int
    """Rollouts per prompt."""
    shuffle: bool
    seed: int
    step_separator: str | None
    """Text between reasoning steps, where losses are averaged over them."""
    draws: int = 1
    """Draws of prompts in a step at most, to replace groups that teach nothing."""
    bare: int = 0
    """Rollouts of every second step on which the teacher is asked without its context as well."""
    success_threshold: float = 1.0
    """Reward of a success."""


@dataclass(frozen=True)
class Parts:
    """Everything the loop calls."""

    sizes: Sizes
    sampling: SamplingSettings
    """How training rollouts are drawn."""
    method: Method
    credit: CreditSettings
    horizon: Horizon
    prompts: PromptSet
    sampler: Sampling
    verifier: Verification
    contexts: ContextBuilder
    policy: Policy
    validator: Validator
    journal: Journal
    health: Health
    schedule: Schedule
    saver: Saver
    stopper: Stopper
    early: EarlyTeacher | None = None
    """Shows finished groups to the teacher while others are decoded; None: the teacher waits for the update."""
    ahead: Batch | None = None
    """What the checkpoint that the run goes on from holds of the next step."""

    def sample(self, step: int) -> tuple[Group, ...]:
        """The step's prompts, each with its group of rollouts."""
        return self.drawn(self.rows(step), step)

    def rows(self, step: int) -> list[int]:
        """The rows of the data that a step begins with."""
        sizes = self.sizes
        return batch_at(step, rows=len(self.prompts), batch_size=sizes.prompts, shuffle=sizes.shuffle, seed=sizes.seed)

    def drawn(self, rows: Sequence[int], step: int, draw: int = 0) -> tuple[Group, ...]:
        """A group of rollouts for each of `rows`; `draw` counts a step's later draws."""
        settings = replace(self.sampling, max_tokens=self.horizon(step - 1))
        path = [step, draw] if draw else [step]
        asked, n, newest = self.asked(rows, step, draw), self.sizes.rollouts, step - 1
        if self.early is not None and not draw:
            self.early.begin()
        if self.early is None or not self.contexts.by_group:
            return self.sampler.sample(asked, n, settings, path, newest=newest)
        show = partial(self.show, step)
        return self.sampler.sample(asked, n, settings, path, newest=newest, finished=show)

    def show(self, step: int, verified: Sequence[Group]) -> None:
        """Shows the teacher groups that are finished."""
        assert self.early is not None
        groups: Sequence[Group] = self.without_cut(verified, step)
        if self.redraws:
            groups = self.teaching(groups)
        contexts = self.contexts.build(groups, step)
        self.early.show(self.samples_of(groups, contexts, self.streams(groups, contexts)))

    def asked(self, rows: Sequence[int], step: int, draw: int = 0) -> list[Asked]:
        """The prompts of `rows`, each named as this step's draw names it."""
        name = f"{step}.{draw}" if draw else str(step)
        return [
            Asked(f"{name}-{number}", self.prompts.prompts[row], self.prompts.prompt_ids[row])
            for number, row in enumerate(rows)
        ]

    def other_rows(self, step: int, draw: int, used: Collection[int]) -> list[int]:
        """The rows of a step's later draw, none of them in `used`."""
        sizes = self.sizes
        return other_rows(step, draw, rows=len(self.prompts), count=sizes.prompts, seed=sizes.seed, used=used)

    def verify(self, groups: Sequence[Group], step: int) -> tuple[Group, ...]:
        """The groups with outcomes. A response that a horizon cut short has no verdict."""
        return self.without_cut(self.verifier.verify(groups), step)

    def without_cut(self, verified: Sequence[Group], step: int) -> tuple[Group, ...]:
        """Verified groups without the verdicts on responses that a horizon cut short."""
        if self.horizon(step - 1) >= self.sampling.max_tokens:
            return tuple(verified)
        return tuple(
            replace(group, outcomes=tuple(without_verdict_if_cut(*pair) for pair in paired(group)))
            for group in verified
        )

    @property
    def redraws(self) -> bool:
        """Whether groups that teach nothing are replaced."""
        return self.sizes.draws > 1

    def redraw(self, groups: Sequence[Group], step: int) -> tuple[tuple[Group, ...], dict[str, float]]:
        """DAPO's dynamic sampling: groups of equal rewards give way to groups of other prompts, as far as draws go.

        What is still missing then is filled up with groups that teach nothing, so that a step keeps its size.
        """
        used, seen = set(self.rows(step)), list(groups)
        teaching = self.teaching(groups)
        for draw in range(1, self.sizes.draws):
            rows = self.other_rows(step, draw, used)
            if len(teaching) >= self.sizes.prompts or not rows:
                break
            used |= set(rows)
            fresh = self.verify(self.drawn(rows, step, draw), step)
            seen += fresh
            teaching += self.teaching(fresh)
        kept_names = {group.uid for group in teaching}
        idle = [group for group in seen if group.uid not in kept_names]
        kept = [*teaching, *idle][: self.sizes.prompts]
        return tuple(kept), {"sampling/prompts_drawn": len(seen), "sampling/groups_teaching": len(teaching)}

    def teaching(self, groups: Sequence[Group]) -> list[Group]:
        """The groups whose rewards differ."""
        return [group for group, tells in zip(groups, informative(groups, self.credit), strict=True) if tells]

    def learn(self, groups: Sequence[Group], contexts: Sequence[Context], step: int) -> Learned:
        """One update of student and teacher, for which the sampler makes room."""
        self.sampler.rest()
        return self.begin(groups, contexts, step)()

    def begin(self, groups: Sequence[Group], contexts: Sequence[Context], step: int) -> Callable[[], Learned]:
        """Has the actor begin with an update; what is returned waits for its end."""
        streams = self.streams(groups, contexts)
        samples = self.samples_of(groups, contexts, streams)
        record = frozenset(range(RECORDED_GROUPS * self.sizes.rollouts))
        taught, early = (None, {}) if self.early is None else self.early.complete(samples)
        if self.sizes.bare and step % BARE_EVERY == 1:
            first = self.policy.mini_batch_rollouts  # later a teacher that is the student has moved
            samples = asked_bare(samples, groups, self.contexts, self.sizes.bare, first)
        updating = self.policy.begin(samples, step, record, taught)

        def ended() -> Learned:
            figures = self.figures(groups, contexts, streams)  # while the actor is at work
            metrics, recorded = updating()
            metrics |= figures | early
            metrics["rollout/staleness_mean"] = staleness(groups, step)
            return Learned(metrics, recorded)

        return ended

    def streams(self, groups: Sequence[Group], contexts: Sequence[Context]) -> list[TokenStreams]:
        """What the optimiser sees of every rollout, in sampling order."""
        views = [context.view for context in contexts] if self.method.distils else None
        return token_streams(self.method, groups, views, self.credit)

    def figures(
        self, groups: Sequence[Group], contexts: Sequence[Context], streams: Sequence[TokenStreams]
    ) -> dict[str, float]:
        """What a step's rollouts and views tell without a model, under published names."""
        metrics = rollout_metrics(groups) | text_gauges(groups, contexts, self.sizes.success_threshold)
        metrics["critic/informative_group_fraction"] = len(self.teaching(groups)) / len(groups)
        metrics["actor/trained_fraction"] = float(np.mean([bool(stream.weights.any()) for stream in streams]))
        if self.method.distils:
            metrics |= self.contexts.metrics([context.view for context in contexts], groups)
            lengths = [len(context.prompt_ids) for context in contexts if context.prompt_ids is not None]
            metrics |= spread("self_distillation/teacher_prompt_length", lengths)
        return metrics

    def samples_of(
        self, groups: Sequence[Group], contexts: Sequence[Context], streams: Sequence[TokenStreams]
    ) -> list[Sample]:
        """The step's rollouts as the actor sees them, in sampling order."""
        rewards, numbers = shaped_rewards_N(groups, self.credit), group_ids_N(groups)
        return [
            Sample(
                index=index,
                group=numbers[index],
                reward=float(rewards[index]),
                prompt_ids=group.prompt_ids,
                response_ids=rollout.token_ids,
                sampler_logprobs=rollout.logprobs,
                teacher_prompt_ids=contexts[index].prompt_ids,
                streams=streams[index],
                step_ids=self.steps_of(rollout),
                verdict=math.nan if outcome.reward is None else outcome.reward,
                right=outcome.succeeds(self.sizes.success_threshold),
            )
            for index, (group, rollout, outcome) in enumerate(every_rollout(groups))
        ]

    def steps_of(self, rollout: Rollout) -> IntArray | None:
        """[T], the reasoning step of every token; None where losses are not averaged over steps."""
        if self.sizes.step_separator is None:
            return None
        pieces = self.contexts.renderer.pieces(rollout.token_ids)
        return np.asarray(step_ids(pieces, self.sizes.step_separator), dtype=np.int32)

    def publish(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Gives the sampler the new weights, and compares both sides' log-probs of this step's tokens."""
        whole = [np.concatenate([group.prompt_ids, group.rollouts[0].token_ids]) for group in groups[:PROVED_ROLLOUTS]]
        # The sampler must have room for one token more than it scores.
        return self.sampler.publish(step, [tokens[-PROVED_TOKENS - 1 : -1] for tokens in whole])

    def validate(self, *, step: int) -> dict[str, float]:
        """Held-out quality of the published weights."""
        scores = self.validator(step=step)
        self.verifier.report()  # the figures of steps are of training alone
        return scores

    def ending(self, step: int) -> Exception | None:
        """Why the run ends after this step, before its last; None to go on.

        Raises:
            WorkerError: the last checkpoint could not be written.
        """
        self.saver.settle(wait=False)
        if (unwell := self.health.ending(step)) is not None:
            batch = self.journal.folders.rollouts / f"{step}.jsonl"
            return RunUnhealthyError(f"{unwell}; what it was trained on lies in {batch}", step)
        reason = None if step == self.schedule.last else self.stopper.reason(self.saver.longest_s)
        if reason is None:
            return None
        how = how_to_go_on(self.journal.folders.output)
        return StoppedError(f"{reason}: ended after step {step} with a checkpoint; to go on: {how}")

    def state(self, ahead: Batch | None = None) -> dict[str, Any]:
        """What the controller itself must know to go on, as JSON has it; all else follows from the step's number.

        `ahead` is what was drawn of the next step.
        """
        known = {"health": self.health.state_dict(), "lengths": self.sampler.lengths}
        return known | ({} if ahead is None else {"ahead": kept(ahead)})

    def restore(self, state: Mapping[str, Any]) -> Parts:
        """These parts, going on from `state()`."""
        self.health.load_state_dict(state["health"])
        self.sampler.lengths = dict(state.get("lengths", {}))
        return replace(self, ahead=restored(state["ahead"], self.prompts) if "ahead" in state else None)


def without_verdict_if_cut(rollout: Rollout, outcome: Outcome) -> Outcome:
    """The outcome of a rollout under a horizon shorter than the longest response."""
    return Outcome.unknown("cut by the rollout horizon") if rollout.truncated else outcome


def paired(group: Group) -> Iterator[tuple[Rollout, Outcome]]:
    """Every rollout of a group with its outcome."""
    return zip(group.rollouts, group.outcomes, strict=True)


def staleness(groups: Sequence[Group], step: int) -> float:
    """How many updates the policy that a step begins with is ahead of the one that sampled, mean over rollouts."""
    return float(np.mean([step - 1 - rollout.policy_version for group in groups for rollout in group.rollouts]))


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards and lengths of a step, under published names; rewards of unknown outcome are left out."""
    outcomes = [outcome for group in groups for outcome in group.outcomes]
    rewards = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    successes = [outcome.success for outcome in outcomes if outcome.success is not None]
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    cut = [rollout.truncated for group in groups for rollout in group.rollouts]
    distinct = [len({rollout.text for rollout in group.rollouts}) for group in groups]
    metrics = {
        **spread("critic/rewards", rewards),
        **spread("response_length", lengths),
        **spread("prompt_length", [len(group.prompt_ids) for group in groups]),
        "response_length/clip_ratio": float(np.mean(cut)),
        "rollout/distinct_fraction": sum(distinct) / len(cut),
        "critic/unknown_fraction": 1 - len(rewards) / len(outcomes),
    }
    if successes:
        metrics["critic/success_rate"] = float(np.mean(successes))
    return metrics


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean, largest and smallest under `name`; nothing of nothing."""
    if not values:
        return {}
    return {
        f"{name}/mean": float(np.mean(values)),
        f"{name}/max": float(max(values)),
        f"{name}/min": float(min(values)),
    }
