"""What docs/security.md promises: nothing downloaded is run, keys stay with the controller, doors are closed."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Container, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from mopd.rewards.custom import CustomReward, CustomSettings
from mopd.rewards.settings import RewardSettings
from tests.e2e.conftest import ROOT
from tests.e2e.test_resume import SMALL, gone, until
from trainer import cluster
from trainer.assemble import worker_environment
from trainer.workers.verifier import VerifierWorker

CANARIES = {
    "WANDB_API_KEY": "0badc0ffee" * 4,
    "MLFLOW_TRACKING_TOKEN": "mlflowCanary",
    "MLFLOW_TRACKING_PASSWORD": "mlflowPasswordCanary",
    "MLFLOW_TRACKING_URI": "https://me:canaryInAnAddress@example.org",
    "HF_TOKEN": "hf_CanaryThatMustNotTravel",
    "HUGGING_FACE_HUB_TOKEN": "hf_AnotherCanary",
}
ROOMS = ("mopd", "trainer", "data", "analysis", "diversity", "experiments", "benchmarks")

# ------------------------------------------------------------------ the source

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CAREFUL = {"trainer/workers/reading.py": "makes the classes of a checkpoint's index and no others (test_reading)"}
"""Files that unpickle, and why they may."""
RUNNERS = {
    "mopd/rewards/sandbox/pairs.py": "runs in the sandbox",
    "mopd/rewards/sandbox/program.py": "runs in the sandbox",
    "data/mini_code.py": "runs the project's own programs",
}
"""Files that run a text, and why they may."""
SAFE = {"weights_only": "True", "allow_pickle": "False", "trust_remote_code": "False", "shell": "False"}
"""Arguments that decide whether code is run, and what they must be where they are given."""


def complaints(path: str, text: str) -> Iterator[str]:
    """What in a source unpickles, runs or downloads code."""
    for node in ast.walk(ast.parse(text, path)):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            names = [module] if module else [alias.name for alias in node.names]
            yield from (
                f"{where}: imports {name}" for name in names if name.split(".")[0] in UNPICKLERS and path not in CAREFUL
            )
        elif isinstance(node, ast.Call):
            yield from (f"{where}: {fault}" for fault in faults_of(node, path))


def faults_of(call: ast.Call, path: str) -> Iterator[str]:
    """What is wrong with one call."""
    name = ast.unparse(call.func)
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("eval", "exec") and path not in RUNNERS:
        yield f"{name} runs a text"
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "pandas.read_pickle"):
        yield name
    if name == "torch.load" and "weights_only" not in keywords:
        yield "torch.load without weights_only=True"
    for keyword, wanted in SAFE.items():
        if keyword in keywords and ast.unparse(keywords[keyword]) != wanted:
            yield f"{name} with {keyword}={ast.unparse(keywords[keyword])}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch.utils, cloudpickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "eval(text)",
        "load_dataset(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=config.trust)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_what_runs_code_from_elsewhere_is_seen(line: str) -> None:
    assert len(list(complaints("data/some.py", line))) == 1


def test_no_source_unpickles_runs_or_downloads_code() -> None:
    sources = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 60
    found = [line for path in sources for line in complaints(str(path.relative_to(ROOT)), path.read_text())]
    assert found == []
    assert all((ROOT / path).is_file() for path in (*RUNNERS, *CAREFUL))


def test_the_library_for_data_runs_no_scripts_of_data_sets() -> None:
    """It did before version 4."""
    assert int(version("datasets").split(".")[0]) >= 4


# ------------------------------------------------------------------ keys and doors


class Tells(VerifierWorker):
    """Tells what a verifier's process knows."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


