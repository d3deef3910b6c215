"""From the configuration tree to the plain values that each part takes."""

from __future__ import annotations

from mopd.credit import CreditSettings
from mopd.horizon import Constant, Horizon, LinearStep, Ratio
from mopd.methods import Method, method_of
from trainer.adapters import AdapterSettings
from trainer.config.schema import Config
from trainer.objectives import LossSettings
from trainer.scores import DivergenceSettings
from trainer.workers.models import OptimSettings
from trainer.workers.views import TeacherSettings


def method_settings(config: Config) -> Method:
    """The method that the configuration composes."""
    actor = config.actor_rollout_ref.actor
    return method_of(
        actor.policy_loss.loss_mode, full_logit_distillation=actor.self_distillation.full_logit_distillation
    )


def loss_settings(config: Config) -> LossSettings:
    """The loss as plain values."""
    actor, correction = config.actor_rollout_ref.actor, config.algorithm.rollout_correction
    distill, policy = actor.self_distillation, actor.policy_loss
    clips = {"clip_ratio_low": actor.clip_ratio_low, "clip_ratio_high": actor.clip_ratio_high}
    options: dict[str, dict[str, float]] = {
        "vanilla": {**clips, "clip_ratio_c": actor.clip_ratio_c},
        "gspo": clips,
        "dppo": {"delta_low": policy.delta, "delta_high": policy.delta},
        "drpo": {"delta": policy.delta},
    }
    return LossSettings(
        method=method_settings(config),
        temperature=config.actor_rollout_ref.rollout.temperature,
        aggregation=actor.loss_agg_mode,
        max_response_length=config.data.max_response_length,
        divergence=DivergenceSettings(
            alpha=distill.alpha,
            topk=distill.distillation_topk,
            tail="bucket" if distill.distillation_add_tail else "renormalize",
            support=distill.distillation_support,
            grad_mode=distill.distillation_gradient,
        ),
        head="fused" if config.actor_rollout_ref.model.use_fused_kernels else "dense",
        is_clip=distill.is_clip,
        rollout_is=correction.rollout_is,
        rollout_is_threshold=correction.rollout_is_threshold,
        policy_options=options.get(policy.loss_mode, {}),
        dpo_beta=policy.dpo_beta,
        simpo_beta=policy.simpo_beta,
        simpo_gamma=policy.simpo_gamma,
        label_smoothing=policy.label_smoothing,
        sft_length_normalize=policy.sft_length_normalize,
    )


def credit_settings(config: Config) -> CreditSettings:
    """How verdicts become credit, as plain values."""
    return CreditSettings(
        estimator=config.algorithm.adv_estimator,
        normalize_by_std=config.algorithm.norm_adv_by_std_in_grpo,
        dynamic_sampling=config.algorithm.filter_groups,
        success_threshold=config.actor_rollout_ref.actor.policy_loss.sft_success_threshold,
        overlong_buffer=config.algorithm.overlong_buffer,
        max_response_length=config.data.max_response_length,
    )


def teacher_settings(config: Config) -> TeacherSettings:
    """Who the teacher is, as plain values."""
    distill = config.actor_rollout_ref.actor.self_distillation
    return TeacherSettings(
        kind=distill.teacher_regularization,
        rate=distill.teacher_update_rate,
        model_path=config.actor_rollout_ref.ref.model.path,
    )


def adapter_settings(config: Config) -> AdapterSettings | None:
    """What is trained of the student, as plain values; None: all of it."""
    asked = config.actor_rollout_ref.model
    if not asked.lora_rank:
        return None
    return AdapterSettings(asked.lora_rank, asked.lora_alpha, asked.target_modules)


def teacher_forwards(config: Config) -> int:
    """Forward passes of whoever answers beside the student, per micro-batch."""
    method = method_settings(config)
    if method.has_reference:
        return 1
    return 0 if not method.distils else 2 if teacher_settings(config).kind == "trust-region" else 1


def horizon_of(config: Config) -> Horizon:
    """The longest response by training step."""
    asked, most = config.actor_rollout_ref.rollout.horizon, config.data.max_response_length
    if asked.kind == "linear-step":
        return LinearStep(min(asked.start, most), asked.increment, asked.interval, most)
    return Ratio(asked.ratio, most) if asked.kind == "ratio" else Constant(most)


def optim_settings(config: Config) -> OptimSettings:
    """The optimiser, as plain values."""
    actor = config.actor_rollout_ref.actor
    return OptimSettings(
        lr=actor.optim.lr,
        warmup_steps=actor.optim.lr_warmup_steps,
        weight_decay=actor.optim.weight_decay,
        betas=actor.optim.betas,
        grad_clip=actor.grad_clip,
    )
