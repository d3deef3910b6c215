"""The teacher's prompts of a step: what each view shows, in whose words, how it is made to fit, and always the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mopd.contexts import CUT, ContextSettings
from mopd.types import Group, Outcome
from tests.mopd.groups import RIGHT, UNKNOWN, WRONG, group_of, slots
from trainer.assemble import Renderers, context_builder
from trainer.config.compose import resolve
from trainer.contexts import Context, ContextBuilder, PeerRule, published_orders
from trainer.prompts import Renderer

DISTILL = "actor_rollout_ref.actor.self_distillation"
CLOSING = "\n\nCorrectly solve the original question.|assistant:"


class Letters:
    """A tokenizer of letters, with a header before the conversation; its ids are shifted code points."""

    def __init__(self, header: str = "", shift: int = 0) -> None:
        self.header, self.shift = header, shift

    def apply_chat_template(self, conversation: list[dict[str, str]], **arguments: Any) -> str:
        turns = "".join(f"{message['role']}: {message['content']}|" for message in conversation)
        return self.header + str(arguments.get("mark", "")) + turns + "assistant:"

    def encode(self, text: str, **arguments: Any) -> list[int]:
        return [ord(letter) + self.shift for letter in text]

    def decode(self, token_ids: Any, **arguments: Any) -> str:
        return "".join(chr(token - self.shift) for token in token_ids)


STUDENT, OTHER = Renderer(Letters(), {}), Renderer(Letters("[other]", 1), {"mark": "(no thinking)"})
RULE = PeerRule(
    policy="first",
    success_threshold=1.0,
    control="none",
    control_match="block",
    published_order=False,
    ranks=1,
    seed=3,
)
BUILDER = ContextBuilder("peers", ContextSettings(), RULE, STUDENT, STUDENT, 10_000, "peers")
STEP = (
    group_of([RIGHT, RIGHT, WRONG, UNKNOWN], uid="a", row="1", tokens=[4, 3, 2, 1]),
    group_of(
        [WRONG, WRONG, RIGHT, UNKNOWN], ["b zero", "b one", "b two", "b three"], "b", row="2", tokens=[5, 6, 7, 8]
    ),
)


def texts(contexts: Sequence[Context]) -> list[str | None]:
    return [context.text for context in contexts]


def same(one: Sequence[Context], other: Sequence[Context]) -> bool:
    """Bit for bit what the teacher reads."""
    return len(one) == len(other) and all(
        left.text == right.text
        and left.view.usable == right.view.usable
        and left.view.messages == right.view.messages
        and (left.prompt_ids is None) == (right.prompt_ids is None)
        and (left.prompt_ids is None or left.prompt_ids.tobytes() == right.prompt_ids.tobytes())
        for left, right in zip(one, other, strict=True)
    )


def ids(context: Context) -> list[int]:
    assert context.prompt_ids is not None
    return context.prompt_ids.tolist()


def test_a_method_without_teacher_has_no_context() -> None:
    contexts = replace(BUILDER, kind=None).build(STEP, 1)
    assert [(context.text, context.prompt_ids, context.view.usable) for context in contexts] == [
        (None, None, False)
    ] * 8


def test_the_view_prompt_is_the_students_prompt() -> None:
    contexts = replace(BUILDER, kind="prompt").build(STEP, 1)
    assert texts(contexts) == ["user: calc 7 + 5|assistant:"] * 8
    assert all(context.view.usable and context.view.peers.choices == () for context in contexts)
    assert ids(contexts[0]) == [ord(letter) for letter in "user: calc 7 + 5|assistant:"]


def test_the_view_reference_shows_the_rows_solution_to_every_rollout_whatever_its_outcome() -> None:
    known = replace(STEP[0], prompt=replace(STEP[0].prompt, extra_info={"reference_solution": "it is 2"}))
    contexts = replace(BUILDER, kind="reference").build([known, STEP[1]], 1)
    wanted = f"user: calc 7 + 5\nCorrect solution:\n\nit is 2{CLOSING}"
    assert texts(contexts) == [wanted] * 4 + [None] * 4
    assert all(context.view.peers.fallbacks for context in contexts[4:])


def test_the_view_peers_shows_two_successes_and_a_failure() -> None:
    contexts = BUILDER.build(STEP, 1)
    unknown, failed = contexts[3], contexts[4]
    assert unknown.text == (
        "user: calc 7 + 5\nCorrect solution:\n\ntext 0\nAnother successful solution:\n\ntext 1"
        f"\nA known failed solution (avoid repeating this mistake):\n\ntext 2{CLOSING}"
    )
    assert failed.text == (
        "user: calc 7 + 5\nCorrect solution:\n\nb two"
        f"\nA known failed solution (avoid repeating this mistake):\n\nb one{CLOSING}"
    )
    assert [slots(context.view.peers) for context in contexts[:2]] == [
        {"primary": "a1", "failure": "a2"},
        {"primary": "a0", "failure": "a2"},
    ]


def test_a_group_without_anything_to_show_has_no_context() -> None:
    contexts = BUILDER.build([group_of([UNKNOWN] * 3, tokens=[1, 1, 1])], 1)
    assert texts(contexts) == [None] * 3


@pytest.mark.parametrize("match", ["block", "token"])
@pytest.mark.parametrize(
    ("control", "sources"), [("random_peer", "own"), ("unrelated_prompt", "other"), ("success_only_matched", "both")]
)
def test_a_control_takes_its_blocks_from_where_it_says(control: str, sources: str, match: str) -> None:
    builder = replace(BUILDER, rule=replace(RULE, control=control, control_match=match))
    contexts = builder.build(STEP, 1)
    for context, owner in zip(contexts, "aaaabbbb", strict=True):
        shown = {choice.rollout_id[0] for choice in context.view.peers.choices}
        assert {choice.slot for choice in context.view.peers.choices} == {"control"}
        assert shown == {owner} if sources == "own" else shown <= {"a", "b"}
        assert sources != "other" or owner not in shown
    figures = builder.metrics([context.view for context in contexts], STEP)
    assert figures["self_distillation/peer_control_active"] == 1
    total = sum(len(context.view.peers.choices) for context in contexts)
    assert figures["self_distillation/peer_control_block_total"] == total
    assert (figures["self_distillation/peer_control_failure_block_total"] > 0) == (control == "random_peer")


def test_summaries_are_shown_without_what_asked_for_them() -> None:
    settings = ContextSettings(
        include_another_solution=False,
        include_failure_solution=False,
        summarize_solutions=True,
        summary_source="failure",
        summary_instruction=" and a <summary>",
    )
    group = group_of([RIGHT, WRONG, RIGHT], ["yes", "no <summary>guessed</summary>", "yes too"], tokens=[1, 1, 1])
    builder = replace(BUILDER, settings=settings)
    contexts = builder.build([group], 1)
    told = "\nSummary of another unsuccessful solution:\n\nguessed\n\n"
    assert contexts[0].text == f"user: calc 7 + 5\nCorrect solution:\n\nyes too{told}{CLOSING}"
    assert all("and a" not in str(context.text) for context in contexts)
    figures = builder.metrics([context.view for context in contexts], [group])
    assert figures["self_distillation/summary_sampled_with_tag_count"] == 2


LONG = group_of([RIGHT, RIGHT, RIGHT], ["one " * 30, "two " * 30, "three " * 30], tokens=[1, 1, 1])


def test_a_long_prompt_loses_the_ends_of_its_peers_only() -> None:
    whole, fitted = BUILDER.build([LONG], 1), replace(BUILDER, max_prompt_length=250).build([LONG], 1)
    for long, short in zip(whole, fitted, strict=True):
        assert len(ids(long)) > 250 >= len(ids(short)) > 200
        assert str(short.text).startswith("user: calc 7 + 5\nCorrect solution:\n\n")
        assert str(short.text).endswith(CUT + CLOSING)
        assert short.view.peers.fallbacks[-1].startswith("shortened:")


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_prompt_may_lose_an_end_of_its_tokens_as_published(side: Any) -> None:
    whole = BUILDER.build([LONG], 1)
    cut = replace(BUILDER, max_prompt_length=50, truncation=side).build([LONG], 1)
    for long, short in zip(whole, cut, strict=True):
        assert ids(short) == (ids(long)[:50] if side == "right" else ids(long)[-50:])


def test_a_long_prompt_may_be_refused_by_its_rollout() -> None:
    with pytest.raises(ValueError, match=r"rollout u0 has .* over .*max_reprompt_len=50"):
        replace(BUILDER, max_prompt_length=50, truncation="error").build([LONG], 1)
    assert same(replace(BUILDER, truncation="error").build([LONG], 1), BUILDER.build([LONG], 1))


def test_candidates_are_met_in_the_published_order_after_its_balancing() -> None:
    group = group_of([RIGHT] * 4, tokens=[4, 3, 2, 1])
    assert published_orders([group], 1) == [[3, 1, 0, 2]]
    published = replace(BUILDER, rule=replace(RULE, published_order=True))
    wanted = [("u3", "u1"), ("u3", "u0"), ("u3", "u1"), ("u1", "u0")]
    for context, (primary, another) in zip(published.build([group], 1), wanted, strict=True):
        assert slots(context.view.peers) == {"primary": primary, "another": another}
    as_sampled = [slots(context.view.peers)["primary"] for context in BUILDER.build([group], 1)]
    assert as_sampled == ["u1", "u0", "u0", "u0"]


def test_the_published_balancing_deals_to_every_device() -> None:
    orders = published_orders(STEP, 2)
    assert [sorted(order) for order in orders] == [[0, 1, 2, 3]] * 2
    assert orders != published_orders(STEP, 1)


def test_another_teacher_reads_its_own_template_and_tokens() -> None:
    ours, theirs = BUILDER.build(STEP, 1), replace(BUILDER, teacher=OTHER).build(STEP, 1)
    for one, other in zip(ours, theirs, strict=True):
        assert other.view == one.view
        assert other.text == f"[other](no thinking){one.text}"
        assert ids(other) == [ord(letter) + 1 for letter in str(other.text)]


def test_a_prompt_fits_by_the_teachers_own_count() -> None:
    [limit] = {len(ids(context)) for context in BUILDER.build([LONG], 1)[1:2]}
    kept = replace(BUILDER, max_prompt_length=limit).build([LONG], 1)[1]
    cut = replace(BUILDER, max_prompt_length=limit, teacher=OTHER).build([LONG], 1)[1]
    assert CUT not in str(kept.text)
    assert CUT in str(cut.text)
    assert len(ids(cut)) <= limit


@pytest.mark.parametrize("policy", ["random", "shortest", "diverse"])
@pytest.mark.parametrize("control", ["none", "random_peer", "success_only_matched"])
def test_the_same_seed_gives_the_same_contexts_and_another_step_others(policy: str, control: str) -> None:
    builder = replace(BUILDER, rule=replace(RULE, policy=policy, control=control))
    step = [group_of([RIGHT] * 5 + [WRONG] * 3, uid=uid, row=uid, tokens=[2] * 8) for uid in "abcd"]
    assert same(builder.build(step, 1), builder.build(step, 1))
    assert not same(builder.build(step, 1), builder.build(step, 2))
    other = replace(builder, rule=replace(builder.rule, seed=4))
    assert not same(builder.build(step, 1), other.build(step, 1))


ONE_SUCCESS = (
    group_of([RIGHT, UNKNOWN, UNKNOWN, UNKNOWN], uid="a", tokens=[1] * 4),
    group_of([UNKNOWN, UNKNOWN, RIGHT], ["x", "y", "z <think>no</think>w"], "b", tokens=[1] * 3),
    group_of([RIGHT, RIGHT, UNKNOWN], ["same", "same", "other"], "c", tokens=[1] * 3),
    group_of([UNKNOWN, UNKNOWN], uid="d", tokens=[1] * 2),
)


def built(method: str, groups: Sequence[Group], *overrides: str) -> list[Context]:
    """The contexts that a configuration gives."""
    config = resolve(method, overrides, {}).config
    return context_builder(config, Renderers(STUDENT, STUDENT), 1).build(groups, 1)


@pytest.mark.parametrize("policy", ["random", "first", "shortest", "diverse"])
def test_mopd_with_one_success_and_no_failure_is_sdpo_without_feedback(policy: str) -> None:
    chosen = f"{DISTILL}.peer_policy={policy}"
    mopd = built("mopd", ONE_SUCCESS, chosen)
    sdpo = built("sdpo", ONE_SUCCESS, chosen, f"{DISTILL}.include_environment_feedback=false")
    assert same(mopd, sdpo)
    assert sum(context.view.usable for context in mopd) == 3 + 2 + 3
    more = [group_of([RIGHT, RIGHT, WRONG], uid="e", tokens=[1] * 3)]
    assert not same(built("mopd", more, chosen), built("sdpo", more, chosen)), "else they differ"


def test_a_teacher_on_the_students_prompt_reports_only_that_all_views_are_usable() -> None:
    builder = replace(BUILDER, kind="prompt")
    views = [context.view for context in builder.build(STEP, 1)]
    assert builder.metrics(views, STEP) == {"self_distillation/reprompt_sample_fraction": 1.0}


def test_a_row_without_a_reference_solution_is_a_counted_fallback() -> None:
    builder = replace(BUILDER, kind="reference")
    views = [context.view for context in builder.build(STEP, 1)]
    found = builder.metrics(views, STEP)
    assert found["self_distillation/reprompt_sample_fraction"] == 0.0
    assert found["self_distillation/fallback_primary_count"] == len(views)


def test_an_unknown_outcome_is_no_failed_peer() -> None:
    cut = Outcome.unknown("cut by the rollout horizon")
    contexts = BUILDER.build([group_of([RIGHT, cut, cut], tokens=[1] * 3)], 1)
    assert all(context.view.peers.failure is None for context in contexts)
    assert [context.view.usable for context in contexts] == [False, True, True]


def test_reference_compat_cuts_on_the_right_and_takes_the_first() -> None:
    compat = resolve("mopd", ["reference_compat=true", f"{DISTILL}.max_reprompt_len=2100"], {}).config
    builder = context_builder(compat, Renderers(STUDENT, STUDENT), 1)
    huge = group_of([RIGHT] * 3, ["a" * 3000, "b" * 3000, "c" * 3000], tokens=[3, 2, 1])
    assert builder.rule.policy == "first"
    assert builder.rule.published_order
    whole = replace(builder, max_prompt_length=100_000)
    for cut, context in zip(builder.build([huge], 1), whole.build([huge], 1), strict=True):
        assert np.array_equal(ids(cut), ids(context)[:2100])
        assert str(context.text).startswith(str(cut.text)), "what is recorded is what the teacher read"
        assert len(str(cut.text)) == 2100
