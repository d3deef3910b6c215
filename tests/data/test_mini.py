"""The mini-benchmarks: the same from their seed, solvable, and nothing held out is trained on."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import mini
import mini_science
import preprocess
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_choice import SCIENCE_SYSTEM
from transformers import AutoTokenizer

from mopd.rewards import check_ground_truth, verify

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
SHIPPED = DATASETS / "mini"
SOURCES = {"science": "sciknoweval", "math": "math", "code": "livecodebench", "tooluse": "tooluse"}
FAMILIES = sorted(SOURCES)


def shipped(family: str, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(SHIPPED / family / f"{split}.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for folder in folders:
        random.seed(str(folder))  # the state of the random module must not matter
        assert mini.main(["--output", str(folder)]) == 0
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_writes_the_committed_rows_and_the_same_bytes_twice(family: str, made: tuple[Path, Path]) -> None:
    for name in ("train.parquet", "test.parquet"):
        first, second = (folder / family / name for folder in made)
        assert first.read_bytes() == second.read_bytes()
        committed = SHIPPED / family / name
        assert pq.read_table(first).equals(pq.read_table(committed))
        assert pq.read_schema(first).equals(preprocess.schema(pa.int64()))
        # Another version of the writer may lay the same rows out in other bytes.
        if pq.read_metadata(first).created_by == pq.read_metadata(committed).created_by:
            assert first.read_bytes() == committed.read_bytes()


def test_the_readme_has_the_sums_of_the_committed_files() -> None:
    text = (SHIPPED / "README.md").read_text()
    for path in sorted(SHIPPED.glob("*/*.parquet")):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text, path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_splits_share_no_problem_and_repeat_none(family: str) -> None:
    problems = mini.splits(family, 256, 64, 0)
    assert [len(problems["train"]), len(problems["test"])] == [256, 64]
    assert len({problem.content for split in problems.values() for problem in split}) == 320
    texts = [row["prompt"][-1]["content"] for split in problems for row in shipped(family, split)]
    assert len(set(texts)) == 320


@pytest.mark.parametrize("family", FAMILIES)
def test_a_longer_training_set_keeps_what_is_held_out(family: str) -> None:
    short, longer = mini.splits(family, 4, 8, 0), mini.splits(family, 9, 8, 0)
    assert short["test"] == longer["test"]
    assert short["train"] == longer["train"][:4]
    assert mini.splits(family, 4, 8, 1)["test"] != short["test"]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_have_the_published_columns_and_ground_truths_that_are_taken(family: str) -> None:
    for split in ("train", "test"):
        for index, row in enumerate(shipped(family, split)):
            assert row["data_source"] == SOURCES[family]
            assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (split, str(index))
            check_ground_truth(row["data_source"], row["reward_model"]["ground_truth"])


def verdicts(family: str, count: int, solution_of: int = 0) -> list[bool | None]:
    """The verdicts on solutions of the first held-out and training problems, or on those of their neighbours."""
    found = []
    for split, problems in mini.splits(family, 256, 64, 0).items():
        rows = shipped(family, split)
        for place in range(min(count, len(rows))):
            solution = problems[(place + solution_of) % len(problems)].solution
            truth = rows[place]["reward_model"]["ground_truth"]
            found.append(verify(SOURCES[family], solution, truth, rows[place]["extra_info"]).success)
    return found


@pytest.mark.parametrize(("family", "count"), [("code", 12), ("math", 256), ("science", 256), ("tooluse", 256)])
def test_the_solutions_are_right(family: str, count: int) -> None:
    assert set(verdicts(family, count)) == {True}


@pytest.mark.slow
def test_the_solutions_of_all_programs_are_right() -> None:
    assert set(verdicts("code", 256)) == {True}


@pytest.mark.parametrize(("family", "count"), [("code", 12), ("math", 64), ("science", 64), ("tooluse", 64)])
def test_the_solution_of_another_problem_is_mostly_wrong(family: str, count: int) -> None:
    found = verdicts(family, count, solution_of=1)
    assert found.count(False) > len(found) * (0.5 if family == "science" else 0.85)
    assert None not in found


def test_no_letter_is_right_much_more_often() -> None:
    letters = [row["reward_model"]["ground_truth"] for row in shipped("science", "train")]
    assert all(0.15 < letters.count(letter) / len(letters) < 0.35 for letter in "ABCD")


def test_science_is_asked_as_the_published_rows_are() -> None:
    for row in shipped("science", "test"):
        system, user = row["prompt"]
        assert (system["role"], system["content"]) == ("system", SCIENCE_SYSTEM)
        options = [line for line in user["content"].splitlines() if line[:3] in ("A: ", "B: ", "C: ", "D: ")]
        assert len({option[3:] for option in options}) == 4
        assert user["content"].endswith("\nPlease reason step by step.")


@pytest.mark.parametrize(
    ("formula", "mass"), [("H2O", 18.015), ("C6H12O6", 180.156), ("H2SO4", 98.07), ("CaCO3", 100.086)]
)
def test_molar_masses_are_those_of_the_books(formula: str, mass: float) -> None:
    assert mini_science.molar_mass(formula) == pytest.approx(mass, abs=0.01)


def test_no_constant_passes_the_tests_of_a_program() -> None:
    for split in ("train", "test"):
        for row in shipped("code", split):
            assert len(set(json.loads(row["reward_model"]["ground_truth"])["outputs"])) >= 3


def test_some_arguments_are_nested_and_some_requests_take_two_calls() -> None:
    truths = [json.loads(row["reward_model"]["ground_truth"]) for row in shipped("tooluse", "train")]
    assert 0.1 < sum(len(calls) == 2 for calls in truths) / len(truths) < 0.4
    arguments = [json.loads(call["Action_Input"]) for calls in truths for call in calls]
    assert sum(any(isinstance(value, dict | list) for value in one.values()) for one in arguments) > 50


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_short_for_the_embedded_model(family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATASETS / "chain" / "model")
    for row in shipped(family, "train"):
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert len(tokenizer(text)["input_ids"]) <= 800


def test_what_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mini.main(["--output", str(tmp_path), "--train", "0"]) == 2
    assert "--train and --test must be 1 or more" in capsys.readouterr().err
    monkeypatch.setattr(mini, "TRIES", 1)
    assert mini.main(["--output", str(tmp_path / "new"), "--train", "2000"]) == 2
    assert "ask for fewer" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
