"""The schema: every key that a run honours, with its meaning. What is not here is refused.

Key names are the published ones where a published key exists. The sentence under each field is its
documentation: `docs/configuration.md` is generated from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from trainer.config.actor_schema import Actor as Actor
from trainer.config.rollout_schema import Rollout as Rollout
from trainer.config.run_health import RunHealth
from trainer.config.strict import STRICT

Logger = Literal["console", "file", "jsonl", "tensorboard", "wandb", "mlflow"]


def each_once(names: Any) -> Any:
    """Names of loggers, each once.

    Raises:
        ValueError: what is given is no list of such names; the message has them.
    """
    known = get_args(Logger)
    if not isinstance(names, (list, tuple)) or not all(name in known for name in names):
        remedy = f"a list out of {', '.join(known)} is wanted, such as [console,wandb]"
        raise ValueError(remedy)
    return tuple(dict.fromkeys(names))


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
    lora_rank: int = Field(ge=0)
    """Trains low-rank adapters (LoRA) of this rank and leaves the model's own weights as they are; 0 trains these."""
    lora_alpha: float = Field(gt=0)
    """Scale of the adapters: what they add is multiplied by lora_alpha / lora_rank."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]
    """With lora_rank: which layers get adapters, by their last names, as [q_proj,v_proj]; never the output layer."""
    enable_gradient_checkpointing: bool
    """Recomputes activations in the backward pass: less memory, about a third more time."""
    attn_implementation: Literal["packed", "sdpa", "eager", "flash_attention_2"]
    """Forward passes of the actor. packed: every distinct prompt once, no padding; else padded rows, attended so."""
    use_fused_kernels: bool
    """Goes through the vocabulary by parts and keeps no logits; false makes every logit at once: the specification."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RefFsdp:
    param_offload: bool
    """Keeps a teacher or reference beside the student in the host's memory while nothing is learnt from it."""


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
    logger: Annotated[tuple[Logger, ...], BeforeValidator(each_once)]
    """Where steps are shown; wandb without key, mlflow without MLFLOW_TRACKING_URI: in files. metrics.jsonl: always."""
    project_name: str
    """The project at wandb, the experiment at mlflow."""
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
    early_teacher: bool
    """Shows groups to the teacher as they are finished, while others are still decoded; its states wait in Ray's
    object store. Pays where actor and sampler have devices of their own and responses differ much in length."""
    context_gain_rollouts: int = Field(ge=0)
    """Rollouts on which the teacher is asked without context too, every second step (gauges/context_gain); 0: none."""
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
