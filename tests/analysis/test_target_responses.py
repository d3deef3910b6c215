"""Targets: right, wrong and strong ones, with the verdicts they have and no others."""

import build_target_responses
import pytest

from tests.analysis.chain_rollouts import read, run, write


def rows(prompt, verdicts):
    """Candidate rows with these verdicts."""
    return [
        {"prompt_id": prompt, "response_id": f"{prompt}_r{k}", "response_text": f"{prompt} {k}", "success": verdict,
         "reward": None if verdict is None else float(verdict), "difficulty_bucket": "medium"}
        for k, verdict in enumerate(verdicts)
    ]  # fmt: skip


CANDIDATES = rows("a", [True, True, False, None, False]) + rows("b", [False, False]) + rows("c", [None])


@pytest.fixture
def build(tmp_path):
    """Builds targets."""

    def built(*options, strong=None, candidates=CANDIDATES):
        source, out = write(tmp_path / "c.jsonl", candidates), tmp_path / "t.jsonl"
        if strong is not None:
            options = (*options, "--strong-success", write(tmp_path / "s.jsonl", strong))
        assert run(build_target_responses, "--candidates", source, "--output", out, *options) == 0
        return read(out)

    return built


def test_one_of_each_kind_by_default(build):
    found = build()
    assert [(row["prompt_id"], row["target_type"]) for row in found] == [
        ("a", "student_success"), ("a", "student_failure"), ("b", "student_failure"),
    ]  # fmt: skip
    assert all(row["success"] is (row["target_type"] == "student_success") for row in found)
    assert {"target_id", "source_response_id", "source_model", "metadata", "difficulty_bucket"} <= set(found[0])


def test_as_many_as_asked_and_seeded(build):
    many = build("--student-success-per-prompt", "9", "--student-failure-per-prompt", "0")
    assert [row["source_response_id"] for row in many] == ["a_r0", "a_r1"]
    draws = {build("--seed", str(seed))[0]["source_response_id"] for seed in range(8)}
    assert draws == {"a_r0", "a_r1"}


def test_empty_and_equal_texts_are_no_targets(build):
    texts = zip(rows("a", [True] * 4), ["", " x", "x ", "\n"], strict=True)
    found = build(
        "--student-success-per-prompt", "9", candidates=[row | {"response_text": text} for row, text in texts]
    )
    assert [row["response_text"] for row in found] == [" x"]


def test_strong_rows_have_the_verdict_of_their_validation(build):
    strong = [
        {"prompt_id": "a", "response_text": "strong", "validated_success": True, "source_model": "m", "reward": None},
        {"prompt_id": "b", "response_text": "who knows"},
        {"prompt_id": "b", "response_text": "refuted", "validated_success": False},
    ]
    found = {row["response_text"]: row for row in build("--strong-success-per-prompt", "5", strong=strong)}
    assert (found["strong"]["reward"], found["strong"]["success"], found["strong"]["source_model"]) == (1.0, True, "m")
    assert (found["who knows"]["reward"], found["who knows"]["success"]) == (None, None)
    assert "refuted" not in found


def test_what_cannot_be_used_is_told(tmp_path, capsys):
    source = write(tmp_path / "c.jsonl", CANDIDATES)
    base = ("--candidates", source, "--output", tmp_path / "t.jsonl")
    other = write(tmp_path / "s.jsonl", [{"prompt_id": "z", "response_text": "x"}])
    assert run(build_target_responses, *base, "--strong-success", other) == 2
    assert "has none of the prompts" in capsys.readouterr().err
    none = ("--student-success-per-prompt", "0", "--student-failure-per-prompt", "0")
    assert run(build_target_responses, *base, *none) == 2
    assert "no response is wanted" in capsys.readouterr().err
    write(source, [{"prompt_id": "a", "response_id": "a_r0", "response_text": None, "reward": 1, "success": True}])
    assert run(build_target_responses, *base) == 2
    assert "has None as its `response_text`; str is wanted" in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()
