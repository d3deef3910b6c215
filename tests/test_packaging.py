"""Pins, ranges, documents and imports tell the same story about what the project depends on."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests import house

ROOT = Path(__file__).resolve().parent.parent
# requirements_sglang.txt is for an environment of its own, with other versions.
FILES = sorted(path.name for path in ROOT.glob("requirements*.txt") if path.name != "requirements_sglang.txt")
# Where the name of a library is not the name under which it is installed.
DISTRIBUTIONS = {"hydra": "hydra-core", "math_verify": "math-verify", "mlflow": "mlflow-skinny"}


def load_pins():
    spec = importlib.util.spec_from_file_location("pins", ROOT / "trainer/pins.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pins = load_pins()
PINNED = {name: version for file in FILES for name, version in pins.read_pins(ROOT / file).items()}


@pytest.fixture(scope="module")
def setup_arguments():
    """What setup.py hands to setuptools."""
    arguments = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **given: arguments.update(given))
        runpy.run_path(str(ROOT / "setup.py"))
    return arguments


@pytest.mark.parametrize("file", FILES)
def test_every_requirement_is_pinned(file):
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    loose = [line for line in lines if line and not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*|-r \S+", line)]
    assert not loose, f"{file}: write name==version, found {loose}"


def test_every_pin_has_a_line_in_the_documents():
    text = (ROOT / "docs/dependencies.md").read_text()
    overrides = (ROOT / "cpu-overrides.txt").read_text().splitlines()
    left_out = [line.split()[0] for line in overrides if line and not line.startswith("#")]
    missing = [name for name in [*PINNED, *left_out, "uv"] if f"- `{name}`" not in text]
    assert not missing, f"docs/dependencies.md has no line `- \\`NAME\\`: ...` for {missing}"


def test_the_documents_name_no_package_that_is_gone():
    named = set(re.findall(r"^- `([a-z0-9-]+)`", (ROOT / "docs/dependencies.md").read_text(), re.M))
    known = {*PINNED, "uv", "torchvision", "torchaudio", "torchcodec", "triton"}
    assert named <= known, f"docs/dependencies.md explains {sorted(named - known)}, which no file requires"


def third_party(source, local):
    for line, name in house.imports(source):
        top = name.split(".")[0]
        if top and top not in sys.stdlib_module_names and top not in house.ROOMS - {"datasets"} | local:
            yield line, top


def test_every_import_is_a_declared_dependency():
    undeclared = []
    for source in house.sources(ROOT):
        if source.room not in {"mopd", "trainer", "data", "analysis", "diversity"}:
            continue
        local = {path.stem for path in (ROOT / source.path).parent.glob("*.py")}
        for line, top in third_party(source, local if source.room not in {"mopd", "trainer"} else set()):
            if DISTRIBUTIONS.get(top, top.replace("_", "-").lower()) not in PINNED:
                undeclared.append(f"{source.path}:{line} imports {top}")
    assert not undeclared, "not in requirements*.txt:\n" + "\n".join(undeclared)


def test_an_undeclared_import_would_be_noticed():
    source = house.Source("mopd/a.py", "import os\ndef f():\n    import scipy.stats\n    from mopd import types")
    assert list(third_party(source, set())) == [(3, "scipy")]


def test_the_ranges_of_setup_agree_with_the_pins(setup_arguments):
    extras = [text for texts in setup_arguments["extras_require"].values() for text in texts]
    ranges = [Requirement(text) for text in [*setup_arguments["install_requires"], *extras]]
    wrong = [str(r) for r in ranges if r.name not in PINNED or PINNED[r.name] not in r.specifier]
    assert not wrong, f"setup.py wants {wrong}; the pins are {PINNED}"
    assert {r.name for r in ranges} == set(PINNED), "setup.py and requirements*.txt name different packages"


def test_the_python_versions_are_told_alike(setup_arguments):
    declared = pins.supported_pythons(ROOT / "setup.py")
    wanted = SpecifierSet(setup_arguments["python_requires"])
    assert declared == [(3, minor) for minor in range(30) if f"3.{minor}.0" in wanted]


def test_the_packages_are_all_listed(setup_arguments):
    found = {source.module for source in house.sources(ROOT) if source.path.endswith("/__init__.py")}
    ours = {name for name in found if name.split(".")[0] in {"mopd", "trainer"}}
    assert ours <= set(setup_arguments["packages"])


def test_the_version_is_that_of_the_package(setup_arguments):
    assert f'__version__ = "{setup_arguments["version"]}"' in (ROOT / "mopd/__init__.py").read_text()


@pytest.mark.parametrize(
    ("found", "device", "text"),
    [
        ("2.13.0", "cpu", None),
        ("2.13.0+cpu", "cpu", None),
        ("2.13.0+cu130", "cuda", None),
        ("2.12.1", "cpu", "torch is 2.12.1, wanted 2.13.0"),
        (
            "2.13.0+cpu",
            "cuda",
            "torch is 2.13.0+cpu, a build without GPU support, but there is a GPU",
        ),
    ],
)
def test_a_different_version_is_told(monkeypatch, found, device, text):
    monkeypatch.setattr(pins, "version", lambda name: found)
    assert pins.difference("torch", "2.13.0", device) == text


def test_a_missing_package_is_told():
    assert pins.difference("no-such-package", "1.0", "cpu") == "no-such-package is not installed, wanted 1.0"
