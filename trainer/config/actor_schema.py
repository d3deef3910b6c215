"""The schema's section `actor_rollout_ref.actor`: what is minimised, and what the teacher sees."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainer.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optim:
    lr: float = Field(gt=0)
    """Learning rate after warm-up; constant from there on."""
    lr_warmup_steps: int = Field(ge=0)
    """Training steps over which the learning rate rises linearly."""
    weight_decay: float = Field(ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    """AdamW's decay rates of the two moments."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PolicyLoss:
    loss_mode: Literal["sdpo", "vanilla", "gspo", "dppo", "drpo", "dpo", "simpo", "verified_sft", "sft"]
    """`sdpo`: divergence to the teacher on its view; `vanilla`: clipped policy gradient; the others by their names."""
    delta: float = Field(gt=0)
    """DPPO: how far a token's probability may move; DRPO: where the pull ends."""
    dpo_beta: float = Field(gt=0)
    """DPO: scale of the log-ratio to the initial model."""
    simpo_beta: float = Field(gt=0)
    """SimPO: scale of the mean log-prob."""
    simpo_gamma: float = Field(ge=0)
    """SimPO: margin that the preferred response must have."""
    label_smoothing: float = Field(ge=0, lt=0.5)
    """DPO and SimPO: share of pairs taken to be the wrong way round."""
    sft_success_threshold: float = Field(ge=0)
    """Verified SFT: reward from which a rollout is learnt."""
    sft_length_normalize: bool
    """Verified SFT: mean over a response's tokens; false: their sum."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelfDistillation:
    alpha: float = Field(ge=0, le=1)
    """0: KL(teacher || student), 1: KL(student || teacher), between: Jensen-Shannon mixture (0.5: symmetric)."""
    full_logit_distillation: bool
    """Compares next-token distributions; false estimates the reverse divergence from the sampled tokens (alpha 1)."""
    distillation_topk: int | None = Field(ge=1)
    """Entries of the distributions compared per token; null compares the whole vocabulary."""
    distillation_support: Literal["student", "teacher", "union"]
    """Whose top-k entries are compared."""
    distillation_add_tail: bool
    """Adds the rest of the vocabulary as one entry; false renormalises the top-k entries."""
    distillation_gradient: Literal["exact", "sparse", "auto"]
    """sparse: only through the entries compared, in less time; auto: so where that changes it by less than 0.1 %."""
    is_clip: float | None = Field(gt=0)
    """Upper bound of the importance ratio between the current and the old policy; null weighs nothing."""
    step_level_kl: bool
    """Averages the weighted divergence over each reasoning step of a response."""
    step_separator: str = Field(min_length=1)
    """Text that ends a reasoning step; found in the text, wherever tokens begin and end."""
    teacher_regularization: Literal["ema", "frozen", "live", "trust-region"]
    """Teacher: the student's moving average, the initial model, the student itself, or a mixture of the last two."""
    teacher_update_rate: float = Field(ge=0, le=1)
    """Share of the student taken into the average after each step, or into the mixture at each token."""
    view: Literal["peers", "reference", "prompt"]
    """What the teacher sees: siblings of the rollout, the row's reference solution, or the student's own prompt."""
    success_reward_threshold: float = Field(ge=0)
    """A rollout with at least this reward is a success, below it a failure."""
    peer_policy: Literal["random", "first", "shortest", "diverse"]
    """Which siblings are shown: drawn by the run's seed, the first sampled, the shortest, or two unlike each other."""
    include_primary_solution: bool
    """Shows the teacher a successful sibling."""
    include_another_solution: bool
    """Shows a second successful sibling of different text."""
    include_failure_solution: bool
    """Shows a failed sibling, marked as such."""
    failure_solution_condition: Literal["when_no_solution", "always"]
    """When the failed sibling is shown."""
    include_environment_feedback: bool
    """Shows the environment's feedback on the rollout itself; never a gold answer."""
    environment_feedback_only_without_solution: bool
    """Shows feedback only where no successful sibling can be shown."""
    dont_reprompt_on_self_success: bool
    """A successful rollout is never its own demonstration."""
    include_truncated_peers: bool
    """Shows responses cut at the length limit too, as successes or failures by their reward; false: never."""
    remove_thinking_from_demonstration: bool
    """Strips thinking from every peer."""
    summarize_solutions: bool
    """Asks the student for a summary of its solution, and shows the teacher siblings' summaries."""
    summary_k: int = Field(ge=1)
    """Summaries shown at most."""
    summary_tag: str = Field(pattern=r"^[\w-]+$")
    """What encloses a summary, as in `<summary>...</summary>`."""
    summary_source: Literal["success", "all", "failure"]
    """Whose summaries are shown."""
    summary_from_all: bool
    """As `summary_source=all`."""
    summary_instruction: str
    """Appended to the student's prompt, in training and validation; never to the teacher's."""
    peer_control_mode: Literal["none", "random_peer", "unrelated_prompt", "success_only_matched"]
    """Control that shows as much as the peers would be: any siblings, other prompts' successes, or successes only."""
    peer_control_match: Literal["block", "token"]
    """What a control matches: the number of peers, or their tokens."""
    max_reprompt_len: int = Field(ge=1)
    """Longest teacher prompt, in tokens."""
    reprompt_truncation: Literal["peers", "error", "right", "left"]
    """A longer one: peers are shortened to fit, the run stops, or the prompt loses its end or its beginning."""
    reprompt_template: str
    """The teacher's user message, with the fields prompt, solution, solution_summaries, another_solution, failure and
    feedback."""
    solution_template: str
    """Section of the first successful peer."""
    another_solution_template: str
    """Section of the second successful peer."""
    failure_solution_template: str
    """Section of the failed peer."""
    summary_item_template: str
    """Section of a successful sibling's summary."""
    summary_failed_item_template: str
    """Section of a failed sibling's summary."""
    feedback_template: str
    """Section of the environment's feedback."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ActorFsdp:
    param_offload: bool
    """Keeps the student's parameters in the host's memory while rollouts are sampled and verified: room on the GPU."""
    optimizer_offload: bool
    """Keeps the optimiser's moments in the host's memory, but for its steps: slower, and room on the GPU."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Actor:
    policy_loss: PolicyLoss
    ppo_mini_batch_size: int = Field(ge=1)
    """Prompts per optimiser step."""
    ppo_epochs: int = Field(ge=1)
    """Passes over a step's rollouts."""
    ppo_max_token_len_per_gpu: int = Field(ge=1)
    """Token budget of a micro-batch on one device, padding and teacher prompt included."""
    clip_ratio_low: float = Field(ge=0, lt=1)
    """Policy gradient: lower clip of the ratio, 1 - this."""
    clip_ratio_high: float = Field(ge=0)
    """Policy gradient: upper clip of the ratio, 1 + this."""
    clip_ratio_c: float = Field(gt=1)
    """Policy gradient: dual clip for negative advantages."""
    loss_agg_mode: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
    """How token losses become one number; counts are those of the whole mini-batch over all devices."""
    grad_clip: float = Field(gt=0)
    """Largest gradient norm."""
    optim: Optim
    fsdp_config: ActorFsdp
    self_distillation: SelfDistillation
