r"""Mathematical answers as text: the last `\boxed{}`, one normal form, and plain numbers. No algebra here."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

LONGEST = 512
"""Characters of an answer; whatever is longer is not read."""

BRACE = re.compile(r"\\{1,2}boxed\s*\{|\\.|[{}]", re.DOTALL)


def last_box(response: str) -> str | None:
    r"""What stands in the balanced `\boxed{...}` that opens last, stripped; None without one, or too long, or empty.

    Takes linear time whatever the response is. Braces behind a backslash do not count.
    """
    if "boxed" not in response:
        return None
    opened: list[int | None] = []  # where the content of each open brace begins; None unless it is a box's
    last: tuple[int, int] | None = None
    for token in BRACE.finditer(response):
        text = token[0]
        if text == "{":
            opened.append(None)
        elif text.endswith("{") and len(text) > 2:
            opened.append(token.end())
        elif text == "}" and opened:
            start = opened.pop()
            if start is not None and (last is None or start > last[0]):
                last = start, token.start()
    if last is None or last[1] - last[0] > LONGEST:
        return None
    return response[last[0] : last[1]].strip() or None


SIGNS = str.maketrans(
    {
        "\u2212": "-",
        "\u2010": "-",
        "\u2011": "-",
        "\u2013": "-",
        "\u2014": "-",
        "\u2044": "/",
        "\u2215": "/",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u00f7": "/",
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
        "\u2260": r"\ne ",
        "\u221e": r"\infty ",
        "\u03c0": r"\pi ",
        "\u00b0": r"^\circ ",
        "\u222a": r"\cup ",
        "\u2229": r"\cap ",
        "\u2205": r"\emptyset ",
    }
)
"""Signs that have a name in LaTeX, and the many dashes that mean minus."""


def _plain(character: str) -> str:
    """One character as LaTeX has it: raised digits as powers, `½` as a fraction, every script's digits as 0-9."""
    kind, _, meaning = unicodedata.decomposition(character).partition(" ")
    if kind in ("<super>", "<sub>"):
        return ("^{%s}" if kind == "<super>" else "_{%s}") % unicodedata.normalize("NFKC", character)
    if kind == "<fraction>":
        above, _, below = "".join(chr(int(code, 16)) for code in meaning.split()).partition("\u2044")
        return rf"\frac{{{above}}}{{{below}}}"
    digit = unicodedata.decimal(character, None)
    return character if digit is None else str(digit)


def _visible(text: str) -> str:
    """`text` in normalisation form KC, without control and format characters or lone surrogates."""
    text = "".join(map(_plain, text)) if not text.isascii() else text
    text = unicodedata.normalize("NFKC", text.translate(SIGNS)).translate(SIGNS)
    white = (" " if character.isspace() else character for character in text)
    return "".join(character for character in white if unicodedata.category(character) not in ("Cc", "Cf", "Cs"))


REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[$]|[$]", ""),
        (r"(?<!\\)\\[()\[\]]", ""),  # math mode, already meant
        (r"\\(?:displaystyle|textstyle|left|right|[Bb]ig[gG]?[lr]?)(?![A-Za-z])\.?", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(le|ge|ne)(?:q|qslant)(?![A-Za-z])", r"\\\1"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:mathrm|mathbf|mathit|textrm|textbf|textit|textnormal|mbox|operatorname)(?=\{)", r"\\text"),
        (r"\s*(?:\\text\{\s*(?:percent|\\?%)\s*\}|\bpercent\b|\\?%)", r"\\%"),
        (r"(?<!\\)\\[!,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\{,\}", ","),
        (r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])", ""),  # a space stays only between two words or numbers
        (r"\s+", " "),
        (r"^\\text\{([^{}]*)\}$", r"\1"),
        (r"(?<=.)[.,;:]$", ""),
    )
)
r"""Spellings that mean the same, in order; `\%` stays, for 50\% is not 50."""


def normal(answer: str) -> str:
    """`answer` in one spelling, so that what looks alike is equal as text; at most `LONGEST` characters are read."""
    text = _visible(answer[:LONGEST]).strip()
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip()


