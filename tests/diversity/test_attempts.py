"""Rows of both kinds are read alike, unknown is not wrong, and what is no attempt is told by file and line."""

import hashlib
import json
import random

import attempts as reading
import pytest

RAW = {"input": "2 + 2", "output": "4", "score": 1.0, "step": 3, "uid": "3-0", "rollout_id": "3-0-0", "success": True}
CANDIDATE = {"prompt_id": "p", "prompt": "2 + 2", "response_id": "p_r0", "response_text": "4", "reward": 1.0}


def one(row, threshold=None):
    return reading.attempt_of(row, "0", threshold)


def test_a_raw_line_and_its_candidate_row_are_one_prompt():
    prompt_id = hashlib.sha1(b"2 + 2").hexdigest()[:16]
    raw, candidate = one(RAW), one({**CANDIDATE, "prompt_id": prompt_id})
    assert (raw.prompt_id, raw.prompt, raw.text) == (candidate.prompt_id, candidate.prompt, candidate.text)
    assert raw.success is True
    assert candidate.success is True


@pytest.mark.parametrize("reward", [None, float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_reward_that_is_no_number_is_unknown(reward):
    attempt = one({**CANDIDATE, "reward": reward})
    assert attempt.reward is None
    assert attempt.success is None


def test_an_unknown_verdict_is_no_failure():
    assert one({**RAW, "score": None, "success": None, "status": "unknown"}).success is None
    assert one({**RAW, "score": 0.0, "success": False, "status": "unknown"}).success is None


@pytest.mark.parametrize(("threshold", "success"), [(None, False), (0.4, True), (0.6, False)])
def test_the_verdict_decides_unless_a_threshold_is_given(threshold, success):
    assert one({**RAW, "score": 0.5, "success": False}, threshold).success is success


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([], "an object"),
        ({}, "neither a text `response_text` nor a text `output`"),
        ({**RAW, "output": None}, "got None"),
        ({"output": "4", "score": 1}, "neither `prompt_id` nor a text `input`"),
        ({**CANDIDATE, "prompt_id": None}, "neither `prompt_id`"),
        ({**RAW, "score": "good"}, "'good' as its reward"),
    ],
)
def test_what_is_no_attempt_says_why(write, row, told):
    file = write("bad.jsonl", [RAW, row])
    with pytest.raises(reading.BadInput, match="line 2") as fault:
        reading.read_attempts(file)
    assert told in str(fault.value)


def test_a_broken_line_is_told(tmp_path):
    file = tmp_path / "half.jsonl"
    file.write_text(json.dumps(RAW) + '\n{"input": "2 ')
    with pytest.raises(reading.BadInput, match="line 2: is no JSON"):
        reading.read_attempts(file)


def test_an_attempt_counts_once(write):
    with pytest.raises(reading.BadInput, match=r"line 2.*stands at .*line 1 already"):
        reading.read_attempts(write("twice.jsonl", [RAW, RAW]))


def test_rows_without_names_are_told_apart_by_their_place(write):
    row = {"input": "2 + 2", "output": "4", "score": 1.0}
    assert len(reading.read_attempts(write("plain.jsonl", [row, row]))) == 2


def test_a_folder_is_read_whole_and_a_run_is_not(write, tmp_path):
    write("rollouts/1.jsonl", [RAW])
    write("rollouts/2.jsonl", [{**RAW, "step": 4, "uid": "4-0", "rollout_id": "4-0-0"}])
    assert len(reading.read_attempts(tmp_path / "rollouts")) == 2
    write("metrics.jsonl", [{"step": 1}])
    with pytest.raises(reading.BadInput, match="whole run"):
        reading.read_attempts(tmp_path)


@pytest.mark.parametrize("rows", [None, []])
def test_nothing_to_read_is_told(write, tmp_path, rows):
    path = tmp_path / "nowhere" if rows is None else write("empty.jsonl", rows)
    with pytest.raises(reading.BadInput):
        reading.read_attempts(path)


def test_prompts_and_attempts_are_sorted_as_people_count():
    rows = [{**CANDIDATE, "prompt_id": f"p{p}", "response_id": f"r{r}"} for p in (10, 9) for r in (11, 2, 1)]
    random.Random(0).shuffle(rows)
    groups = reading.grouped([one(row) for row in rows], responses=2)
    assert list(groups) == ["p9", "p10"]
    assert [attempt.response_id for attempt in groups["p10"][0]] == ["r1", "r2"]


def test_steps_are_kept_apart_unless_pooled():
    rows = [{**RAW, "step": step, "uid": f"{step}-0", "rollout_id": f"{step}-{i}"} for step in (1, 2) for i in range(3)]
    attempts = [one(row) for row in rows]
    assert [len(group) for (own,) in [reading.grouped(attempts).values()] for group in own] == [3, 3]
    assert [len(group) for (own,) in [reading.grouped(attempts, pooled=True).values()] for group in own] == [6]
    assert not reading.grouped(attempts, at_least=4)
