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
        return run(asked.config_name, resolved)
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


def run(config_name: str, resolved: Resolved) -> int:
    """Trains; heavy libraries are imported only after the configuration holds."""
    with open_screen(
        sys.stdout or io.StringIO(), os.environ, steps="console" in resolved.config.trainer.logger
    ) as screen:
        screen.say(f"mopd: method {config_name}")
        for override in resolved.won:
            screen.say(f"  set {override}")
        screen.stage("loading libraries")
        from trainer.session import train_session

        return train_session(config_name, resolved, screen)


if __name__ == "__main__":
    sys.exit(main())
