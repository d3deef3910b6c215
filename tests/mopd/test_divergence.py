"""The divergences have their defining properties, and agree with plain arithmetic written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mopd.divergence import LOG_FLOOR, captured_mass, divergence, support_ids, topk_logprobs

ALPHAS = (0.0, 0.3, 0.5, 1.0)


def logits(*shape: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def probabilities(row: list[float]) -> list[float]:
    total = math.fsum(math.exp(entry) for entry in row)
    return [math.exp(entry) / total for entry in row]


def plain_kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def plain(student: list[float], teacher: list[float], alpha: float, k: int | None, tail: str, support: str) -> float:
    """The divergence of one token, in plain Python: sets of ids, sums of probabilities, no log space."""
    s, t = probabilities(student), probabilities(teacher)
    if k is not None and k < len(s):
        best = {"student": set(), "teacher": set()}
        for name, p in (("student", s), ("teacher", t)):
            best[name] = set(sorted(range(len(p)), key=lambda i, p=p: -p[i])[:k])
        ids = sorted(best["student"] | best["teacher"] if support == "union" else best[support])
        s, t = [s[i] for i in ids], [t[i] for i in ids]
        if tail == "bucket":
            s, t = [*s, 1 - math.fsum(s)], [*t, 1 - math.fsum(t)]
        else:
            s, t = [x / math.fsum(s) for x in s], [x / math.fsum(t) for x in t]
    if alpha == 0:
        return plain_kl(t, s)
    if alpha == 1:
        return plain_kl(s, t)
    m = [(1 - alpha) * a + alpha * b for a, b in zip(s, t, strict=True)]
    return (1 - alpha) * plain_kl(s, m) + alpha * plain_kl(t, m)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("topk", [None, 1, 3, 50])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("support", ["student", "teacher", "union"])
def test_value_matches_plain_arithmetic(alpha: float, topk: int | None, tail: str, support: str) -> None:
    student, teacher = logits(5, 9, seed=1), logits(5, 9, seed=2)
    ours = divergence(student, teacher, alpha=alpha, topk=topk, tail=tail, support=support)
    expected = [
        plain(s, t, alpha, topk, tail, support) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    assert ours.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("support", ["student", "union"])
def test_gradient_matches_finite_differences_of_plain_arithmetic(alpha: float, support: str) -> None:
    student, teacher = logits(7, seed=3).requires_grad_(), logits(7, seed=4)
    divergence(student, teacher, alpha=alpha, topk=3, support=support).backward()
    step, row = 1e-6, student.tolist()
    for j in range(7):
        up = [entry + step * (i == j) for i, entry in enumerate(row)]
        down = [entry - step * (i == j) for i, entry in enumerate(row)]
        slope = (
            plain(up, teacher.tolist(), alpha, 3, "bucket", support)
            - plain(down, teacher.tolist(), alpha, 3, "bucket", support)
        ) / (2 * step)
        assert student.grad[j].item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_gradient_has_its_closed_form(alpha: float) -> None:
    """dL/dz_j = p_j (a_j - abar) in the support, softmax_j (a_tail - abar) outside, a = (1-alpha) log s/m."""
    student, teacher = logits(4, 12, seed=5).requires_grad_(), logits(4, 12, seed=6)
    divergence(student, teacher, alpha=alpha, topk=5).sum().backward()
    ids = support_ids(student, teacher, 5)
    with torch.no_grad():
        s, t = topk_logprobs(student, ids).exp(), topk_logprobs(teacher, ids).exp()
        a = (1 - alpha) * (s / ((1 - alpha) * s + alpha * t)).log()
        centred = a - (s * a).sum(-1, keepdim=True)
        coefficient = centred[:, -1:].expand(4, 12).scatter(1, ids, centred[:, :-1])
        expected = student.softmax(-1) * coefficient
    torch.testing.assert_close(student.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("topk", [None, 4])
def test_gradcheck(alpha: float, tail: str, topk: int | None) -> None:
    teacher = logits(2, 8, seed=8)
    student = logits(2, 8, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence(z, teacher, alpha=alpha, topk=topk, tail=tail), (student,))


def test_alpha_zero_is_forward_kl_and_alpha_one_reverse() -> None:
    student, teacher = logits(3, 6, seed=9), logits(3, 6, seed=10)
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)
    forward = torch.nn.functional.kl_div(s, t, log_target=True, reduction="none").sum(-1)
    reverse = torch.nn.functional.kl_div(t, s, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, teacher, alpha=0.0, topk=None), forward)
    torch.testing.assert_close(divergence(student, teacher, alpha=1.0, topk=None), reverse)
    assert not torch.allclose(forward, reverse)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_topk_of_the_whole_vocabulary_is_the_full_divergence(alpha: float, tail: str) -> None:
    student, teacher = logits(4, 9, seed=11), logits(4, 9, seed=12)
    full = divergence(student, teacher, alpha=alpha, topk=None)
    for topk in (9, 100):
        assert torch.equal(divergence(student, teacher, alpha=alpha, topk=topk, tail=tail), full)
    almost = divergence(student, teacher, alpha=alpha, topk=8, tail="bucket")  # one entry in the tail: itself
    torch.testing.assert_close(almost, full)


def test_jsd_is_symmetric_at_one_half_and_mirrored_elsewhere() -> None:
    a, b = logits(4, 9, seed=13), logits(4, 9, seed=14)
    torch.testing.assert_close(divergence(a, b, alpha=0.5, topk=None), divergence(b, a, alpha=0.5, topk=None))
    torch.testing.assert_close(divergence(a, b, alpha=0.2, topk=None), divergence(b, a, alpha=0.8, topk=None))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(-60, 60), st.floats(-60, 60)), min_size=2, max_size=12),
    alpha=st.floats(0, 1),
    topk=st.integers(1, 12),
    support=st.sampled_from(["student", "teacher", "union"]),
)
def test_divergence_is_non_negative_and_jsd_bounded(
    rows: list[tuple[float, float]], alpha: float, topk: int, support: str
) -> None:
    student, teacher = torch.tensor(rows, dtype=torch.float64).unbind(1)
    value = divergence(student, teacher, alpha=alpha, topk=topk, support=support).item()
    assert value >= -1e-6
    entropy = -sum(x * math.log(x) for x in (alpha, 1 - alpha) if x > 0)
    if 0 < alpha < 1:
        assert value <= entropy + 1e-6
    assert abs(divergence(student, student, alpha=alpha, topk=topk, support=support).item()) < 1e-9


def test_a_coarser_view_never_sees_more() -> None:
    """Merging entries into a bucket can only hide differences (data processing)."""
    student, teacher = logits(20, 30, seed=15), logits(20, 30, seed=16)
    for alpha in ALPHAS:
        full = divergence(student, teacher, alpha=alpha, topk=None)
        bucketed = divergence(student, teacher, alpha=alpha, topk=5)
        assert bool((bucketed <= full + 1e-12).all())
        assert bool((bucketed < full - 1e-6).any())


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_topk_logprobs_sum_to_one_and_are_exact(tail: str) -> None:
    z = logits(3, 10, seed=17)
    ids = support_ids(z, logits(3, 10, seed=18), 4, "union")
    logprobs = topk_logprobs(z, ids, tail)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    if tail == "bucket":
        distinct = torch.diff(ids, prepend=ids[:, :1] - 1) != 0
        exact = z.log_softmax(-1).gather(-1, ids)
        torch.testing.assert_close(logprobs[:, :-1][distinct], exact[distinct])


def test_union_of_equal_supports_is_the_support() -> None:
    student = logits(3, 10, seed=19)
    teacher = student * 1.5  # the same order of entries
    for tail in ("bucket", "renormalize"):
        union = divergence(student, teacher, topk=4, tail=tail, support="union")
        torch.testing.assert_close(union, divergence(student, teacher, topk=4, tail=tail))


def test_captured_mass_counts_each_entry_once() -> None:
    student, teacher = logits(3, 10, seed=20), logits(3, 10, seed=21)
    s, t = student.softmax(-1), teacher.softmax(-1)
    held_s, held_t = captured_mass(student, teacher, topk=4)
    torch.testing.assert_close(held_s, s.topk(4).values.sum(-1))
    torch.testing.assert_close(held_t, t.gather(-1, s.topk(4).indices).sum(-1))
    union = torch.zeros_like(s).scatter(-1, s.topk(4).indices, 1).scatter(-1, t.topk(4).indices, 1)
    union_s, union_t = captured_mass(student, teacher, topk=4, support="union")
    torch.testing.assert_close(union_s, (s * union).sum(-1))
    torch.testing.assert_close(union_t, (t * union).sum(-1))
    assert captured_mass(student, teacher, topk=None)[0].tolist() == [1.0, 1.0, 1.0]


EXTREMES = {
    "student masked": ([0.0, 1.0, -math.inf, -math.inf], [0.0, 1.0, 2.0, 3.0]),
    "teacher masked": ([0.0, 1.0, 2.0, 3.0], [-math.inf, 1.0, -math.inf, 0.0]),
    "both masked": ([0.0, 1.0, -math.inf, 2.0], [0.0, 1.0, -math.inf, 3.0]),
    "disjoint": ([0.0, 1.0, -math.inf, -math.inf], [-math.inf, -math.inf, 0.0, 1.0]),
    "one entry left": ([-math.inf, -math.inf, -math.inf, 5.0], [5.0, -math.inf, -math.inf, -math.inf]),
    "far apart": ([1e30, 0.0, -1e30, 5.0], [-1e30, 5.0, 1e30, 0.0]),
    "overflowing": ([3e38, -3e38, 0.0, 0.0], [-3e38, 3e38, 0.0, 0.0]),
    "no tail": ([1e3, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1e3]),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("topk", [None, 1, 3])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("support", ["student", "union"])
def test_extreme_logits_have_finite_value_and_gradient(
    case: str, alpha: float, topk: int | None, tail: str, support: str
) -> None:
    student, teacher = (torch.tensor(row) for row in EXTREMES[case])
    student.requires_grad_()
    value = divergence(student, teacher, alpha=alpha, topk=topk, tail=tail, support=support)
    value.backward()
    assert bool(value.isfinite())
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_entry_that_both_exclude_changes_nothing(alpha: float) -> None:
    student, teacher = logits(5, seed=22), logits(5, seed=23)
    wider = [torch.cat([z, torch.full((2,), -math.inf, dtype=z.dtype)]) for z in (student, teacher)]
    narrow = divergence(student, teacher, alpha=alpha, topk=None)
    torch.testing.assert_close(divergence(*wider, alpha=alpha, topk=None), narrow)


def test_missing_mass_costs_the_floor() -> None:
    student, teacher = torch.tensor([0.0, -math.inf]), torch.tensor([0.0, 0.0])
    value = divergence(student, teacher, alpha=0.0, topk=None)
    assert value.item() == pytest.approx(-0.5 * LOG_FLOOR + math.log(0.5))


@pytest.mark.parametrize("topk", [None, 20])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_bfloat16_logits_are_summed_in_float32(topk: int | None, alpha: float) -> None:
    student = logits(6, 500, seed=24, dtype=torch.bfloat16).requires_grad_()
    teacher = logits(6, 500, seed=25, dtype=torch.bfloat16)
    value = divergence(student, teacher, alpha=alpha, topk=topk)
    exact = divergence(student.detach().double(), teacher.double(), alpha=alpha, topk=topk)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)
    value.sum().backward()
    assert student.grad.dtype == torch.bfloat16


def test_teacher_receives_no_gradient() -> None:
    student, teacher = logits(2, 6).requires_grad_(), logits(2, 6, seed=1).requires_grad_()
    for topk in (None, 3):
        divergence(student, teacher, topk=topk, support="union").sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_leading_shape_is_free() -> None:
    student, teacher = logits(2, 3, 4, 9, seed=26), logits(2, 3, 4, 9, seed=27)
    value = divergence(student, teacher, topk=3)
    assert value.shape == (2, 3, 4)
    assert value[1, 2, 3].item() == pytest.approx(divergence(student[1, 2, 3], teacher[1, 2, 3], topk=3).item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"alpha is -0\.1.*\[0, 1\]"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"topk": 0}, "topk is 0.*positive"),
        ({"topk": -3}, "topk is -3"),
        ({"tail": "drop"}, "tail is 'drop'.*bucket, renormalize"),
        ({"support": "both"}, "support is 'both'.*student, teacher, union"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(logits(2, 5), logits(2, 5), **options)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.zeros(2, 5), torch.zeros(2, 6)),
        (torch.zeros(2, 0), torch.zeros(2, 0)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5)),
    ],
)
def test_bad_logits_are_refused(student: Tensor, teacher: Tensor) -> None:
    with pytest.raises(ValueError, match="logits"):
        divergence(student, teacher)
