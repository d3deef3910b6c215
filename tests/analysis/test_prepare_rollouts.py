"""Rollouts become a data set: every kind of line, every occurrence by itself, and nothing unknown called wrong."""

import hashlib
import json

import prepare_rollout_dataset
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.analysis.chain_rollouts import lines, read, run, write

COLUMNS = {
    "prompt_id", "uid", "prompt", "response_id", "response_text", "reward", "success", "summary_text",
    "summary_text_effective", "summary_has_tag", "summary_is_fallback", "feedback_text", "has_feedback", "ground_truth",
    "pred", "acc", "incorrect_format", "difficulty_bucket", "prompt_group_size", "prompt_success_count",
    "prompt_failure_count", "prompt_has_primary_success", "prompt_has_another_success", "prompt_has_failure_peer",
    "source_file", "source_line", "rollout_step",
}  # fmt: skip
EVIDENCE = {
    "evidence_id", "prompt_id", "uid", "source_response_id", "evidence_type", "role", "text", "summary_text",
    "has_summary_tag", "is_fallback_summary", "reward", "success", "difficulty_bucket", "source_file", "source_line",
    "rollout_step",
}  # fmt: skip


@pytest.fixture
def prepare(tmp_path):
    """Prepares rows, or a path, and returns candidates, evidence and summary."""
    count = iter(range(100))

    def prepared(source, *options):
        path = write(tmp_path / f"in{next(count)}.jsonl", source) if isinstance(source, list) else source
        out = tmp_path / f"out{next(count)}"
        assert run(prepare_rollout_dataset, "--input", path, "--output-dir", out, *options) == 0
        summary = json.loads((out / "dataset_summary.json").read_text())
        return read(out / "candidate_responses.jsonl"), read(out / "evidence_items.jsonl"), summary

    return prepared


def test_the_published_columns_and_names(prepare):
    rows = lines()
    candidates, evidence, summary = prepare(rows)
    assert set(candidates[0]) >= COLUMNS
    assert set(evidence[0]) == EVIDENCE
    first = hashlib.sha1(rows[0]["input"].encode()).hexdigest()[:16]
    assert [row["response_id"] for row in candidates[:6]] == [f"{first}_r{k}" for k in range(6)]
    assert [row["response_text"] for row in candidates] == [row["output"] for row in rows]
    assert {item["evidence_id"].partition("::")[2] for item in evidence} == {"response_full", "summary", "feedback"}
    assert summary["successes"] == sum(row["success"] for row in rows)
    assert summary["args"]["seed"] == 42


def test_a_run_its_rollouts_and_a_pattern_are_the_same_lines(prepare, tmp_path):
    run_folder = tmp_path / "run"
    write(run_folder / "metrics.jsonl", [{"step": 1}])
    write(run_folder / "validation/1.jsonl", lines(9))
    for step in (2, 10):
        write(run_folder / f"rollouts/{step}.jsonl", lines(step, step=step))
    found = [prepare(str(path))[0] for path in (run_folder, run_folder / "rollouts", f"{run_folder}/rollouts/*.jsonl")]
    assert found[0] == found[1] == found[2]
    assert [row["rollout_step"] for row in found[0]] == [2] * 24 + [10] * 24


def test_published_dumps_and_candidate_rows_are_read_too(prepare, tmp_path):
    rows = lines()
    bare = [{name: row[name] for name in ("input", "output", "gts", "score", "step")} for row in rows]
    candidates, *_ = prepare(bare)
    full, *_ = prepare(rows)
    assert [row["success"] for row in candidates] == [row["success"] for row in full]
    assert candidates[0]["known_places"] == [] != full[0]["known_places"]
    named, *_ = prepare(bare, "--data-source", "chain")
    assert [row["known_places"] for row in named] == [row["known_places"] for row in full]
    again, *_ = prepare(full)
    kept = [name for name in full[0] if name not in ("source_file", "source_line")]
    assert [[row[name] for name in kept] for row in again] == [[row[name] for name in kept] for row in full]


