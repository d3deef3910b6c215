"""The twelve runs in which every option takes another value than its default, and what none of them reaches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config.flags import as_override

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
DISTILL, LOSS = f"{ACTOR}.self_distillation", f"{ACTOR}.policy_loss"
SHORT = {"data.max_prompt_length": "40", f"{DISTILL}.max_reprompt_len": "56"}
UNCOVERED = {
    f"{ROLLOUT}.gpu_memory_utilization": "nothing reads it without a GPU",
    "trainer.nnodes": "more than one node is refused",
}
"""Keys that keep their default in every run, and why."""
UNREACHED = {
    "actor_rollout_ref.model.attn_implementation=flash_attention_2": "needs a GPU",
    "trainer.device=cuda": "needs a GPU",
    f"{ROLLOUT}.name=sglang": "is refused; tests/trainer/test_sampler_hf.py",
    "reward.sandbox_tier=1": "what null takes; programs run in it in tests/mopd/sandbox",
    "reward.sandbox_tier=3": "no row of this data is a program; tests/mopd/sandbox",
    f"{LOSS}.loss_mode=vanilla": "runs in test_run",
    f"{LOSS}.loss_mode=dppo": "the path of gspo and drpo; its loss is tested in test_objectives",
    f"{LOSS}.loss_mode=sft": "another name of verified_sft",
    f"{DISTILL}.summary_source=all": "as summary_from_all, which runs",
}
"""Choices that no run takes, and why."""


@dataclass(frozen=True)
class Case:
    """A run: in its values `@data` is the folder of the inputs, `@here` the run's own."""

    method: str
    options: dict[str, str]

    def command(self, data: Path, here: Path) -> list[str]:
        """The arguments of the command line."""
        common = {
            "data.train_files": "@data/train.parquet",
            "data.val_files": "@data/test.parquet",
            "data.train_batch_size": "4",
            f"{ACTOR}.ppo_mini_batch_size": "2",
            f"{ROLLOUT}.val_kwargs.n": "1",
            "trainer.total_training_steps": "2",
            "trainer.val_before_train": "false",
            "trainer.test_freq": "0",
            "trainer.output_dir": "@here/run",
        }
        options = {
            key: value.replace("@data", str(data)).replace("@here", str(here))
            for key, value in (common | self.options).items()
        }
        raw = (
            f"{ACTOR}.optim.betas",
            "trainer.logger",
            "trainer.health.stop_on",
            "reward.sandbox_tier",
            "data.apply_chat_template_kwargs",
            "actor_rollout_ref.model.target_modules",
            "profile",
        )
        return [f"{key}={value}" if key in raw else as_override(key, value) for key, value in options.items()]


