"""How different texts are from one another: the formulas, on paper, without files or prompts.

Every measure is symmetric: the order of the texts changes nothing. What the texts do not define is None.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

TOKEN = re.compile(r"[^\W\d]\w*|\d+|\S")
"""An identifier or word, a run of digits, or one other sign."""
ORDERS = 4
"""Of BLEU-4."""

Tokens = Sequence[str]
Counts = Counter[tuple[str, ...]]


def tokens_of(text: str) -> list[str]:
    """The tokens of a text; blanks part them and count for nothing else."""
    return TOKEN.findall(text)


def ngrams(tokens: Tokens, n: int) -> list[tuple[str, ...]]:
    """Every run of n tokens, in order."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[Tokens], n: int, *, across: bool = False) -> float | None:
    """Different n-grams as a share of all n-grams of the texts; None where they have none.

    With `across` the texts are first put end to end, as published: then some n-grams belong to no text.
    """
    parts = [[token for text in texts for token in text]] if across else texts
    every = [gram for part in parts for gram in ngrams(part, n)]
    return len(set(every)) / len(every) if every else None


def self_bleu(texts: Sequence[Tokens]) -> float | None:
    """The mean BLEU-4 of each text with all others as its references; 1 where all are alike. None below two texts.

    Precisions are smoothed by adding one, clipped to the largest count in any one reference; the brevity penalty takes
    the reference of the closest length. An order that a text is too short for does not count. Texts without tokens
    take no part.
    """
    texts = [text for text in texts if text]
    if len(texts) < 2:
        return None
    log_precisions: list[list[float]] = [[] for _ in texts]
    for n in range(1, ORDERS + 1):
        counts = [Counter(ngrams(text, n)) for text in texts]
        two_largest = largest_counts(counts)
        for own, into in zip(counts, log_precisions, strict=True):
            if own:
                matched = sum(min(count, most_elsewhere(count, two_largest[gram])) for gram, count in own.items())
                into.append(math.log((matched + 1) / (own.total() + 1)))
    lengths = [len(text) for text in texts]
    scores = [
        brevity_penalty(length, [*lengths[:place], *lengths[place + 1 :]]) * math.exp(math.fsum(logs) / len(logs))
        for place, (length, logs) in enumerate(zip(lengths, log_precisions, strict=True))
    ]
    return math.fsum(scores) / len(scores)


def largest_counts(counts: Sequence[Counts]) -> dict[tuple[str, ...], tuple[int, int]]:
    """Of every n-gram the largest and the second largest count that any text has; equal where two texts have it."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for own in counts:
        for gram, count in own.items():
            first, second = found.get(gram, (0, 0))
            found[gram] = (max(first, count), max(second, min(first, count)))
    return found


def most_elsewhere(count: int, two_largest: tuple[int, int]) -> int:
    """The largest count of an n-gram in the texts other than one that has it `count` times."""
    first, second = two_largest
    return second if count == first else first


def brevity_penalty(length: int, references: Sequence[int]) -> float:
    """BLEU's factor for a text shorter than the reference of the closest length; of two as close, the shorter."""
    closest = min(references, key=lambda reference: (abs(reference - length), reference))
    return 1.0 if length >= closest else math.exp(1.0 - closest / length)


def common_length(first: str, second: str) -> int:
    """The length of the longest common subsequence of two texts.

    Bit-parallel (Crochemore and others, 2001): a bit per character of `first`, a few operations on one large integer
    per character of `second`.
    """
    places: dict[str, int] = {}
    for place, sign in enumerate(first):
        places[sign] = places.get(sign, 0) | 1 << place
    every = (1 << len(first)) - 1
    open_ = every
    for sign in second:
        matches = open_ & places.get(sign, 0)
        open_ = ((open_ + matches) | (open_ - matches)) & every
    return len(first) - open_.bit_count()


def subsequence_distance(first: str, second: str) -> float:
    """1 - 2 M / T, M the length of the longest common subsequence, T that of both texts; 0 for two empty ones."""
    together = len(first) + len(second)
    return 1.0 - 2.0 * common_length(first, second) / together if together else 0.0


def difflib_distance(first: str, second: str) -> float:
    """1 - difflib's ratio, as published: M by a heuristic.

    From 200 characters on it ignores all that are frequent, and it depends on which text comes first; here that is the
    lesser one, so that the order of attempts does not count.
    """
    return 1.0 - difflib.SequenceMatcher(None, *sorted((first, second))).ratio()


DISTANCES: dict[str, Callable[[str, str], float]] = {"subsequence": subsequence_distance, "difflib": difflib_distance}
"""By the name that the command line has for them."""


def mean_distance(texts: Sequence[str], distance: Callable[[str, str], float]) -> float | None:
    """The mean distance of two of the texts; None below two texts. Texts that are there several times cost nothing."""
    if len(texts) < 2:
        return None
    counts = Counter(texts)
    far = math.fsum(
        counts[first] * counts[second] * distance(first, second) for first, second in combinations(sorted(counts), 2)
    )
    return far / math.comb(len(texts), 2)


def unique_ratio(texts: Sequence[str]) -> float | None:
    """Different texts as a share of all, blanks and line ends apart; None without a text."""
    return len({" ".join(text.split()) for text in texts}) / len(texts) if texts else None


def node_counts(program: str) -> Counter[str] | None:
    """How many nodes of each type a Python program's syntax tree has; None where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of doubtful escapes in strings; the program is not ours
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return Counter(type(node).__name__ for node in ast.walk(tree))


def mean_tree_distance(trees: Sequence[Counter[str]]) -> float | None:
    """The mean over pairs of 1 - (sum of the smaller counts) / (sum of the larger); None below two programs."""
    if len(trees) < 2:
        return None
    distances = [1.0 - (one & other).total() / (one | other).total() for one, other in combinations(trees, 2)]
    return math.fsum(distances) / len(distances)