def test_policies_are_not_pooled_unless_asked(prepare):
    early, late = lines(step=1), lines(step=2)
    late = [row | {"output": row["output"] + " "} for row in late]
    last, *_ = prepare(late + early)
    assert {row["rollout_step"] for row in last} == {2}
    each, *_ = prepare(early + late, "--occurrences", "each")
    assert len({row["prompt_id"] for row in each}) == 8
    assert all(row["prompt_group_size"] == 6 for row in each)
    assert len({row["response_id"] for row in each}) == 48
    pool, *_ = prepare(early + late, "--occurrences", "pool", "--max-responses-per-prompt", "12")
    assert {row["prompt_group_size"] for row in pool} == {12}


def test_what_is_left_out_is_counted_with_its_reason(prepare, capsys):
    rows = lines(prompts=4, attempts=6)
    rows += [row | {"step": 2} for row in rows[:2]] + [rows[7] | {"uid": "zzz"}]  # too small, and later than the others
    rows += [row | {"step": 0} for row in rows[:6]]
    candidates, _, summary = prepare(rows, "--min-responses-per-prompt", "3", "--max-responses-per-prompt", "5")
    assert {row["rollout_step"] for row in candidates} == {1}
    assert {row["uid"] for row in candidates} == {f"1-{number}" for number in range(4)}
    assert summary["left_out"] == {
        "groups": {"too_small": 2, "earlier": 1},
        "responses": {"too_small": 3, "earlier": 6, "over_max_responses": 4},
    }
    assert summary["responses_read"] == summary["responses"] + sum(summary["left_out"]["responses"].values())
    told = capsys.readouterr()
    assert "left out: 3 responses of 2 groups, smaller than --min-responses-per-prompt" in told.err
    assert "left out: 4 responses, beyond --max-responses-per-prompt" in told.out
    _, _, few = prepare(rows, "--max-prompts", "2")
    assert few["left_out"]["groups"]["over_max_prompts"] == 2
    assert few["responses_read"] == few["responses"] + sum(few["left_out"]["responses"].values())


