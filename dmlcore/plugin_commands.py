"""`dmlcore plugins` and its sub-commands for authors: new, check, bench, hooks. `authoring` and `testing` do the work."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from cyclopts import App

from dmlcore import console, plugins
from dmlcore.description import describe_components
from dmlcore.errors import ConfigError, suggestion
from dmlcore.flags import COMMON, command, flag
from dmlcore.plugin_files import is_reference

KINDS = "loss, miner, weighting, compressor, model, data, transform, sampler, metric, logger"
OPTIONS = flag("options", str | None, "Options of it, as `NAME=VALUE`, separated by commas.")
WHICH = "A name that `dmlcore plugins` lists, or a file: `./my_loss.py:MyLoss`."


def plugins_app() -> App:
    """The command with its sub-commands; without one of these it lists."""
    app = App(name="plugins", help="List everything plugins offer, or one with its options; make, check and time plugins.")
    name = flag("name", str | None, "Show this one with its options.", is_positional=True).replace(default=None)
    app.default(command(_show, [name, *COMMON], "List everything plugins offer, or one with its options."))
    app.command(
        command(
            _new,
            [
                flag("name", str, "Name of what it offers: my_loss.", is_positional=True),
                flag("kind", str, f"What it offers: {KINDS}.", "loss"),
                flag("fused", bool, "A loss with a C++ header for its fused form.", False),
                flag("out", Path | None, "Folder of the package (default: `./dmlcore-NAME`)."),
                *COMMON,
            ],
            "Write an installable package that works, with tests and a README.",
        ),
        name="new",
    )
    app.command(
        command(
            _check,
            [
                flag("name", str, WHICH, is_positional=True),
                flag("kind", str | None, "What is meant, where several kinds share the name."),
                OPTIONS,
                *COMMON,
            ],
            "Check that a plugin keeps the contract of its kind; exit status 1 where it does not.",
        ),
        name="check",
    )
    app.command(
        command(
            _bench,
            [
                flag("name", str, WHICH, is_positional=True),
                flag("samples", int, "Samples of a batch, four of each class.", 1024),
                flag("dimensions", int, "Length of an embedding.", 128),
                flag("seconds", float, "Seconds of measuring.", 5.0),
                flag("device", str, "`cpu` or `cuda`.", "cpu"),
                OPTIONS,
                *COMMON,
            ],
            "Time a loss: fused, its definition, the definition under torch.compile, bare matrix products.",
        ),
        name="bench",
    )
    app.command(
        command(
            _hooks,
            [flag("write", Path | None, "Put the reference into this Markdown file, between its marks."), *COMMON],
            "Print the reference of all hooks.",
        ),
        name="hooks",
    )
    return app


def _show(name: str | None, *, json: bool, debug: bool) -> int:
    entries = describe_components()
    if name is not None:
        known = {entry["name"] for entry in entries}
        entries = [entry for entry in entries if entry["name"] == name]
        if not entries:
            raise ConfigError(f"there is nothing called '{name}'.{suggestion(name, known)}")
    if json:
        console.show_json({"plugins": entries})
    elif name is None:
        console.show_components(entries)
    else:
        for entry in entries:
            console.show_component(entry)
    return 0


def _new(name: str, *, kind: str, fused: bool, out: Path | None, json: bool, debug: bool) -> int:
    from dmlcore.authoring import create_package

    made = create_package(name, kind, fused=fused, out=out)
    folder = Path(os.path.commonpath(made))
    if json:
        console.show_json({"folder": str(folder), "files": [str(path) for path in made]})
        return 0
    for path in made:
        console.show(str(path))
    console.show(f"Install it: pip install -e '{folder}[test]'")
    console.show(f"Then: pytest {folder}; dmlcore plugins check {name}")
    return 0


def _find(name: str, kinds: list[str]) -> plugins.Entry:
    """The one component of a name, of any of the kinds.

    Raises:
        ConfigError: there is none, or there are several.
    """
    for kind in kinds:
        if kind not in plugins.KINDS:
            raise ConfigError(f"kind is '{kind}', but must be one of {', '.join(plugins.KINDS)}")
    if is_reference(name):
        return _in_a_file(name, kinds)
    found = [plugins.registry(kind)[name] for kind in kinds if name in plugins.registry(kind)]
    if not found:
        known = {other for kind in kinds for other in plugins.registry(kind)}
        raise ConfigError(f"there is no {kinds[0] if len(kinds) == 1 else 'plugin'} '{name}'.{suggestion(name, known)}")
    if len(found) > 1:
        raise ConfigError(f"'{name}' is the name of {' and '.join(f'a {one.kind}' for one in found)}; say which by --kind")
    return found[0]


def _in_a_file(reference: str, kinds: list[str]) -> plugins.Entry:
    refusals: list[ConfigError] = []
    for kind in kinds:
        try:
            return plugins.find(kind, reference)
        except ConfigError as error:
            refusals.append(error)
    if len(kinds) > 1 and all("does not derive from" in str(error) or "holds none" in str(error) for error in refusals):
        raise ConfigError(f"{reference} names nothing that a plugin can offer: {', '.join(plugins.KINDS)}")
    named = [error for error in refusals if "does not derive from" not in str(error) and "holds none" not in str(error)]
    raise named[0] if named else refusals[0]


def _options(text: str | None) -> dict[str, str]:
    found = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"options has '{part}', but must be NAME=VALUE, separated by commas")
        found[key.strip().replace("-", "_")] = value.strip()
    return found


def _check(name: str, *, kind: str | None, options: str | None, json: bool, debug: bool) -> int:
    from dmlcore.testing import run_checks_of

    entry = _find(name, [kind] if kind else list(plugins.KINDS))
    report = run_checks_of(entry.component, measures_memory=True, **_options(options))
    if json:
        checks = [{**dataclasses.asdict(check), "status": check.status} for check in report.checks]
        console.show_json({"kind": report.kind, "name": report.name, "passed": report.passed, "checks": checks})
    else:
        console.show_report(report)
    return 0 if report.passed else 1


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

    entry = _find(name, ["loss"])
    result = bench(
        entry.component,
        samples=samples,
        dimensions=dimensions,
        seconds=seconds,
        device=device,
        options=_options(options),
    )
    console.show_json(result) if json else console.show_bench(result)
    return 0


def _hooks(*, write: Path | None, json: bool, debug: bool) -> int:
    from dmlcore.authoring import hook_reference, write_reference
    from dmlcore.authoring.reference import hook_names

    if write is not None:
        write_reference(write)
    if json:
        console.show_json({"hooks": hook_names(), "reference": hook_reference()})
    elif write is None:
        console.show(hook_reference().rstrip())
    else:
        console.show(f"{len(hook_names())} hooks described in {write}")
    return 0
