"""The formulas agree with scipy and scikit-learn, and what responses do not define is absent."""

import warnings

import numpy as np
import pytest
import signal_metrics as metrics
from signal_metrics import Scored


def scored(scores, rewards, successes=None):
    successes = [reward >= 1.0 for reward in rewards] if successes is None else successes
    return [Scored(*row) for row in zip(scores, rewards, successes, strict=True)]


def draws(cases=200):
    """Scores, rewards and labels of random sizes; half of them with many ties."""
    generator = np.random.default_rng(0)
    for case in range(cases):
        size = int(generator.integers(2, 12))
        scores = -generator.gamma(2.0, 1.0, size)
        rewards = generator.random(size)
        if case % 2:
            scores, rewards = np.round(scores), np.round(3.0 * rewards) / 3.0
        yield scores, rewards, rewards > 0.6


def or_absent(value):
    """What a library calls NaN is absent here."""
    return None if np.isnan(value) else pytest.approx(float(value), abs=1e-9)


def test_correlations_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        for scores, rewards, labels in draws():
            found = metrics.prompt_metrics(scored(scores, rewards, labels.tolist()))
            assert found.get("mean_spearman") == or_absent(stats.spearmanr(scores, rewards).statistic)
            assert found.get("mean_kendall_tau") == or_absent(stats.kendalltau(scores, rewards).statistic)
            assert found.get("point_biserial") == or_absent(stats.pointbiserialr(labels, scores).statistic)


def test_auc_and_brier_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    one_class = 0
    for scores, rewards, labels in draws():
        found = metrics.prompt_metrics(scored(scores, rewards, labels.tolist()))
        if len(set(labels)) == 2:
            assert found["success_auc"] == pytest.approx(sklearn.roc_auc_score(labels, scores))
        else:
            one_class += 1
            assert "success_auc" not in found
        probabilities = 1.0 / (1.0 + np.exp(-scores))
        assert found["brier_sigmoid"] == pytest.approx(
            sklearn.brier_score_loss(labels, probabilities, labels=[False, True])
        )
        if len(set(scores)) > 1:
            stretched = (scores - scores.min()) / (scores.max() - scores.min())
            assert found["brier_minmax"] == pytest.approx(
                sklearn.brier_score_loss(labels, stretched, labels=[False, True])
            )
    assert one_class > 5


def test_pairs_are_counted_one_by_one():
    for scores, rewards, _ in draws(50):
        points = [
            0.5 if scores[i] == scores[j] else float(scores[i] > scores[j])
            for i in range(len(scores))
            for j in range(len(scores))
            if rewards[i] > rewards[j]
        ]
        found = metrics.prompt_metrics(scored(scores, rewards)).get("pairwise_accuracy")
        assert found == (pytest.approx(np.mean(points)) if points else None)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_prompt_of_one_class_defines_no_ranking(reward):
    found = metrics.prompt_metrics(scored([-0.1, -0.2, -0.3], [reward] * 3))
    assert set(found) == {"brier_sigmoid", "brier_minmax"}


def test_scores_that_all_tie_tell_nothing_and_are_no_error():
    found = metrics.prompt_metrics(scored([-0.7] * 4, [1.0, 0.0, 1.0, 0.0]))
    assert found["success_auc"] == found["pairwise_accuracy"] == found["top1_hit_rate"] == 0.5
    assert not {"mean_spearman", "mean_kendall_tau", "point_biserial", "brier_minmax"} & set(found)


def test_unknown_rewards_and_scores_are_left_out_of_what_needs_them():
    strong = [Scored(-0.1, None, True), Scored(-0.9, None, False), Scored(None, 1.0, True), Scored(-0.5, 0.0, None)]
    found = metrics.prompt_metrics(strong)
    assert found["success_auc"] == 1.0
    assert not {"mean_spearman", "pairwise_accuracy"} & set(found)
    assert metrics.prompt_metrics([Scored(None, None, None)]) == {}


@pytest.mark.parametrize(
    ("scores", "rewards", "hit"),
    [
        ([-0.1, -0.2, -0.3], [1.0, 0.0, 0.0], 1.0),
        ([-0.3, -0.2, -0.1], [1.0, 0.0, 0.0], 0.0),
        ([-0.1, -0.1, -0.3], [1.0, 0.0, 0.0], 0.5),
        ([-0.1, -0.2, -0.3], [0.4, 0.2, 0.0], 1.0),  # none succeeds; the best there is counts
        ([-0.1, -0.2, -0.3], [0.0, 0.0, 0.0], None),  # nothing to choose
    ],
)
def test_the_first_choice(scores, rewards, hit):
    assert metrics.prompt_metrics(scored(scores, rewards)).get("top1_hit_rate") == hit


def test_numbers_of_any_size_give_no_nan():
    for scores in ([-1e9, -1e-9, 0.0], [-745.2, -1e5, -0.0], [-1e-300, -2e-300, -3e-300]):
        found = metrics.prompt_metrics(scored(scores, [0.0, 1.0, 0.5]))
        assert len(found) >= 6
        assert np.isfinite(list(found.values())).all()


def test_means_are_over_what_is_known():
    rows = [
        Scored(-1.0, 1.0, True, 10.0, False, True, 0.2, False, 0.9, True),
        Scored(-2.0, 0.0, False, 30.0, True, False, 0.6, True),
        Scored(-3.0, 0.0, False),
    ]
    found = metrics.prompt_metrics(rows)
    assert found["off_path_probability"] == pytest.approx(0.4)
    assert found["off_path_accuracy"] == found["truncation_rate"] == found["target_in_context_rate"] == 0.5
    assert (found["on_path_accuracy"], found["on_path_probability"]) == (1.0, 0.9)
    assert found["mean_prompt_length"] == 20.0
