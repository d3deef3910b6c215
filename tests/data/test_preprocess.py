"""From published records to parquet: the columns, the refusals, and nothing half-written."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data" / "preprocess.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preprocess", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


preprocess = load()


def record(index: int = 1, **changes: Any) -> dict[str, Any]:
    made = {
        "idx": index,
        "kind": "mcq",
        "dataset": "sciknoweval",
        "answer": "B",
        "elo": 1500,
        "prompt": f"Question {index}?\u2028\n\nA: 1\nB: 2\n",
        "description": f"Question {index}?",
        "tests": "-",
        "embedding": [],
        "system": "\nAnswer with <answer>.\n",
    }
    return {**made, **changes}


def lines(records: list[Any]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)


def folder(where: Path, train: str, test: str | None = None) -> Path:
    where.mkdir(exist_ok=True)
    (where / "train.json").write_text(train, encoding="utf-8")
    (where / "test.json").write_text(lines([record(99)]) if test is None else test, encoding="utf-8")
    return where


def run(*arguments: object) -> int:
    code = preprocess.main([str(argument) for argument in arguments])
    assert isinstance(code, int)
    return code


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def test_a_record_becomes_the_published_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "source", lines([record(3), record(4, system=None, embedding=[0.5, 2])]))
    assert run("--data_source", source) == 0
    first, second = rows(source / "train.parquet")
    question = "Question 3?\u2028\n\nA: 1\nB: 2\n"
    assert first == {
        "prompt": [
            {"role": "system", "content": "\nAnswer with <answer>.\n"},
            {"role": "user", "content": question},
        ],
        "data_source": "sciknoweval",
        "ability": "mcq",
        "reward_model": {"style": "mcq", "ground_truth": "B"},
        "extra_info": {
            "split": "train",
            "index": "3",
            "description": "Question 3?",
            "problem": question,
            "elo": 1500,
            "achievement_prior": 0,
        },
        "system": "\nAnswer with <answer>.\n",
        "embedding": [],
    }
    assert [message["role"] for message in second["prompt"]] == ["user"]
    assert (second["system"], second["embedding"]) == (None, [0.5, 2.0])
    assert rows(source / "test.parquet")[0]["extra_info"]["split"] == "test"
    assert capsys.readouterr().out.splitlines() == [
        f"2 rows: {source / 'train.parquet'}",
        f"1 rows: {source / 'test.parquet'}",
    ]


def test_the_file_is_zstd_in_row_groups_of_32(tmp_path: Path) -> None:
    source = folder(tmp_path, lines([record(index) for index in range(70)]))
    assert run("--data_source", source) == 0
    meta = pq.ParquetFile(source / "train.parquet").metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [32, 32, 6]
    assert meta.row_group(0).column(0).compression == "ZSTD"


def test_an_array_is_read_like_lines_and_the_output_is_always_the_same(tmp_path: Path) -> None:
    records = [record(1), record(2)]
    files = {}
    for name, text in [
        ("lines", "\n" + lines(records)),
        ("crlf", lines(records).replace("\n", "\r\n")),
        ("mark", "\ufeff" + lines(records)),
        ("array", json.dumps(records)),
        ("tall", " \n" + json.dumps(records, indent=2) + "\n"),
    ]:
        source = folder(tmp_path / name, text)
        target = tmp_path / f"{name}-out" / "deep"
        assert run("--data_source", source, "--output", target) == 0
        assert run("--data_source", source, "--output", target) == 0
        assert sorted(path.name for path in target.iterdir()) == ["test.parquet", "train.parquet"]
        files[name] = (target / "train.parquet").read_bytes()
    assert len(set(files.values())) == 1


@pytest.mark.parametrize("blank", [None, "", " \n", "-"])
def test_a_blank_system_message_is_not_spoken_but_kept(tmp_path: Path, blank: str | None) -> None:
    source = folder(tmp_path, lines([record(system=blank)]))
    assert run("--data_source", source) == 0
    (row,) = rows(source / "train.parquet")
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert row["system"] == blank


def test_the_type_of_elo_follows_the_records_in_both_files(tmp_path: Path) -> None:
    source = folder(tmp_path, lines([record(elo=None), record(elo=1500)]), lines([record(elo=1500.5)]))
    assert run("--data_source", source) == 0
    for split in ("train", "test"):
        column = pq.read_schema(source / f"{split}.parquet").field("extra_info").type.field("elo")
        assert column.type == pa.float64()


def test_all_problems_are_told_at_once_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [
        json.dumps(record(1)),
        json.dumps(record(2, answer=None)),
        "",
        json.dumps(record(3, answer=" ")),
        json.dumps(record(4, answer="B or C")),
        json.dumps(record(5, dataset="sciknowevel")),
        '{"idx": 6,',
        "[7]",
        '{"idx": 8} 9',
        json.dumps(record(9, prompt=5, idx=True, elo="high", embedding=["x"])),
        '{"prompt": "\\ud800"}',
        json.dumps(record(11, elo=10**20)),
        json.dumps(record(12, elo=float("nan"))),
        json.dumps(record(13, prompt=["long"] * 100)),
    ]
    source = folder(tmp_path, "\n".join(bad), lines([record(1, kind=None)]))
    assert run("--data_source", source) == 2
    assert sorted(path.name for path in source.iterdir()) == ["test.json", "train.json"]
    told = capsys.readouterr().err.splitlines()
    expected = [
        ("train", 2, "`answer` is null; wanted the ground truth, as text that is not blank"),
        ("train", 4, '`answer` is " "; wanted'),
        ("train", 5, "`answer` or `dataset` cannot be used: data_source 'sciknoweval': the ground truth of a choice"),
        ("train", 6, "did you mean 'sciknoweval'?"),
        ("train", 7, "is not JSON"),
        ("train", 8, "a record must be a JSON object; got [7]"),
        ("train", 9, "is not JSON: text follows the end of the value"),
        ("train", 10, "`idx` is true; wanted"),
        ("train", 10, "`prompt` is 5; wanted"),
        ("train", 10, '`elo` is "high"; wanted'),
        ("train", 10, '`embedding` is ["x"]; wanted'),
        ("train", 11, "`idx` is missing"),
        ("train", 11, '`prompt` is "\\ud800"; wanted'),
        ("train", 11, "`answer` is missing"),
        ("train", 11, "`dataset` is missing"),
        ("train", 11, "`kind` is missing"),
        ("train", 12, "`elo` is 100000000000000000000; wanted"),
        ("train", 13, "`elo` is NaN; wanted"),
        ("train", 14, "... (800 characters); wanted the question"),
        ("test", 1, "`kind` is null; wanted"),
    ]
    assert len(told) == len(expected)
    for line, (split, number, words) in zip(told, expected, strict=True):
        assert line.startswith(f"{source / f'{split}.json'}:{number}: ")
        assert words in line


@pytest.mark.parametrize(
    ("text", "number", "words"),
    [
        ("[\n{record},\n{record}", 3, "wanted `,` between records or `]`"),
        ("[\n{record}\n{record}]", 3, "wanted `,` between records or `]`"),
        ("[\n{record},\n]", 3, "is not JSON"),
        ("[\n{record},\n5]", 3, "a record must be a JSON object; got 5"),
        ("[\n{record}]\nmore", 3, "wanted `,` between records or `]`"),
        ("[{record}, {bad}]", 1, "is not JSON"),
        ("[" * 100_000, 1, "is not JSON"),
    ],
)
def test_a_broken_array_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, number: int, words: str
) -> None:
    source = folder(tmp_path, text.replace("{record}", json.dumps(record())).replace("{bad}", '{"idx": }'))
    assert run("--data_source", source) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{source / 'train.json'}:{number}: ")
    assert words in told


@pytest.mark.parametrize("empty", ["", "\n \n", "[]", " [ ]\n"])
def test_a_file_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: str) -> None:
    source = folder(tmp_path, empty)
    assert run("--data_source", source) == 2
    assert capsys.readouterr().err.startswith(f"{source / 'train.json'}: holds no record")


def test_a_missing_folder_or_file_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data_source", tmp_path / "nowhere") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "No such file or directory" in told[0]
    source = folder(tmp_path / "half", lines([record()]))
    (source / "test.json").unlink()
    assert run("--data_source", source) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{source / 'test.json'}: cannot be read")
    (source / "test.json").write_bytes(b"\xff\xfe{}")
    assert run("--data_source", source) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told_and_older_files_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path, lines([record()]))
    assert run("--data_source", source, "--output", source / "train.json") == 2
    assert "--output" in capsys.readouterr().err
    assert run("--data_source", source) == 0
    before = (source / "train.parquet").read_bytes()
    folder(tmp_path, lines([record(), record(2)]))
    write_table = pq.write_table

    def disk_full_at_the_second(table: pa.Table, path: Path, **options: Any) -> None:
        if path.name == "test.parquet":
            raise OSError("No space left on device")
        write_table(table, path, **options)

    monkeypatch.setattr(pq, "write_table", disk_full_at_the_second)
    assert run("--data_source", source) == 2
    assert (source / "train.parquet").read_bytes() == before
    names = sorted(path.name for path in source.iterdir())
    assert names == ["test.json", "test.parquet", "train.json", "train.parquet"]


def test_the_command_exits_with_its_code(tmp_path: Path) -> None:
    source = folder(tmp_path, lines([record()]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def command(where: Path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(SCRIPT), "--data_source", str(where)]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)

    assert command(source).returncode == 0
    refused = command(tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_real_rows_are_read_whole(tmp_path: Path) -> None:
    real = os.environ.get("MOPD_REAL_ROWS")
    if not real:
        pytest.skip("MOPD_REAL_ROWS is not set; it names a folder with sciknoweval/chemistry/train.json")
    source = Path(real) / "sciknoweval" / "chemistry"
    assert run("--data_source", source, "--output", tmp_path) == 0
    for split in ("train", "test"):
        records = [json.loads(line) for line in (source / f"{split}.json").read_text().splitlines()]
        converted = rows(tmp_path / f"{split}.parquet")
        assert [
            (
                row["extra_info"]["index"],
                row["reward_model"]["ground_truth"],
                row["prompt"],
                row["extra_info"]["description"],
            )
            for row in converted
        ] == [
            (
                str(one["idx"]),
                one["answer"],
                [{"role": "system", "content": one["system"]}, {"role": "user", "content": one["prompt"]}],
                one["description"],
            )
            for one in records
        ]


# ------------------------------------------------------------------ programming tasks


TESTS = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"], "testtype": "stdin", "fn_name": "", "time_limit": 6})


def programming(index: int = 1, **changes: Any) -> dict[str, Any]:
    made = {"kind": "code", "dataset": "livecodebench", "answer": "-", "tests": TESTS, "system": "-", "elo": "-"}
    return record(index, **{**made, **changes})


def test_the_tests_of_a_programming_task_are_its_ground_truth(tmp_path: Path) -> None:
    source = folder(tmp_path, lines([programming(1), programming(2, answer="print(2)", system=None)]))
    assert run("--data_source", source) == 0
    for row in rows(source / "train.parquet"):
        assert row["reward_model"] == {"style": "code", "ground_truth": TESTS}
        assert [message["role"] for message in row["prompt"]] == ["user"]
    first, second = rows(source / "train.parquet")
    assert (first["system"], second["system"]) == ("-", None)
    assert first["extra_info"]["elo"] is None


def test_a_programming_task_without_usable_tests_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [programming(1, tests="-"), programming(2, tests='{"inputs": []}'), record(3, answer="-")]
    assert run("--data_source", folder(tmp_path, lines(bad))) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert '`tests` is "-"; wanted the ground truth' in first
    assert "`tests` or `dataset` cannot be used: data_source 'livecodebench'" in second
    assert '`answer` is "-"; wanted the ground truth' in third


def test_unusable_records_are_left_out_when_asked_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path, lines([record(1), record(2, answer="?"), record(3)]))
    assert run("--data_source", source) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert run("--data_source", source, "--drop") == 0
    assert capsys.readouterr().err.splitlines() == [f"warning: left out: {told}"]
    assert [row["extra_info"]["index"] for row in rows(source / "train.parquet")] == ["1", "3"]
    folder(tmp_path, lines([record(2, answer="?")]))
    assert run("--data_source", source, "--drop") == 2
    assert "no train record can be used" in capsys.readouterr().err
    folder(tmp_path, lines([record(1), record(2, answer="?", kind=None)]))
    assert run("--data_source", source, "--drop") == 2


def test_self_is_taken_out_of_a_signature_but_not_out_of_a_class(tmp_path: Path) -> None:
    alone, whole = "Do it.\ndef f(self, n: int):", "Do it.\nclass Solution:\n    def f(self, n: int):"
    made = [programming(1, prompt=alone, description=alone), programming(2, prompt=whole), record(3, prompt=alone)]
    source = folder(tmp_path, lines(made))
    assert run("--data_source", source) == 0
    first, second, third = rows(source / "train.parquet")
    stripped = alone.replace("self, ", "")
    assert first["prompt"][0]["content"] == stripped
    assert (first["extra_info"]["problem"], first["extra_info"]["description"]) == (stripped, stripped)
    assert second["prompt"][0]["content"] == whole
    assert third["prompt"][-1]["content"] == alone


# ------------------------------------------------------------------ one file alone


def test_held_out_rows_alone_are_converted_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path, lines([record()]))
    (source / "train.json").unlink()
    assert run("--data_source", source) == 2
    assert "with --splits test it is not needed" in capsys.readouterr().err
    assert run("--data_source", source, "--splits", "test") == 0
    assert sorted(path.name for path in source.iterdir()) == ["test.json", "test.parquet"]


def test_a_single_file_is_to_be_split_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = tmp_path / "sample.json"
    single.write_text(lines([record()]))
    assert run("--data_source", tmp_path) == 2
    wanted = f"python data/split_tasks.py --json_path {single} --output_dir {tmp_path}"
    assert all(wanted in line for line in capsys.readouterr().err.splitlines())


def test_real_tool_rows_are_split_and_read(tmp_path: Path, real_rows: Path) -> None:
    import split_tasks

    single = real_rows / "tooluse" / "sample.json"
    assert split_tasks.main(["--json_path", str(single), "--output_dir", str(tmp_path)]) == 0
    assert run("--data_source", tmp_path) == 0
    counts = {split: len(rows(tmp_path / f"{split}.parquet")) for split in ("train", "test")}
    assert counts == {"train": 30, "test": 4}
