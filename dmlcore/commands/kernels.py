"""`dmlcore kernels` and its sub-commands: list, build, clear functors that are compiled at run time."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.flags import COMMON, command, flag, new_app
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App) -> None:
    kernels = new_app("kernels", "Functors of plugins, compiled on first use: what is kept, compile now, remove.")
    losses = flag("names", tuple[str, ...], "Losses or headers (default: all).", is_positional=True).replace(default=())
    headers = flag("names", tuple[str, ...], "Headers, without `.h` (default: all).", is_positional=True).replace(default=())
    kernels.command(command(_list, COMMON, "List the compiled functors that are kept, and where."), name="list")
    text = "Compile the functors of installed losses or of headers."
    kernels.command(command(_build, [losses, *COMMON], text), name="build")
    text = "Remove compiled functors; what runs keeps its own."
    kernels.command(command(_clear, [headers, *COMMON], text), name="clear")
    app.command(kernels, name="kernels")


def _list(*, json: bool, debug: bool) -> int:
    from dmlcore.kernels import kept_functors

    listing = kept_functors()
    console.show_json(listing) if json else show_kernels(listing)
    return 0


def _build(names: tuple[str, ...], *, json: bool, debug: bool) -> int:
    from dmlcore.kernels import build_functors

    outcomes = build_functors(names)
    console.show_json({"built": outcomes}) if json else show_built(outcomes)
    return 1 if any(outcome["error"] for outcome in outcomes) else 0


def _clear(names: tuple[str, ...], *, json: bool, debug: bool) -> int:
    from dmlcore.kernels import clear_functors

    removed = clear_functors(names)
    console.show_json({"removed": removed}) if json else console.show(f"removed: {', '.join(removed) or 'nothing'}")
    return 0


def show_kernels(listing: dict[str, Any]) -> None:
    """The compiled functors that are kept, a line each."""
    if listing["kernels"]:
        rows = [
            (
                ", ".join(kernel["functors"]),
                kernel["header"],
                kernel["state"],
                kernel["level"],
                kernel["compiler"],
                f"{kernel['bytes'] / 1000:.0f}",
                kernel["made"],
            )
            for kernel in listing["kernels"]
        ]
        console.show_table(["functors", "header", "state", "level", "compiler", "KB", "made"], rows)
    console.show(f"{len(listing['kernels'])} kept in {listing['folder']}")


def show_built(outcomes: list[dict[str, Any]]) -> None:
    """What was compiled, was there already, or was refused, a line each."""
    for outcome in outcomes:
        if outcome["error"]:
            console.show(f"{outcome['header']}: {outcome['error']}")
        else:
            done = f"compiled in {outcome['seconds']:.1f} s" if outcome["compiled"] else "there already"
            console.show(f"{outcome['header']}: {', '.join(outcome['functors'])} for {outcome['level']}, {done}")
    if not outcomes:
        console.show("No installed loss has a header to compile.")