UNIT = re.compile(
    r"(?<=[0-9.}])(?:\^\{?\\circ\}?|\s?\\text\{(?P<unit>(?:(?!\s\d)[^{}])*)\}(?:\^\{?\d\}?)?"
    r"| (?P<words>[A-Za-z]{4,}(?: [A-Za-z]{4,})?))$"  # shorter ones may be products of letters
)
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
GROUPS = re.compile(r"[+-]?\d{1,3}(?:,\d{3}|(?: \d{3}))+(?:\.\d*)?")
DECIMAL = r"\d+\.?\d*|\.\d+"
NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:(?P<whole>{DECIMAL})(?:/(?P<under>\d+))?"
    rf"|\\frac(?:\{{(?P<above>[+-]?\d+)\}}|(?P<a>\d))(?:\{{(?P<below>\d+)\}}|(?P<b>\d)))(?P<percent>\\%)?",
    re.ASCII,
)


def number(text: str) -> Fraction | None:
    r"""The value of a plain number in normal form, exactly; None for whatever is not one.

    Plain are integers, decimals, fractions of integers, each with thousands separators, a percent sign or a unit
    (`5\text{ cm}`, `90^\circ`, `5 sheep`); units are not compared, but `5\text{ million}` is 5000000. A fraction over
    zero is no number.
    """
    unit = UNIT.search(text)
    first, _, _ = (unit["unit"] or unit["words"] or "" if unit else "").strip().partition(" ")
    text = UNIT.sub("", text)
    if GROUPS.fullmatch(text):
        text = re.sub("[, ]", "", text)
    found = NUMBER.fullmatch(text)
    if found is None:
        return None
    above = Fraction(found["whole"] or found["above"] or found["a"])
    below = int(found["under"] or found["below"] or found["b"] or 1) * (100 if found["percent"] else 1)
    if below == 0:
        return None
    return above / below * SCALES.get(first, 1) * (-1 if found["sign"] == "-" else 1)


WORDS = re.compile(r"[A-Za-z][A-Za-z' -]+[A-Za-z]")


def words(text: str) -> str | None:
    """Letters of an answer that is words (`Monday`, `does not exist`), as small letters; None for anything else.

    Three letters or more make a word, so that `xy` stays a product.
    """
    return re.sub(r"[^a-z]", "", text.casefold()) if WORDS.fullmatch(text) else None


ZERO_BELOW = re.compile(r"(?:\\frac(?:\{[^{}]*\}|\d)(?:\{0+\}|0)|/\s?0+)(?![\d.])")


def undefined(text: str) -> bool:
    """Whether an answer in normal form is no value at all: nan, a missing value, a fraction over zero."""
    return text.casefold() in ("", "nan", "inf", "infinity", "none", "null") or bool(ZERO_BELOW.search(text))


RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|lt|gt|in|approx|equiv|sim)(?![A-Za-z])")
NAME = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?|\([A-Za-z](?:,[A-Za-z])+\)")


def without_name(text: str) -> str:
    r"""What `x=3`, `3=x`, `(x,y)=(1,2)` and `x\in[0,1)` say of what they name; any other text as it is."""
    relations = RELATION.findall(text)
    if relations not in (["="], [r"\in"]):
        return text
    left, _, right = text.partition(relations[0])
    if relations == [r"\in"]:
        return right if NAME.fullmatch(left) and right else text
    if NAME.fullmatch(left) and right:
        return right
    return left if NAME.fullmatch(right) and left else text


CLAIM = re.compile(r"(?:\\(?:frac|sqrt|cdot|times|pi)(?![A-Za-z])|[-+*/^(){}.,!0-9 ])+[A-Za-z]?")
"""A number, or one times an unknown: on the left of `=` it is no name, but says what the right side is."""


def claims(text: str) -> list[str]:
    """The sides of an equation or chain, but for the last, that are numbers or multiples of an unknown.

    All have to be right: `2+3=5` says 5, but neither `6=5` nor `5x=5` does.
    """
    sides = [""]
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "=" and depth == 0:
            sides.append("")
        else:
            sides[-1] += character
    return [side for side in sides[:-1] if CLAIM.fullmatch(side)]


SEVERAL = re.compile(r",|(?<![A-Za-z])(?:or|and)(?![A-Za-z])")
"""What stands between several answers."""

BASE = re.compile(r"[0-9A-Fa-f]_(?:\{(\d+)\}|(\d+))$")


def base(text: str) -> str | None:
    """The base that a number is written in, such as 8 for `2516_8`; None where it has none."""
    found = BASE.search(text)
    return (found[1] or found[2]) if found else None


def is_ordered(text: str) -> bool:
    """Whether the text is one tuple or interval: a bracket that closes at the end, with a comma right inside."""
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]"):
        return False
    depth = 0
    comma = False
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        comma = comma or (character == "," and depth == 1)
        if depth == 0:
            return comma and position == len(text) - 1
    return False
