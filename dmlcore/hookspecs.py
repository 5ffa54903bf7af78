"""The hooks a plugin may implement. Each is a pluggy hook of the project `dmlcore`; none is called before torch may load.

A plugin is a module (or object) registered under the entry-point group `dmlcore`; it marks functions of these names with
`@dmlcore.hookimpl`. A hook with another name, or with an argument that is not listed here, is refused when it loads. The
docstrings below are the hook reference of `docs/plugins.md`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from dmlcore.training.run import Run

hookspec = pluggy.HookspecMarker("dmlcore")
hookimpl = pluggy.HookimplMarker("dmlcore")


@hookspec
def dmlcore_losses() -> Iterable[type]:  # type: ignore[empty-body]
    """Losses: what `--plugins` can name.

    Returns:
        Subclasses of `dmlcore.losses.Loss`, each with `name` and `Options`. `forward` takes embeddings `[B, D]` floating point
        and labels `[B]` int64, with `references` `[N, D]` and `reference_labels` `[N]` where the batch is compared with others,
        and returns a scalar. A `PairLoss` writes `row_values` instead: similarities `[A, N]` and bool masks `[A, N]` in, values
        and counts `[V, A]` out.
    """


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
    """Miners, which choose the pairs that count: what `--LOSS.miner` can name.

    Returns:
        Subclasses of `dmlcore.losses.Miner`: `masks` takes cosines `[A, N]` and bool masks `[A, N]` of positives and negatives
        and returns subsets of both; a `WindowMiner` gives intervals `[4, A]` instead and stays fused.
    """


@hookspec
def dmlcore_weightings() -> Iterable[type]:  # type: ignore[empty-body]
    """Ways to weigh the terms of an ensemble: what `--weighting` can name.

    Returns:
        Subclasses of `dmlcore.ensemble.Weighting`: `forward` takes the terms `[L]` and returns a scalar; `weights` is `[L]`.
    """


@hookspec
def dmlcore_compressors() -> Iterable[type]:  # type: ignore[empty-body]
    """Heads behind the embedding that make it narrower, after training or beside it: what `--compressor` can name.

    Returns:
        Subclasses of `dmlcore.ensemble.Compressor`: `learn` takes training embeddings `[N, W]`, `forward` maps `[B, W]`
        to `[B, D]`.
    """


@hookspec
def dmlcore_models() -> Iterable[type]:  # type: ignore[empty-body]
    """Trunks: what `--model` can name.

    Returns:
        Subclasses of `dmlcore.models.Trunk`: `forward` maps samples `[B, C, H, W]` in 0..1 or `[B, F]` to features
        `[B, features]`; a linear head follows.
    """


@hookspec
def dmlcore_datasets() -> Iterable[type]:  # type: ignore[empty-body]
    """Data sets: what `--data` can name.

    Returns:
        Subclasses of `dmlcore.data.DataSource`: `load` returns a `Table` of N samples, labels int64 `[N]` and class names.
    """


@hookspec
def dmlcore_transforms() -> Iterable[type]:  # type: ignore[empty-body]
    """Random changes of training batches: what `--transforms` can name.

    Returns:
        Subclasses of `dmlcore.data.Transform`, called with samples `[B, ...]` float32 and a generator on the CPU, the only
        source of random numbers; they return samples of the same shape.
    """


@hookspec
def dmlcore_samplers() -> Iterable[type]:  # type: ignore[empty-body]
    """Rules that compose training batches: what `--sampler` can name.

    Returns:
        Subclasses of `dmlcore.data.BatchSampler`, made from the dense labels `[N]` of the training data; `draw(step)` gives the
        rows `[P * K]` of a batch, and depends on nothing but its arguments, the step and the seed.
    """


@hookspec
def dmlcore_metrics() -> Iterable[type]:  # type: ignore[empty-body]
    """Measures of embeddings, reported beside the standard ones: what `--metrics` can name.

    Returns:
        Subclasses of `dmlcore.evaluation.Metric`, called with embeddings `[N, D]` float32 and labels `[N]` int64 of one part of
        the data; they return numbers by name, which appear as `METRIC.name` in `metrics.jsonl` and `result.json`.
    """


@hookspec
def dmlcore_loggers() -> Iterable[type]:  # type: ignore[empty-body]
    """Receivers of training records: what `--loggers` can name.

    Returns:
        Subclasses of `dmlcore.training.Logger`, told of the same events as the hooks below and closed in any case. One that
        raises is warned about once, and training goes on.
    """


@hookspec
def dmlcore_commands(app: Any) -> None:
    """Add sub-commands to the command line.

    Args:
        app: the `cyclopts.App` of `dmlcore`; decorate a function with `@app.command`.
    """


@hookspec
def dmlcore_training_started(run: Run) -> None:
    """Called once in each process that trains, before its first step.

    Args:
        run: the `dmlcore.training.Run`: data, model, losses, optimiser; `run.step` is above 0 in a resumed run.
    """


@hookspec
def dmlcore_step_ended(run: Run, record: dict[str, Any]) -> None:
    """Called after every optimiser step.

    Args:
        run: the run.
        record: what goes to `metrics.jsonl`: `step`, `total`, `terms`, `weights`, `active`, `learning_rates`,
            `gradient_norms`, `images_per_second`; plain numbers, and dicts of them by the losses' names.
    """


@hookspec
def dmlcore_evaluated(run: Run, record: dict[str, Any]) -> None:
    """Called after every evaluation on the validation classes.

    Args:
        run: the run.
        record: what goes to `metrics.jsonl`: `step`, `split`, the measures by name, `is_best`, `seconds`.
    """


@hookspec
def dmlcore_checkpoint_saved(run: Run, name: str, path: Path) -> None:
    """Called after a checkpoint was written, whole and safely on the disk.

    Args:
        run: the run.
        name: `best` (what is evaluated in the end) or `last` (what a resumed run continues from).
        path: the file.
    """


@hookspec
def dmlcore_training_ended(run: Run, result: dict[str, Any]) -> None:
    """Called once, after `result.json` is written.

    Args:
        run: the run; its model has the weights of the best checkpoint.
        result: what `result.json` holds.
    """
