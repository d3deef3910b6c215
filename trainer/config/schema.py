"""The schema: every key that a run honours, with its meaning. What is not here is refused.

Key names are the published ones where a published key exists. The sentence under each field is its
documentation: `docs/configuration.md` is generated from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trainer.config.run_health import RunHealth
from trainer.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    train_files: str
    """Parquet file of training prompts."""
    val_files: str
    """Parquet file of held-out prompts."""
    train_batch_size: int = Field(ge=1)
    """Prompts per step."""
    max_prompt_length: int = Field(ge=1)
    """Longest student prompt, in tokens, chat template included."""
    max_response_length: int = Field(ge=1)
    """Longest response, in tokens."""
    filter_overlong_prompts: bool
    """Drops (and counts) prompts over `max_prompt_length`; false refuses to start when there is one."""
    shuffle: bool
    """Draws a new order of the training prompts for every epoch, from `seed`; false keeps the file's order."""
    seed: int = Field(ge=0, lt=2**63)
    """The run's one seed: order of prompts, sampling, choice of peers."""
    apply_chat_template_kwargs: dict[str, Any]
    """Arguments given to the chat template, for the student and the teacher alike."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Model:
    path: str
    """Folder of a Hugging Face causal language model and its tokenizer."""
    enable_gradient_checkpointing: bool
    """Recomputes activations in the backward pass: less memory, about a third more time."""
    attn_implementation: Literal["packed", "sdpa", "eager", "flash_attention_2"]
    """Forward passes of the actor. packed: every distinct prompt once, no padding; else padded rows, attended so."""
    use_fused_kernels: bool
    """Goes through the vocabulary by parts and keeps no logits; false makes every logit at once: the specification."""


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
    optimizer_offload: bool
    """Keeps the optimiser's moments in the host's memory, but for its steps: slower, and room on the GPU."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RefFsdp:
    param_offload: bool
    """Keeps a teacher or reference beside the student in the host's memory while nothing is learnt from it."""


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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ValKwargs:
    n: int = Field(ge=1)
    """Responses per held-out prompt: the k of mean@k and pass@k."""
    temperature: float = Field(ge=0)
    """Sampling temperature in validation; 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus of validation sampling."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RolloutHorizon:
    kind: Literal["const", "linear-step", "ratio"]
    """Longest response by step: always max_response_length, growing up to it (POPD), or a share of it (TOPD)."""
    start: int = Field(ge=1)
    """linear-step: tokens before the first update."""
    increment: int = Field(ge=1)
    """linear-step: tokens added each time."""
    interval: int = Field(ge=1)
    """linear-step: steps between additions."""
    ratio: float = Field(gt=0, le=1)
    """ratio: share of max_response_length."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rollout:
    name: Literal["vllm"]
    """The engine that samples."""
    n: int = Field(ge=1)
    """Rollouts per prompt: the size of a group."""
    temperature: float = Field(gt=0)
    """Sampling temperature in training; divergences and log-probs use the same."""
    enable_prefix_caching: bool
    """Shares the prompt's keys and values among the rollouts of a group."""
    max_model_len: int | None = Field(ge=1)
    """Longest prompt and response together; null: max_prompt_length + max_response_length."""
    gpu_memory_utilization: float = Field(gt=0, le=1)
    """Share of a GPU's memory that the sampler may take."""
    kv_cache_mib: int = Field(ge=1)
    """Key-value cache of the sampler on a machine without a GPU, in MiB."""
    update_weights_bucket_megabytes: int = Field(ge=1)
    """Most weights gathered and sent to the sampler at once, in MiB; a larger weight travels alone."""
    sync_tolerance: Literal["auto"] | Annotated[float, Field(ge=0)] | None
    """Most nats between sampler and actor after a publish; auto: 1e-3 on the CPU, 1.0 on GPUs; null never stops."""
    horizon: RolloutHorizon
    val_kwargs: ValKwargs


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RefModel:
    path: str | None
    """Folder of another model as teacher, of the same vocabulary (TEACHER_MODEL_PATH); null: the student itself."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Ref:
    model: RefModel
    placement: Literal["colocate", "own"]
    """Where a frozen teacher computes: sharded over the actor's devices beside the student, or `own`: in processes of
    its own, each with a whole copy, asked for log-probs of the entries compared and never for whole distributions."""
    n_gpus: int = Field(ge=1)
    """With placement=own: processes of the teacher, each with a whole GPU (on the CPU: processes); rank r asks the one
    numbered r modulo this."""
    fsdp_config: RefFsdp


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ActorRolloutRef:
    model: Model
    actor: Actor
    rollout: Rollout
    ref: Ref


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RolloutCorrection:
    rollout_is: Literal["token", "sequence"] | None
    """Importance weights between trainer and sampler, per token or per response; null for none."""
    rollout_is_threshold: float = Field(gt=0)
    """Upper bound of these weights."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Algorithm:
    adv_estimator: Literal["grpo", "rloo"]
    """Baseline of a reward: the group's mean, or the mean of the others (RLOO)."""
    norm_adv_by_std_in_grpo: bool
    """Divides advantages by the group's standard deviation."""
    filter_groups: bool
    """Leaves out groups whose rewards are all equal (DAPO's dynamic sampling)."""
    max_num_gen_batches: int = Field(ge=1)
    """With filter_groups: draws of prompts in a step at most, until as many groups teach as were asked; 1: no more."""
    overlong_buffer: int = Field(ge=0)
    """Tokens before max_response_length over which a reward falls by up to 1 (DAPO's overlong shaping); 0: none."""
    rollout_correction: RolloutCorrection


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Trainer:
    total_training_steps: int | None = Field(ge=0)
    """Steps to train; null: as many as `total_epochs` gives."""
    total_epochs: int = Field(ge=1)
    """Passes over the training prompts when `total_training_steps` is null."""
    test_freq: int = Field(ge=0)
    """Validates every so many steps, and after the last; 0: only before and after."""
    val_before_train: bool
    """Validates the initial model."""
    save_freq: int = Field(ge=0)
    """Writes a checkpoint every so many steps, and after the last; 0: only after the last."""
    max_actor_ckpt_to_keep: int = Field(ge=2)
    """Checkpoints kept; at least two, for the newest may be damaged."""
    on_save_error: Literal["stop", "warn"]
    """A checkpoint that cannot be written ends the run; warn: only the second one after the other does."""
    resume_mode: str = Field(min_length=1)
    """auto: a run in OUTPUT_DIR goes on after its newest whole checkpoint; must: the same, but refused where there is
    none; disable: it is refused; or the folder of a checkpoint from which a fresh OUTPUT_DIR begins."""
    time_budget_s: float | None = Field(gt=0)
    """Seconds from the start of the job (SLURM_JOB_START_TIME, else of the process) after which no step begins; the run
    then ends with a checkpoint and exit code 75. SLURM_JOB_END_TIME is heeded in any case; null: no other limit."""
    device: Literal["auto", "cpu", "cuda"]
    """Where actors and sampler compute; auto: cuda where a GPU is visible."""
    n_gpus_per_node: int | None = Field(ge=1)
    """Actor processes of a node, one per GPU; null: every visible GPU, or one process on the CPU."""
    nnodes: int = Field(ge=1)
    """Nodes of the run."""
    logger: tuple[Literal["console", "jsonl", "tensorboard", "wandb"], ...]
    """Where steps are shown; wandb is offline without a key, and metrics.jsonl is written in any case."""
    project_name: str
    """The project at wandb."""
    experiment_name: str | None
    """Name of the run; null: made of method, data, model and key settings."""
    experiment_suffix: str
    """Added to the name; the launch scripts' first argument."""
    output_dir: str | None
    """Where the run is kept; null: a fresh folder outputs/<experiment_name>."""
    default_local_dir: str | None
    """Checkpoints; null: <output_dir>/checkpoints."""
    rollout_data_dir: str | None
    """Rollouts; null: <output_dir>/rollouts."""
    validation_data_dir: str | None
    """Validation responses; null: <output_dir>/validation."""
    overlap: bool
    """Draws the next step's rollouts while the actor learns, by the weights published before: one step off-policy,
    which rollout_correction makes up for. false: one after the other."""
    deadline_s: float = Field(gt=0)
    """Longest wait for any answer of a worker, in seconds."""
    health: RunHealth


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Reward:
    workers: int | None = Field(ge=1)
    """Processes that verify responses; null: as many as there are cores, at most 16."""
    deadline_s: float = Field(gt=0)
    """Longest wait for the verdict on one response, in seconds; after it the verdict is unknown, not wrong."""
    sandbox_tier: Literal[1, 2, 3] | None
    """Isolation of programs that responses hold, 1 the strongest; null: the strongest that the machine offers."""
    allow_unsandboxed: bool
    """Runs such programs with no isolation where the machine offers none; false: refuses to start there."""
    trust_assertions: bool
    """Lets assert-style tests decide rewards even where only the tested program itself can compare the results."""
    float_tolerance: float | None = Field(ge=0)
    """Difference, relative and absolute, at which numbers that programs print count as equal; null compares texts."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CustomRewardFunction:
    path: str | None
    """Python file of a reward function of your own, for every data source; null: the verifiers of mopd/rewards."""
    name: str = Field(min_length=1)
    """Its name in that file; docs/rewards.md has its signature."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    data: Data
    actor_rollout_ref: ActorRolloutRef
    algorithm: Algorithm
    reward: Reward
    custom_reward_function: CustomRewardFunction
    trainer: Trainer
    reference_compat: bool
    """Published behaviour where that is safe: peers in the published order, the loss normalised per micro-batch,
    bootstrapped best@k beside pass@k, teacher prompts cut on the right."""
