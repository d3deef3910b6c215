"""The program in a response: the last fenced block of code."""

from __future__ import annotations

import re
from dataclasses import dataclass

PYTHON = re.compile(r"\{?\.?(?:python|py)[0-9.]*(?:[\s:,}].*)?", re.IGNORECASE | re.DOTALL)
"""Tags of Python blocks, such as `python`, `Py`, `python3.11`, `{.python}` and `python title="a.py"`; not `pycon`."""

SHORTEST_FENCE = 3


@dataclass(frozen=True)
class Block:
    """A fenced block: what its fence says of it, and its lines without the fence's own indentation."""

    tag: str
    """What follows the opening fence, without blanks; empty for a bare fence."""
    text: str
    closed: bool = True
    """False for a last block that reaches to the end of the response."""

    @property
    def preference(self) -> int:
        """2 for a block that says it is Python, 1 for one that says nothing, 0 for one that says something else."""
        return 2 if PYTHON.fullmatch(self.tag) else int(not self.tag)


@dataclass(frozen=True)
class _Fence:
    indent: int
    mark: str
    """The whole run of backticks or tildes."""
    tag: str


def _fence(line: str) -> _Fence | None:
    bare = line.lstrip(" \t")
    mark = bare[: len(bare) - len(bare.lstrip(bare[0]))] if bare[:1] in ("`", "~") else ""
    tag = bare[len(mark) :].strip()
    if len(mark) < SHORTEST_FENCE or ("`" in mark and "`" in tag):
        return None
    return _Fence(len(line) - len(bare), mark, tag)


LIST_MARK = re.compile(r"[ \t]*(?:[-*+]|[0-9]{1,3}[.)])[ \t]+")


def _late_fence(line: str) -> _Fence | None:
    """A fence that opens a Python block at the end of a line of prose, as in `The code:```python`.

    Behind the mark of a list, the lines of the block are indented as far as the fence.
    """
    before, mark, tag = line.rpartition("`" * SHORTEST_FENCE)
    opens = bool(mark) and not before.endswith("`") and PYTHON.fullmatch(tag.strip())
    indent = len(before) if LIST_MARK.fullmatch(before) else 0
    return _Fence(indent, mark, tag.strip()) if opens else None


def _without_indent(line: str, indent: int) -> str:
    blanks = len(line) - len(line.lstrip(" \t"))
    return line[min(indent, blanks) :]


def read_blocks(response: str) -> list[Block]:
    """The fenced blocks of a response, in order. It takes linear time.

    Any line end counts. A fence may be indented, and has three or more backticks or tildes; the same mark, as
    long or longer and with nothing behind it, closes the block. A fence with a tag inside a block begins a new
    one, since no program has such a line: the block before it was never closed. A last block that is not
    closed reaches to the end of the response.
    """
    blocks: list[Block] = []
    opened: _Fence | None = None
    lines: list[str] = []

    def close(closed: bool) -> None:
        if opened is not None:
            blocks.append(Block(opened.tag, "\n".join(lines), closed))
        lines.clear()

    for line in response.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        fence = _fence(line)
        if opened is None:
            opened = fence or _late_fence(line)
        elif fence is None or (fence.mark[: len(opened.mark)] != opened.mark and not fence.tag):
            lines.append(_without_indent(line, opened.indent))
        else:
            close(True)
            opened = fence if fence.tag else None
    close(False)
    return blocks


def read_program(response: str, truncated: bool = False) -> str | None:
    """The program that a response gives; None where it has no block of code with anything in it.

    It is the last block that says it is Python, so that sample output behind the program does not count as the
    answer; without one the last block that says nothing, and else the last block. An unclosed last block is read
    to the end of the response, for who only forgot the fence is judged by the program. In a response that was
    `truncated` it is no program: nobody meant a beginning to be run, and an earlier draft is not the answer either.
    """
    blocks = [block for block in read_blocks(response) if block.text.strip()]
    if not blocks:
        return None
    wanted = max(block.preference for block in blocks)
    chosen = [block for block in blocks if block.preference == wanted][-1]
    return chosen.text if chosen.closed or not truncated else None


CLASS = re.compile(r"^class[ \t]+(\w+)", re.MULTILINE)


def class_names(program: str) -> frozenset[str]:
    """The names that a program seems to give to classes at its top level.

    The lines are looked at, nothing is parsed: parsing can exhaust the stack of whoever parses, and the program
    is hostile until proven otherwise.
    """
    return frozenset(CLASS.findall(program))


FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t][\w, \t]+$", re.MULTILINE)


def with_context(context: str, program: str) -> str:
    """The program with `context` before it, behind imports from `__future__`, which must come first."""
    if not context.strip():
        return program
    future = "".join(f"{line.strip()}\n" for line in FUTURE.findall(program))
    # Their lines are left empty, so that the program's other lines keep their numbers.
    return f"{future}{context}\n\n{FUTURE.sub('', program)}"
