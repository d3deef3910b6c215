"""Checkpoints on disk: written aside, sealed by a manifest of checksums, renamed; found by looking, never by a pointer.

step_3/manifest.json   every other file with its size and checksum, and what the run was; written last
step_3/state/          shards of student, teacher and optimiser (torch DCP)
step_3/hf/             weights, configuration and tokenizer, as transformers and vLLM load them
step_3/config.yaml     the settings that they were trained with
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import failpoints

log = logging.getLogger("mopd")

MANIFEST, STATE = "manifest.json", "state"
NAME = re.compile(r"step_(\d+)")
FEWEST = 2
"""Checkpoints that are kept at least: the newest may turn out to be damaged."""
LARGE = 2 << 30
"""Bytes of a checkpoint from which reading it is announced: it may take minutes."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    folder: Path
    step: int
    facts: Mapping[str, Any]
    """What the run was when it was written: ranks, settings and state of the controller."""


def aside_of(final: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return final.with_name(f".{final.name}.partial")


def seal(final: Path, step: int, facts: Mapping[str, Any], keep: int) -> None:
    """Makes what lies aside the checkpoint `final`, then deletes all but the newest `keep`.

    At every instant the checkpoint of an earlier step is whole, or this one is.

    Raises:
        OSError: the disk is full or may not be written to.
    """
    aside = aside_of(final)
    written = sorted(aside.rglob("*"))
    for path in written:  # folders too: what they list is to last as long as what the files hold
        flush(path)
    files = [path for path in written if path.is_file()]
    failpoints.hit("ckpt.before_manifest", step=step, rank=0)
    described = {
        str(path.relative_to(aside)): {"bytes": path.stat().st_size, "blake2b": digest} for path, digest in sums(files)
    }
    with (aside / MANIFEST).open("w") as file:
        json.dump({"step": step, "facts": dict(facts), "files": described}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    flush(aside)
    failpoints.hit("ckpt.before_rename", step=step, rank=0)
    if final.exists():
        delete(final, step)
    os.replace(aside, final)
    flush(final.parent)
    failpoints.hit("ckpt.before_purge", step=step, rank=0)
    purge(final.parent, keep)


def flush(path: Path) -> None:
    """Has the operating system write a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sums(files: list[Path]) -> Iterator[tuple[Path, str]]:
    """Every file with its checksum; files are read side by side."""

    def checksum(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()

    with ThreadPoolExecutor(4) as pool:
        yield from zip(files, pool.map(checksum, files), strict=True)


def purge(folder: Path, keep: int) -> None:
    """Deletes all checkpoints but the newest `keep` (at least two) that have a manifest, and what has none."""
    found = listed(folder)
    whole = [step for step, path in found if (path / MANIFEST).is_file()]
    kept = set(whole[-max(keep, FEWEST) :])
    for step, path in found:
        if step not in kept:
            delete(path, step)


def delete(path: Path, step: int) -> None:
    """Deletes a checkpoint, its manifest first, so that half of it is not taken for a whole.

    What cannot be deleted now is deleted after the next write.
    """
    (path / MANIFEST).unlink(missing_ok=True)
    flush(path)
    failpoints.hit("ckpt.mid_purge", step=step, rank=0)
    shutil.rmtree(path, ignore_errors=True)


def clear_aside(folder: Path) -> None:
    """Deletes what interrupted writes have left."""
    for path in folder.glob(".step_*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def listed(folder: Path) -> list[tuple[int, Path]]:
    """The folders that are named like checkpoints, by step."""
    if not folder.is_dir():
        return []
    named = ((NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((int(name[1]), path) for name, path in named if name)


def read(folder: Path, *, but: str = "") -> Checkpoint:
    """The checkpoint in a folder, every file compared with its checksum; not those of the folder `but` inside it.

    Raises:
        CheckpointError: it is damaged or not whole; the message names the file.
    """
    manifest = folder / MANIFEST
    try:
        told = json.loads(manifest.read_text())
        step, facts = int(told["step"]), dict(told["facts"])
        described = {name: wanted for name, wanted in dict(told["files"]).items() if name.split("/")[0] != but}
        files = {name: (int(wanted["bytes"]), wanted["blake2b"]) for name, wanted in described.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no whole checkpoint: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{manifest} cannot be read ({type(error).__name__}: {error!s:.80})") from None
    try:
        for name, (wanted, _) in files.items():
            if (size := (folder / name).stat().st_size) != wanted:
                raise CheckpointError(f"{folder / name} is damaged: {size} bytes instead of {wanted}")
        if (total := sum(size for size, _ in files.values())) >= LARGE:
            log.info("comparing the %.0f GiB of %s with their checksums", total / (1 << 30), folder)
        for path, digest in sums([folder / name for name in files]):
            if digest != files[str(path.relative_to(folder))][1]:
                raise CheckpointError(f"{path} is damaged: its checksum is not that of {MANIFEST}")
    except OSError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from None
    return Checkpoint(folder, step, facts)


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; every damaged one that is passed over is told."""
    for _, path in reversed(listed(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            log.warning("passing over a checkpoint: %s", error)
    return None
