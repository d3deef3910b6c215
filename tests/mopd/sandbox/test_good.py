"""Correct programs pass, whatever idiom they use, and also while others are running."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from mopd.rewards.sandbox import Call, Job, Limits, Sandbox
from mopd.rewards.settings import RewardSettings
from tests.mopd.sandbox.good_programs import CALLS, SCRIPTS
from tests.mopd.sandbox.world import GENEROUS


def complaints(sandbox, names, limits=GENEROUS):
    """What is wrong about the results of the programs of these names."""
    for name in names:
        if name in SCRIPTS:
            source, stdin, expected = SCRIPTS[name]
            (result,) = sandbox.run(source, [Job(stdin.encode())], limits)
            is_right = result.stdout == expected.encode()
        else:
            source, function, arguments, kwargs, expected = CALLS[name]
            (result,) = sandbox.run(source, [Job(call=Call(function, arguments, kwargs))], limits)
            is_right = result.value is not None and json.loads(result.value) == json.loads(expected)
        if result.status != "ok" or not is_right:
            yield f"{name}: {result.status} {result.exit_code} {result.stdout[:200]!r} {result.stderr!r} {result.value}"


def test_every_idiom_passes(sandbox):
    assert len(SCRIPTS) + len(CALLS) >= 85
    assert not list(complaints(sandbox, [*SCRIPTS, *CALLS]))


@pytest.mark.slow
def test_every_idiom_passes_twenty_times_on_a_busy_machine(sandbox):
    """More programs at once than cores, with the limit of training."""
    settings = RewardSettings(workers=6, sandbox_tier=sandbox.tier)
    with Sandbox(settings) as crowded, ThreadPoolExecutor(6) as threads:
        rounds = [threads.submit(list, complaints(crowded, [*SCRIPTS, *CALLS], Limits(cpu_s=5))) for _ in range(20)]
        assert not [complaint for found in rounds for complaint in found.result()]
