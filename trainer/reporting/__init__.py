"""The parts of `report.html`, the page that shows a run from inside; `trainer.report` is the command."""
