"""A run's curves elsewhere: TensorBoard, wandb and MLflow, each behind a door of its own, none in the run's way."""
