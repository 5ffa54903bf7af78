"""A trained model and what is done with it. Names are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.serving.compare_models import compare_evaluations
    from dmlcore.serving.embed import write_embeddings
    from dmlcore.serving.evaluation import Evaluation, EvaluationOptions, evaluate
    from dmlcore.serving.exporting import export_folder
    from dmlcore.serving.gathering import gather
    from dmlcore.serving.graphs import write_graph
    from dmlcore.serving.hub import push
    from dmlcore.serving.index import Index, build_index
    from dmlcore.serving.index_changes import add_entries, remove_entries
    from dmlcore.serving.loading import load
    from dmlcore.serving.model import Embedded, Model
    from dmlcore.serving.report import write_report
    from dmlcore.serving.run import TrainedRun

_HOMES = {
    "Embedded": "model",
    "Evaluation": "evaluation",
    "EvaluationOptions": "evaluation",
    "Index": "index",
    "Model": "model",
    "TrainedRun": "run",
    "add_entries": "index_changes",
    "build_index": "index",
    "compare_evaluations": "compare_models",
    "evaluate": "evaluation",
    "export_folder": "exporting",
    "gather": "gathering",
    "load": "loading",
    "push": "hub",
    "remove_entries": "index_changes",
    "write_embeddings": "embed",
    "write_graph": "graphs",
    "write_report": "report",
}

__all__ = [
    "Embedded",
    "Evaluation",
    "EvaluationOptions",
    "Index",
    "Model",
    "TrainedRun",
    "add_entries",
    "build_index",
    "compare_evaluations",
    "evaluate",
    "export_folder",
    "gather",
    "load",
    "push",
    "remove_entries",
    "write_embeddings",
    "write_graph",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dmlcore.serving.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dmlcore.serving' has no attribute '{name}'")
