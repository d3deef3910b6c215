"""What a run would need and cost, before the first second of it; `trainer.plan` is the command."""
