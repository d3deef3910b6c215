"""A trace that viewers read, with everybody's part on one clock; and what the table makes of it."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from trainer import profile
from trainer.workers import profiling
from trainer.workers.profiling import Event, Own, Trace, Watch, events_of, own_times


def event(name, begun, took, lane="MainThread", **details):
    return Event(name, lane, float(begun), float(took), details)


# ------------------------------------------------------------------ what a process notes


def test_operators_lie_within_the_span_around_them():
    """Torch's clock is not the machine's: without the mark they would be years apart."""
    watch = Watch("actor rank 0")
    watch.record_operators()
    begun = time.time_ns() / 1000
    with watch.span("learn", step=2):
        torch.ones(64, 64).requires_grad_().square().sum().backward()
    trace = watch.trace()
    [span] = trace.spans
    assert begun <= span.begun_us <= span.ended_us <= time.time_ns() / 1000
    assert span.details == {"step": 2}
    power = next(one for one in trace.operators if one.name == "aten::pow")
    assert span.begun_us <= power.begun_us <= power.ended_us <= span.ended_us
    assert any("Backward" in one.name for one in trace.operators)
    assert {own.name for own in trace.own} >= {"aten::pow"}
    assert not any(one.name == profiling.MARK for one in trace.operators)


def test_a_span_that_fails_is_noted_all_the_same():
    watch = Watch("controller")
    with pytest.raises(ValueError, match="lost"), watch.span("sample"):
        raise ValueError("lost")
    assert [span.name for span in watch.trace().spans] == ["sample"]


def test_what_lies_within_is_not_ones_own():
    """By lane: what another thread does at the same time lies beside, not within."""
    events = [
        event("outer", 0, 100),
        event("inner", 10, 30),
        event("inmost", 20, 5),
        event("inner", 40, 20),
        event("other", 15, 80, lane="another thread"),
    ]
    assert [(own.name, own.calls, round(own.seconds * 1e6)) for own in own_times(events)] == [
        ("other", 1, 80),
        ("outer", 1, 50),
        ("inner", 2, 45),
        ("inmost", 1, 5),
    ]


def test_a_gpus_queues_have_lanes_of_their_own():
    told = [
        {"ph": "X", "cat": "user_annotation", "name": profiling.MARK, "pid": 77, "tid": 5, "ts": 1000.0, "dur": 1.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 77, "tid": 5, "ts": 1010.0, "dur": 2.0},
        {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 1015.0, "dur": 9.0},
        {"ph": "X", "cat": "Trace", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": 0, "ts": 1.0, "dur": 1.0},
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "pid": 77, "tid": 5, "ts": 1010.0},
    ]
    found = events_of(told, 5000.0, 77)
    assert [(one.name, one.lane, one.begun_us) for one in found] == [
        ("aten::mm", "operators 5", 5010.0),
        ("gemm", "GPU 0 queue 7", 5015.0),
    ]


def test_the_shortest_operators_are_left_out_of_a_long_trace(monkeypatch):
    monkeypatch.setattr(profiling, "MAX_OPERATORS", 3)
    watch = Watch("actor rank 0")
    watch.record_operators()
    for _ in range(4):
        torch.ones(8).add(1)
    trace = watch.trace()
    assert len(trace.operators) == 3
    assert trace.dropped > 0
    assert sum(own.calls for own in trace.own) == 3 + trace.dropped
    assert profile.chrome([trace])["otherData"]["short operators left out"] == {"actor rank 0": trace.dropped}


# ------------------------------------------------------------------ what is made of it

TRACES = [
    Trace(
        "controller",
        (
            event("sample", 0, 9e6, step=1),
            event("sample", 10e6, 2e6, step=2),
            event("learn", 12e6, 5e6, step=2),
            event("validate", 17e6, 30e6, step=2),
            event("remember", 47e6, 1e6, step=2),
        ),
    ),
    Trace("sampler", (event("sample", 1, 8e6), event("sample", 10.1e6, 1.5e6), event("sample", 18e6, 20e6))),
    Trace("actor rank 0", (event("learn", 12.5e6, 4e6, step=2),), own=(Own("aten::mm", 7, 3.0),)),
]


def test_the_table_is_of_the_steps_after_the_first_without_validation():
    rows = [line.split() for line in profile.table(TRACES)]
    assert ["sample", "2.000", "25.0%"] in rows
    assert ["learn", "5.000", "62.5%"] in rows
    assert ["between", "phases", "0.000", "0.0%"] in rows
    assert ["sampler:", "sample", "1.500", "18.8%"] in rows, "neither the first step's nor validation's"
    assert ["actor", "rank", "0:", "learn", "4.000", "50.0%"] in rows
    assert ["aten::mm", "3.000", "100.0%", "7"] in rows
    assert not any("validate" in row for row in rows)


def test_a_run_that_ended_in_its_first_step_has_nothing_to_tell():
    [line] = profile.table([Trace("controller", TRACES[0].spans[:1])])
    assert "nothing to tell" in line


def test_the_file_begins_at_zero_and_names_every_process():
    told = json.loads(json.dumps(profile.chrome(TRACES)))["traceEvents"]
    names = {one["pid"]: one["args"]["name"] for one in told if one["name"] == "process_name"}
    assert list(names.values()) == ["controller", "sampler", "actor rank 0"]
    lasting = [one for one in told if one["ph"] == "X"]
    assert min(one["ts"] for one in lasting) == 0.0
    assert [one["ts"] for one in lasting if names[one["pid"]] == "actor rank 0"] == [12.5e6]
    assert all(one["dur"] >= 0 for one in lasting)


def test_one_step_is_too_few():
    with pytest.raises(SystemExit) as caught:
        profile.main(["--steps", "1"])
    assert caught.value.code == 2


# ------------------------------------------------------------------ a real run


@pytest.mark.e2e
@pytest.mark.slow
def test_a_run_leaves_a_trace_of_every_phase_and_rank(tmp_path, root):
    """Two ranks; each rank's `learn` lies within the loop's."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "OMP_NUM_THREADS", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, "-m", "trainer.profile", "--steps", "2", "trainer.n_gpus_per_node=2", "trainer.device=cpu"],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(root), "OUTPUT_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "where the steps after the first went" in done.stdout
    file = tmp_path / "run" / "trace.json"
    assert file.stat().st_size < 30e6
    told = json.loads(file.read_text())["traceEvents"]
    names = {one["pid"]: one["args"]["name"] for one in told if one["name"] == "process_name"}
    spans = [one for one in told if one["ph"] == "X"]

    def spans_of(process, name):
        return [one for one in spans if names[one["pid"]] == process and one["name"] == name]

    for phase in ("sample", "verify", "context", "learn", "publish", "remember"):
        assert [one["args"]["step"] for one in spans_of("controller", phase)] == [1, 2], phase
    for rank in (0, 1):
        for outer, inner in zip(spans_of("controller", "learn"), spans_of(f"actor rank {rank}", "learn"), strict=True):
            assert outer["ts"] <= inner["ts"]
            assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
            assert inner["args"]["rank"] == rank
        assert spans_of(f"actor rank {rank}", "aten::mm"), "operators of the second step"
    assert len(spans_of("sampler", "sample")) >= 2
    assert spans_of("sampler", "update weights")
