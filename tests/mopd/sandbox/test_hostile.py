"""Hostile programs earn nothing, touch nothing and leave nothing; a correct program right after them passes."""

import json

import pytest

from mopd.rewards.sandbox import Call, Job
from tests.mopd.sandbox import hostile_access, hostile_resources, hostile_tricks
from tests.mopd.sandbox.world import LIMITS, descendants, is_well

PROGRAMS = hostile_resources.PROGRAMS | hostile_access.PROGRAMS | hostile_tricks.PROGRAMS
CALLS = {f"call: {name}": source for name, source in hostile_tricks.CALLS.items()}
ALWAYS = """infinite loop
memory bomb
fork bomb
daemon by double fork
thread bomb
output without end
raises its own limits
kills all
kills the tests
reads its parent's memory by call
reads any environment
reads the answer
sends forged answers
deletes a checkpoint
changes rights quietly
fills the disk quietly
connects to a service
connects to a socket file
runs a shell
kernel doors
calls of another architecture
closed descriptors
lone surrogate in the source
left for the next run
call: equal to all
call: deep value
call: no value""".splitlines()


def cases():
    assert set(ALWAYS) <= set(PROGRAMS | CALLS)
    for name, source in (PROGRAMS | CALLS).items():
        yield pytest.param(name, source, id=name, marks=() if name in ALWAYS else pytest.mark.slow)


def test_the_suite_is_large():
    assert len(PROGRAMS) + len(CALLS) >= 140


@pytest.mark.parametrize(("name", "source"), list(cases()))
def test_is_contained(sandbox, world, name, source):
    assert is_well(sandbox)
    before, (zygote,) = world.files(), sandbox.processes()
    family = descendants(zygote)
    job = Job(f"{len(name)}\n".encode(), Call("f", "[1]") if name in CALLS else None)
    (result,) = sandbox.run(world.fill(source), [job], LIMITS)
    assert result.status != "infra", result
    assert result.cpu_s <= LIMITS.cpu_s + 1
    for text in (result.stdout, result.stderr, (result.value or "").encode()):
        assert world.secret.encode() not in text
    if name in CALLS:
        assert result.status != "ok" or json.loads(result.value) != world.secret
    assert len(result.stdout) <= LIMITS.output_bytes
    assert len(result.stderr) <= 64 << 10
    assert world.files() == before
    assert not world.visits()
    assert sandbox.processes() == [zygote]
    assert descendants(zygote) == family
    assert is_well(sandbox)
