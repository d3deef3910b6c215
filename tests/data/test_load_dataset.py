"""Every published source, from local files of its shape to published records."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import load_dataset
import numpy as np
import preprocess
import pyarrow.parquet as pq
import pytest
import sources_rows
from sources_choice import SCIENCE_SYSTEM
from sources_code import function_under_test
from sources_maths import boxed, gsm8k_answer

from mopd.rewards import check_ground_truth, verify
from tests.data.source_rows import CORPUS, FORCES, HUMANEVAL, MBPP, ROWS, gpqa, live, science, write_parquet

COLUMNS = ["idx", "kind", "dataset", "answer", "elo", "prompt", "description", "tests", "embedding", "system"]


def run(*arguments: object) -> int:
    return load_dataset.main([str(argument) for argument in arguments])


def load(folder: Path, name: str, *more: object) -> list[dict[str, Any]]:
    output = folder / "out" / "all.json"
    assert run("--dataset_name", name, "--output_path", output, "--local", folder / "in", *more) == 0
    text = output.read_text()
    records: list[dict[str, Any]] = json.loads(text)
    assert len(text.splitlines()) == len(records) + 2
    return records


def refused(folder: Path, capsys: pytest.CaptureFixture[str], name: str, *more: object) -> str:
    output = folder / "out" / "all.json"
    assert run("--dataset_name", name, "--output_path", output, "--local", folder / "in", *more) == 2
    assert not output.exists()
    return capsys.readouterr().err


def jsonl(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / name).write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


def test_the_sources_are_the_published_ones_and_some_more() -> None:
    published = {
        "lasgroup/verifiable-corpus", "Idavidrein/gpqa-D", "TIGER-Lab/MMLU-Pro", "openai/gsm8k", "open-r1/codeforces",
        "Qwen/CodeElo", "livecodebench/code_generation_lite-v6", "evalplus/humanevalplus", "evalplus/mbppplus",
        "Biology", "Chemistry", "Material", "Physics",
        *(f"math-ai/{name}" for name in ("aime24", "aime25", "math500", "amc23")),
    }  # fmt: skip
    assert published < set(load_dataset.SOURCES)
    assert set(load_dataset.SOURCES) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_source_becomes_records_that_its_verifier_takes(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / "in", name)
    records = load(tmp_path, name)
    assert [record["idx"] for record in records] == list(range(len(records)))
    for record in records:
        assert list(record) == COLUMNS
        assert record["description"].endswith(f" The solution will be evaluated in a {record['kind']} environment.")
        check_ground_truth(record["dataset"], record["tests" if record["kind"] == "code" else "answer"])
        assert preprocess.complaints(record) == []


def test_science_rows_have_the_published_prompt(tmp_path: Path) -> None:
    others = [science(9, domain="Physics"), science(9, type="true_or_false")]
    others.append(science(9, details={"level": "L1", "task": "t", "subtask": "s"}))
    two = science(1, choices={"text": ["yes", "no"], "label": ["A", "B"]}, type="mcq-2-choices")
    jsonl(tmp_path, "rows.jsonl", [science(0), *others, two])
    first, second = load(tmp_path, "Biology")
    assert first == {
        "idx": 0,
        "kind": "mcq",
        "dataset": "sciknoweval",
        "answer": "B",
        "elo": 1500,
        "prompt": "Which is 0?\n\nA: one\nB: two\nC: three\nD: four\nPlease reason step by step.",
        "description": "Which is 0? The solution will be evaluated in a mcq environment.",
        "tests": "-",
        "embedding": [],
        "system": SCIENCE_SYSTEM,
    }
    assert second["prompt"] == "Which is 1?\n\nA: yes\nB: no\nPlease reason step by step."


def test_the_system_message_of_science_is_that_of_real_rows(real_rows: Path) -> None:
    for split in ("train", "test"):
        lines = (real_rows / "sciknoweval" / "physics" / f"{split}.json").read_text().splitlines()
        assert {json.loads(line)["system"] for line in lines} == {SCIENCE_SYSTEM}


def test_mathematics_asks_for_a_box(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", "math-ai/amc23")
    (record,) = load(tmp_path, "math-ai/amc23")
    assert record["prompt"] == "P\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert (record["answer"], record["dataset"], record["system"]) == ("27", "amc23", "-")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("a\n#### 1,000", "1000"),
        ("a\n#### -5", "-5"),
        ("a\n#### 3.50 \n", "3.50"),
        ("#### 1\nb\n#### $1,234,567", "1234567"),
    ],
)
def test_answers_of_gsm8k_keep_thousands_and_signs(solution: str, answer: str) -> None:
    assert gsm8k_answer(solution) == answer


@pytest.mark.parametrize("solution", ["no mark 5", "#### five", "#### 5\nand more", "####", ""])
def test_an_answer_of_gsm8k_that_is_no_number_is_refused(solution: str) -> None:
    with pytest.raises(ValueError, match="wanted a last line such as"):
        gsm8k_answer(solution)


def test_the_last_box_is_read_with_its_braces() -> None:
    assert boxed("\\boxed{1} then \\boxed{\\frac{a}{b}}.") == "\\frac{a}{b}"
    for text in ("no box }", "\\boxed{1"):
        with pytest.raises(ValueError, match="wanted a closed"):
            boxed(text)


def test_options_of_gpqa_are_shuffled_by_the_row_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in", "Idavidrein/gpqa-D")
    random.seed(1)
    first = load(tmp_path, "Idavidrein/gpqa-D")
    random.seed(2)
    assert load(tmp_path, "Idavidrein/gpqa-D", "--start_idx", 4) == first[4:]
    assert len({record["answer"] for record in first}) > 1
    for record in first:
        assert f"\n{record['answer']}: right\n" in record["prompt"]


def test_livecodebench_keeps_recent_contests_and_hidden_tests(tmp_path: Path) -> None:
    days = ["2025-01-31", "2025-02-01", "2025-04-30", "2025-05-01"]
    jsonl(tmp_path, "test.jsonl", [live(date=day, question_content=day) for day in days])
    kept = load(tmp_path, "livecodebench/code_generation_lite-v6")
    assert [record["prompt"].splitlines()[-1] for record in kept] == days[1:3]
    tests = json.loads(kept[0]["tests"])
    assert tests["inputs"] == ["0\n", "1\n", "2\n", "3\n"]
    assert (tests["testtype"], tests["time_limit"]) == ("stdin", 6)
    assert "The time limit is 1 second" in kept[0]["prompt"]


def test_a_functional_task_shows_its_signature_and_can_be_solved(tmp_path: Path) -> None:
    jsonl(tmp_path, "test.jsonl", [live("functional")])
    (record,) = load(tmp_path, "livecodebench/code_generation_lite-v6")
    assert record["prompt"].endswith("```python\ndef after(self, n: int) -> int:\n```")
    row = preprocess.row(record, "train")
    assert row["prompt"][-1]["content"].endswith("```python\ndef after(n: int) -> int:\n```")
    truth = row["reward_model"]["ground_truth"]
    for answer in ("def after(n):\n    return n + 1", "class Solution:\n    def after(self, n):\n        return n + 1"):
        assert verify("livecodebench", f"```python\n{answer}\n```", truth).success
    assert verify("livecodebench", "```python\ndef after(n):\n    return n\n```", truth).success is False


def test_humaneval_keeps_what_stands_before_the_function(tmp_path: Path) -> None:
    jsonl(tmp_path, "test.jsonl", [HUMANEVAL])
    (record,) = load(tmp_path, "evalplus/humanevalplus")
    tests = json.loads(record["tests"])
    assert (tests["context"], tests["fn_name"], tests["time_limit"]) == ("import math", "root", 5)
    assert tests["inputs"][0].endswith("check(root)")
    right = "```python\ndef root(n):\n    return math.sqrt(n)\n```"
    assert verify("humanevalplus", right, record["tests"], {"split": "test"}).success
    wrong = verify("humanevalplus", right.replace("sqrt(n)", "sqrt(n) + 1"), record["tests"], {"split": "test"})
    assert wrong.success is False


@pytest.mark.parametrize(
    ("assertion", "solution", "name"),
    [
        ("assert double(2) == 4", "def double(n): return 2 * n", "double"),
        ("assert sum(1, 2) == 3", "def sum(a, b): return a + b", "sum"),
        ("assert set(both((1, 2), (1,))) == set([1])", "", "both"),
        ("assert math.isclose(area(2), 4.0)", "", "area"),
        ("assert x", "not python", ""),
        ("", "", ""),
    ],
)
def test_the_function_under_test_is_known_by_name(assertion: str, solution: str, name: str) -> None:
    assert function_under_test(assertion, solution) == name


def test_mbpp_shows_one_assertion_and_checks_all(tmp_path: Path) -> None:
    jsonl(tmp_path, "test.jsonl", [MBPP])
    (record,) = load(tmp_path, "evalplus/mbppplus")
    assert record["prompt"].endswith("assert double(2) == 4")
    answers = {"2 * n": True, "n + 2": False}
    for body, right in answers.items():
        text = f"```python\ndef double(n):\n    return {body}\n```"
        assert verify("mbppplus", text, record["tests"], {"split": "test"}).success is right


def test_tasks_of_codeforces_with_many_right_answers_are_left_out(tmp_path: Path) -> None:
    others = [{**FORCES, **change} for change in ({"official_tests_complete": False}, {"input_mode": "file"})]
    jsonl(tmp_path, "train.jsonl", [FORCES, *others])
    (record,) = load(tmp_path, "open-r1/codeforces")
    assert (record["elo"], json.loads(record["tests"])["time_limit"]) == (800, 2.0)
    for part in ("Sum\n\nAdd two numbers.", "Input:\nTwo numbers.", "Example input:\n1 2\nExample output:\n3"):
        assert part in record["prompt"]


def test_rows_of_the_corpus_are_taken_as_they_are(tmp_path: Path) -> None:
    jsonl(tmp_path, "rows.jsonl", [CORPUS, {**CORPUS, "prompt": "Spoken", "elo": "-"}])
    first, second = load(tmp_path, "lasgroup/verifiable-corpus")
    assert (first["prompt"], first["answer"], first["elo"]) == ("What is 1 + 1? Box it.", "2", 1200)
    assert (second["prompt"], second["elo"]) == ("Spoken", 1500)


def test_tasks_are_chosen_by_category_start_and_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(tmp_path, "rows.jsonl", [science(n) for n in range(8)])
    chosen = load(tmp_path, "Biology", "--category", "sub1", "--start_idx", 1, "--num_el", 2)
    assert [(record["idx"], record["prompt"][:11]) for record in chosen] == [(1, "Which is 3?"), (2, "Which is 5?")]
    assert len(load(tmp_path, "Biology", "--category", "false")) == 8
    (tmp_path / "out" / "all.json").unlink()
    assert "there are: sub0, sub1" in refused(tmp_path, capsys, "Biology", "--category", "sub2")
    assert "leaves none of the 8 tasks" in refused(tmp_path, capsys, "Biology", "--start_idx", 8)
    assert "Physics" in refused(tmp_path, capsys, "Physics")


def test_embeddings_are_put_in_by_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(tmp_path, "rows.jsonl", [science(n) for n in range(3)])
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, np.arange(6.0).reshape(3, 2))
    (record,) = load(tmp_path, "Biology", "--embeddings_file", vectors, "--start_idx", 2)
    assert record["embedding"] == [4.0, 5.0]
    (tmp_path / "out" / "all.json").unlink()
    np.save(vectors, np.zeros((2, 2)))
    assert "has shape (2, 2); wanted 3 lists" in refused(tmp_path, capsys, "Biology", "--embeddings_file", vectors)


def test_faulty_rows_are_all_told_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [{"question": "P"}, {"question": "P", "answer": "none"}, {"question": None, "answer": "#### 1"}]
    jsonl(tmp_path, "test.jsonl", [*bad, *[{"question": "P"}] * 30])
    told = refused(tmp_path, capsys, "openai/gsm8k").splitlines()
    assert told[0] == "openai/gsm8k row 0: no column 'answer'; it has question"
    assert "row 1: the answer ends in 'none'" in told[1]
    assert "row 2: `question` is None" in told[2]
    assert told[-1] == "... and 13 rows more"


def test_the_files_of_the_split_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, problem in [("test2", "second"), ("test", "first"), ("sub/test-00001", "zeroth"), ("train", "other")]:
        (tmp_path / "in" / "sub").mkdir(parents=True, exist_ok=True)
        jsonl(tmp_path, f"{name}.jsonl", [{"problem": problem, "answer": "1"}])
    records = load(tmp_path, "math-ai/aime25")
    assert [record["prompt"].split("\n")[0] for record in records] == ["zeroth", "first", "second"]


def test_options_of_a_csv_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, question in [("gpqa_diamond", "one"), ("gpqa_main", "two")]:
        with (tmp_path / "in" / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(gpqa(0)))
            writer.writeheader()
            writer.writerow({**gpqa(0), "Question": f"{question},\nreally?"})
    (record,) = load(tmp_path, "Idavidrein/gpqa-D")
    assert record["prompt"].startswith("one,\nreally?\n\nA: ")


def test_what_cannot_be_loaded_is_refused_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "split_tasks.py" in refused(tmp_path, capsys, "tooluse")
    assert "did you mean openai/gsm8k?" in refused(tmp_path, capsys, "openai/gsm8")
    assert "no such folder" in refused(tmp_path, capsys, "Biology")
    (tmp_path / "in").mkdir()
    assert "no file of the split 'test'" in refused(tmp_path, capsys, "Biology")
    jsonl(tmp_path, "train.jsonl", [science(0)])
    assert "no file of the split 'test'" in refused(tmp_path, capsys, "Biology")
    for arguments in (
        ["--push_dataset_path", "x"],
        ["--download_output_dir", "x"],
        [],
        ["--dataset_name", "Biology"],
        ["--seed", "1"],
    ):
        with pytest.raises(SystemExit) as left:
            load_dataset.main(arguments)
        assert left.value.code == 2


def test_the_hub_is_asked_for_the_revision_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def answer(source: load_dataset.Source, revision: str) -> list[dict[str, Any]]:
        asked.append((source.hub, revision))
        if revision == "gone":
            raise sources_rows.FetchError("no such revision")
        return [live()]

    monkeypatch.setattr(load_dataset, "from_hub", answer)
    line = ["--dataset_name", "livecodebench/code_generation_lite-v6", "--output_path", tmp_path / "all.json"]
    assert run(*line) == 0
    assert run(*line, "--revision", "gone") == 1
    assert asked == [("livecodebench/code_generation_lite", revision) for revision in ("refs/pr/6", "gone")]
    assert "no such revision" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert run("--dataset_name", "Idavidrein/gpqa-D", "--output_path", tmp_path / "all.json") == 1
    told = capsys.readouterr().err
    assert "ConnectionError: no route" in told
    assert "accept its terms" in told
    assert "--local DIR" in told
    assert run("--download_hf_dataset_name", "a/b", "--download_output_dir", tmp_path) == 1


def test_the_download_mode_writes_a_file_per_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    splits = {split: datasets.Dataset.from_list([{"x": n} for n in range(3)]) for split in ("train", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision: splits)
    assert run("--download_hf_dataset_name", "a/b", "--download_output_dir", tmp_path / "copy") == 0
    assert pq.read_table(tmp_path / "copy" / "train.parquet").to_pylist() == [{"x": 0}, {"x": 1}, {"x": 2}]
    assert (tmp_path / "copy" / "test.parquet").exists()
