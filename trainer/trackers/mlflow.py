"""MLflow: a run on the server of MLFLOW_TRACKING_URI, else in files of the run's folder. The only door to it."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Mapping

from trainer.nested import flat
from trainer.trackers.base import Memory, Run, Sample, public

PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
"""What a call may hold."""
LONGEST_PARAM = 6000
"""Characters that a setting may have there."""
REQUESTS = 4
"""The server's time is for so many requests: each may be made twice, and the start makes several."""


class Mlflow:
    """A run of MLflow: its settings as parameters, its metrics by step."""

    def __init__(self, run: Run, memory: Memory) -> None:
        for name, value in environment_of(run.patience_s).items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # of second attempts nobody need hear
        self.metric = Metric
        address = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder.resolve() / "mlflow").as_uri()
        self.client = MlflowClient(address)
        self.run_id = self.opened(run, memory.run_id("mlflow"))
        memory.begin("mlflow", self.run_id)
        self.place = public(address).removeprefix("file://")
        # A parameter is written once: the settings that a run goes on with otherwise stand in its config.yaml.
        known = self.client.get_run(self.run_id).data.params
        settings = {name: value for name, value in flat(run.settings) if name not in known}
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in settings.items()]
        for begin in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(self.run_id, params=params[begin : begin + PARAMS_AT_ONCE])

    def opened(self, run: Run, known: str | None) -> str:
        """The id of the run there, which goes on where that server knows it."""
        from mlflow.exceptions import MlflowException

        try:
            if known is not None:
                self.client.update_run(known, status="RUNNING")
                return known
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        found = self.client.get_experiment_by_name(run.project)
        experiment = self.client.create_experiment(run.project) if found is None else found.experiment_id
        return str(self.client.create_run(experiment, run_name=run.folder.name).info.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends one step."""
        now = int(1000 * time.time())
        told = [self.metric(allowed(name), value, now, step) for name, value in metrics.items()]
        for begin in range(0, len(told), METRICS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=told[begin : begin + METRICS_AT_ONCE])

    def rollouts(self, step: int, sample: Sample) -> None:
        """Takes none: a server's files need a store of their own, which not every server has."""

    def close(self, code: int) -> None:
        """Ends the run."""
        self.client.set_terminated(self.run_id, "FAILED" if code else "FINISHED")


def environment_of(patience_s: float) -> dict[str, str]:
    """What MLflow reads, where the user has not set it."""
    return {
        "MLFLOW_ALLOW_FILE_STORE": "true",  # files need no data base, and its tools turn them into one
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(patience_s / REQUESTS)),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }


def allowed(name: str) -> str:
    """A metric's name as MLflow takes it: `@` is `_at_`, and slashes after the first are dots.

    Where it keeps files, a name may not be another's folder (`timing_s/learn`, `timing_s/learn/forward`).
    """
    group, _, rest = name.replace("@", "_at_").partition("/")
    return re.sub(r"[^\w\-. /]", "_", f"{group}/{rest.replace('/', '.')}" if rest else group)
