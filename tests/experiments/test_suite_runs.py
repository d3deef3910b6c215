"""Suites that run: a run that fails does not stop the others, once more goes on, and the ablations end in a report."""

import re
import signal
import sys
import time

import pytest

from tests.experiments.suites import ABLATIONS, GRPO, started

# ------------------------------------------------------------------ one after the other


def test_a_run_that_fails_is_told_and_the_others_go_on(call, tmp_path):
    done = call(GRPO, "--local", "--quick", FAILING="lr1e-5-mini32", CODE="3")
    names = [f"grpo-chain-embedded-lr{lr}-mini{mini}-seed42" for lr in ("1e-5", "1e-6") for mini in (8, 32)]
    assert done.returncode == 1
    assert started(tmp_path) == names
    table = dict(line.split(maxsplit=1) for line in done.stdout.strip().splitlines()[1:])
    assert list(table) == names
    assert [result.startswith("done") for result in table.values()] == [True, False, True, True]
    assert table[names[1]].startswith("FAILED: it no longer learnt (exit code 3)")
    assert f"| what {names[1]} says\n" in done.stderr, "the end of its log"
    log = tmp_path / f"outputs/generalization-quick/logs/{names[0]}.log"
    assert f"what {names[0]} says\n" in log.read_text()


def test_once_more_skips_what_is_done_and_starts_the_rest(call, tmp_path):
    assert call(GRPO, "--local", "--quick", FAILING="lr1e-5-mini32").returncode == 1
    assert len(started(tmp_path)) == 4
    again = call(GRPO, "--local", "--quick")
    assert again.returncode == 0
    assert started(tmp_path) == ["grpo-chain-embedded-lr1e-5-mini32-seed42"]
    assert again.stdout.count("done before") == 3
    assert call(GRPO, "--local", "--quick").returncode == 0
    assert started(tmp_path) == []
    assert call(GRPO, "--local", "--quick", TOTAL_STEPS="3").returncode == 0
    assert len(started(tmp_path)) == 4, "other runs: the trainer decides whether they go on"


def test_runs_stopped_in_order_are_not_failures(call, tmp_path):
    done = call(GRPO, "--local", "--quick", FAILING="mini8", CODE="75")
    assert done.returncode == 75
    assert len(started(tmp_path)) == 4
    assert done.stdout.count("stopped (exit code 75)") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_run_save_and_ends_the_suite(call, tmp_path, number):
    ready = tmp_path / "ready"
    process = call(ABLATIONS, "--local", "--only", "2S1F,F", SEEDS="0", LINGERING=str(ready), popen=True)
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert started(tmp_path) == ["2S1F-seed0"]
    assert re.search(r"^2S1F-seed0 +stopped \(exit code 75\)", out, re.M)
    assert re.search(r"^F-seed0 +not started$", out, re.M)


# ------------------------------------------------------------------ the report of the ablations


def test_the_report_compares_what_is_done_with_the_first_variant(call, tmp_path):
    done = call(ABLATIONS, "--local", "--only", "2S1F,F,alpha*", SEEDS="0 1", FAILING="alpha1-seed1")
    assert done.returncode == 1
    folder = tmp_path / "outputs/ablations"
    runs = ["2S1F-seed0", "2S1F-seed1", "F-seed0", "F-seed1", "alpha0-seed0", "alpha0-seed1", "alpha1-seed0"]
    given = [f"{name.partition('-')[0]}={folder}/{name}" for name in runs]
    assert (folder / "report/comparison.txt").read_text().splitlines()[3:] == [
        *given, "--figure", f"{folder}/report/comparison.png"
    ]  # fmt: skip
    assert (folder / "report/contexts.txt").read_text().splitlines()[3:-2] == given[:4]
    assert (folder / "report/alpha.txt").read_text().splitlines()[3:-2] == [*given[:2], *given[4:]]
    assert not (folder / "report/teacher.png").exists()
    assert "\n  figure    " in done.stdout
    page = (folder / "report/index.html").read_text()
    assert page.count("<img ") == 3
    for name in [*runs, "alpha1-seed1"]:
        assert f'href="../{name}/report.html"' in page
    assert "One seed" not in page


def test_without_a_finished_run_there_is_no_report(call, tmp_path):
    done = call(ABLATIONS, "--local", "--only", "k1", SEEDS="0", FAILING="k1")
    assert done.returncode == 1
    assert "nothing to compare" in done.stderr
    assert not (tmp_path / "outputs/ablations/report").exists()


# ------------------------------------------------------------------ for real


@pytest.mark.slow
@pytest.mark.e2e
def test_the_quick_ablations_end_with_a_table_and_a_figure(call, tmp_path):
    def ablations():
        real = {"MOPD_PYTHON": sys.executable, "TOTAL_STEPS": "1"}
        return call(ABLATIONS, "--local", "--quick", "--only", "2S1F,F", **real)

    done = ablations()
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ *2S1F +1 +0\.\d+ +0\.\d+", done.stdout, re.M)
    assert re.search(r"^ *F +1 .* [+-]0\.\d+ *$", done.stdout, re.M), "its difference from the first"
    folder = tmp_path / "outputs/ablations-quick"
    assert (folder / "report/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "2S1F-seed0/report.html").exists()
    again = ablations()
    assert (again.returncode, again.stdout.count("done before")) == (0, 2)
