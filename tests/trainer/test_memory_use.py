"""Peaks of processes: they rise with what was held, begin anew, and become metrics by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.memory_use import GIB, Peaks, host_peak, machine_metrics, memory_metrics, peaks

BLOCK = 64 << 20


def table(folder: Path, text: str) -> Path:
    """A folder like the kernel's of a process."""
    (folder / "status").write_text(text)
    return folder


def test_what_was_held_and_given_back_counts_once() -> None:
    host_peak()
    before = host_peak()
    block = np.ones(BLOCK, dtype=np.uint8)
    del block
    held, after = host_peak(), host_peak()
    assert held >= before + 0.9 * BLOCK
    assert after < held - 0.5 * BLOCK


def test_a_high_water_mark_that_cannot_begin_anew_is_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "clear_refs").mkdir()  # nobody can write that
    assert host_peak(table(tmp_path, "Name:\tx\nVmHWM:\t    2048 kB\n")) == 2 << 20


def test_a_system_without_such_tables_tells_the_peak_since_the_start(tmp_path: Path) -> None:
    assert host_peak(tmp_path) > 10 << 20


def test_metrics_are_those_of_the_hungriest_process() -> None:
    ranks = [Peaks(2.0, 30.0, 41.0), Peaks(3.0, 35.0, 40.0)]
    assert memory_metrics("actor", ranks) == {
        "perf/max_cpu_memory_gb/actor": 3.0,
        "perf/max_memory_allocated_gb": 35.0,
        "perf/max_memory_reserved_gb": 41.0,
    }
    assert memory_metrics("sampler", [Peaks(1.5)]) == {"perf/max_cpu_memory_gb/sampler": 1.5}
    assert "perf/max_memory_reserved_gb/teacher" in memory_metrics("teacher", ranks)
    assert memory_metrics("teacher", []) == {}


def test_this_process_and_this_machine_are_measured() -> None:
    own = peaks("cpu")
    assert 10 / 1024 < own.host < 1024
    assert own.allocated is None
    if Path("/proc/meminfo").exists():
        assert machine_metrics()["perf/cpu_memory_used_gb"] * GIB > 0


@pytest.mark.parametrize("part", ["actor", "sampler"])
def test_names_differ_by_part_so_that_none_hides_another(part: str) -> None:
    other = {"actor": "sampler", "sampler": "actor"}[part]
    one = [Peaks(1.0, 1.0, 1.0)]
    assert not memory_metrics(part, one).keys() & memory_metrics(other, one).keys()
