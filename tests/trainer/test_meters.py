"""What a step reports: right over micro-batches and ranks, and equal to plain arithmetic over the whole step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mopd import importance
from mopd.types import TokenStreams
from tests.trainer.loss_cases import B, batch, contributed, sample, settings_of
from trainer.meters import Meter, merged, record_mismatch


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rollout_correction_is_measured_over_all_tokens_of_all_parts(level: str) -> None:
    given, threshold = batch(), 1.2
    ours, theirs, mask = given.old, given.targets.sampler_logprobs, given.targets.mask
    meters = [Meter(), Meter()]
    for number, rows in enumerate(([0, 3], [1], [2, 4, 5])):
        gap = importance.mismatch(ours[rows], theirs[rows], mask[rows])
        record_mismatch(meters[number % 2], gap, level, threshold)
    found = {name.removeprefix("rollout_corr/"): value for name, value in merged(meters).items()}

    lengths = [int(length) for length in mask.sum(-1)]
    trainer = [row[:length] for row, length in zip(ours.numpy(), lengths, strict=True)]
    sampler = [row[:length] for row, length in zip(theirs.numpy(), lengths, strict=True)]
    gaps = [a - b for a, b in zip(trainer, sampler, strict=True)]
    flat, products = np.concatenate(gaps), np.asarray([np.exp(row.sum()) for row in gaps])
    by_sequence = level == "sequence"
    weights = np.repeat(products, lengths) if by_sequence else np.exp(flat)
    sequences = products if by_sequence else np.asarray([np.exp(row).mean() for row in gaps])
    held = weights.clip(1 / threshold, threshold)
    wanted = {
        "kl": -flat.mean(),
        "k3_kl": (np.exp(flat) - flat - 1).mean(),
        "chi2_token": (np.exp(flat) ** 2).mean() - 1,
        "chi2_seq": (products**2).mean() - 1,
        "training_ppl": np.mean([np.exp(-row.mean()) for row in trainer]),
        "rollout_ppl": np.mean([np.exp(-row.mean()) for row in sampler]),
        "training_log_ppl": np.mean([-row.mean() for row in trainer]),
        "rollout_log_ppl": np.mean([-row.mean() for row in sampler]),
        "rollout_is_mean": weights.mean(),
        "rollout_is_max": weights.max(),
        "rollout_is_min": weights.min(),
        "rollout_is_std": held.std(),
        "rollout_is_eff_sample_size": held.sum() ** 2 / (len(held) * (held**2).sum()),
        "rollout_is_ratio_fraction_high": (weights > threshold).mean(),
        "rollout_is_ratio_fraction_low": (weights < 1 / threshold).mean(),
        "rollout_is_seq_mean": sequences.mean(),
        "rollout_is_seq_max": sequences.max(),
        "rollout_is_seq_min": sequences.min(),
        "rollout_is_seq_std": sequences.std(),
        "rollout_is_seq_eff_sample_size": sequences.sum() ** 2 / (len(sequences) * (sequences**2).sum()),
        "rollout_is_seq_fraction_high": (sequences > threshold).mean(),
        "rollout_is_seq_fraction_low": (sequences < 1 / threshold).mean(),
        "rollout_is_seq_max_deviation": abs(sequences - 1).max(),
    }
    assert found == pytest.approx(wanted, rel=1e-9)
    assert 0 < wanted["rollout_is_ratio_fraction_high"] < 1
    assert 0 < wanted["rollout_is_ratio_fraction_low"] < 1


def test_equal_policies_have_no_mismatch_and_none_is_measured_of_weights_that_are_not_used() -> None:
    meter, given = Meter(), batch()
    record_mismatch(meter, importance.mismatch(given.old, given.old, given.targets.mask), None, 2.0)
    found = merged([meter])
    assert not any("rollout_is" in name for name in found)
    assert {found[f"rollout_corr/{name}"] for name in ("kl", "k3_kl", "chi2_token", "chi2_seq")} == {0.0}
    record_mismatch(meter, importance.mismatch(given.old, given.old, given.targets.mask), "token", 2.0)
    found = merged([meter])
    assert found["rollout_corr/rollout_is_eff_sample_size"] == pytest.approx(1)
    assert found["rollout_corr/rollout_is_std"] == 0


def test_a_step_counts_its_pairs_and_its_successes_over_all_its_rollouts() -> None:
    samples = [sample(index, batch()) for index in range(B)]
    for name in ("dpo", "simpo"):
        # rewards 1, 0, 0.5 make three pairs; 1, unknown, 0 make one
        assert settings_of(name).counts(samples) == {f"{name}/num_pairs": 4}
        assert settings_of(name).counts(samples[3:5]) == {f"{name}/num_pairs": 0}
    none = TokenStreams(*(np.zeros_like(samples[0].streams.mask) for _ in range(3)))
    learnt = [replace(samples[0], streams=none), *samples[1:4]]
    assert settings_of("verified sft").counts(learnt) == {"sft/num_success": 3, "sft/frac_success": 0.75}
    assert settings_of("verified sft").counts([]) == {}
    assert settings_of("divergence").counts(samples) == {}


def test_logits_of_pairs_are_what_the_loss_is_taken_of() -> None:
    given = batch()
    for name, margin in (("dpo", 0.0), ("simpo", 1.0)):
        part = contributed(name, given, 4.0)
        logits = part.measured[f"{name}/logits"]
        torch.testing.assert_close(logits, part.measured[f"{name}/reward_margin"] - margin)
        smoothing = settings_of(name).label_smoothing
        values = -(1 - smoothing) * torch.nn.functional.logsigmoid(logits)
        values = values - smoothing * torch.nn.functional.logsigmoid(-logits)
        torch.testing.assert_close(part.loss.detach(), values.mean())
