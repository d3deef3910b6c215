"""`python -m trainer.main --config-name NAME key=value ...`: one training run, from the command line to the last table.

Exit codes: 0 done, 1 failure, 2 bad input, 3 stopped because the run no longer learnt, 75 stopped by a signal or the
time budget with a checkpoint, 130 interrupted twice.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO, cast

from rich.console import Console
from rich.text import Text

from trainer.config.compose import METHODS, Resolved, as_yaml, contradictions, resolve
from trainer.display import Unbroken, open_screen
from trainer.errors import (
    BAD_INPUT,
    DONE,
    FAILURE,
    INTERRUPTED,
    STOPPED,
    UNHEALTHY,
    BadInputError,
    RunUnhealthyError,
    StoppedError,
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.main", description="Trains one run.")
    parser.add_argument("--config-name", default="mopd", help=f"the method: {', '.join(METHODS)}")
    parser.add_argument("--cfg", choices=["job"], help="prints the resolved configuration and stops")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of docs/configuration.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = arguments(argv)
    heard = Unbroken(sys.stderr or io.StringIO())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=heard)
    logging.getLogger("mopd").setLevel(logging.INFO)
    errors = Console(file=cast(TextIO, heard))
    try:
        resolved = resolve(asked.config_name, asked.overrides, os.environ)
        if asked.cfg:
            if faults := contradictions(resolved.config):
                raise BadInputError(faults)
            sys.stdout.write(as_yaml(resolved.tree))
            return DONE
        # Whoever calls this as a function has Ray started only after all checks.
        return run(asked.config_name, resolved, ahead=argv is None)
    except BadInputError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return BAD_INPUT
    except RunUnhealthyError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return UNHEALTHY
    except StoppedError as reason:
        errors.print(str(reason), style="yellow", highlight=False, soft_wrap=True)
        return STOPPED
    except KeyboardInterrupt:
        errors.print("interrupted", style="red")
        return INTERRUPTED
    except Exception as error:
        logging.getLogger("mopd").debug("the failure, in full", exc_info=True)
        # A worker's traceback comes in colours; where there is no terminal they are taken out.
        message = Text.from_ansi(f"{type(error).__name__}: {error}")
        errors.print(message, style="red", highlight=False, soft_wrap=True)
        return FAILURE


def run(config_name: str, resolved: Resolved, *, ahead: bool) -> int:
    """Trains; heavy libraries are imported only after the configuration holds.

    With `ahead` Ray is started meanwhile, where no fault can be seen yet.
    """
    with open_screen(
        sys.stdout or io.StringIO(), os.environ, steps="console" in resolved.config.trainer.logger
    ) as screen:
        screen.say(f"mopd: method {config_name}")
        for override in resolved.won:
            screen.say(f"  set {override}")
        from trainer import cluster, startup

        ray = startup.surely_wanted(resolved.config, os.environ) if ahead else None
        screen.stage("loading libraries" if ray is None else "loading libraries, starting Ray")
        try:
            return int(startup.loaded("trainer.session", ray).train_session(config_name, resolved, screen))
        finally:
            if cluster.running is not None:  # started ahead, and then a fault was found
                cluster.stop()


if __name__ == "__main__":
    sys.exit(main())
