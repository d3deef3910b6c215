"""Sandboxes of the tiers that hold on their own, and a world to attack."""

import secrets

import pytest

from mopd.rewards.sandbox import Sandbox, probe
from mopd.rewards.settings import RewardSettings
from tests.mopd.sandbox.world import make_world

SECRET = f"answer-{secrets.token_hex(16)}"


@pytest.fixture(scope="session", params=[1, 2])
def sandbox(request):
    """A sandbox of each tier, with the secret in this process's environment and memory while it starts."""
    missing = probe().missing
    if request.param < probe().tier or request.param in missing:
        pytest.skip(f"this machine has no tier {request.param}: {missing.get(request.param)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOX_SECRET", SECRET)
        with Sandbox(RewardSettings(sandbox_tier=request.param)) as made:
            yield made


@pytest.fixture
def world(tmp_path):
    """Files and services that no program may reach."""
    made = make_world(tmp_path, SECRET)
    yield made
    for listener in (made.tcp, made.udp, made.unix):
        listener.close()
