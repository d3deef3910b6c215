"""wandb: a run on a server that people share, or, without a key, in the run's folder. The only door to it."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from trainer.trackers.base import COLUMNS, Memory, Run, Sample, told

log = logging.getLogger("mopd")


class Wandb:
    """A run of wandb: online where a key is known and the server answers, else kept in the folder."""

    def __init__(self, run: Run, memory: Memory) -> None:
        for name, value in environment_of(run.folder / "wandb").items():
            os.environ.setdefault(name, value)
        import wandb

        self.table = wandb.Table
        mode = mode_of(os.environ)
        identity = memory.run_id("wandb") or secrets.token_hex(4)
        arguments: dict[str, Any] = {
            "project": run.project,
            "name": run.folder.name,
            "id": identity,
            "resume": "allow" if mode == "online" else None,
            "dir": str(run.folder),
            "config": dict(run.settings),
            "allow_val_change": True,  # a run may go on with other settings
            "settings": wandb.Settings(
                silent=True,
                console="off",
                init_timeout=run.patience_s,
                login_timeout=run.patience_s,
                finish_timeout=run.patience_s,
            ),
        }
        try:
            self.run = wandb.init(mode=mode, **arguments)
        except Exception as error:  # no answer, a key that is refused, an answer that wandb does not understand
            if mode != "online":
                raise
            place = run.folder / "wandb"
            log.warning("wandb is not reached; this run is kept in %s for `wandb sync` (%s)", place, told(error))
            wandb.teardown()  # frees the run's id
            self.run = wandb.init(mode="offline", **arguments | {"resume": None})
        memory.begin("wandb", identity)
        if self.run.resumed:
            memory.tell("wandb", self.run.starting_step - 1)  # what has arrived, which after a crash may be less
        self.place = str(self.run.url or run.folder / "wandb")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands over one step; wandb sends it in a process of its own."""
        self.run.log(dict(metrics), step=step)

    def rollouts(self, step: int, sample: Sample) -> None:
        """Hands over a step's sample as a table, which goes out with the step's metrics."""
        table = self.table(columns=list(COLUMNS), data=[list(rollout.values()) for rollout in sample])
        self.run.log({"rollouts": table}, step=step)

    def close(self, code: int) -> None:
        """Ends the run; what is not sent in time stays in the folder."""
        self.run.finish(exit_code=code)


def environment_of(folder: Path) -> dict[str, str]:
    """What wandb reads while it is imported, where the user has not set it."""
    return {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",  # it reports on itself to its server, offline too, and waits for the answer
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder),
    }


def mode_of(environment: Mapping[str, str]) -> Literal["online", "offline", "disabled"]:
    """What WANDB_MODE asks for; online only with a key, so that wandb never asks for one."""
    asked = environment.get("WANDB_MODE", "online")
    if asked == "disabled":
        return "disabled"
    key = environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE")
    known = key or logged_in(environment.get("WANDB_BASE_URL", "https://api.wandb.ai"), environment.get("NETRC"))
    return "online" if asked == "online" and known else "offline"


def logged_in(url: str, file: str | None) -> bool:
    """True where `wandb login` has left a key for the server, which it does in the file `netrc`."""
    try:
        entries = netrc.netrc(file or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return entries.authenticators(urlsplit(url).netloc) is not None
