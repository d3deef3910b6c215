"""A Ray actor gets the same results as the process that started it."""

import pytest

from mopd.rewards.sandbox import Job, Limits, Sandbox
from mopd.rewards.settings import RewardSettings

PROGRAMS = ["print(sum(map(int, open(0))))", "1 / 0", "import sys; sys.exit(3)", "while True: pass"]


def results():
    """All of the results that does not depend on the clock."""
    with Sandbox(RewardSettings(workers=2)) as made:
        runs = [made.run(source, [Job(b"1\n2\n")], Limits(cpu_s=1, wall_s=60))[0] for source in PROGRAMS]
    return [(run.status, run.exit_code, run.stdout, run.stderr) for run in runs]


@pytest.mark.slow
@pytest.mark.e2e
def test_an_actor_gets_the_same(root):
    ray = pytest.importorskip("ray")

    class Actor:
        def work(self):
            return results()

        async def work_beside_a_loop(self):
            return results()

    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(root)}})
    try:
        actor = ray.remote(num_cpus=0, max_concurrency=2)(Actor).remote()
        answers = ray.get([actor.work.remote(), actor.work_beside_a_loop.remote()], timeout=300)
    finally:
        ray.shutdown()
    here = results()
    assert [run[0] for run in here] == ["ok", "error", "error", "timeout"]
    assert answers == [here, here]
