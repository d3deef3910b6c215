"""The names of metrics: those that docs/metrics.md explains, and those that the code can make."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "metrics.md"
HOLE = "\0"
"""What a run fills in."""


@dataclass(frozen=True)
class Entry:
    """A row of the glossary."""

    names: tuple[str, ...]
    """With `HOLE` for what a run fills in."""
    texts: tuple[str, ...]
    """Unit, meaning, and what is bad."""


def glossary(text: str) -> list[Entry]:
    """The rows whose first cell is a name."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("| `")]
    return [Entry(tuple(spelled(cells[0].strip("`"))), tuple(cells[1:])) for cells in rows]


def spelled(name: str) -> Iterator[str]:
    """`a/{b,c}/<d>` as the names `a/b/HOLE` and `a/c/HOLE`."""
    parts = re.split(r"\{(.*?)\}", re.sub(r"<.*?>", HOLE, name))
    for chosen in itertools.product(*[part.split(",") if odd % 2 else [part] for odd, part in enumerate(parts)]):
        yield "".join(chosen)


def undocumented(names: Iterable[str], entries: Iterable[Entry]) -> set[str]:
    """Names of a run's metrics that the glossary does not have."""
    known = [pattern_of(name) for entry in entries for name in entry.names]
    return {name for name in names if name != "step" and not any(pattern.fullmatch(name) for pattern in known)}


def pattern_of(text: str, filling: str = "(.+?)") -> re.Pattern[str]:
    """What a text with holes matches; each hole at least one character, unless `filling` says otherwise."""
    return re.compile(filling.join(map(re.escape, text.split(HOLE))))


class Texts:
    """The texts of the code: literals, and f-strings, whose braces are holes."""

    def __init__(self, sources: Iterable[str]) -> None:
        self.literals: set[str] = set()
        self.forms: set[str] = set()
        for source in sources:
            self.take(ast.parse(source))

    def take(self, tree: ast.AST) -> None:
        """Adds those of a file; docstrings are none."""
        within: set[ast.AST] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr):
                within |= {node.value}
            elif isinstance(node, ast.JoinedStr):
                within |= set(node.values)
                self.forms.add(
                    "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)  # type: ignore[misc]
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in within:
                self.literals.add(node.value)

    @cached_property
    def patterns(self) -> list[re.Pattern[str]]:
        """The f-strings that may be part of a name."""
        found = [form for form in self.forms if re.fullmatch(r"[\w/@.\-\0]+", form) and set(form) != {HOLE}]
        return [pattern_of(form, "(.*?)") for form in sorted(found)]

    def can_make(self, name: str, depth: int = 3) -> bool:
        """Whether a name is a literal, or an f-string whose holes such texts fill; a hole of the name fills any."""
        if name in self.literals or name in (HOLE, ""):
            return True
        matches = (pattern.fullmatch(name) for pattern in self.patterns) if depth else ()
        return any(match and all(self.can_make(part, depth - 1) for part in match.groups()) for match in matches)

    def names(self, groups: Iterable[str]) -> set[str]:
        """Literals and f-strings that begin as a metric does, with all of their name."""
        begins = re.compile(rf"(?:{'|'.join(map(re.escape, groups))})/[\w/@\-.\0]*[\w\0]")
        return {text for text in self.literals | self.forms if begins.fullmatch(text)}


def code() -> Texts:
    """That of the rooms that measure."""
    files = [path for room in ("mopd", "trainer") for path in sorted((ROOT / room).rglob("*.py"))]
    return Texts(path.read_text(encoding="utf-8") for path in files)
