"""Which rows count, and what their means over prompts say: nothing undefined counts as 0, and intervals are honest."""

import random

import numpy as np
import pytest
from sample_sets import SETS, Bootstrap, analyse, summary
from signal_metrics import Scored
from signal_rows import REQUIRED, Row, row_of

QUICK = Bootstrap(draws=200, seed=1)


def rows_of(condition, prompts, *, gain=0.0, seed=0, effective=True, kind="self_response", attempts=8, share=0.5):
    """Scored attempts at some prompts; the score of a success is `gain` higher than chance has it."""
    draw = random.Random(seed)
    rows = []
    for prompt in prompts:
        for place in range(attempts):
            success = place < share * attempts
            score = draw.gauss(-1.0, 0.2) + gain * success
            rows.append(Row(condition, kind, prompt, "easy", effective, Scored(score, float(success), success)))
    return rows


def names(count):
    return [f"p{number}" for number in range(count)]


def test_a_planted_signal_is_found_and_a_planted_null_is_not():
    rows = rows_of("base", names(60), seed=1) + rows_of("solution", names(60), gain=0.2, seed=2)
    found = analyse(rows, Bootstrap())["all_samples"]["conditions"]
    for metric in ("success_auc", "pairwise_accuracy"):
        low, high = found["base"][f"{metric}_ci"]
        assert low < 0.5 < high
        assert high - low < 0.15
        assert found["solution"][f"{metric}_ci"][0] > 0.65
    for metric in ("mean_spearman", "mean_kendall_tau", "point_biserial"):
        low, high = found["base"][f"{metric}_ci"]
        assert low < 0.0 < high
        assert found["solution"][f"{metric}_ci"][0] > 0.2


def test_prompts_of_one_class_change_no_ranking():
    mixed = rows_of("base", names(9), gain=0.1)
    right = rows_of("base", ["all right"], share=1.0)
    wrong = rows_of("base", ["all wrong"], share=0.0)
    alone = analyse(mixed, QUICK)["all_samples"]["conditions"]["base"]
    among = analyse(mixed + right + wrong, QUICK)["all_samples"]["conditions"]["base"]
    for metric in ("success_auc", "pairwise_accuracy", "mean_spearman", "top1_hit_rate"):
        assert among[metric] == pytest.approx(alone[metric])
        assert (among[f"{metric}_prompts"], among["count_prompts"]) == (9, 11)
    only = analyse(right + wrong, QUICK)["all_samples"]["conditions"]["base"]
    assert not [name for name in only if name.startswith(("success_auc", "pairwise", "mean_spearman", "top1"))]


def test_both_present_is_asked_after_the_rows_were_chosen():
    whole = rows_of("solution", names(3))
    # Of one more prompt only the failures had a solution to see.
    part = rows_of("solution", ["q"], effective=True)
    part = [Row(*(*vars(row).values(),)[:4], row.scored.success is False, row.scored) for row in part]
    found = analyse(whole + part, QUICK)
    assert found["both_present_all"]["conditions"]["solution"]["count_prompts"] == 4
    assert found["both_present_effective_only"]["conditions"]["solution"]["count_prompts"] == 3
    assert found["effective_only"]["conditions"]["solution"]["count_prompts"] == 4
    for sample in ("both_present_all", "both_present_effective_only"):
        summary = found[sample]["conditions"]["solution"]
        assert summary["success_auc_prompts"] == summary["count_prompts"]


def test_the_sets_hold_what_their_names_say():
    rows = rows_of("solution", names(4)) + rows_of("solution", ["x", "y"], effective=False)
    rows += rows_of("feedback", names(4), effective=None)
    found = analyse(rows, QUICK)
    counts = {
        name: tuple(found[name]["conditions"][condition]["count_prompts"] for condition in ("solution", "feedback"))
        for name in SETS
    }
    assert counts == {
        "all_samples": (6, 4),
        "effective_only": (4, 0),
        "reward_zero_only": (6, 4),
        "reward_zero_effective_only": (4, 0),
        "both_present_all": (6, 4),
        "both_present_effective_only": (4, 0),
    }
    assert "success_auc" not in found["reward_zero_only"]["conditions"]["solution"]
    assert found["effective_only"]["conditions"]["feedback"] == {"count_prompts": 0, "by_bucket": {}}


def test_pairs_are_of_the_prompts_that_all_conditions_have():
    rows = rows_of("base", names(6), seed=1) + rows_of("solution", names(8)[2:], seed=2)
    rows += rows_of("base", names(9), kind="strong_success", share=1.0)
    found = analyse(rows, QUICK)["all_samples"]["paired_by_target_type"]
    assert set(found) == {"self_response", "strong_success"}
    both = found["self_response"]
    assert both["base"]["count_prompts"] == both["solution"]["count_prompts"] == 4
    alone = analyse([row for row in rows[:48] if row.prompt_id in names(6)[2:]], QUICK)
    assert both["base"]["success_auc"] == alone["all_samples"]["conditions"]["base"]["success_auc"]


