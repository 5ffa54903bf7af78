"""Records for Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import dmlcore
from dmlcore.training import SeriesLogger, SeriesOptions

if TYPE_CHECKING:
    from dmlcore.training import Run


class WandbLogger(SeriesLogger):
    """Records for Weights & Biases. Offline they lie in `wandb` in the run folder, and `wandb sync` sends them later."""

    name: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"

    @dataclass(frozen=True)
    class Options(SeriesOptions):
        mode: Literal["offline", "online"] = "offline"
        """`offline` uses no network; `online` sends the records while the run trains, after `wandb login`."""
        project: str = "dmlcore"
        """The project that runs are filed under."""

    def begin(self, run: Run) -> None:
        wandb = importlib.import_module("wandb")  # `import wandb` is this module to checkers of types
        path = run.folder.path.resolve()
        self._run: Any = wandb.init(
            project=self.options.project,
            name=path.name,
            id=hashlib.sha256(str(path).encode()).hexdigest()[:16],  # a resumed run goes on in the same record
            resume="allow" if self.options.mode == "online" else None,
            dir=str(path),
            mode=self.options.mode,
            config=run.config.as_dict(),
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        # Steps are an axis of their own: the result belongs to an earlier step than the last.
        self._run.log({**numbers, "step": step})

    def finish(self, is_complete: bool) -> None:
        self._run.finish(exit_code=0 if is_complete else 1)


@dmlcore.hookimpl
def dmlcore_loggers() -> list[type]:
    return [WandbLogger]
