"""Records for MLflow."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import dmlcore
from dmlcore.config import flat_values
from dmlcore.training import SeriesLogger, SeriesOptions

if TYPE_CHECKING:
    from dmlcore.training import Run

FOLDER = "dmlcore.folder"  # the tag by which a resumed run finds its record
LONGEST = 6000  # letters of a value that MLflow takes


class MLflowLogger(SeriesLogger):
    """Records for MLflow, in local files, a data base or on a server. `mlflow ui --backend-store-uri mlruns` shows them."""

    name: ClassVar[str] = "mlflow"
    package: ClassVar[str] = "mlflow"

    @dataclass(frozen=True)
    class Options(SeriesOptions):
        every: int = 10
        """Write every so many steps."""
        uri: str = "mlruns"
        """Where records go: a folder, such as `mlruns`, or an address, such as `sqlite:///mlflow.db` or `http://server:5000`."""
        experiment: str = "dmlcore"
        """The experiment that runs are filed under."""

    def begin(self, run: Run) -> None:
        if "://" not in self.options.uri:  # MLflow writes into folders only if it is told so
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._metric = Metric
        self._client: Any = MlflowClient(tracking_uri=self.options.uri)
        path = str(run.folder.path.resolve())
        known = self._client.get_experiment_by_name(self.options.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(self.options.experiment)
        quoted = path.replace("'", "\\'")
        earlier = self._client.search_runs([experiment], f"tags.`{FOLDER}` = '{quoted}'", max_results=1) if run.step else []
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
            return
        record = self._client.create_run(experiment, run_name=run.folder.path.resolve().name, tags={FOLDER: path})
        self._id = record.info.run_id
        settings = flat_values(run.config.as_dict())
        self._client.log_batch(self._id, params=[Param(key, value[:LONGEST]) for key, value in settings.items()][:100])

    def write(self, step: int, numbers: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        # An `@` is no letter of a name there.
        metrics = [
            self._metric(name.replace("@", "_at_").replace(", ", " "), number, now, step) for name, number in numbers.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, is_complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if is_complete else "KILLED")


@dmlcore.hookimpl
def dmlcore_loggers() -> list[type]:
    return [MLflowLogger]
