"""How every part of the configuration is checked."""

from __future__ import annotations

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Unknown keys are refused, and so are numbers that are none; the sentence under a field is its documentation."""
