"""`dmlcore plugins` and its sub-commands for authors: new, check, bench, hooks, papers. The work is done elsewhere."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands import listing
from dmlcore.commands.naming import component_of
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag, new_app
from dmlcore.hookspecs import hookimpl
from dmlcore.kinds import KINDS

if TYPE_CHECKING:
    from dmlcore.testing import Report

OPTIONS = flag("options", str | None, "Options of it, as `NAME=VALUE`, separated by commas.")
NAME = flag(
    "name",
    str,
    "A name that `dmlcore plugins` lists, a file (`./my_loss.py:MyLoss`), or the folder of a package.",
    is_positional=True,
)


@hookimpl
def dmlcore_commands(app: App) -> None:
    text = "List everything plugins offer, or one with its options."
    plugins = new_app("plugins", f"{text.rstrip('.')}; make, check and time plugins.")
    name = flag("name", str | None, "Show this one with its options.", is_positional=True).replace(default=None)
    plugins.default(command(listing.show, [name, *COMMON], text))
    flags = [
        flag("name", str, "Name of what it offers: my_loss.", is_positional=True),
        flag("kind", str, f"What it offers: {', '.join(KINDS)}.", "loss"),
        flag("fused", bool, "A loss with a C++ header for its fused form.", False),
        flag("out", Path | None, "Folder of the package (default: `./dmlcore-NAME`)."),
        *COMMON,
    ]
    text = "Write an installable package that works, with tests and a README."
    plugins.command(command(_new, flags, text), name="new")
    kind = flag("kind", str | None, "What is meant, where several kinds share the name.")
    text = "Check that a plugin keeps the contract of its kind; exit status 1 where it does not."
    plugins.command(command(_check, [NAME, kind, OPTIONS, *COMMON], text), name="check")
    flags = [
        NAME,
        flag("samples", int, "Samples of a batch, four of each class.", 1024),
        flag("dimensions", int, "Length of an embedding.", 128),
        flag("seconds", float, "Seconds of measuring.", 5.0),
        flag("device", str, "`cpu` or `cuda`.", "cpu"),
        OPTIONS,
        *COMMON,
    ]
    text = "Time a loss: fused, its definition, the definition under torch.compile, bare matrix products."
    plugins.command(command(_bench, flags, text), name="bench")
    write = flag("write", Path | None, "Put the reference into this Markdown file, between its marks.")
    plugins.command(command(_hooks, [write, *COMMON], "Print the reference of all hooks."), name="hooks")
    write = flag("write", Path | None, "Put the tables into this Markdown file, between its marks.")
    text = "Print tables of all losses, miners and weightings with their papers."
    plugins.command(command(_papers, [write, *COMMON], text), name="papers")
    app.command(plugins, name="plugins")


def _new(name: str, *, kind: str, fused: bool, out: Path | None, json: bool, debug: bool) -> int:
    from dmlcore.authoring import create_package

    files = create_package(name, kind, fused=fused, out=out)
    folder = Path(os.path.commonpath(files))
    if json:
        console.show_json({"folder": str(folder), "files": [str(path) for path in files]})
        return 0
    for path in files:
        console.show(str(path))
    console.show(f"Try it: dmlcore plugins check {folder if folder.is_absolute() else f'./{folder}'}")
    console.show(f"Install it: pip install -e '{folder}[test]'")
    console.show(f"Then: pytest {folder}; dmlcore plugins check {name}")
    return 0


def _options(text: str | None) -> dict[str, str]:
    options = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"options has '{part}', but must be NAME=VALUE, separated by commas")
        options[key.strip().replace("-", "_")] = value.strip()
    return options


def _check(name: str, *, kind: str | None, options: str | None, json: bool, debug: bool) -> int:
    from dmlcore.testing import run_checks_of

    entry = component_of(name, [kind] if kind else list(KINDS))
    report = run_checks_of(entry.component, measures_memory=True, **_options(options))
    if json:
        checks = [{**dataclasses.asdict(check), "status": check.status} for check in report.checks]
        console.show_json({"kind": report.kind, "name": report.name, "passed": report.passed, "checks": checks})
    else:
        show_report(report)
    return 0 if report.passed else 1


def show_report(report: Report) -> None:
    """The checks of a plugin, a line each, and what they come to."""
    marks = {"ok": "ok  ", "fails": "FAIL", "not applicable": "-   "}
    for check in report.checks:
        console.show(f"{marks[check.status]} {check.name}{f': {check.detail}' if check.detail else ''}")
    failed = sum(not check.passed for check in report.checks)
    idle = sum(not check.applies for check in report.checks)
    applied = len(report.checks) - idle
    verdict = f"{failed} of {applied} checks fail" if failed else f"all {applied} checks hold"
    console.show(f"{report.kind} '{report.name}': {verdict}" + (f", {idle} do not apply" if idle else ""))


def _bench(
    name: str,
    *,
    samples: int,
    dimensions: int,
    seconds: float,
    device: str,
    options: str | None,
    json: bool,
    debug: bool,
) -> int:
    from dmlcore.authoring import bench

    result = bench(
        component_of(name, ["loss"]).component,
        samples=samples,
        dimensions=dimensions,
        seconds=seconds,
        device=device,
        options=_options(options),
    )
    console.show_json(result) if json else show_bench(result)
    return 0


def show_bench(result: dict[str, Any]) -> None:
    """Times of the forms of a loss."""
    console.show(
        f"{result['loss']}: forward and backward of {result['samples']:,} embeddings of {result['dimensions']};"
        f" {result['device']}, {result['threads']} threads"
    )
    if not result["is_fused"]:
        console.show(f"not fused: {result['why_not_fused']}")
    rows = []
    for row in result["rows"]:
        if "failed" in row:
            rows.append((row["form"], "-", "-", "-", "0", "-"))
        else:
            times = (f"{row[key]:.3f}" for key in ("milliseconds", "fast", "slow"))
            rows.append((row["form"], *times, str(row["repeats"]), f"{row['ratio']:.2f}"))
    console.show_table(["form", "ms", "20 %", "80 %", "repeats", "x products"], rows, numbers=True)
    for row in result["rows"]:
        if "failed" in row:
            console.show(f"{row['form']} failed: {row['failed']}")


def _hooks(*, write: Path | None, json: bool, debug: bool) -> int:
    from dmlcore.authoring import hook_reference, write_reference
    from dmlcore.authoring.reference import hook_names

    if write is not None:
        write_reference(write)
    if json:
        console.show_json({"hooks": hook_names(), "reference": hook_reference()})
    elif write is None:
        console.show(hook_reference().rstrip(), is_page=True)
    else:
        console.show(f"{len(hook_names())} hooks described in {write}")
    return 0


def _papers(*, write: Path | None, json: bool, debug: bool) -> int:
    from dmlcore.authoring.papers import papers, write_papers

    if write is not None:
        write_papers(write)
    if json:
        console.show_json({"papers": papers()})
    elif write is None:
        console.show(papers().rstrip(), is_page=True)
    else:
        console.show(f"Losses, miners and weightings are listed in {write}")
    return 0
