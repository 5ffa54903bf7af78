"""The hooks a plugin may implement. Each is a pluggy hook of the project `dmlcore`. Only `dmlcore_commands` is called
before torch may load.

A plugin is a module (or object) registered under the entry-point group `dmlcore`; it marks functions of these names with
`@dmlcore.hookimpl`. A hook with another name, or with an argument that is not listed here, is refused when it loads. The
descriptions below are the hook reference of the docs. The hooks that offer components are made from the table in `kinds.py`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pluggy

from dmlcore.kinds import KINDS, Kind

hookspec = pluggy.HookspecMarker("dmlcore")
hookimpl = pluggy.HookimplMarker("dmlcore")

Run = Any
"""A `dmlcore.training.Run`. Its class is not named here, because hooks stand below everything that calls them."""


def _offering(kind: Kind) -> Callable[[], Iterable[type]]:
    """The hook by which plugins offer components of a kind."""

    def hook() -> Iterable[type]:  # type: ignore[empty-body]
        ...

    hook.__name__ = hook.__qualname__ = kind.hook
    returns = "\n".join(f"    {line}" for line in inspect.cleandoc(kind.contract).splitlines())
    hook.__doc__ = f"{kind.summary}\n\nReturns:\n{returns}\n"
    return hookspec(hook)


globals().update({kind.hook: _offering(kind) for kind in KINDS.values()})


@hookspec
def dmlcore_kernel_headers() -> Iterable[str | os.PathLike[str]]:  # type: ignore[empty-body]
    """Fused forms of losses: C++ headers that keep the contract of `csrc/dml/contract.h`.

    A loss can name its own header by the class attribute `header` instead; this hook is for headers that several losses share.

    Returns:
        Paths of files `NAME.h`, each ending with `struct NAME_functors`. A loss runs functor NAME by returning
        `FunctorCall(NAME, options)` from `functor_call`.
    """


@hookspec
def dmlcore_commands(app: Any, line: Any) -> None:
    """Add sub-commands to the command line. They are listed by `dmlcore --help`.

    A module with this hook is imported for `dmlcore --help` too. Import what takes long, such as torch, inside the command, or
    register the commands as an entry point of their own. Where several modules stand behind one, the hook's name must appear in
    the module that the entry point names.

    Args:
        app: the `cyclopts.App` of `dmlcore`; decorate a function with `@app.command`.
        line: the `dmlcore.commands.line.CommandLine`: the words that were typed, for commands whose flags depend on them.
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
