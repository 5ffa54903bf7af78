"""Records as event files for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import dmlcore
from dmlcore.training import SeriesLogger

if TYPE_CHECKING:
    from dmlcore.training import Run


class TensorBoardLogger(SeriesLogger):
    """Records as event files for TensorBoard, in `tensorboard` in the run folder: `tensorboard --logdir runs`."""

    name: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"

    def begin(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What came after the checkpoint that a resumed run goes on from is hidden.
        self._writer: Any = SummaryWriter(str(run.folder.path / "tensorboard"), purge_step=run.step + 1 if run.step else None)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def finish(self, is_complete: bool) -> None:
        self._writer.close()


@dmlcore.hookimpl
def dmlcore_loggers() -> list[type]:
    return [TensorBoardLogger]
