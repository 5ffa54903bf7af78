"""The curves of further measures, such as the ROC curve of verification, as a table or a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.evaluation import Metric, evaluating
from dmlcore.evaluation.metric import has_curves
from dmlcore.files import make_folder, replacing
from dmlcore.reports import pictures
from dmlcore.serving.evaluation import Evaluation
from dmlcore.texts import in_picture

SUFFIXES = [".csv", ".svg"]
FEW = 0.01  # a horizontal axis that begins this close to 0, as rates of false accepts do, has its logarithm drawn

Curves = dict[str, dict[str, dict[str, Sequence[float]]]]
"""By part and `METRIC.name`: columns by name."""


def check_curves(metrics: Sequence[Metric], out: Path) -> None:
    """Refuse what no curve could be written of, before anything is computed.

    Raises:
        ConfigError: no measure has curves, or a picture is asked for and cannot be drawn.
    """
    if not any(has_curves(metric) for metric in metrics):
        names = ", ".join(metric.name for metric in metrics) or "none"
        raise ConfigError(f"curves are of further measures, but none here has any ({names}). Add --metrics verification")
    if out.suffix == ".svg" and not pictures.can_draw():
        raise ConfigError(f"'{out}' is a picture, but matplotlib is not installed (pip install 'dmlcore[plots]'). Write a .csv")


def curves_of(evaluation: Evaluation, metrics: Sequence[Metric]) -> Curves:
    """The curves of all measured parts that have any.

    Args:
        evaluation: of one model, with all embeddings on this process.
        metrics: that are asked.
    """
    curves: Curves = {}
    for part, embeddings in evaluation.embeddings.items():
        assert isinstance(embeddings, Tensor), "other processes have a part of the rows: see Evaluation.on_first"
        curves[part] = evaluating.curves(embeddings, evaluation.parts[part], metrics)
    return {part: named for part, named in curves.items() if named}


def write_curves(curves: Curves, out: Path) -> int:
    """Write curves as a .csv with the columns `part`, `curve` and those of the curves, or draw them as an .svg.

    Args:
        curves: of `curves_of`.
        out: which is replaced if it exists.

    Returns:
        How many points.

    Raises:
        ConfigError: there is no curve.
        TrainingError: the file cannot be written.
    """
    rows: list[dict[str, Any]] = [
        {"part": part, "curve": name, **dict(zip(columns, values, strict=True))}
        for part, named in curves.items()
        for name, columns in named.items()
        for values in zip(*columns.values(), strict=True)
    ]
    if not rows:
        raise ConfigError("there is no curve: no part has pairs of one class and pairs of different classes")
    make_folder(out.parent)
    if out.suffix == ".svg":
        _draw(curves, out)
        return len(rows)
    with replacing(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def _draw(curves: Curves, out: Path) -> None:
    """A panel for each curve, a line for each part."""
    pyplot = pictures.pyplot()
    names = list(dict.fromkeys(name for named in curves.values() for name in named))
    figure, axes = pyplot.subplots(1, len(names), figsize=(5.2 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for part, named in curves.items():
            if name in named:
                (across, x), (up, y), *_ = named[name].items()
                axis.plot(x, y, label=in_picture(part), drawstyle="steps-post")  # no pair lies between two corners
                axis.set(xlabel=in_picture(across.upper()), ylabel=in_picture(up.upper()), title=in_picture(name))
        least = min((x for line in axis.lines for x in line.get_xdata() if x > 0), default=1.0)
        if least < FEW:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")  # the usual one writes formulas
        axis.grid(True, alpha=0.3)
        axis.legend(fontsize="small")
    figure.tight_layout()
    pictures.save(figure, out)
