"""The command that verifies stored responses: what goes in comes out in order, with a verdict or why there is none."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mopd.rewards import verify
from mopd.types import Outcome
from tests.mopd.groups import PROMPT
from trainer.errors import BAD_INPUT, DONE, FAILURE
from trainer.score import Scorer, main
from trainer.score import scored as scored_lines
from trainer.workers.verifier import Verdict

RIGHT, WRONG = "7 + 5 = 2", "7 + 5 = 3"
ADDED = ["reward", "success", "status", "feedback"]


def line(response: Any = RIGHT, **fields: Any) -> dict[str, Any]:
    return {"data_source": "chain", "response": response, "ground_truth": PROMPT.ground_truth, **fields}


def written(folder: Path, *lines: dict[str, Any] | str | bytes) -> Path:
    """A file of these lines."""
    texts = [text if isinstance(text, str | bytes) else json.dumps(text) for text in lines]
    file = folder / "in.jsonl"
    file.write_bytes(b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in texts))
    return file


def scored(
    folder: Path, *lines: dict[str, Any] | str | bytes, options: list[str] | None = None
) -> list[dict[str, Any]]:
    """The lines that come out."""
    out = folder / "out.jsonl"
    assert main([str(written(folder, *lines)), str(out), *(options or [])]) == DONE
    assert {path.name for path in folder.iterdir()} >= {"in.jsonl", "out.jsonl"}
    assert not list(folder.glob(".*"))
    return [json.loads(text) for text in out.read_bytes().decode().split("\n")[:-1]]


def test_fields_stay_in_order_and_the_verdict_comes_after_them(tmp_path: Path) -> None:
    given = line(zebra=[1, {"é": None}], extra_info={"split": "test"}, alpha=1e-7, text="日本 \u2028")
    [found] = scored(tmp_path, given)
    assert list(found) == [*given, *ADDED]
    assert {name: found[name] for name in given} == given
    assert [found[name] for name in ADDED] == [1.0, True, "right", ""]


def test_many_lines_keep_their_order_whatever_the_number_of_workers(tmp_path: Path) -> None:
    choose = random.Random(0)
    lines = [line(choose.choice([RIGHT, WRONG, "x", f"<think>{WRONG}</think>{RIGHT}"]), number=n) for n in range(3000)]
    expected = [verify("chain", one["response"], one["ground_truth"]) for one in lines]
    for workers in ("1", "7"):
        found = scored(tmp_path, *lines, options=["--workers", workers])
        assert [one["number"] for one in found] == list(range(3000))
        assert [(one["reward"], one["success"], one["status"], one["feedback"]) for one in found] == [
            (outcome.reward, outcome.success, outcome.status, outcome.feedback) for outcome in expected
        ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"reward": NaN}', "NaN is no JSON"),
        ("[1, 2]", "must be a JSON object"),
        (b'{"response": "\xff"}', "utf-8"),
    ],
)
def test_a_line_that_is_no_object_is_kept_as_text(tmp_path: Path, given: str | bytes, said: str) -> None:
    before, found, after = scored(tmp_path, line(), given, line(WRONG))
    assert (before["status"], after["status"]) == ("right", "wrong")
    text = given if isinstance(given, str) else given.decode("utf-8", "replace")
    assert list(found) == ["line", *ADDED]
    assert (found["line"], found["reward"], found["success"], found["status"]) == (text, None, None, "unknown")
    assert said in found["feedback"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (line(data_source="chian"), "did you mean 'chain'?"),
        (line(data_source=None), "data_source is missing"),
        (line(3), "response must be text; got 3"),
        (line(ground_truth=None), "ground_truth is missing"),
        (line(ground_truth="2"), "the ground truth of a chain must be"),
        (line(extra_info=[1]), "extra_info must be an object"),
        ({"response": RIGHT}, "data_source is missing"),
        ({}, "data_source is missing"),
    ],
)
def test_an_object_that_cannot_be_verified_keeps_its_fields(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    [found] = scored(tmp_path, given)
    assert list(found) == [*given, *ADDED]
    assert [found[name] for name in ADDED[:3]] == [None, None, "unknown"]
    assert said in found["feedback"]


def test_a_ground_truth_may_be_an_object_and_extra_info_null(tmp_path: Path) -> None:
    [found] = scored(tmp_path, line(ground_truth=json.loads(PROMPT.ground_truth), extra_info=None))
    assert found["status"] == "right"


def test_what_was_scored_before_is_scored_anew_in_its_place(tmp_path: Path) -> None:
    [found] = scored(tmp_path, {"status": "wrong", "reward": 0.0, **line()})
    assert list(found)[:2] == ["status", "reward"]
    assert (found["status"], found["reward"]) == ("right", 1.0)


def test_a_lone_surrogate_passes(tmp_path: Path) -> None:
    [found] = scored(tmp_path, line("\ud800"))
    assert (found["response"], found["status"]) == ("\ud800", "wrong")


def test_the_output_may_be_the_input_or_a_link_to_it(tmp_path: Path) -> None:
    file = written(tmp_path, line(), line(WRONG))
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)
    assert main([str(file), str(link)]) == DONE
    assert link.is_symlink()
    assert [json.loads(text)["status"] for text in file.read_text().splitlines()] == ["right", "wrong"]


def test_an_empty_file_gives_an_empty_file(tmp_path: Path) -> None:
    assert scored(tmp_path) == []


def test_a_function_of_ones_own_serves_every_data_source(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def half(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': len(solution_str) / 0 if solution_str == 'bad' else 0.5, 'feedback': data_source}\n"
    )
    lines = [line("x", data_source=name) for name in ("nowhere", "chain")]
    found = scored(tmp_path, *lines, line("bad"), options=["--custom", f"{file}:half"])
    assert [(one["reward"], one["status"], one["feedback"]) for one in found[:2]] == [
        (0.5, "wrong", "nowhere"),
        (0.5, "wrong", "chain"),
    ]
    assert (found[2]["status"], found[2]["reward"]) == ("unknown", None)
    assert "ZeroDivisionError" in found[2]["feedback"]


@pytest.mark.parametrize("options", [["--custom", "nothing.py"], ["--custom", "tests/conftest.py:nothing"]])
def test_a_function_that_cannot_be_used_is_refused(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written(tmp_path, line())), str(tmp_path / "out.jsonl"), *options]) == BAD_INPUT
    assert options[1] in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_had_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(written(tmp_path, line())), str(tmp_path / "out.jsonl")
    for given in ([str(tmp_path / "none.jsonl"), out], [str(tmp_path), out], [file, str(tmp_path)]):
        assert main(given) == BAD_INPUT
    assert main([file, str(tmp_path / "no folder" / "out.jsonl")]) == BAD_INPUT
    assert capsys.readouterr().err.count("nothing was started") == 4
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl"}
    for given in ([], [file], [file, out, "--workers", "0"], [file, out, "--deadline", "nan"]):
        with pytest.raises(SystemExit, match="2"):
            main(given)


def test_a_disk_that_is_full_leaves_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old\n")

    def full(record: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.score.as_line", full)
    assert main([str(written(tmp_path, line())), str(out)]) == FAILURE
    assert out.read_text() == "old\n"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    function = tmp_path / "slow.py"
    function.write_text("import time\ndef compute_score(**fields):\n    time.sleep(600)\n")
    file, out = written(tmp_path, line()), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "trainer.score", str(file), str(out), "--custom", str(function)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    begun = time.monotonic()
    while not list(tmp_path.glob(".out.jsonl.*")) and time.monotonic() < begun + 60:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_a_process_that_starts_while_all_are_ended_is_ended_too() -> None:
    class Late(Scorer):
        """Has a process only after it was closed once."""

        closed = 0
        ended = threading.Event()

        def __call__(self, line: bytes) -> tuple[dict[str, Any], Verdict]:
            assert self.ended.wait(60)
            return {}, Verdict(Outcome.of(True))

        def close(self) -> None:
            self.closed += 1
            if self.closed > 1:
                self.ended.set()

    scorer = Late(None)

    def lines() -> Iterator[bytes]:
        yield b""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(scored_lines(lines(), scorer, 1))
    assert scorer.ended.is_set()


def test_it_needs_no_ray_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from trainer.score import main;"
        f"assert main([{str(written(tmp_path, line()))!r}, {os.devnull!r}]) == 0;"
        "sys.exit(bool({'ray', 'torch', 'vllm'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_records_of_a_run_can_be_given_as_they_are(tmp_path: Path) -> None:
    record = {"data_source": "chain", "output": RIGHT, "gts": PROMPT.ground_truth, "score": 0.0, "status": "wrong"}
    [found] = scored(tmp_path, record)
    assert (found["reward"], found["status"], found["output"]) == (1.0, "right", RIGHT)
