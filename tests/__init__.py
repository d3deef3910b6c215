"""Tests, in rooms that mirror the project's."""
