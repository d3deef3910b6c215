"""The program in a response: which block counts, and how fences may be written."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mopd.rewards.programs import class_names, read_blocks, read_program, with_context

CODE = "print(input())"


@pytest.mark.parametrize(
    "response",
    [
        f"```python\n{CODE}\n```",
        f"Here it is:\n\n```python\n{CODE}\n```\n\nDone.",
        f"```python   \n{CODE}\n```  ",
        f"``` python\n{CODE}\n```",
        f"```Python3\n{CODE}\n```",
        f"```py\n{CODE}\n```",
        f"```python3.11\n{CODE}\n```",
        f'```python title="a.py"\n{CODE}\n```',
        f"```{{.python}}\n{CODE}\n```",
        f"```python:main.py\n{CODE}\n```",
        f"```\n{CODE}\n```",
        f"```c++\n{CODE}\n```",
        f"```c#  \n{CODE}\n```",
        f"~~~python\n{CODE}\n~~~",
        f"~~~~\n{CODE}\n~~~~~",
        f"````python\n{CODE}\n````",
        f"- so:\n\n   ```python\n   {CODE}\n   ```",
        f"\t```python\n\t{CODE}\n\t```",
        f"Here it is:```python\n{CODE}\n```",
        f"```python\n{CODE}",
        f"```python\n{CODE}\n``",
        f"```python\n{CODE}\n``` # the end",
        f"```python\n{CODE}\n```The end",
    ],
)
def test_a_fence_may_be_written_in_many_ways(response: str) -> None:
    assert read_program(response).rstrip("\n`") == CODE
    assert read_program(response.replace("\n", "\r\n")) == read_program(response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        CODE,
        f"`{CODE}`",
        f"``{CODE}``",
        "```python",
        "```python\n```",
        "```python\n \n```",
        "```print(1)```",
        "``` a`",
    ],
)
def test_without_a_block_there_is_no_program(response: str) -> None:
    assert read_program(response) is None


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\n```python\nb\n```", "b"),
        ("```\na\n```\n```\nb\n```", "b"),
        # Sample output behind the code, also a long one, is not the answer.
        ("```python\na\n```\nOutput:\n```\n" + "1\n" * 500 + "```", "a"),
        ("```python\na\n```\nOutput:\n```text\n1\n```", "a"),
        ("```python\na\n```\n```pycon\n>>> a\n```", "a"),
        ("```\na\n```\n```text\n1\n```", "a"),
        ("```cpp\na\n```\n```java\nb\n```", "b"),
        # In a list the lines of a block are indented.
        ("1. ```python\n   a\n     b\n   ```", "a\n  b"),
        ("- ```python\n  a\n  ```", "a"),
        ("So: ```python\n  a\n  ```", "  a"),
        # An empty last block is not an answer.
        ("```python\na\n```\n```python\n```", "a"),
        # The last block counts although it is not closed.
        ("```python\na\n```\n```python\nb\nc", "b\nc"),
        # A block that was never closed ends where the next begins.
        ("```python\ndraft\nand prose\n```python\nb\n```", "b"),
        # A fence of the other kind, or a shorter one, is a line of the program.
        ('````python\n"""\n```\n"""\n````', '"""\n```\n"""'),
        ('```python\n"""\nTitle\n~~~~~\n"""\n```', '"""\nTitle\n~~~~~\n"""'),
        # Indentation beyond the fence's own stays; a line with less is kept whole.
        ("  ```python\n  if x:\n      y\nz\n  ```", "if x:\n    y\nz"),
        ("```python\n\tif x:\n```", "\tif x:"),
    ],
)
def test_which_block_counts(response: str, program: str) -> None:
    assert read_program(response) == program


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```", "a"),
        ("```python\na\n```\nas I sai", "a"),
        ("```python\na\n```\nOutput:\n```text\n1", "a"),
        ("```python\na", None),
        ("```python\na\n```\n```python\nb", None),
        ("```\na", None),
    ],
)
def test_the_beginning_of_a_block_is_no_program_of_a_response_that_was_cut(response: str, program: str | None) -> None:
    assert read_program(response, truncated=True) == program


lines = st.lists(
    st.sampled_from(["```", "```python", "```text", "~~~", "a = 1", "  b", "", "prose `x`", "x```py"]), max_size=12
)


@examples(deadline=None)
@given(st.text() | lines.map("\n".join))
def test_any_text_is_read_alike_with_any_line_ends(text: str) -> None:
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    program = read_program(unix)
    assert read_program(unix.replace("\n", "\r\n")) == program
    assert read_program(unix.replace("\n", "\r")) == program
    if program is not None:
        assert program.strip()


@examples(deadline=None)
@given(st.lists(st.sampled_from(["x = 1", "  y", "# ``", "", "z`", "\x00", "\ud800"]), min_size=1).map("\n".join))
def test_reading_undoes_fencing(program: str) -> None:
    fenced = f"The code:\n```python\n{program}\n```\nIt prints:\n```\n1\n```"
    found = read_program(fenced)
    assert found == (program if program.strip() else "1")
    assert read_program(f"```python\n{found}\n```") == found


@examples(deadline=None)
@given(lines.map("\n".join), st.integers(0, 200))
def test_a_cut_response_gives_a_whole_block_of_it_or_nothing(response: str, length: int) -> None:
    program = read_program(response[:length], truncated=True)
    # A fence that was cut itself may close a block a line early, or open one under another tag.
    texts = [block.text for cut in (response, response[:length]) for block in read_blocks(cut) if block.closed]
    assert program is None or program in texts


@pytest.mark.parametrize(
    "unit", ["`", "```", "```\n", "```python\n", "```python", "``` ", "~", "x```", " ", "\t```", "\r", "class "]
)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    hostile = unit * (200_000 // len(unit))
    start = time.process_time()
    for text in (
        hostile,
        f"{hostile}`",
        f"```{hostile}`\n",
        f"```python\n{hostile}",
        f"from __future__ import {hostile}!",
    ):
        read_program(text)
        with_context("x = 1", text)
        class_names(text)
    assert time.process_time() - start < 10.0


def test_classes_are_found_at_the_top_level_only() -> None:
    program = "class A:\n  class B: ...\nclass  C(A): pass\nclassic = 1\ndef f():\n  class D: ..."
    assert class_names(program) == {"A", "C"}


def test_context_stands_before_the_program_and_behind_the_future() -> None:
    program = "from __future__ import annotations, division\nx = 1"
    assert with_context("", program) == program
    source = with_context("import math", program)
    assert source.startswith("from __future__ import annotations, division\nimport math\n")
    assert source.endswith("\n\nx = 1")
    exec(compile(source, "program", "exec"), {})
