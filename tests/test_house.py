"""The rules of the house hold for every file, and the checks would notice if they did not."""

from pathlib import Path

import pytest

from tests import house
from tests.house import Source

ALL = house.sources(Path(__file__).resolve().parent.parent)


def complaints(check, path, text):
    return list(check(Source(path, text)))


# ------------------------------------------------------------------ the house as it stands


def test_the_files_are_found():
    paths = {source.path for source in ALL}
    assert {"setup.py", "mopd/__init__.py", "tests/house.py"} <= paths
    assert not [path for path in paths if path.startswith((".venv", "outputs"))]


@pytest.mark.parametrize(
    "check",
    [house.check_floors, house.check_doors, house.check_sizes, house.check_nesting, house.check_docstrings],
    ids=lambda check: check.__name__,
)
def test_every_file_keeps(check):
    found = [text for source in ALL for text in check(source)]
    assert not found, f"{check.__doc__}\n" + "\n".join(found)


def test_there_is_no_import_cycle():
    assert not house.check_cycles(ALL)


def test_datasets_is_not_a_package(root):
    """A package of this name would hide the library `datasets`."""
    assert not list((root / "datasets").rglob("__init__.py"))


# ------------------------------------------------------------------ the checks themselves


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mopd/losses.py", "import trainer"),
        ("mopd/losses.py", "from trainer.config import schema"),
        ("mopd/losses.py", "def f():\n    from data import chain"),
        ("mopd/rewards/math.py", "import importlib\nimportlib.import_module('trainer.loop')"),
        ("trainer/loop.py", "if TYPE_CHECKING:\n    import experiments.study"),
        ("data/rows.py", "from trainer import prompts"),
        ("analysis/signal.py", "import diversity.count"),
        ("diversity/count.py", "__import__('analysis')"),
    ],
)
def test_a_look_upstairs_is_noticed(path, text):
    assert len(complaints(house.check_floors, path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mopd/losses.py", "import torch\nfrom mopd import types\nfrom . import metrics"),
        ("trainer/loop.py", "from mopd.types import Peers\nimport trainer.plan"),
        ("data/rows.py", "import datasets\nimport data_tools"),
        ("tests/test_loop.py", "import trainer, mopd, data, analysis"),
    ],
)
def test_a_look_down_is_allowed(path, text):
    assert not complaints(house.check_floors, path, text)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mopd/losses.py", "import ray"),
        ("mopd/teacher.py", "def f():\n    import vllm.envs"),
        ("trainer/loop.py", "from ray import data"),
        ("trainer/workers/policy.py", "from vllm import LLM"),
        ("trainer/workers/mysampler.py", "import vllm"),
        ("trainer/plan.py", "from omegaconf import OmegaConf"),
        ("trainer/mainly.py", "import hydra"),
        ("trainer/loop.py", "try:\n    import wandb\nexcept ImportError:\n    wandb = None"),
        ("trainer/loop.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("trainer/loop.py", "from torch.utils import tensorboard"),
        ("trainer/tracking.py", "from mlflow import MlflowClient"),
        ("experiments/study/launch.py", "import ray"),
    ],
)
def test_an_import_beside_the_door_is_noticed(path, text):
    assert len(complaints(house.check_doors, path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("trainer/cluster.py", "import ray\nfrom ray.util import queue"),
        ("trainer/workers/sampler.py", "import vllm"),
        ("trainer/workers/sampler_cpu.py", "from vllm import LLM"),
        ("trainer/config/schema.py", "from omegaconf import OmegaConf"),
        ("trainer/main.py", "import hydra"),
        ("trainer/trackers/wandb.py", "import wandb"),
        ("trainer/loop.py", "import rayon\nimport torch.utils.data"),
        ("tests/e2e/test_kill.py", "import ray"),
    ],
)
def test_an_import_through_the_door_is_allowed(path, text):
    assert not complaints(house.check_doors, path, text)