def sockets(pid: int) -> Iterator[str]:
    """Numbers of a process's sockets."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield from re.findall(r"^socket:\[(\d+)\]$", os.readlink(link))


def listeners(pids: list[int], known: Container[str] = ()) -> list[tuple[str, int]]:
    """Addresses, as the kernel writes them, at which processes accept connections, with the process."""
    owners = {number: pid for pid in pids for number in sockets(pid) if number not in known}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = "0A"
    return [
        (parts[1].rpartition(":")[0], owners[parts[9]])
        for parts in lines
        if parts[3] == listening and parts[9] in owners
    ]


FUNCTION = """
import os

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 1, "feedback": " ".join(os.environ)}
"""


def test_a_reward_function_gets_no_key_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward.py").write_text(FUNCTION)
    for name, value in {**CANARIES, "RAY_AUTH_TOKEN": "secret", "JUDGE_API_KEY": "wanted"}.items():
        monkeypatch.setenv(name, value)
    reward = CustomReward(CustomSettings(str(tmp_path / "reward.py")))
    known = set(reward.verify("elsewhere", "", "").feedback.split())
    reward.close()
    assert not known & {*CANARIES, "RAY_AUTH_TOKEN"}
    assert "JUDGE_API_KEY" in known


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def processes(mark: str) -> dict[int, bytes]:
    """Environments of processes that have a variable."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"{mark}\0".encode() in b"\0" + environment:
            found[int(folder.name)] = environment
    return found


CLIENT = """
import os, sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_get(b"anything", None)
"""


def test_a_ray_of_ones_own_listens_to_this_machine_and_answers_to_its_token_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    if "RAY_ADDRESS" in os.environ:
        pytest.skip("there is a Ray of others")
    before = set(sockets(os.getpid()))  # other tests of this process may have left some open
    cluster.start({**worker_environment("cpu", offline=True), "MARKED": str(os.getpid())}, num_cpus=1)
    try:
        worker = cluster.spawn(Tells, num_cpus=0, num_gpus=0, settings=RewardSettings(), custom=None)
        [environment] = cluster.gather([worker.environment.remote()], "asking", 60)
        assert not CANARIES.keys() & environment.keys()
        assert {name: os.environ[name] for name in CANARIES} == CANARIES, "the controller keeps its keys"
        mine = [pid for pid in processes(f"MARKED={os.getpid()}") if pid != os.getpid()]
        found = listeners([*mine, os.getpid()], known=before)
        assert len(found) >= 4
        assert [entry for entry in found if entry[0] not in LOOPBACK] == []
        import ray

        address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
        clients = {
            "none": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
            "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * len(token)},
            "right": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        }
        answers = {
            kind: subprocess.run(
                [sys.executable, "-c", CLIENT, address],
                env={**os.environ, **flags},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            for kind, flags in clients.items()
        }
        assert [kind for kind, answer in answers.items() if answer.returncode == 0] == ["right"]
        assert all("AuthenticationError" in answers[kind].stderr for kind in ("none", "wrong"))
    finally:
        cluster.stop()


@pytest.mark.e2e
@pytest.mark.slow
def test_a_run_keeps_keys_to_itself_and_listens_to_this_machine_alone(tmp_path: Path) -> None:
    """And goes on when the process of its tracker is killed."""
    output = tmp_path / "run"
    environment = {**os.environ, **CANARIES, "PYTHONPATH": str(ROOT), "OUTPUT_DIR": str(output), "TOTAL_STEPS": "1000"}
    environment |= {"WANDB_MODE": "offline"}
    command = [
        sys.executable,
        "-m",
        "trainer.main",
        "--config-name",
        "mopd",
        *SMALL,
        "trainer.logger=[console,jsonl,wandb]",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    until(output / "metrics.jsonl", 1, process)
    mine = processes(f"OUTPUT_DIR={output}")
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in mine}
    workers = [pid for pid, name in commands.items() if name.startswith(b"ray::")]
    assert len(workers) >= 3
    for pid, name in commands.items():
        if b"trainer.main" not in name and b"wandb" not in name:
            assert not any(value.encode() in mine[pid] for value in CANARIES.values()), name
    found = listeners(list(mine))
    assert len(found) >= 8
    assert [(address, commands[pid]) for address, pid in found if address not in LOOPBACK] == []
    for pid, name in commands.items():
        if b"wandb-core" in name:
            os.kill(pid, signal.SIGKILL)
    lines = (output / "metrics.jsonl").read_text().count("\n")
    until(output / "metrics.jsonl", lines + 2, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=180)[0]
    assert process.returncode == 75, said
    assert gone(output, 30)
    session = Path(re.search(rb"--log_dir=(\S+?)\0", b"".join(commands.values()))[1].decode())  # type: ignore[index]
    files = [path for folder in (output, session) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    held = [str(path) for path in files for value in CANARIES.values() if value.encode() in path.read_bytes()]
    assert held == []
    assert not any(value in said for value in CANARIES.values())
