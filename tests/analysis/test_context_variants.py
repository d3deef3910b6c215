"""Contexts are those of the method: what a condition names is what `mopd.contexts` writes, and nothing else."""

import json
from dataclasses import replace

import build_context_variants
import pytest
from context_conditions import CONDITIONS

from mopd.contexts import ContextSettings, teacher_messages
from mopd.types import Peers
from tests.analysis.chain_rollouts import lines, read, run, write

PUBLISHED = [
    "base", "base_raw", "base_reprompt", "solution", "another_solution", "solution+another_solution", "all_solutions",
    "failure_solution", "solution+failure_solution", "solution+another_solution+failure_solution", "feedback",
    "summary_success_k2", "solution+feedback", "solution+summary_success_k2", "solution+feedback+summary_all_k2",
    "failure_only", "random_summary_control", "random_peer", "verifier_score_ordered",
]  # fmt: skip
COLUMNS = {
    "variant_id", "condition", "prompt_id", "response_id", "uid", "reward", "success", "difficulty_bucket",
    "variant_spec", "sections_used", "evidence_ids", "primary_solution_response_id", "summary_sources",
    "assembled_context_text", "assembled_context_length_chars",
}  # fmt: skip


def candidate(prompt, number, text, success, **more):
    """A candidate row."""
    return {
        "prompt_id": prompt, "prompt": f"user\n{prompt}?\nassistant\n", "response_id": f"{prompt}_r{number}",
        "uid": prompt, "response_text": text, "reward": None if success is None else float(success), "success": success,
        "prompt_messages": [{"role": "system", "content": "S"}, {"role": "user", "content": f"{prompt}?"}],
        "finish_reason": "stop", "feedback_text": "" if success else f"hint {number}", **more,
    }  # fmt: skip


GROUP = [
    candidate("p", 0, "right A", True),
    candidate("p", 1, "wrong B", False),
    candidate("p", 2, "right C", True),
    candidate("p", 10, "right D", True),
    candidate("p", 3, "right A", True),
    candidate("p", 4, "wrong E", False),
    candidate("p", 5, "nobody knows", None),
    candidate("p", 6, "right but cut", True, finish_reason="length"),
    candidate("q", 0, "other F", True),
    candidate("q", 1, "other G", True),
    candidate("q", 2, "other H", False),
]


@pytest.fixture
def build(tmp_path):
    """Builds the variants of candidate rows; by condition and response."""

    def built(rows=GROUP, *options, config=None):
        candidates = write(tmp_path / "candidates.jsonl", rows)
        kinds = ("response_full", "summary", "feedback")
        items = [{"evidence_id": f"{row['response_id']}::{kind}"} for row in rows for kind in kinds]
        evidence, out = write(tmp_path / "evidence.jsonl", items), tmp_path / "variants.jsonl"
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
            options = (*options, "--variant-config", tmp_path / "config.json")
        asked = ("--candidates", candidates, "--evidence", evidence, "--output", out, *options)
        assert run(build_context_variants, *asked) == 0
        return {(row["condition"], row["response_id"]): row for row in read(out)}

    return built


def test_the_published_conditions_and_columns(build):
    found = build()
    assert [condition.name for condition in CONDITIONS] == PUBLISHED
    assert list(dict.fromkeys(name for name, _ in found)) == PUBLISHED
    assert all(set(row) >= COLUMNS for row in found.values())
    assert len({row["variant_id"] for row in found.values()}) == len(found) == len(PUBLISHED) * 10


def test_unknown_responses_have_no_context_and_are_in_none(build):
    found = build()
    assert "p_r5" not in {response for _, response in found}
    texts = "".join(row["assembled_context_text"] for row in found.values())
    assert "nobody knows" not in texts
    assert "but cut" not in texts
    cut = build(config={"global": {"include_truncated_peers": True}})
    assert "but cut" in "".join(row["assembled_context_text"] for row in cut.values())


def peers_in(row):
    """The peers of a row, without why they were chosen."""
    told = {name: value for name, value in row["peers"].items() if name not in ("choices", "fallbacks")}
    return Peers(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})


