"""Published keys that this project does not honour, each with what to do instead; for the refusal's message."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": "micro-batches are packed under a token budget; set "
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.actor.ppo_micro_batch_size": "micro-batches are packed under a token budget; set "
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.actor.use_dynamic_bsz": "micro-batches are always packed under a token budget; leave it out",
    "actor_rollout_ref.actor.use_kl_loss": "no divergence to a reference policy is offered; leave it out",
    "actor_rollout_ref.actor.kl_loss_coef": "no divergence to a reference policy is offered; leave it out",
    "actor_rollout_ref.actor.entropy_coeff": "no entropy bonus is offered; the published value is 0, leave it out",
    "actor_rollout_ref.actor.clip_ratio": "set clip_ratio_low and clip_ratio_high",
    "actor_rollout_ref.actor.strategy": "the actor is always FSDP2; leave it out",
    "actor_rollout_ref.model.use_remove_padding": "there is no padding; leave it out, or for padded rows set "
    "actor_rollout_ref.model.attn_implementation=sdpa",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": "one device per sampler in this version; leave it out",
    "actor_rollout_ref.rollout.calculate_log_probs": "log-probs are always kept; leave it out",
    "actor_rollout_ref.rollout.top_p": "training samples the whole distribution, so that log-probs stay comparable",
    "actor_rollout_ref.rollout.top_k": "training samples the whole distribution, so that log-probs stay comparable",
    "algorithm.use_kl_in_reward": "no divergence to a reference policy is offered; leave it out",
    "data.truncation": "prompts over the limit are left out or refused, never cut; see data.filter_overlong_prompts",
    "data.val_batch_size": "the held-out prompts are sampled in one go; leave it out",
    "reward_model.reward_manager": "verifiers are chosen by a row's data_source, or set custom_reward_function.path",
    "trainer.balance_batch": "work is always balanced over ranks, after peers are chosen; leave it out",
    "trainer.val_only": "set trainer.total_training_steps=0",
    "vars.dir": "set DATA_PATH and OUTPUT_DIR",
    "vars.task": "set DATA_PATH",
}