CASES = {
    "peers": Case(
        "mopd",
        {
            f"{DISTILL}.{key}": value
            for key, value in {
                "peer_policy": "shortest",
                "dont_reprompt_on_self_success": "false",
                "include_truncated_peers": "false",
                "failure_solution_condition": "when_no_solution",
                "remove_thinking_from_demonstration": "false",
                "success_reward_threshold": "0.5",
                "alpha": "0",
                "distillation_topk": "null",
                "is_clip": "null",
                "teacher_regularization": "live",
                "reprompt_template": "{prompt}{solution}{solution_summaries}{another_solution}{failure}{feedback}"
                "\nNow answer.",
                "solution_template": "\nRight: {successful_previous_attempt}",
                "another_solution_template": "\nRight too: {another_successful_attempt}",
                "failure_solution_template": "\nWrong: {failed_attempt}",
            }.items()
        }
        | {
            "data.filter_overlong_prompts": "false",
            "actor_rollout_ref.model.enable_gradient_checkpointing": "true",
            "actor_rollout_ref.model.attn_implementation": "sdpa",
            "actor_rollout_ref.model.use_fused_kernels": "false",
            f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum",
            f"{ACTOR}.ppo_max_token_len_per_gpu": "200",
            "algorithm.rollout_correction.rollout_is": "null",
        },
    ),
    "random-peer": Case(
        "mopd",
        SHORT
        | {
            f"{DISTILL}.peer_control_mode": "random_peer",
            f"{DISTILL}.peer_control_match": "token",
            f"{DISTILL}.peer_policy": "diverse",
            f"{DISTILL}.alpha": "1",
            f"{DISTILL}.distillation_topk": "5",
            f"{DISTILL}.distillation_support": "teacher",
            f"{DISTILL}.distillation_gradient": "sparse",
            f"{DISTILL}.distillation_add_tail": "false",
            f"{DISTILL}.is_clip": "1.5",
            f"{DISTILL}.teacher_regularization": "trust-region",
            f"{DISTILL}.teacher_update_rate": "0.5",
            f"{DISTILL}.reprompt_truncation": "right",
            "data.max_response_length": "24",
            "actor_rollout_ref.model.lora_rank": "3",
            "actor_rollout_ref.model.lora_alpha": "7.5",
            "actor_rollout_ref.model.target_modules": "[q_proj,down_proj]",
            "actor_rollout_ref.model.attn_implementation": "eager",
            f"{ACTOR}.ppo_epochs": "2",
            f"{ACTOR}.fsdp_config.optimizer_offload": "true",
            f"{ACTOR}.fsdp_config.param_offload": "true",
            "actor_rollout_ref.ref.fsdp_config.param_offload": "true",
            f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
            f"{ACTOR}.grad_clip": "0.5",
            f"{ACTOR}.optim.lr": "0.001",
            f"{ACTOR}.optim.lr_warmup_steps": "10",
            f"{ACTOR}.optim.weight_decay": "0.1",
            f"{ACTOR}.optim.betas": "[0.8,0.95]",
            f"{ROLLOUT}.temperature": "0.8",
            f"{ROLLOUT}.enable_prefix_caching": "false",
            f"{ROLLOUT}.update_weights_bucket_megabytes": "1",
            f"{ROLLOUT}.kv_cache_mib": "32",
            "algorithm.rollout_correction.rollout_is": "sequence",
            "algorithm.rollout_correction.rollout_is_threshold": "1.5",
            "trainer.context_gain_rollouts": "5",
            "trainer.device": "cpu",
            "trainer.n_gpus_per_node": "2",
        },
    ),
    "published": Case(
        "mopd",
        {
            "reference_compat": "true",
            f"{DISTILL}.peer_control_mode": "success_only_matched",
            f"{DISTILL}.peer_policy": "first",
            "data.shuffle": "false",
            "data.seed": "7",
            f"{ROLLOUT}.val_kwargs.n": "2",
            f"{ROLLOUT}.val_kwargs.temperature": "0.7",
            f"{ROLLOUT}.val_kwargs.top_p": "0.9",
            "trainer.val_before_train": "true",
            "trainer.test_freq": "1",
        },
    ),
    "unrelated": Case(
        "mopd",
        SHORT
        | {
            f"{DISTILL}.peer_control_mode": "unrelated_prompt",
            f"{DISTILL}.include_primary_solution": "false",
            f"{DISTILL}.reprompt_truncation": "left",
            f"{DISTILL}.alpha": "0.3",
            f"{DISTILL}.distillation_topk": "5",
            f"{DISTILL}.distillation_support": "union",
            f"{DISTILL}.distillation_gradient": "auto",
            f"{DISTILL}.step_level_kl": "true",
            f"{DISTILL}.step_separator": " ; ",
            f"{ACTOR}.loss_agg_mode": "seq-mean-token-sum-norm",
            f"{ROLLOUT}.n": "6",
            "reward.workers": "1",
            "reward.deadline_s": "45",
            "reward.sandbox_tier": "2",
            "reward.allow_unsandboxed": "true",
            "reward.trust_assertions": "true",
            "reward.float_tolerance": "0.000001",
            f"{ROLLOUT}.sync_tolerance": "0.001",
        },
    ),
    "summaries": Case(
        "sdpo",
        {
            f"{DISTILL}.summarize_solutions": "true",
            f"{DISTILL}.summary_k": "2",
            f"{DISTILL}.summary_tag": "gist",
            f"{DISTILL}.summary_source": "failure",
            f"{DISTILL}.summary_from_all": "true",
            f"{DISTILL}.summary_instruction": " then a <gist>",
            f"{DISTILL}.summary_item_template": "\nGist of a success: {summary_text}",
            f"{DISTILL}.summary_failed_item_template": "\nGist of a failure: {summary_text}",
            f"{DISTILL}.feedback_template": "\nThe form: {feedback_raw}",
            f"{DISTILL}.environment_feedback_only_without_solution": "false",
            f"{DISTILL}.reprompt_truncation": "error",
            f"{ROLLOUT}.max_model_len": "2200",
            f"{ROLLOUT}.free_cache_engine": "true",
            f"{ROLLOUT}.name": "hf",
            f"{ROLLOUT}.n_samplers": "2",
            "trainer.early_teacher": "true",
            "trainer.save_freq": "1",
            "trainer.max_actor_ckpt_to_keep": "3",
            "trainer.on_save_error": "warn",
            "trainer.resume_mode": "disable",
            "trainer.time_budget_s": "100000",
        },
    ),
    "reference": Case(
        "opsd",
        SHORT
        | {
            f"{ROLLOUT}.horizon.kind": "ratio",
            f"{ROLLOUT}.horizon.ratio": "0.25",
            "trainer.output_dir": "null",
            "trainer.experiment_name": "named",
            "trainer.deadline_s": "300",
        },
    ),
    "prompt": Case(
        "opd",
        {
            "profile": "embedded",
            "actor_rollout_ref.model.path": "@data/model",
            "actor_rollout_ref.ref.model.path": "@data/teacher",
            "actor_rollout_ref.ref.placement": "own",
            "actor_rollout_ref.ref.n_gpus": "2",
            "trainer.n_gpus_per_node": "2",
            "data.apply_chat_template_kwargs": "{mark:true}",
            f"{ROLLOUT}.horizon.kind": "linear-step",
            f"{ROLLOUT}.horizon.start": "6",
            f"{ROLLOUT}.horizon.increment": "4",
            f"{ROLLOUT}.horizon.interval": "2",
            "trainer.total_training_steps": "3",
            f"{ROLLOUT}.sync_tolerance": "null",
            "trainer.output_dir": "null",
            "trainer.experiment_suffix": "suffix",
        },
    ),
    "gspo": Case(
        "grpo",
        {
            f"{LOSS}.loss_mode": "gspo",
            f"{ACTOR}.ppo_epochs": "2",
            f"{ACTOR}.fsdp_config.optimizer_offload": "true",
            f"{ACTOR}.fsdp_config.param_offload": "true",
            "actor_rollout_ref.ref.fsdp_config.param_offload": "true",
            f"{ACTOR}.clip_ratio_low": "0.0003",
            f"{ACTOR}.clip_ratio_high": "0.0004",
            f"{ACTOR}.clip_ratio_c": "2.5",
            "algorithm.norm_adv_by_std_in_grpo": "true",
            "algorithm.filter_groups": "true",
            "algorithm.max_num_gen_batches": "3",
            "trainer.overlap": "true",
            "algorithm.overlong_buffer": "20",
        },
    ),
    "drpo": Case(
        "drpo",
        {
            f"{LOSS}.delta": "12.5",
            "algorithm.adv_estimator": "rloo",
            "trainer.logger": "[console,file,jsonl,tensorboard,wandb,mlflow]",
            "trainer.project_name": "covering",
        },
    ),
    "dpo": Case(
        "dpo",
        {
            f"{LOSS}.dpo_beta": "0.5",
            f"{LOSS}.label_smoothing": "0.1",
            "trainer.n_gpus_per_node": "2",
            "trainer.rollout_data_dir": "@here/kept/rollouts",
            "trainer.validation_data_dir": "@here/kept/validation",
            "trainer.default_local_dir": "@here/kept/checkpoints",
        },
    ),
    "simpo": Case(
        "simpo",
        {
            f"{LOSS}.simpo_beta": "1.5",
            f"{LOSS}.simpo_gamma": "0.5",
            "data.train_files": "@data/few.parquet",
            "trainer.total_training_steps": "null",
            "trainer.total_epochs": "2",
            **{
                f"trainer.health.{key}": "null"
                for key in (
                    *("signal_fraction", "min_grad_norm", "skipped_steps", "divergence_factor", "length_factor"),
                    *("cut_fraction", "entropy_fraction", "sampler_kl", "unknown_fraction", "success_fraction"),
                    "distinct_fraction",
                )
            },
        },
    ),
    "verified-sft": Case(
        "verified_sft",
        {
            "custom_reward_function.path": "@data/judge.py",
            "custom_reward_function.name": "judge",
            f"{LOSS}.sft_success_threshold": "0.5",
            f"{LOSS}.sft_length_normalize": "false",
            "trainer.health.stop_on": "[no_signal,non_finite,divergence,length,cut,entropy,sampler,unknown,success,"
            "copying]",
            **{
                f"trainer.health.{key}": value
                for key, value in {
                    "patience": "3",
                    "remind_every": "1",
                    "window": "1",
                    "signal_fraction": "0.001",
                    "min_grad_norm": "1e-9",
                    "skipped_steps": "1",
                    "divergence_factor": "50",
                    "length_factor": "10",
                    "cut_fraction": "0.9",
                    "entropy_fraction": "0.05",
                    "sampler_kl": "0.5",
                    "unknown_fraction": "0.5",
                    "success_fraction": "0.1",
                    "distinct_fraction": "0.2",
                }.items()
            },
        },
    ),
}
