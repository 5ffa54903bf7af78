"""`dmlcore eval`: evaluate a run on its held-out classes, or on other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.results import show_embeddings, show_metrics
from dmlcore.commands.trained import LOADING, RUN, data_options
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        RUN,
        flag("data", str | None, "Other data; all of its classes are evaluated (default: the run's held-out classes)."),
        flag("rerank", str | None, "Also measure re-ranking: `query-expansion`, `augmentation` or `k-reciprocal`."),
        *line.add_data("eval"),
        *LOADING,
        *COMMON,
    ]
    app.command(command(_evaluate, flags, "Evaluate a run on its held-out classes, or on other data."), name="eval")


def _evaluate(
    run: Path,
    *,
    data: str | None,
    rerank: str | None,
    checkpoint: str,
    trust_plugins: bool,
    device: str,
    json: bool,
    debug: bool,
    **tables: Any,
) -> int:
    from dmlcore.serving import TrainedRun

    trained = TrainedRun(run, checkpoint=checkpoint, device=device, trusts_plugins=trust_plugins)
    result = trained.evaluate(data, data_options(tables), rerank=rerank)
    console.show_json(result) if json else show_evaluation(result)
    return 0


def show_evaluation(result: dict[str, Any]) -> None:
    """Notes on stderr, then the tables."""
    for note in result["notes"]:
        console.say(note)
    baselines = result["baselines"]
    if "rerank" in result:
        baselines = {f"re-ranked: {result['rerank']}": result["reranked"], **baselines}
    show_metrics(result["metrics"], baselines, f"{result['data']}, step {result['step']}")
    show_embeddings(result.get("embeddings", {}))
