"""The methods, each a composition: what the teacher sees, what the student learns from, with which loss.

| loss_mode          | signal        | learns from                                                               |
|--------------------|---------------|---------------------------------------------------------------------------|
| sdpo               | divergence    | the teacher's next-token distribution at the student's own tokens         |
| sdpo, sampled      | sampled_token | the teacher's log-prob of the student's own tokens                        |
| vanilla, gspo, ... | policy        | rewards relative to the group; the loss is one of `POLICY_LOSSES`         |
| dpo, simpo         | preference    | pairs of a group of which one was rewarded more                           |
| verified_sft, sft  | likelihood    | the successes alone                                                       |

What the teacher sees is a second axis: peers of the group (MOPD: two successes and a failure; SDPO: one
success, or feedback), a reference solution (OPSD), or just the student's prompt (distillation from another model).
Who the teacher is is a third: moving average, frozen, live or trust-region self, or another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Signal = Literal["divergence", "sampled_token", "policy", "preference", "likelihood"]
ViewKind = Literal["peers", "reference", "prompt"]


@dataclass(frozen=True)
class Method:
    """What a method asks of the trainer."""

    signal: Signal
    loss: str
    """The published loss mode; within the signal `policy` a key of `mopd.policy_losses.POLICY_LOSSES`."""

    @property
    def distils(self) -> bool:
        """True where a teacher's view is built and forwarded for every rollout."""
        return self.signal in ("divergence", "sampled_token")

    @property
    def has_reference(self) -> bool:
        """True where the initial model is asked as well, on the student's own prompt."""
        return self.loss == "dpo"

    @property
    def pairs(self) -> bool:
        """True where whole groups must stay together."""
        return self.signal == "preference"


METHODS: dict[str, Method] = {
    "sdpo": Method("divergence", "sdpo"),
    "vanilla": Method("policy", "vanilla"),
    "gspo": Method("policy", "gspo"),
    "dppo": Method("policy", "dppo"),
    "drpo": Method("policy", "drpo"),
    "dpo": Method("preference", "dpo"),
    "simpo": Method("preference", "simpo"),
    "verified_sft": Method("likelihood", "verified_sft"),
    "sft": Method("likelihood", "sft"),
}
"""By the published `policy_loss.loss_mode`."""


def method_of(loss_mode: str, *, full_logit_distillation: bool) -> Method:
    """The method of a loss mode; without full logits the teacher is asked for the sampled tokens only."""
    method = METHODS[loss_mode]
    return method if full_logit_distillation or not method.distils else Method("sampled_token", loss_mode)
