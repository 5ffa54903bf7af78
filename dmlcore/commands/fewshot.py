"""`dmlcore fewshot`: few-shot transfer by six models and any loss, and its report. `protocols.fewshot` does the work."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from dmlcore import console, plugins
from dmlcore.commands.line import CommandLine
from dmlcore.config import check_range
from dmlcore.errors import ConfigError, suggestion
from dmlcore.flags import COMMON, command, flag, new_app, parameter_name, typed_values
from dmlcore.hookspecs import hookimpl
from dmlcore.training import recipes
from dmlcore.training.components import Component, data_component, model_component

if TYPE_CHECKING:
    from dmlcore.protocols.fewshot.grid import Grid

TEXT = "Few-shot transfer: adapted deep embeddings, and any loss, from source classes to k samples of n target classes."
SMALL_CONV = {"channels": (16, 32, 64), "norm": "none"}  # cheaper than the paper's, which recipes take
QUICK = {"numbers": 1, "shots": 2, "replications": 2}  # the most of each that `--quick` keeps
REPLICATIONS = 10
INITS = Literal["default", "normal", "xavier", "published"]
BUDGET = {
    "epochs": (int, "Most epochs over the source samples."),
    "target_epochs": (int, "Most epochs over the target samples."),
    "patience": (int, "Epochs after which training stops for want of progress."),
    "episodes": (int, "Most episodes of prototypical networks."),
    "episode_patience": (int, "Episodes after which they stop for want of progress."),
    "episode_check": (int, "Episodes between two scores."),
    "episode_support": (int, "Most support samples of a class in a source episode; 0: k."),
    "episode_queries": (int, "Most queries of a class in a source episode; 0: all."),
    "batch": (int, "Samples of a batch."),
    "learning_rate": (float, "Of classifiers and embeddings."),
    "prototype_rate": (float, "Of prototypical networks."),
    "validation_share": (float, "Share of source samples that choose the source model."),
    "source_samples": (int, "Samples kept of each source class; 0: all."),
    "test_samples": (int, "Test samples kept of each target class; 0: all."),
    "classifier_batch": (int, "Samples of a batch of classifiers; 0: batch."),
    "classifier_patience": (int, "Epochs after which classifiers stop; 0: patience."),
    "validation_prototypes": (int, "Training samples of a class behind prototypes that validate; 0: all."),
}
"""Flags of the fields of `Budget`, which is not loaded for the help: it would load torch."""


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    is_typed = line.command == "fewshot"
    if is_typed:
        _take_recipe(line)
        _add_components(line)

    def run(*, out: Path, processes: int, json: bool, debug: bool, **values: Any) -> int:
        from dmlcore.protocols.fewshot import grid as grids
        from dmlcore.protocols.fewshot import report
        from dmlcore.reports import pictures

        check_range("processes", processes, least=1)
        options = {table: typed_values(values.pop(parameter_name(table))) for table in _tables_with_flags(line)}
        grid, budget = _grid(values, options, line.components)
        for note in grids.check(grid):
            console.say(note)
        console.say(
            f"{len(grid.cells())} cells: n = {grid.numbers}, k = {grid.plan.shots}, {grid.replications} replications,"
            f" {budget} budget"
        )
        if not pictures.can_draw():
            console.say(pictures.HOW_TO_DRAW)
        grids.run(grid, out, processes=processes, tell=console.say, again=f"the same command with --out {out}")
        return _show(report.write(out), out, json)

    fewshot = new_app("fewshot", TEXT)
    flags = [*_run_flags(), *(line.option_flags() if is_typed else []), *COMMON]
    fewshot.default(command(run, flags, TEXT))
    folder = flag("folder", Path, "Folder of the results.", is_positional=True)
    text = "Write the report of a folder again, also of an unfinished grid."
    fewshot.command(command(_report, [folder, *COMMON], text), name="report")
    app.command(fewshot, name="fewshot")


def _take_recipe(line: CommandLine) -> None:
    """Put the flags of the recipe that the line names in its place, but for those that are typed.

    Raises:
        ConfigError: there is no such recipe, or it is for another command.
    """
    name = line.values_of("recipe").get("recipe")
    if name is None:
        return
    recipe = recipes.find(name)
    if recipe.command != line.command:
        raise ConfigError(f"the recipe '{name}' is for `dmlcore {recipe.command} --recipe {name}`")
    at = next(at for at, word in enumerate(line.words) if word.partition("=")[0] == "--recipe")
    del line.words[at : at + (1 if "=" in line.words[at] else 2)]
    tables = dict(recipe.values)
    arguments = {key: str(value) for key, value in tables.pop("arguments").items()}
    typed = line.values_of(*arguments)
    if "model" not in typed:  # whose options the tables have
        arguments |= {f"{table}.{key}": _as_word(value) for table, options in tables.items() for key, value in options.items()}
        typed = line.values_of(*arguments)
    for key in [key for key in arguments if key not in typed]:
        line.words.append(f"--{key if '.' in key else key.replace('_', '-')}={arguments[key]}")


def _as_word(value: Any) -> str:
    """A value of a file as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _add_components(line: CommandLine) -> None:
    """Take in what the line names, whose options become flags: the data source, the model and the losses.

    Raises:
        ConfigError, DataError: an unknown name.
    """
    line.losses_flag = "losses"
    values = line.values_of("data", "model", "losses")
    if "data" in values:
        line.add(data_component(values["data"]))
    if "model" in values:
        line.add(model_component(values["model"]))
    for name in dict.fromkeys(filter(None, values.get("losses", "").replace("+", ",").split(","))):
        loss: Any = plugins.find("loss", name).component
        line.add(Component(loss.name, "loss", name, loss.Options))


