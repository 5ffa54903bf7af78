"""`dmlcore eval`: measure a model, or embeddings in a file, or compare several on the same queries."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from dmlcore import console, launch
from dmlcore.commands.line import CommandLine
from dmlcore.commands.results import show_comparison, show_embeddings, show_further, show_metrics, show_worst_classes
from dmlcore.commands.sharing import SHARING, started
from dmlcore.commands.trained import LOADING
from dmlcore.commands.words import loading
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag, parameter_name, typed_values
from dmlcore.hookspecs import hookimpl
from dmlcore.training.components import metric_component

TEXT = (
    "Evaluate a model on the classes that its run held out or on other data, or embeddings in a file. Several models are"
    " compared on the same queries."
)
MODELS = inspect.Parameter(
    "models",
    inspect.Parameter.VAR_POSITIONAL,
    annotation=Annotated[
        str, Parameter(help="A run, a folder that `dmlcore export` wrote, or a file that `dmlcore embed` wrote; or several.")
    ],
)
BASE = "Data; all of its classes are evaluated (default: the classes that a run held out)."


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    data_flags, metric_flags = line.add_data("eval"), []
    if line.command == "eval":
        for name in _names(line.values_of("metrics").get("metrics", "")):
            metric_flags += line.add(metric_component(name))

    def evaluate(*models: str, metrics: str, processes: int, timeout: str, **values: Any) -> int:
        if (status := started(processes, line.words)) is not None:
            return status
        options = {
            table: typed_values(values.pop(parameter_name(table)))
            for table, component in line.components.items()
            if component.option_names()
        }
        of_data = next((options.get(table, {}) for table, of in line.components.items() if of.kind == "data"), {})
        measures = None
        if metrics:
            tables = [metric_component(name) for name in _names(metrics)]
            measures = [(component.name, options.get(component.table, {})) for component in tables]
        from dmlcore.serving.processes import sharing

        with sharing(values["device"], timeout) as device:
            return _evaluate(list(models), of_data, measures, **{**values, "device": device})

    flags = [
        MODELS,
        flag("data", str | None, BASE),
        flag("recall_at", str | None, "Values of k, with commas between them (default: those of the run, else 1,2,4,8)."),
        flag("metrics", str, "Further measures, with commas between them (default: those of the run).", ""),
        flag("bootstrap", int, "Replicates of the bootstrap over classes behind the intervals; 0: none.", 1000),
        flag("seed", int, "Seed of what is drawn for intervals and tests.", 0),
        flag("per_class", bool, "Also show the measures of each class, the worst first; --json has them all.", False),
        flag("per_query", Path | None, "Write a .csv with a row per query and the wrong answer nearest to it."),
        flag("curves", Path | None, "Write the curves of the metrics, such as the ROC of verification, to a .csv or an .svg."),
        flag("overwrite", bool, "Replace these files if they exist.", False),
        flag("rerank", str | None, "Also measure re-ranking: `query-expansion`, `augmentation` or `k-reciprocal`."),
        *data_flags,
        *metric_flags,
        *LOADING,
        *SHARING,
        *COMMON,
    ]
    app.command(command(evaluate, flags, TEXT), name="eval")


def _evaluate(
    models: list[str],
    options: dict[str, Any],
    measures: list[tuple[str, dict[str, Any]]] | None,
    *,
    data: str | None,
    recall_at: str | None,
    bootstrap: int,
    seed: int,
    per_class: bool,
    per_query: Path | None,
    curves: Path | None,
    overwrite: bool,
    rerank: str | None,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    from dmlcore import plugins
    from dmlcore.files import check_new
    from dmlcore.ranks.dividing import agreeing, dividing
    from dmlcore.serving import load
    from dmlcore.serving.compare_models import compare_evaluations
    from dmlcore.serving.curve_table import SUFFIXES, check_curves, curves_of, write_curves
    from dmlcore.serving.evaluation import EvaluationOptions, evaluate
    from dmlcore.serving.gathering import is_model
    from dmlcore.serving.query_table import write_queries

    if not models:
        raise ConfigError("no model is given; name a run, a model folder or a file of embeddings, or several to compare them")
    if len(models) > 1:
        of_one = {"per-class": per_class, "per-query": per_query, "curves": curves, "rerank": rerank}
        for name, value in of_one.items():
            if value:
                raise ConfigError(f"--{name} is for one model, but {len(models)} are given")
    for name, file, suffixes in (("per_query", per_query, [".csv"]), ("curves", curves, SUFFIXES)):
        if file is not None:
            with agreeing(dividing()):
                check_new(file, suffixes, name, overwrite=overwrite)
    built = None if measures is None else [plugins.find("metric", name).component(**given) for name, given in measures]
    ks = None if recall_at is None else _numbers(recall_at)
    how = EvaluationOptions(recall_at=ks, bootstrap=bootstrap, seed=seed, rerank=rerank, metrics=built)
    how_to_load, is_compared = loading(values), len(models) > 1
    evaluations, metrics = [], []
    for model in models:
        with agreeing(dividing()):
            loaded = load(model, **how_to_load) if is_model(model) else model
            if curves is not None:
                metrics = built if built is not None else [] if isinstance(loaded, str) else loaded.measures()
                check_curves(metrics, curves)
            how = how.with_recall_of(loaded)  # of several models, those of the first
        # Embeddings in a file are of some data already, which a comparison checks to be the same.
        source = data if is_model(model) or not is_compared else None
        evaluations.append(evaluate(loaded, source, options if source else None, how, is_compared=is_compared))
    if per_query is not None or curves is not None:
        evaluations = [evaluation.on_first() for evaluation in evaluations]
    if launch.is_silent():
        return 0
    if is_compared:
        result = {"names": models, **compare_evaluations(evaluations, how)}
        console.show_json(result) if json else show_comparison(result, how.ks)
        return 0
    (evaluation,) = evaluations
    result = evaluation.result
    if per_class:
        result["classes"] = {name: evaluation.classes(name) for name in evaluation.scores}
    if per_query is not None:
        result["per_query"] = {"file": str(per_query), "queries": write_queries(evaluation, per_query)}
    if curves is not None:
        result["curves"] = {"file": str(curves), "points": write_curves(curves_of(evaluation, metrics), curves)}
    console.show_json(result) if json else show_evaluation(result, how.ks)
    return 0


def show_evaluation(result: dict[str, Any], recall_at: Any) -> None:
    """Notes on stderr, then the tables."""
    for note in result["notes"]:
        console.say(note)
    baselines = result["baselines"]
    if "rerank" in result:
        baselines = {f"re-ranked: {result['rerank']}": result["reranked"], **baselines}
    title = Path(str(result["data"])).name + (f", step {result['step']}" if "step" in result else "")
    show_metrics(result["metrics"], baselines, title, recall_at, result.get("intervals"))
    show_further(result["metrics"], baselines)
    show_embeddings(result.get("embeddings", {}))
    show_worst_classes(result.get("classes", {}), recall_at)
    if "per_query" in result:
        console.show(f"{result['per_query']['queries']:,} queries: {result['per_query']['file']}")
    if "curves" in result:
        console.show(f"{result['curves']['points']:,} points of curves: {result['curves']['file']}")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"recall_at is '{text}', but must be whole numbers with commas between them, such as 1,10,100"
        ) from None
