"""`dmlcore fewshot`: few-shot transfer by six models and any loss, and its report. `protocols.fewshot` does the work."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from dmlcore import console
from dmlcore.errors import ConfigError, suggestion
from dmlcore.flags import COMMON, command, component_flags, flag, given, parameter_name
from dmlcore.training.settings import Component, data_component, model_component

LOOKED = ("data", "model", "losses")
SMALL_CONV = {"channels": (16, 32, 64), "norm": "none"}  # the paper's have 32 channels in each of two to four layers
QUICK = {"numbers": 1, "shots": 2, "replications": 2}  # the most of each that `--quick` keeps


def chosen_components(looked: dict[str, str]) -> dict[str, Component]:
    """What the command line names, whose options become flags: the data source, the model and the losses, by table.

    Args:
        looked: values of the flags `LOOKED`, where they are given.

    Raises:
        ConfigError, DataError: an unknown name.
    """
    from dmlcore import plugins

    named = {"data": data_component, "model": model_component}
    found = {made.table: made for key, make in named.items() if key in looked for made in [make(looked[key])]}
    for name in dict.fromkeys(filter(None, looked.get("losses", "").replace("+", ",").split(","))):
        loss = plugins.find("loss", name).component
        found[loss.name] = Component(loss.name, "loss", name, loss.Options)
    return found


def fewshot_app(chosen: dict[str, Component]) -> App:
    """The command; without `report` it runs.

    Args:
        chosen: from `chosen_components`.
    """
    text = "Few-shot transfer: adapted deep embeddings, and any loss, from source classes to k samples of n target classes."
    app = App(name="fewshot", help=text, result_action="return_value", suppress_keyboard_interrupt=False)

    def run(
        *,
        data: str,
        source_classes: str,
        target_classes: str | None,
        n: str,
        k: str,
        replications: int | None,
        source_n: str | None,
        losses: str | None,
        model: str | None,
        embedding_dim: int,
        init: Literal["default", "normal", "xavier"],
        stopping: Literal["paper", "validation"],
        budget: Literal["cpu", "paper"],
        image_size: int | None,
        seed: int,
        processes: int,
        out: Path,
        quick: bool,
        json: bool,
        debug: bool,
        **more: Any,
    ) -> int:
        from dmlcore.config import check_range
        from dmlcore.protocols.fewshot import grid as grids
        from dmlcore.protocols.fewshot import report
        from dmlcore.protocols.fewshot.budgets import budget_of
        from dmlcore.protocols.fewshot.cell import Plan
        from dmlcore.protocols.fewshot.samples import open_samples
        from dmlcore.reports import pictures

        check_range("processes", processes, least=1)
        options = {table: given(more[name]) for table in chosen if (name := parameter_name(table)) in more}
        options = {table: {**chosen[table].implied, **values} for table, values in options.items()}
        of_kind = {kind: next((t for t, c in chosen.items() if c.kind == kind), "") for kind in ("data", "model")}
        numbers, shots = grids.read_numbers(n, "--n"), grids.read_numbers(k, "--k")
        values = {key: value for key, value in more.items() if key in BUDGET and value is not None}
        preset: str = budget
        repeats = 10 if replications is None else replications
        if quick:
            preset = "quick"
            numbers, shots = numbers[: QUICK["numbers"]], [shots[0], shots[-1]][: len(shots)]
            repeats = min(repeats, QUICK["replications"])
        data_options = options.get(of_kind["data"], {})
        data_options = {key: value for key, value in data_options.items() if key not in chosen[of_kind["data"]].implied}
        model_options = options.get(of_kind["model"], {})
        samples = open_samples(data, data_options, image_size)
        if model is None and samples.kind == "images":
            model, model_options = "conv", SMALL_CONV
        plan = Plan(
            data=data,
            data_options=data_options,
            image_size=image_size,
            source_classes=source_classes,
            target_classes=target_classes,
            n=numbers[0],
            source_n=0,
            shots=shots,
            losses=[name for name in (losses or "").split(",") if name],
            loss_options={table: values for table, values in options.items() if chosen[table].kind == "loss" and values},
            model=model,
            model_options=model_options,
            embedding_dim=embedding_dim,
            init=init,
            stopping=stopping,
            budget=dataclasses.asdict(budget_of(preset, values, samples.kind)),
            seed=seed,
            replication=0,
        )
        grid = grids.Grid(plan, numbers, repeats, _source_n(source_n))
        for note in grids.check(grid):
            console.say(note)
        console.say(f"{len(grid.cells())} cells: n = {numbers}, k = {shots}, {repeats} replications, {preset} budget")
        if not pictures.can_draw():
            console.say(pictures.HOW_TO_DRAW)
        grids.run(grid, out, processes=processes, tell=console.say, again=f"the same command with --out {out}")
        return _tell(report.write(out), out, json)

    def retell(folder: Path, *, json: bool, debug: bool) -> int:
        from dmlcore.protocols.fewshot import report

        return _tell(report.write(folder), folder, json)

    empty = inspect.Parameter.empty
    flags = [
        flag("data", str, "A data set's name, or a folder, .csv or .npz.", empty),
        flag("source_classes", str, "Names, ranges as 0-4, @GROUP, separated by commas; or `random` for both sides.", empty),
        flag("target_classes", str | None, "Likewise (default: all classes that are no source classes)."),
        flag("n", str, "Target classes to tell apart, separated by commas.", "5"),
        flag("k", str, "Labelled samples of each, separated by commas; adapted arms need 2.", "1,5,10"),
        flag("replications", int | None, "Tasks drawn for each n (default: 10)."),
        flag("source_n", str | None, "Source classes, or `all` (default: n)."),
        flag("losses", str | None, "Losses to add as embeddings, as they are and adapted: ms,triplet+sup_con; + joins."),
        flag("model", str | None, "Trunk of the network (default: `mlp`, or `conv` of 16, 32, 64 channels without norm)."),
        flag("embedding_dim", int, "Length of the embedding.", 64),
        flag("init", Literal["default", "normal", "xavier"], "Weights: PyTorch's, N(0, 1) as in the paper, Xavier.", "default"),
        flag("stopping", Literal["paper", "validation"], "Chooses the target epoch: training score, or held-out.", "paper"),
        flag("budget", Literal["cpu", "paper"], "Lengths of training.", "cpu"),
        *_budget_flags(),
        flag("image_size", int | None, "Side to bring images to, pixels."),
        flag("seed", int, "Of tasks, weights and batches.", 0),
        flag("processes", int, "At a time.", 1),
        flag("out", Path, "Folder of the results; cells that are there are not run again.", empty),
        flag("quick", bool, "One n, two k, two replications, short training: to see that it works.", False),
        *(component_flags(component) for component in chosen.values() if component.option_names()),
        *COMMON,
    ]
    app.default(command(run, flags, text))
    where = flag("folder", Path, "Folder of the results.", is_positional=True)
    app.command(
        command(retell, [where, *COMMON], "Write the report of a folder again, also of an unfinished grid."), name="report"
    )
    return app


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
}
"""Flags of the fields of `Budget`, which is not loaded for the help: it would load torch."""


def _budget_flags() -> list[inspect.Parameter]:
    return [flag(name, kind | None, text) for name, (kind, text) in BUDGET.items()]


def _source_n(text: str | None) -> int | None:
    """0 for all, None for n."""
    if text is None:
        return None
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--source-n must be `all` or a number of at least 2, got '{text}'.{suggestion(text, ['all'])}")
    return int(text)


def _tell(found: dict[str, Any], folder: Path, as_json: bool) -> int:
    from dmlcore.protocols.fewshot import report

    if as_json:
        console.show_json(found)
        return 0
    console.show((folder / report.MARKDOWN).read_text(encoding="utf-8"))
    console.show(f"Results: {folder / report.MARKDOWN}, {report.JSON}, {report.PICTURE}")
    return 0