def test_a_response_that_is_there_twice_is_refused(prepare, tmp_path, capsys):
    rows = lines(prompts=1)
    twice = [*rows, rows[1], rows[2] | {"output": "another text"}]
    source = write(tmp_path / "twice.jsonl", twice)
    assert run(prepare_rollout_dataset, "--input", source, "--output-dir", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert f"{source}, line 7: response '1-0-1' stands at {source}, line 2 already" in told
    assert f"{source}, line 8: response '1-0-2' stands at {source}, line 3 already" in told
    candidates, *_ = prepare(rows)
    assert (
        run(
            prepare_rollout_dataset,
            *("--input", write(tmp_path / "c.jsonl", [*candidates, candidates[0]]), "--output-dir", tmp_path / "out"),
        )
        == 2
    )
    assert "stands at" in capsys.readouterr().err
    nameless = [{name: value for name, value in row.items() if name != "rollout_id"} for row in (rows[0], *rows)]
    assert len(prepare(nameless)[0]) == 7  # siblings may write the same


def test_unknown_is_neither_right_nor_wrong(prepare):
    rows = lines(attempts=4)
    rows[0] |= {"status": "unknown", "score": 0.0, "feedback": "the verifier failed"}
    rows[1]["score"] = None
    rows[2]["score"] = float("nan")
    candidates, evidence, summary = prepare(rows)
    assert [row["success"] for row in candidates[:3]] == [None, None, None]
    assert summary["unknown"] == 3
    assert not {row["response_id"] for row in candidates[:3]} & {item["source_response_id"] for item in evidence}
    assert not candidates[0]["has_feedback"]
    assert candidates[0]["prompt_failure_count"] == sum(row["success"] is False for row in candidates[:4])


def test_difficulty_is_a_share_and_unused_quota_goes_on(prepare):
    rows = []
    for number, right in enumerate([4] * 6 + [1] + [0]):
        rows += [
            {"input": f"p{number}", "output": f"{k}", "score": float(k < right), "step": 1, "gts": "x"}
            for k in range(8)
        ]
    candidates, *_ = prepare(rows)
    buckets = {row["prompt"]: row["difficulty_bucket"] for row in candidates}
    assert list(buckets.values()) == ["easy"] * 6 + ["medium", "hard"]
    half, *_ = prepare([row for row in rows if row["output"] in "01"])
    assert {row["difficulty_bucket"] for row in half if row["prompt"] == "p6"} == {"easy"}
    few, _, summary = prepare(rows, "--max-prompts", "5")
    assert summary["prompts_by_bucket"] == {"easy": 3, "hard": 1, "medium": 1}
    again, *_ = prepare(rows, "--max-prompts", "5")
    assert [row["prompt"] for row in again] == [row["prompt"] for row in few]


def test_sampling_down_is_seeded_and_each_prompt_by_itself(prepare):
    rows = lines(prompts=3, attempts=8)
    texts = [
        [row["rollout_id"] for row in prepare(part, "--max-responses-per-prompt", "3")[0]] for part in (rows, rows[8:])
    ]
    assert texts[0][3:] == texts[1]
    assert len(texts[0]) == 9
    other = prepare(rows, "--max-responses-per-prompt", "3", "--seed", "7")[0]
    assert [row["rollout_id"] for row in other] != texts[0]


def test_messages_come_from_the_data_else_from_the_text(prepare, tmp_path):
    asked = [{"role": "system", "content": "user\nis no role here"}, {"role": "user", "content": "calc 1 + 1"}]
    flat = "system\nuser\nis no role here\nuser\ncalc 1 + 1\nassistant\n<think>\n\n</think>\n\n"
    data = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": asked, "extra_info": {"index": "7"}}]), data)
    rows = [{"input": flat, "output": f"{k}", "score": 1.0, "step": 1, "gts": "2"} for k in range(2)]
    assert prepare(rows, "--data", data)[0][0]["prompt_messages"] == asked
    other = [row | {"input": "<|u|>user is no role here/calc 1 + 1<|a|>", "prompt_id": "7"} for row in rows]
    found, _, summary = prepare(other, "--data", data)
    assert found[0]["prompt_messages"] != asked  # not all of its texts stand in the line
    assert summary["prompts_by_source"] == {"text": 1}
    parsed = prepare([row | {"input": "system\nS\nuser\na\nb\nassistant\n"} for row in rows])[0][0]
    assert parsed["prompt_messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "a\nb"}]
    whole = prepare([row | {"input": "[INST] a [/INST]"} for row in rows])[0][0]
    assert whole["prompt_messages"] == [{"role": "user", "content": "[INST] a [/INST]"}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no rollouts"),
        ("{\n", "line 1: is no JSON"),
        ("[1]\n", "an object with the fields"),
        ('{"input": "a", "output": 3, "score": 1}\n', "as its `output`; a text is wanted"),
        ('{"input": "a", "output": "b"}\n', "neither `score` nor `reward`"),
        ('{"input": "a", "output": "b", "score": "1"}\n', "as its reward"),
        ('{"input": "a", "output": "b", "score": 1}\n', "--min-responses-per-prompt"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, capsys, text, told):
    (tmp_path / "in.jsonl").write_text(text)
    assert run(prepare_rollout_dataset, "--input", tmp_path / "in.jsonl", "--output-dir", tmp_path / "out") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uid", [1]), ("uid", None), ("uid", True), ("step", "abc"), ("step", None), ("step", -1), ("step", 1.5),
        ("rollout_id", {}), ("prompt_id", [1]), ("data_source", ["chain"]), ("feedback", 3), ("status", 1),
        ("finish_reason", ["stop"]), ("extra_info", "x"),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_told_by_its_line(tmp_path, capsys, name, value):
    good = {"input": "a", "output": "b", "score": 1, "step": 1, "uid": "1"}
    write(tmp_path / "in.jsonl", [good, good, good | {name: value}])
    assert run(prepare_rollout_dataset, "--input", tmp_path / "in.jsonl", "--output-dir", tmp_path / "out") == 2
    assert f"in.jsonl, line 3: has {value!r} as its" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_told(tmp_path, capsys):
    assert run(prepare_rollout_dataset, "--input", tmp_path / "no", "--output-dir", tmp_path / "out") == 2
    assert "no such file or folder" in capsys.readouterr().err
    write(tmp_path / "in.jsonl", lines())
    base = ("--input", tmp_path / "in.jsonl", "--output-dir", tmp_path / "out")
    assert run(prepare_rollout_dataset, *base, "--data-source", "chian") == 2
    assert "did you mean 'chain'" in capsys.readouterr().err
    assert run(prepare_rollout_dataset, *base, "--data", tmp_path / "in.jsonl") == 2
    assert "not a readable parquet file" in capsys.readouterr().err
