"""A prompt's row holds what its attempts define and nothing else; a run's summary weighs prompts alike."""

import statistics
from itertools import combinations

import prompt_table as tables
import pytest
from attempts import Attempt

PROGRAM = "Here it is:\n```python\nprint({})\n```\nDone."


def attempts(texts, successes, rewards=None):
    rewards = rewards or [None if success is None else float(success) for success in successes]
    return [
        Attempt("p", "2 + 2", ("", ""), str(place), *rest)
        for place, rest in enumerate(zip(texts, rewards, successes, strict=True))
    ]


def test_pass_at_k_is_the_share_of_draws_with_a_success():
    successes = [True, False, False, True, False]
    row = tables.prompt_row([attempts("abcde", successes)], tables.Settings(ks=(1, 2, 5, 8)))
    for k in (1, 2, 5):
        draws = [any(draw) for draw in combinations(successes, k)]
        assert row[f"pass@{k}"] == pytest.approx(sum(draws) / len(draws))
    assert "pass@8" not in row  # five attempts cannot tell


def test_unknown_verdicts_count_neither_way():
    row = tables.prompt_row([attempts(["a b", "c d", "e f"], [True, None, False])], tables.Settings())
    assert row["success_rate"] == 0.5
    assert (row["n_rollouts"], row["n_known"], row["success_count"]) == (3, 2, 1)
    assert "pass@2" in row
    assert "pass@4" not in row


def test_nothing_known_leaves_the_figures_out():
    row = tables.prompt_row([attempts(["a b", "c d"], [None, None])], tables.Settings())
    assert not {"success_rate", "mean_reward", "pass@1"} & set(row)
    assert row["unique_response_ratio"] == 1.0


@pytest.mark.parametrize("successes", [[False, False], [True, False]])
def test_below_two_successes_their_diversity_is_not_told(successes):
    row = tables.prompt_row([attempts(["a b", "c d"], successes)], tables.Settings())
    assert not [name for name in row if name.startswith("success_") and name not in ("success_rate", "success_count")]


def test_one_response_has_no_diversity():
    row = tables.prompt_row([attempts(["a b c"], [True])], tables.Settings())
    assert set(row) == {"n_groups", "n_rollouts", "n_known", "success_count", "success_rate", "mean_reward", "pass@1"}


def test_of_code_the_program_is_compared():
    texts = [PROGRAM.format(1), "Quite another text.\n" + PROGRAM.format(1), PROGRAM.format("1 +")]
    row = tables.prompt_row([attempts(texts, [True, True, False])], tables.Settings(task="code"))
    assert row["unique_code_ratio"] == row["unique_response_ratio"] == pytest.approx(2 / 3)
    assert row["parsable_ratio"] == pytest.approx(2 / 3)
    assert row["ast_node_jaccard_distance"] == row["success_ast_node_jaccard_distance"] == 0.0


def test_programs_that_cannot_be_parsed_leave_their_distance_out():
    row = tables.prompt_row([attempts(["def f(:", "print 1"], [False, False])], tables.Settings(task="code"))
    assert row["parsable_ratio"] == 0.0
    assert "ast_node_jaccard_distance" not in row


def test_groups_of_a_prompt_are_averaged_and_not_mixed():
    alike, other = attempts(["a b"] * 2, [True] * 2), attempts(["c d"] * 2, [False] * 2)
    row = tables.prompt_row([alike, other], tables.Settings())
    assert row["unique_response_ratio"] == 0.5  # of a mixture it would be 0.5 too, but the distance would not be 0
    assert row["pairwise_text_distance"] == 0.0
    assert (row["n_groups"], row["n_rollouts"], row["success_count"]) == (2, 4, 2)


def test_a_summary_is_over_the_prompts_that_define_a_figure():
    rows = [{"n_rollouts": 2, "pass@1": 1.0, "success_distinct2": 0.5}, {"n_rollouts": 2, "pass@1": 0.0}]
    summary = tables.summarise(rows, [1])
    assert (summary["pass@1_mean"], summary["pass@1_std"], summary["pass@1_prompts"]) == (0.5, 0.5, 2)
    assert (summary["success_distinct2_mean"], summary["success_distinct2_prompts"]) == (0.5, 1)
    assert summary["num_responses"] == 4


def test_the_correlation_is_pearsons_or_absent():
    xs, ys = [0.1, 0.4, 0.2, 0.9], [0.0, 1.0, 0.5, 0.6]
    rows = [{"n_rollouts": 2, "pairwise_text_distance": x, "pass@2": y} for x, y in zip(xs, ys, strict=True)]
    name = "corr_pairwise_text_distance_vs_pass@2"
    mx, my = statistics.fmean(xs), statistics.fmean(ys)
    covariance = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / 4
    assert tables.summarise(rows, [1, 2])[name] == pytest.approx(
        covariance / (statistics.pstdev(xs) * statistics.pstdev(ys))
    )
    assert name not in tables.summarise(rows[:2], [1, 2])
    assert name not in tables.summarise([{**row, "pass@2": 1.0} for row in rows], [1, 2])
