"""Runs side by side, over seeds; `trainer.compare` is the command."""