def test_a_figure_is_paired_on_the_prompts_that_define_it_under_both():
    rows = rows_of("base", names(3), seed=1)
    blind = [
        Row(row.condition, row.target_type, row.prompt_id, row.bucket, True, Scored(None, 1.0, True))
        if row.prompt_id == "p0"
        else row
        for row in rows_of("solution", names(3), seed=2)
    ]
    found = analyse(rows + blind, QUICK)["all_samples"]["paired_by_target_type"]["self_response"]
    assert found["base"]["success_auc_prompts"] == found["solution"]["success_auc_prompts"] == 2


def test_buckets_part_the_prompts():
    rows = rows_of("base", ["a", "b"])
    rows += [Row("base", "self_response", "c", "hard", True, row.scored) for row in rows_of("base", ["c"], share=0.0)]
    found = analyse(rows, QUICK)["all_samples"]["conditions"]["base"]["by_bucket"]
    assert {bucket: part["count_prompts"] for bucket, part in found.items()} == {"easy": 2, "hard": 1}
    assert "success_auc" in found["easy"]
    assert "success_auc" not in found["hard"]


# ------------------------------------------------------------------ intervals


def interval_of(values, draws, seed):
    return summary([{"success_auc": value} for value in values], Bootstrap(draws, seed)).get("success_auc_ci")


def test_seed_and_number_of_resamples_decide_the_interval():
    values = np.random.default_rng(3).random(40)
    asked = [interval_of(values, *how) for how in ((50, 1), (50, 1), (50, 2), (51, 1))]
    assert asked[0] == asked[1]
    assert len(set(map(tuple, asked))) == 3
    assert interval_of(values, 0, 1) is None


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(4).normal(0.3, 0.1, 400)
    low, high = interval_of(values, 4000, 0)
    error = 1.96 * values.std() / 20.0
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_prompts_without_a_figure_do_not_move_its_interval_to_0():
    prompts = [{"success_auc": 1.0}] * 8 + [{"truncation_rate": 0.5}] * 40 + [{"brier_sigmoid": 1.0}] * 7
    found = summary(prompts, QUICK)
    assert found["success_auc_ci"] == pytest.approx([1.0, 1.0])
    assert found["truncation_rate_ci"] == pytest.approx([0.5, 0.5])
    assert found["brier_sigmoid_prompts"] == 7
    assert "brier_sigmoid_ci" not in found  # too few prompts to tell of others


# ------------------------------------------------------------------ rows

PROMISED = {
    "base": [],
    "base_raw": [],
    "base_reprompt": [],
    "solution": ["solution"],
    "another_solution": ["another_solution"],
    "solution+another_solution": ["solution", "another_solution"],
    "all_solutions": ["solution", "another_solution"],
    "failure_solution": ["failure_solution"],
    "failure_only": ["failure_solution"],
    "solution+failure_solution": ["solution", "failure_solution"],
    "solution+another_solution+failure_solution": ["solution", "another_solution", "failure_solution"],
    "feedback": ["feedback"],
    "summary_success_k2": ["summary"],
    "solution+feedback": ["solution", "feedback"],
    "solution+summary_success_k2": ["solution", "summary"],
    "solution+feedback+summary_all_k2": ["solution", "feedback", "summary"],
    "random_summary_control": ["summary"],
    "random_peer": ["solution"],
    "verifier_score_ordered": ["solution"],
}
LINE = {
    "variant_id": "v",
    "target_id": "t",
    "condition": "solution",
    "target_type": "self_response",
    "prompt_id": "p",
    "sections_used": {"solution": True},
    "teacher_score": -0.5,
    "teacher_response_len": 9,
    "reward": 1.0,
    "success": True,
    "difficulty_bucket": "easy",
}


@pytest.mark.parametrize("condition", REQUIRED)
def test_every_condition_has_its_effect_by_the_sections_it_promises(condition):
    promised = PROMISED[condition]
    line = {**LINE, "condition": condition}
    assert row_of({**line, "sections_used": dict.fromkeys(promised, True)}).effective is True
    for missing in promised:
        used = {name: name != missing for name in promised}
        assert row_of({**line, "sections_used": used}).effective is False


def test_all_published_conditions_are_known():
    assert set(REQUIRED) == set(PROMISED)


def test_a_condition_of_ones_own_is_judged_by_its_specification():
    line = {**LINE, "condition": "mine"}
    assert row_of(line).effective is None
    spec = {"include_solution": True, "include_feedback": True}
    assert row_of({**line, "variant_spec": spec}).effective is False
    assert row_of({**line, "variant_spec": spec, "sections_used": {"solution": 1, "feedback": 2}}).effective is True


def test_scores_that_differ_by_how_they_were_computed_tie():
    assert len({row_of({**LINE, "teacher_score": -0.5 + noise}).scored for noise in (0.0, 3e-7, -2e-6)}) == 1


def test_an_empty_response_has_no_score():
    assert row_of({**LINE, "teacher_score": 0.0, "teacher_response_len": 0}).scored.score is None


@pytest.mark.parametrize("reward", [None, float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_unknown_and_a_verdict_stays(reward):
    assert row_of({**LINE, "reward": reward}).scored == Scored(-0.5, None, True)
    assert row_of({**LINE, "reward": reward, "success": None}).scored.success is None