def _tables_with_flags(line: CommandLine) -> list[str]:
    return [table for table, component in line.components.items() if component.option_names()]


def _run_flags() -> list[inspect.Parameter]:
    mandatory = inspect.Parameter.empty
    return [
        flag("data", str, "A data set's name, or a folder, .csv or .npz.", mandatory),
        flag("source_classes", str, "Names, ranges as 0-4, @GROUP, separated by commas; `random` for both sides.", mandatory),
        flag("target_classes", str | None, "Likewise (default: all classes that are no source classes)."),
        flag("n", str, "Target classes to tell apart, separated by commas.", "5"),
        flag("k", str, "Labelled samples of each, separated by commas; adapted arms need 2.", "1,5,10"),
        flag("replications", int | None, "Tasks drawn for each n (default: 10)."),
        flag("source_n", str | None, "Source classes, or `all` (default: n)."),
        flag("losses", str | None, "Losses to add as embeddings, as they are and adapted: ms,triplet+sup_con; + joins."),
        flag("model", str | None, "Trunk of the network (default: `mlp`, or `conv` of 16, 32, 64 channels without norm)."),
        flag("embedding_dim", int, "Length of the embedding.", 64),
        flag("init", INITS, "Weights: PyTorch's, N(0, 1), Xavier, N(0, 1) for biases too as published.", "default"),
        flag("stopping", Literal["paper", "validation"], "Chooses the target epoch: training score, or held-out.", "paper"),
        flag("budget", str, "Lengths of training: `cpu`, `paper`, or `paper/DATA` of a data set of the paper.", "cpu"),
        *(flag(name, kind | None, text) for name, (kind, text) in BUDGET.items()),
        flag("recipe", str | None, "A recipe of `dmlcore recipes`, whose flags count where they are not typed."),
        flag("image_size", int | None, "Side to bring images to, pixels."),
        flag("seed", int, "Of tasks, weights and batches.", 0),
        flag("processes", int, "At a time.", 1),
        flag("out", Path, "Folder of the results; cells that are there are not run again.", mandatory),
        flag("quick", bool, "One n, two k, two replications, short training: to see that it works.", False),
    ]


def _grid(values: dict[str, Any], options: dict[str, dict[str, Any]], components: dict[str, Component]) -> tuple[Grid, str]:
    """The grid that the flags describe, and the name of its budget.

    Args:
        values: by flag, `out` and `processes` apart.
        options: typed ones, by component.
        components: what the command line names.
    """
    from dmlcore.protocols.fewshot import grid as grids
    from dmlcore.protocols.fewshot.budgets import budget_of
    from dmlcore.protocols.fewshot.cell import Plan
    from dmlcore.protocols.fewshot.samples import open_samples

    numbers, shots = grids.read_numbers(values["n"], "--n"), grids.read_numbers(values["k"], "--k")
    replications = REPLICATIONS if values["replications"] is None else values["replications"]
    budget: str = values["budget"]
    if values["quick"]:
        budget = "quick"
        numbers, shots = numbers[: QUICK["numbers"]], [shots[0], shots[-1]][: len(shots)]
        replications = min(replications, QUICK["replications"])
    data_options = _options_of("data", options, components)
    samples = open_samples(values["data"], data_options, values["image_size"])
    model, model_options = values["model"], _options_of("model", options, components)
    if model is None and samples.kind == "images":
        model, model_options = "conv", SMALL_CONV
    data_set = next((component.table for component in components.values() if component.kind == "data"), "")
    lengths = {name: values[name] for name in BUDGET if values[name] is not None}
    plan = Plan(
        data=values["data"],
        data_options=data_options,
        image_size=values["image_size"],
        source_classes=values["source_classes"],
        target_classes=values["target_classes"],
        n=numbers[0],
        source_n=0,
        shots=shots,
        losses=[name for name in (values["losses"] or "").split(",") if name],
        loss_options={table: typed for table, typed in options.items() if components[table].kind == "loss" and typed},
        model=model,
        model_options=model_options,
        embedding_dim=values["embedding_dim"],
        init=values["init"],
        stopping=values["stopping"],
        budget=budget_of(budget, lengths, samples.kind, data_set).values(),
        seed=values["seed"],
        replication=0,
    )
    return grids.Grid(plan, numbers, replications, _source_n(values["source_n"])), budget


def _options_of(kind: str, options: dict[str, dict[str, Any]], components: dict[str, Component]) -> dict[str, Any]:
    """Typed options of the component of a kind; of a model with what its name implies, of data without it."""
    for table, component in components.items():
        if component.kind == kind:
            implied = component.implied if kind == "model" else {}
            return {**implied, **options.get(table, {})} if component.option_names() else {}
    return {}


def _source_n(text: str | None) -> int | None:
    """0 for all, None for n."""
    if text is None:
        return None
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--source-n must be `all` or a number of at least 2, got '{text}'.{suggestion(text, ['all'])}")
    return int(text)


def _report(folder: Path, *, json: bool, debug: bool) -> int:
    from dmlcore.protocols.fewshot import report

    return _show(report.write(folder), folder, json)


def _show(results: dict[str, Any], folder: Path, as_json: bool) -> int:
    from dmlcore.protocols.fewshot import report

    if as_json:
        console.show_json(results)
        return 0
    console.show((folder / report.MARKDOWN).read_text(encoding="utf-8"), is_page=True)
    console.show(f"Results: {folder / report.MARKDOWN}, {report.JSON}, {report.PICTURE}")
    return 0
