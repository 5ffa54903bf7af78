"""`dmlcore verify`: are two samples of one class? Rates of a model's decisions, and the threshold for a wanted rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING, data_options
from dmlcore.commands.words import loading
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        flag("model", str, "A model, or a file of embeddings with labels.", is_positional=True),
        flag("data", str | None, "Labelled data whose pairs are compared (default: the run's held-out classes)."),
        flag("pairs", Path | None, "A file of pairs instead: first,second,same[,fold], or the layout of LFW."),
        flag("root", Path | None, "The folder that paths of --pairs start from (default: that of the file)."),
        flag("far", float, "Rate of false accepts for which a threshold is kept.", 1e-3),
        flag("only_show", bool, "Keep no threshold beside the model.", False),
        flag("seed", int, "Seed of what is drawn.", 0),
        *line.add_data("verify"),
        *LOADING,
        *COMMON,
    ]
    app.command(command(_verify, flags, "Measure decisions whether two samples are of one class."), name="verify")


def _verify(
    model: str,
    *,
    data: str | None,
    pairs: Path | None,
    root: Path | None,
    far: float,
    only_show: bool,
    seed: int,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    from dmlcore.files import expanded
    from dmlcore.serving import TrainedRun, load
    from dmlcore.serving.gathering import gather, is_model
    from dmlcore.serving.thresholds import write_threshold
    from dmlcore.serving.verify import read_pairs, verify_entries, verify_pairs

    if data is not None and pairs is not None:
        raise ConfigError("give either --data or --pairs")
    if not is_model(model) and (data is not None or pairs is not None):
        raise ConfigError(f"'{model}' holds embeddings, which are compared themselves; --data and --pairs need a model")
    how = loading(values)
    if pairs is not None:
        result = verify_pairs(read_pairs(pairs, root), load(model, **how))
    else:
        loaded = load(model, **how) if is_model(model) else None
        if loaded is not None and data is None and not isinstance(loaded, TrainedRun):
            raise ConfigError(f"'{model}' is no run, so it has no held-out classes of its own; give labelled data by --data")
        entries = gather(model) if loaded is None else held_out(loaded, data, data_options(values))
        result = verify_entries(entries, far=far, seed=seed)
        if not only_show and not expanded(model).exists():
            result["notes"].append("the threshold is not kept: the model is no folder here")
        elif not only_show:
            about = {**result["threshold"], "data": data or "held-out classes" if loaded is not None else model}
            if entries.model:
                about["fingerprint"] = entries.model
            result["threshold_file"] = str(write_threshold(model, about))
    if json:
        console.show_json(result)
        return 0
    for note in result["notes"]:
        console.say(note)
    show_verification(result)
    return 0


def held_out(model: Any, data: str | None, options: dict[str, Any]) -> Any:
    """Entries of data, or of the classes that a run held out."""
    from dmlcore.serving.entries import select
    from dmlcore.serving.gathering import gather

    entries = gather(data, model, options)
    parts = entries.columns.get("split")
    if parts is None:
        return entries
    for names in (("test",), ("validation",)):
        rows = [row for row, part in enumerate(parts) if part in names]
        if rows:
            return select(entries, rows)
    return entries


def show_verification(result: dict[str, Any]) -> None:
    """The figures, and the threshold."""
    shown = {
        "pairs of one class": f"{result['positives']:,}",
        "pairs of different classes": f"{result['negatives']:,}",
        "AUC": f"{result['auc']:.4f}",
        "EER": f"{result['eer']:.4f} at {result['eer_threshold']:.3f}",
    }
    for far, tar in result["tar@far"].items():
        shown[f"TAR at FAR {far}"] = "too few pairs" if tar is None else f"{tar:.4f}"
    if "accuracy" in result:
        deviation = result["accuracy_deviation"]
        spread = "" if deviation is None else f", standard deviation {deviation:.4f}"
        shown["accuracy"] = f"{result['accuracy']:.4f} in {result['folds']} folds{spread}"
    console.show_facts(shown)
    if "threshold" in result:
        about = result["threshold"]
        interval = (
            "no interval: too few pairs" if about["low"] is None else f"95 % interval {about['low']:.4f} to {about['high']:.4f}"
        )
        console.show_sentences(
            f"Threshold for FAR {about['wanted_far']:g}: {about['threshold']:.4f} ({interval}, over classes)"
        )
    if "threshold_file" in result:
        console.show(f"Kept for `dmlcore search` and `dmlcore classify`: {result['threshold_file']}")
