"""How Ray is started for a run, and sooner where that can be: beside the import of libraries."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from trainer import cluster
from trainer.config.compose import contradictions
from trainer.config.schema import Config
from trainer.garbage import uncollected

GPU_FILES = ("nvidiactl", "nvidia0", "dxg", "kfd")
"""Of these in /dev a machine with a GPU has at least one."""


def worker_environment(device: str, offline: bool) -> dict[str, str]:
    """What every worker process inherits."""
    common = {
        # In one process the sampler's weights can be handed over without copies through pipes.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if offline:
        common["HF_HUB_OFFLINE"] = "1"
    if device == "cpu":
        # One thread: results do not depend on the machine, and no barrier spins while another phase works.
        common |= {
            "OMP_NUM_THREADS": "1",
            "TORCH_COMPILE_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return common


def ray_settings(config: Config, device: str, ranks: int, teachers: int) -> tuple[dict[str, str], int]:
    """What `cluster.start` is given: the environment of all workers, and how many of them find room."""
    environment = worker_environment(device, offline=all(map(os.path.isdir, model_folders(config))))
    samplers = config.actor_rollout_ref.rollout.n_samplers
    return environment, max(os.cpu_count() or 1, ranks + teachers + samplers + 1)


def model_folders(config: Config) -> list[str]:
    """Where the student and the teacher lie."""
    paths = config.actor_rollout_ref
    return [paths.model.path, paths.ref.model.path or paths.model.path]


def surely_wanted(
    config: Config, environment: Mapping[str, str], devices: Path = Path("/dev")
) -> tuple[dict[str, str], int] | None:
    """What Ray is to be started with; None unless that can be told without any library.

    It cannot where a fault shows already, where there may be a GPU, and where a cluster is joined.
    """
    data, ref, asked = config.data, config.actor_rollout_ref.ref, config.trainer
    if "RAY_ADDRESS" in environment or asked.nnodes > 1 or asked.device == "cuda" or contradictions(config):
        return None
    if asked.device == "auto" and any((devices / name).exists() for name in GPU_FILES):
        return None
    files = [*(f"{folder}/config.json" for folder in model_folders(config)), data.train_files, data.val_files]
    if not all(map(os.path.isfile, files)):
        return None
    return ray_settings(config, "cpu", asked.n_gpus_per_node or 1, 0 if ref.placement == "colocate" else ref.n_gpus)


def loaded(module: str, ray: tuple[dict[str, str], int] | None) -> ModuleType:
    """Imports a module; meanwhile Ray is started with the arguments `ray`, where there are any.

    Ray's start is mostly waiting for its processes. It stays in the main thread: what that starts ends with it.
    """
    with uncollected(), ThreadPoolExecutor(1, thread_name_prefix="import") as side:
        wanted = side.submit(importlib.import_module, module)
        if ray is not None:
            former = signal.getsignal(signal.SIGTERM)
            cluster.start(*ray)
            signal.signal(signal.SIGTERM, former)  # nobody listens yet, so it ends the process as before
        return wanted.result()