def test_texts_are_those_of_the_method(build):
    """Each text is the published template around the peers, and the full one is that of default settings."""
    found = build()
    everything = ContextSettings(environment_feedback_only_without_solution=False, summarize_solutions=True)
    for (condition, _), row in found.items():
        if condition != "base_reprompt":
            messages = teacher_messages(row["prompt_messages"], peers_in(row), everything)
            assert messages[-1]["content"] == row["assembled_context_text"], condition
    full = found["solution+another_solution+failure_solution", "p_r1"]
    peers = replace(peers_in(full), feedback="hint 1")
    trained = teacher_messages(full["prompt_messages"], peers, ContextSettings())
    assert trained[-1]["content"] == full["assembled_context_text"]
    assert found["base", "p_r0"]["assembled_context_text"] == "p?"
    assert found["base_reprompt", "p_r0"]["assembled_context_text"] == "p?\n\nCorrectly solve the original question."


def test_conditions_of_a_response_share_one_draw(build):
    found = build()
    for response in ("p_r0", "p_r1", "p_r10"):
        full = found["solution+another_solution+failure_solution", response]["peers"]
        assert found["solution", response]["peers"]["primary"] == full["primary"]
        assert found["another_solution", response]["peers"]["another"] == full["another"]
        assert found["failure_solution", response]["peers"]["failure"] == full["failure"]
        assert "another" not in found["solution", response]["peers"]
        assert found["failure_only", response]["peers"] == found["failure_solution", response]["peers"]


def test_nobody_is_shown_itself_and_texts_are_distinct(build):
    found = build()
    for (condition, response), row in found.items():
        assert f"{response}::response_full" not in row["evidence_ids"], condition
        shown = [row["peers"].get(name) for name in ("primary", "another")] + row["peers"].get("more", [])
        texts = [text for text in shown if text]
        assert len(texts) == len(set(texts)), condition
    every = found["all_solutions", "p_r1"]["peers"]
    assert {every["primary"], every["another"], *every["more"]} == {"right A", "right C", "right D"}
    assert "more" not in found["solution+another_solution", "p_r1"]["peers"]


def test_sections_are_told_as_they_are_shown(build):
    found = build()
    names = ("solution", "another_solution", "failure_solution", "feedback", "summary")

    def used(condition, response):
        told = found[condition, response]["sections_used"]
        return [name for name in names if told[name]]

    assert used("base", "p_r0") == used("base_raw", "p_r0") == used("base_reprompt", "p_r0") == []
    assert used("feedback", "p_r0") == []  # it is right: nobody has anything to say
    assert used("feedback", "p_r1") == ["feedback"]
    assert used("solution+feedback+summary_all_k2", "p_r1") == ["solution", "feedback", "summary"]
    assert used("another_solution", "q_r0") == []  # there is no second success but itself
    assert used("failure_solution", "q_r2") == []  # the only failure
    assert found["solution", "p_r1"]["primary_solution_response_id"].startswith("p_r")


def test_summaries_need_no_solution_and_controls_take_from_other_prompts(build):
    found = build()
    assert len(found["summary_success_k2", "p_r1"]["summary_sources"]) == 2
    control = found["random_summary_control", "p_r1"]
    assert {source.partition("_")[0] for source in control["summary_sources"]} == {"q"}
    assert control["sections_used"]["summary"]
    alone = build([row for row in GROUP if row["prompt_id"] == "p"])
    assert not alone["random_summary_control", "p_r1"]["sections_used"]["summary"]


def test_controls_have_the_budget_of_the_method(build):
    found = build()
    for response in ("p_r0", "p_r1", "q_r0", "q_r2"):
        full = found["solution+another_solution+failure_solution", response]
        blocks = len(full["evidence_ids"])
        for control in ("random_peer", "verifier_score_ordered"):
            assert len(found[control, response]["evidence_ids"]) == min(blocks, 3), (control, response)
    best = found["verifier_score_ordered", "p_r1"]["peers"]
    assert [best["primary"], best["another"], *best["more"]] == ["right A", "right C", "right D"]
    assert "failure" not in best
    others = build(config={"variants": [{"name": "u", "include_solution": True, "peer_control": "unrelated_prompt"}]})
    assert "other" in others["u", "p_r1"]["peers"]["primary"]


