"""One self-contained HTML file from data that nobody vouches for: no network, no foreign script, no text as markup."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parent / "template"
STYLE = "style.css"
SCRIPTS = ("base.js", "curves.js", "tables.js", "list.js", "tokens.js", "group.js", "main.js")
"""In the order in which they are joined into one."""
FORBIDDEN = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
"""What could end a script element or begin a comment, as JSON writes it otherwise."""


def page(data: Any, groups: Any, title: str) -> str:
    """The page. `data` is read at once; `groups`, each a few packed texts, one by one when they are opened.

    The policy in its head lets the browser run this one script and this one style by their hashes, and load nothing.
    """
    style = read(STYLE)
    script = '"use strict";\n(() => {\n' + "\n".join(read(name) for name in SCRIPTS) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "TITLE": escaped(title),
        "POLICY": policy,
        "STYLE": style,
        "SCRIPT": script,
        "DATA": embedded(data),
        "GROUPS": embedded(groups),
    }
    # Split once, so that nothing that is put in is looked at for further marks.
    pieces = read("page.html").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def embedded(data: Any) -> str:
    """JSON in ASCII that may stand in a script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(FORBIDDEN)


def escaped(text: str) -> str:
    """Text in ASCII that may stand in an element."""
    allowed = (char if char.isascii() and char.isprintable() and char not in "<>&\"'" else None for char in text)
    pairs = zip(allowed, text, strict=True)
    return "".join(char if char is not None else f"&#{ord(other) if ord(other) else 0xFFFD};" for char, other in pairs)


def digest(text: str) -> str:
    """The hash of an inline script or style, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def read(name: str) -> str:
    """A file of the template."""
    return (TEMPLATE / name).read_text(encoding="utf-8")
