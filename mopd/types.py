"""The nouns of the method, as frozen data: prompt, rollout, group, outcome, peers, view, token streams.

Nothing here imports a framework, so that every process can read what another one sends.
What is not implemented yet can already be said: a rollout has segments (a conversation, a tree),
a sampling phase, and a view's messages may carry images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Message = Mapping[str, Any]
"""A chat message: `role`, and `content` (text, or a list of parts when images travel with it)."""

Status = Literal["right", "wrong", "unknown"]
Slot = Literal["primary", "another", "failure", "control", "summary"]
IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prompt:
    """A task put to the student: one row of a dataset.

    Example: `Prompt("17", ({"role": "user", "content": "calc 7 + 5"},), "chain", '{"steps": 1, "value": 2}')`
    """

    prompt_id: str
    """The dataset row. Two occurrences of a row in one step share it, but not their `uid`."""
    messages: tuple[Message, ...]
    """The conversation up to the answer, system prompt included."""
    data_source: str
    """Names the verifier, a key of `mopd.rewards.VERIFIERS`."""
    ground_truth: str
    """What the verifier compares with; its form belongs to the data source."""
    extra_info: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the row carries (split, index, problem)."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens that one policy sampled in one go."""

    token_ids: IntArray
    """[T], the end-of-sequence token included when it was sampled."""
    logprobs: FloatArray
    """[T], of the distribution that was sampled from (after temperature)."""
    parent: int | None = None
    """Index of the segment this one continues; None at the root."""
    trained: bool = True
    """False for tokens that the environment wrote."""


@dataclass(frozen=True)
class Rollout:
    """One sampled response to a prompt."""

    rollout_id: str
    """Unique in the run."""
    segments: tuple[Segment, ...]
    """One segment for a plain response."""
    text: str
    """The decoded response without special tokens."""
    finish_reason: str
    """`stop` (the student ended), `length` (cut), or `error`."""
    policy_version: int
    """Number of publishes the sampling weights had seen; 0 is the initial model."""
    phase: int = 0
    """Sampling phase within the step; 0 is the first."""

    @property
    def truncated(self) -> bool:
        """Whether a length limit cut the response before the student ended it."""
        return self.finish_reason == "length"

    @property
    def token_ids(self) -> IntArray:
        """[T], the response's tokens over all segments."""
        return np.concatenate([segment.token_ids for segment in self.segments])

    @property
    def logprobs(self) -> FloatArray:
        """[T], the sampler's log-probs of `token_ids`."""
        return np.concatenate([segment.logprobs for segment in self.segments])


@dataclass(frozen=True)
class Outcome:
    """A verifier's verdict. Unknown is not wrong: it is neither a success nor a failed peer."""

    reward: float | None
    """In [0, 1]; None when the verifier could not tell."""
    success: bool | None
    """None when the verifier could not tell."""
    status: Status
    feedback: str = ""
    """What the environment may say to the student; never a gold answer. Empty for none."""

    @classmethod
    def of(cls, success: bool, feedback: str = "") -> Outcome:
        """A binary verdict: reward 1 and `right`, or reward 0 and `wrong`."""
        return cls(float(success), success, "right" if success else "wrong", feedback)

    @classmethod
    def unknown(cls, reason: str) -> Outcome:
        """The verifier could not tell, and says why."""
        return cls(None, None, "unknown", reason)

    def succeeds(self, threshold: float) -> bool | None:
        """Whether the reward is at least `threshold`; None where the outcome is unknown."""
        return None if self.reward is None or self.status == "unknown" else bool(self.reward >= threshold)


@dataclass(frozen=True)
class Group:
    """The rollouts of one occurrence of a prompt in a step, in sampling order."""

    uid: str
    """One occurrence of a prompt in a step."""
    prompt: Prompt
    prompt_ids: IntArray
    """[L], the rendered student prompt."""
    rollouts: tuple[Rollout, ...]
    """[G]"""
    outcomes: tuple[Outcome, ...] = ()
    """[G], empty before verification."""


@dataclass(frozen=True)
class PeerChoice:
    """Which sibling fills a slot of a teacher prompt, and why this one."""

    slot: Slot
    rollout_id: str
    """Empty where the text is no rollout's, such as a reference solution."""
    reason: str


@dataclass(frozen=True)
class Peers:
    """What a teacher may be shown for one rollout: texts by slot, and where each came from."""

    primary: str | None = None
    """A successful sibling's response."""
    another: str | None = None
    """A second successful sibling's response, of different text."""
    failure: str | None = None
    """A failed sibling's response."""
    feedback: str | None = None
    """The environment's feedback on the rollout itself."""
    summaries: tuple[str, ...] = ()
    """Short accounts of siblings, as bare texts."""
    choices: tuple[PeerChoice, ...] = ()
    """One per filled slot."""
    fallbacks: tuple[str, ...] = ()
    """Slots that were wanted and stayed empty, each with its cause, such as `another: only one distinct success`."""
    more: tuple[str, ...] = ()
    """Successful responses beyond the second, which only a matched-budget control shows."""
    failed_summaries: tuple[int, ...] = ()
    """Positions in `summaries` of those that tell of a failed sibling."""

    @property
    def controlled(self) -> bool:
        """Whether these are the blocks of a matched-budget control, shown whatever the switches say."""
        return any(choice.slot == "control" for choice in self.choices)


@dataclass(frozen=True)
class View:
    """The messages that a teacher sees for one rollout."""

    messages: tuple[Message, ...]
    usable: bool
    """False when no context was found: the teacher would see what the student saw, and nothing can be learnt."""
    peers: Peers = Peers()


@dataclass(frozen=True)
class TokenStreams:
    """All that the optimiser sees of one rollout; every array is [T], over response tokens."""

    mask: FloatArray
    """1 for tokens the student sampled."""
    weights: FloatArray
    """Weight of the divergence to the teacher; 0 where there is no usable view."""
    advantages: FloatArray
    """Policy-gradient advantage; 0 where the method has none."""
