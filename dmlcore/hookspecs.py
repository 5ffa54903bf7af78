"""The hooks a plugin may implement. Each is a pluggy hook of the project `dmlcore`; none is called before torch may load.

A plugin is a module (or object) registered under the entry-point group `dmlcore`; it marks functions of these names with
`@dmlcore.hookimpl`. A hook with another name, or with an argument that is not listed here, is refused when it loads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from dmlcore.training.run import Run

hookspec = pluggy.HookspecMarker("dmlcore")
hookimpl = pluggy.HookimplMarker("dmlcore")


@hookspec
def dmlcore_losses() -> Iterable[type]:  # type: ignore[empty-body]
    """Loss classes: subclasses of `dmlcore.losses.Loss`, each with `name` and `Options`."""


@hookspec
def dmlcore_kernel_headers() -> Iterable[str | os.PathLike[str]]:  # type: ignore[empty-body]
    """Fused forms of losses: C++ headers that keep the contract of `csrc/dml/contract.h`.

    A loss can name its own header by the class attribute `header` instead; this hook is for headers that several losses share.

    Returns:
        Paths of files `NAME.h`, each ending with `struct NAME_functors`. A loss runs functor NAME by returning
        `FunctorCall(NAME, options)` from `functor_call`.
    """


@hookspec
def dmlcore_miners() -> Iterable[type]:  # type: ignore[empty-body]
    """Miners, which choose the pairs that count: subclasses of `dmlcore.losses.Miner`."""


@hookspec
def dmlcore_weightings() -> Iterable[type]:  # type: ignore[empty-body]
    """Ways to weigh the terms of an ensemble: subclasses of `dmlcore.ensemble.Weighting`."""


@hookspec
def dmlcore_compressors() -> Iterable[type]:  # type: ignore[empty-body]
    """Ways to make embeddings narrower after training or beside it: subclasses of `dmlcore.ensemble.Compressor`."""


@hookspec
def dmlcore_models() -> Iterable[type]:  # type: ignore[empty-body]
    """Trunks: subclasses of `dmlcore.models.Trunk`."""


@hookspec
def dmlcore_datasets() -> Iterable[type]:  # type: ignore[empty-body]
    """Data sets by name: subclasses of `dmlcore.data.DataSource`."""


@hookspec
def dmlcore_loggers() -> Iterable[type]:  # type: ignore[empty-body]
    """Receivers of training records: subclasses of `dmlcore.training.Logger`."""


@hookspec
def dmlcore_commands(app: Any) -> None:
    """Add sub-commands to the command line.

    Args:
        app: the `cyclopts.App` of `dmlcore`; decorate a function with `@app.command`.
    """


@hookspec
def dmlcore_training_started(run: Run) -> None:
    """Called once, before the first step."""


@hookspec
def dmlcore_step_ended(run: Run, record: dict[str, Any]) -> None:
    """Called after every optimiser step with the record that goes to `metrics.jsonl`."""


@hookspec
def dmlcore_evaluated(run: Run, record: dict[str, Any]) -> None:
    """Called after every evaluation with the record that goes to `metrics.jsonl`."""


@hookspec
def dmlcore_training_ended(run: Run, result: dict[str, Any]) -> None:
    """Called once, after `result.json` is written."""