def test_cycles_are_noticed_also_in_functions_and_across_packages():
    a = Source("mopd/a.py", "from mopd import b")
    b = Source("mopd/b.py", "def f():\n    from .rewards.c import g")
    c = Source("mopd/rewards/c.py", "from ..a import x")
    package = Source("mopd/__init__.py", "")
    (found,) = house.check_cycles([a, b, c, package])
    assert found == "import cycle: mopd.a -> mopd.b -> mopd.rewards.c -> mopd.a"
    assert not house.check_cycles([a, b, package])


def test_a_diamond_is_not_a_cycle():
    files = {"a": "import mopd.b, mopd.c", "b": "import mopd.d", "c": "import mopd.d", "d": ""}
    assert not house.check_cycles([Source(f"mopd/{name}.py", text) for name, text in files.items()])


def test_relative_imports_in_a_package_are_resolved():
    source = Source("mopd/rewards/__init__.py", "from .math import grade\nfrom ..types import Outcome")
    assert [name for _, name in house.imports(source)] == ["mopd.rewards.math.grade", "mopd.types.Outcome"]


def test_long_files_and_functions_are_noticed():
    assert not complaints(house.check_sizes, "a.py", "x = 1\n" * 400)
    assert complaints(house.check_sizes, "a.py", "x = 1\n" * 401)
    assert not complaints(house.check_sizes, "a.py", "def f():\n" + "    x = 1\n" * 79)
    assert complaints(house.check_sizes, "a.py", "def f():\n" + "    x = 1\n" * 80)


def nested(*lines, head="def f():"):
    return "\n".join([head, *(" " * (depth + 1) + line for depth, line in enumerate(lines))])


def test_four_deep_is_noticed_and_three_deep_is_allowed():
    three = ["for x in y:", "with x:", "while x:"]
    assert not complaints(house.check_nesting, "a.py", nested(*three, "pass"))
    for fourth in ["if x:", "async for z in x:", "with z:"]:
        head = "async def f():" if "async" in fourth else "def f():"
        assert len(complaints(house.check_nesting, "a.py", nested(*three, fourth, "pass", head=head))) == 1
    body = "try:\n     pass\n    finally:\n     pass"
    assert complaints(house.check_nesting, "a.py", nested(*three, body))
    assert complaints(house.check_nesting, "a.py", nested(*three, "match x:", "case 1:", "pass"))


def test_an_elif_is_as_deep_as_its_if_but_an_if_in_an_else_is_deeper():
    elif_chain = "for a in b:\n for c in d:\n  if a:\n   x\n  elif b:\n   y\n  elif c:\n   z"
    if_in_else = "for a in b:\n for c in d:\n  if a:\n   x\n  else:\n   if b:\n    y"
    assert not complaints(house.check_nesting, "a.py", elif_chain)
    assert complaints(house.check_nesting, "a.py", if_in_else)


def test_an_inner_function_begins_anew():
    text = nested("if x:", "if x:", "if x:", "def g():", "if x:", "pass")
    assert not complaints(house.check_nesting, "a.py", text)


def test_missing_docstrings_are_noticed():
    text = 'class A:\n    """A."""\n    def method(self): ...\ndef function(): ...\nclass B: ...'
    found = complaints(house.check_docstrings, "mopd/a.py", text)
    assert [line.split()[1] for line in found] == ["mopd.a", "mopd.a.A.method", "mopd.a.function", "mopd.a.B"]
    assert not complaints(house.check_docstrings, "trainer/a.py", text)


def test_private_names_need_no_docstring():
    private = "def _helper(): ...\nclass _A:\n    def method(self): ...\n"
    text = f'"""Doc."""\n{private}def f():\n    """f."""\n    def g(): ...'
    assert not complaints(house.check_docstrings, "mopd/a.py", text)


def test_without_git_the_files_are_found_by_walking(tmp_path):
    for name in ["mopd/a.py", ".venv/lib/b.py", "outputs/c.py", "mopd/__pycache__/d.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [source.path for source in house.sources(tmp_path)] == ["mopd/a.py"]
