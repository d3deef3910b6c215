"""`python -m trainer.config.reference`: the configuration reference, made from the schema and the shipped YAML."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from trainer.config.compose import METHODS, PROJECT, compose_tree
from trainer.config.flags import FLAGS
from trainer.config.schema import Config


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every key of the schema with its type and its sentence."""
    hints = get_type_hints(schema)
    documentation: dict[str, Any] = schema.__pydantic_fields__  # type: ignore[attr-defined]
    for field in fields(schema):
        if is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield (
                f"{prefix}{field.name}",
                hints[field.name],
                " ".join((documentation[field.name].description or "").split()),
            )


def type_name(hint: Any) -> str:
    """A type as a person writes it: alternatives of a choice, or the plain name."""
    if hint is type(None):
        return "null"
    if get_origin(hint) is None:
        return str(hint.__name__) if isinstance(hint, type) else str(hint)
    if "Literal" in str(get_origin(hint)):
        return ", ".join(map(str, get_args(hint)))
    if get_args(hint)[-1] is ...:
        return f"list out of {type_name(get_args(hint)[0])}"
    if get_origin(hint) in (dict, tuple):
        return str(hint)
    return " or ".join(type_name(part) for part in get_args(hint))


def lookup(tree: dict[str, Any], key: str) -> Any:
    """The value under a dotted key."""
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def shown(value: Any) -> str:
    """A value as YAML has it, paths relative to the project, for a table cell."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text.replace(f"{PROJECT}/", "")
    return f"`{text}`".replace("\n", "\\n").replace("|", "\\|") if text else '`""`'


def page() -> str:
    """The whole page as Markdown."""
    published = {name: compose_tree(name, ["profile=published"]) for name in METHODS}
    embedded = {name: compose_tree(name, []) for name in METHODS}
    flags = {key: flag for flag, key in FLAGS.items()} | {
        "data.train_files": "DATA_PATH",
        "data.val_files": "VAL_DATA_PATH",
    }
    lines = [
        "# Configuration reference",
        "",
        "Made by `python -m trainer.config.reference`; do not edit. Every key that a run honours, with its type, the",
        "environment flag that sets it, and its default. Where a method or the embedded model departs from the",
        "default, the departure stands behind it. A key that is not here is refused.",
        "",
        "| key | flag | type | default | meaning |",
        "|---|---|---|---|---|",
    ]
    for key, hint, sentence in leaves(Config):
        base = lookup(published["sdpo"], key)
        departures = [
            f"{name}: {shown(lookup(published[name], key))}" for name in METHODS if lookup(published[name], key) != base
        ]
        if lookup(embedded["sdpo"], key) != base:
            departures.append(f"embedded model: {shown(lookup(embedded['sdpo'], key))}")
        default = "; ".join([shown(base), *departures])
        lines.append(f"| `{key}` | {flags.get(key, '')} | {type_name(hint)} | {default} | {sentence} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
