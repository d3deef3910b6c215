"""Checkpoints on disk: whole or not there, whatever moment the writer is killed at; damage is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import checkpoint
from trainer.checkpoint import CheckpointError, aside_of, newest, purge, read, seal

FILES = {"state/shard": b"weights" * 1000, "hf/model": b"w" * 10, "config.yaml": b"# method: mopd\n"}


def written(folder: Path, step: int, keep: int = 2) -> Path:
    """A checkpoint as a run writes it."""
    final = folder / f"step_{step}"
    for name, content in FILES.items():
        file = aside_of(final) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    seal(final, step, {"seed": 1}, keep)
    return final


def test_a_checkpoint_is_read_back_with_what_it_tells(tmp_path: Path) -> None:
    final = written(tmp_path, 3)
    found = newest(tmp_path)
    assert found is not None
    assert (found.folder, found.step, found.facts) == (final, 3, {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step_x").mkdir()
    (tmp_path / "step_4").write_text("a file")
    assert newest(tmp_path) is None
    assert newest(tmp_path / "none") is None


def test_a_large_checkpoint_is_announced_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path, 1)
    with caplog.at_level("INFO", logger="mopd"):
        read(folder)
        assert caplog.text == ""
        monkeypatch.setattr(checkpoint, "LARGE", 7000)
        read(folder)
    assert f"{folder} with their checksums" in caplog.text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_file_is_named_and_the_one_before_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    written(tmp_path, 1)
    file = written(tmp_path, 2) / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(CheckpointError, match=name):
        read(tmp_path / "step_2")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        '{"step": 2}',
        '{"step": "x", "facts": {}, "files": {}}',
        '{"step": 2, "facts": {}, "files": {"config.yaml": 15}}',
        '{"step": 2, "facts": {}, "files": {"config.yaml": {"bytes": 15}}}',
        "[" * 10**5,
    ],
)
def test_a_manifest_that_cannot_be_read_is_no_checkpoint(tmp_path: Path, text: str | None) -> None:
    written(tmp_path, 1)
    manifest = written(tmp_path, 2) / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest.json"):
        read(tmp_path / "step_2")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_the_newest_are_kept_and_never_fewer_than_two(tmp_path: Path) -> None:
    for step in range(1, 12):
        written(tmp_path, step, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_11"]
    purge(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_older_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, 1)
    (tmp_path / "step_1" / "manifest.json").write_text("damaged")
    written(tmp_path, 1)
    assert read(tmp_path / "step_1").step == 1


WRITER = """
import sys
from pathlib import Path
from tests.trainer.test_checkpoint import written
written(Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("place", "whole", "left"),
    [
        ("ckpt.before_manifest", 2, {".step_3.partial", "step_1", "step_2"}),
        ("ckpt.before_rename", 2, {".step_3.partial", "step_1", "step_2"}),
        ("ckpt.before_purge", 3, {"step_1", "step_2", "step_3"}),
        ("ckpt.mid_purge", 3, {"step_1", "step_2", "step_3"}),
    ],
)
def test_a_writer_killed_at_any_instant_leaves_a_whole_checkpoint(
    tmp_path: Path, place: str, whole: int, left: set[str]
) -> None:
    for step in (1, 2):
        written(tmp_path, step)
    environment = {**os.environ, "MOPD_FAILPOINTS": f"{place}=kill", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), "3"], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == left
    found = newest(tmp_path)
    assert found is not None
    assert found.step == whole
    if place == "ckpt.mid_purge":
        with pytest.raises(CheckpointError):
            read(tmp_path / "step_1")  # half deleted, and known to be
    checkpoint.clear_aside(tmp_path)
    written(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == {f"step_{whole}", "step_4"}


@pytest.mark.parametrize(
    ("option", "then", "number"),
    [("size=1m", "true", errno.ENOSPC), ("nr_inodes=12", "true", errno.ENOSPC), ("size=9m", "remount", errno.EROFS)],
)
def test_a_full_disk_is_an_error_and_the_former_checkpoints_stay(
    tmp_path: Path, option: str, then: str, number: int
) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine makes no user namespaces, in which a small disk could be mounted")
    script = f"""
mount -t tmpfs -o {option} none {tmp_path} && {sys.executable} - <<'END'
import subprocess
from pathlib import Path
from trainer.checkpoint import newest
from tests.trainer.test_checkpoint import FILES, written
folder = Path({str(tmp_path)!r})
written(folder, 1)
if {then!r} == "remount":
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
FILES["state/large"] = b"x" * (1 << 21)
FILES.update({{f"state/{{number}}": b"" for number in range(20)}})
try:
    written(folder, 2)
except OSError as error:
    print("refused", error.errno)
print("whole", newest(folder).step)
END
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["unshare", "-Urm", "bash", "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == [f"refused {number}", "whole 1"], done.stderr


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    told = json.loads((written(tmp_path, 1) / "manifest.json").read_text())
    assert told["files"].keys() == FILES.keys()
    assert all(len(file["blake2b"]) == 64 for file in told["files"].values())


def test_what_cannot_be_deleted_now_is_deleted_after_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        written(tmp_path, step)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
        written(tmp_path, 3)
    assert (tmp_path / "step_1").is_dir()
    with pytest.raises(CheckpointError):
        read(tmp_path / "step_1")
    written(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"step_3", "step_4"}


def test_a_copy_of_a_checkpoint_is_whole_too(tmp_path: Path) -> None:
    shutil.copytree(written(tmp_path / "run", 5), tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere").step == 5
