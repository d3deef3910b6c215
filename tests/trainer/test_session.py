"""What a session does before it starts workers: folders are taken, and the manifest's facts gathered."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config.compose import PROJECT
from trainer.errors import DONE
from trainer.main import main
from trainer.session import commit_of


def test_checkpoints_may_lie_in_the_folder_of_the_run_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainer.session.steps", lambda *_: DONE)
    assert main(["trainer.output_dir=run", "trainer.default_local_dir=run"]) == DONE


def test_a_machine_without_git_knows_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit_of(PROJECT) is None
