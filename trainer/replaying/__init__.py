"""A recorded step, rebuilt without Ray; `trainer.replay` is the command."""
