"""The suites as tests look at them: the lines they print, and a Python that only pretends to run."""

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from trainer.config.compose import resolve
from trainer.config.flags import NAMES
from trainer.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
SDPO, GRPO = "generalization/run_sdpo_all.sh", "generalization/run_baseline_grpo_all.sh"
RICH_SDPO, RICH_GRPO = "rich_feedback/run_sdpo.sh", "rich_feedback/run_baseline_grpo.sh"
ABLATIONS = "ablations/run.sh"
SUITES = [SDPO, GRPO, RICH_SDPO, RICH_GRPO, ABLATIONS]

# A Python whose runs leave a folder and a line in $RECORD, fail where their folder matches $FAILING, and whose
# comparison writes its figure. One that is told to linger ends with 75 when it is asked to stop, as real runs do.
STUB = """#!/bin/bash
case "$*" in
*pins.py* | "-c import matplotlib") exit 0 ;;
*trainer.compare*) printf '%s\\n' "$@"; shift $(($# - 1)); echo drawn >"$1"; exit 0 ;;
esac
echo "${OUTPUT_DIR##*/}" >>"$RECORD"
mkdir -p "$OUTPUT_DIR"
echo "what ${OUTPUT_DIR##*/} says"
if [[ ${LINGERING-} ]]; then
    trap 'exit 75' TERM
    echo ready >"$LINGERING"
    while :; do sleep 0.05; done
fi
[[ ! ${FAILING-} || $OUTPUT_DIR != *$FAILING* ]] || exit "${CODE-1}"
"""


@dataclass(frozen=True)
class Line:
    """A line of --dry-run, taken apart."""

    flags: dict[str, str]
    python: str
    method: str
    settings: list[str]

    @property
    def config(self) -> Config:
        """What the trainer makes of it."""
        return composed(
            self.method, tuple(self.settings), tuple(item for item in self.flags.items() if item[0] != "OUTPUT_DIR")
        )

    @property
    def name(self) -> str:
        """Of its folder."""
        return Path(self.flags["OUTPUT_DIR"]).name


@functools.cache
def composed(method, settings, flags):
    """The configuration of a run; OUTPUT_DIR, which is another in each test, is left out of `flags`."""
    return resolve(method, settings, dict(flags)).config


def lines_of(done):
    """The runs that a dry run printed."""
    assert (done.returncode, done.stderr) == (0, "")
    return [taken_apart(line) for line in done.stdout.splitlines()]


def taken_apart(text):
    """A line of shell as a run; anything but `env FLAG=... PYTHON -P -m trainer.main ...` fails."""
    env, *words = shlex.split(text)
    assert env == "env"
    flags = {}
    while re.match("[A-Z_]+=", words[0]):
        name, _, flags[name] = words.pop(0).partition("=")
    assert flags.pop("PYTHONPATH").split(":")[0] == str(ROOT)
    assert set(flags) <= NAMES
    python, *rest = words
    assert rest[:4] == ["-P", "-m", "trainer.main", "--config-name"]
    return Line(flags, python, rest[4], rest[5:])


def started(tmp_path):
    """The runs that the stub was asked for, in order, since the last time this was asked."""
    record = tmp_path / "record"
    names = record.read_text().split() if record.exists() else []
    record.write_text("")
    return names