def test_the_seed_draws_and_other_prompts_do_not(build):
    first, same, other = build(), build(), build(GROUP, "--seed", "43")
    assert first == same
    assert first != other
    alone = build([row for row in GROUP if row["prompt_id"] == "p"])
    skip = "random_summary_control"
    assert all(row == first[key] for key, row in alone.items() if key[0] != skip)
    assert len({first["failure_solution", f"p_r{n}"]["peers"]["failure"] for n in (0, 2, 3, 10)}) == 2


def test_templates_and_conditions_of_ones_own(build):
    config = {
        "global": {"context": {"solution_template": "\nLook: {successful_previous_attempt}"}, "peer_policy": "first"},
        "variants": [{"name": "mine", "include_solution": True}],
    }
    found = build(config=config)
    assert found["mine", "p_r1"]["assembled_context_text"].startswith("p?\nLook: right A\n")
    assert found["mine", "p_r1"]["context_settings"]["solution_template"].startswith("\nLook")
    assert {name for name, _ in build(GROUP, "--condition-filter", "base", "solution")} == {"base", "solution"}


def refused(tmp_path, capsys, *options, evidence=None):
    """What the command says about what it cannot use."""
    candidates = write(tmp_path / "c.jsonl", GROUP)
    items = [{"evidence_id": f"{row['response_id']}::response_full"} for row in GROUP]
    found = write(tmp_path / "e.jsonl", items if evidence is None else evidence)
    out = tmp_path / "v.jsonl"
    assert run(build_context_variants, "--candidates", candidates, "--evidence", found, "--output", out, *options) == 2
    assert not list(tmp_path.glob("*v.jsonl*"))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "must be"),
        ('{"globals": {}}', "must be"),
        ('{"variants": []}', "at least one"),
        ('{"variants": [{}]}', "as its name"),
        ('{"variants": [{"name": "a"}, {"name": "a"}]}', "name of its own"),
        ('{"variants": [{"name": "a", "include_solutions": true}]}', "unknown 'include_solutions'"),
        ('{"variants": [{"name": "a", "include_solution": 1}]}', "true or false is wanted"),
        ('{"variants": [{"name": "a", "peer_control": "best"}]}', "known are random_peer"),
        ('{"variants": [{"name": "a", "summary_control": "x"}]}', "known is random_other_prompt"),
        ('{"global": {"summary_k": 0}}', "an integer from 1 is wanted"),
        ('{"global": {"peer_policy": "best"}}', "is none of random"),
        ('{"global": {"context": {"include_primary_solution": false}}}', "is decided by the variants"),
        ('{"global": {"context": {"solution_template": "no field"}}}', "must contain {successful_previous_attempt}"),
        ('{"global": {"context": {"no_such": 1}}}', "no_such"),
    ],
)
def test_a_wrong_configuration_is_told(tmp_path, capsys, config, told):
    (tmp_path / "config.json").write_text(config)
    assert told in " ".join(refused(tmp_path, capsys, "--variant-config", tmp_path / "config.json").split())


def test_evidence_of_another_data_set_is_told(tmp_path, capsys):
    assert "are not of one data set" in refused(tmp_path, capsys, evidence=[{"evidence_id": "x::summary"}])
    assert "no such condition" in refused(tmp_path, capsys, "--condition-filter", "bases")


def test_a_response_that_is_there_twice_is_told(tmp_path, capsys):
    GROUP.append(GROUP[0])
    try:
        assert "has the response p_r0 twice" in refused(tmp_path, capsys)
    finally:
        GROUP.pop()


def test_real_lines_go_through(build, tmp_path):
    import prepare_rollout_dataset

    source = write(tmp_path / "in.jsonl", lines())
    assert run(prepare_rollout_dataset, "--input", source, "--output-dir", tmp_path) == 0
    found = build(read(tmp_path / "candidate_responses.jsonl"))
    assert len(found) == 24 * len(PUBLISHED)
