"""The reasoning steps of a response, found in its text.

The tokens of a separator such as a blank line depend on what surrounds it: "\\n\\n" may be a token, two, or
the end of one. So it is looked for in the text that the tokens spell, not among token ids.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def step_ids(pieces: Sequence[str], separator: str) -> list[int]:
    """The step of each token, `[T]`: 0, 0, ..., 1, ...; a step ends with the token that completes a separator.

    Args:
        pieces: `[T]` the text of each token; together they spell the response. A token may add no text (part
            of a character, an end-of-sequence mark): it belongs to the step it stands in.
        separator: what stands between steps; occurrences are told apart from the left and do not overlap.
            Several that one token completes end one step.

    Raises ValueError on an empty separator.

    Example: `step_ids(["a", ".\\n", "\\nb", "c"], "\\n\\n")` is `[0, 0, 0, 1]`
    """
    if not separator:
        raise ValueError("separator is empty; it must be some text, such as a blank line")
    ends = list(accumulate(map(len, pieces)))
    found = re.finditer(re.escape(separator), "".join(pieces))
    last_tokens = {bisect_left(ends, match.end()) for match in found}
    return [0, *accumulate(int(token in last_tokens) for token in range(len(pieces)))][: len(pieces)]
