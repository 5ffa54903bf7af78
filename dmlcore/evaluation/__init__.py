"""Retrieval metrics of embeddings, and how they are applied to a model and a data set."""

from __future__ import annotations

from dmlcore.evaluation.metric import Metric, MetricOptions
from dmlcore.evaluation.metrics import METRICS, retrieval_metrics

__all__ = ["METRICS", "Metric", "MetricOptions", "retrieval_metrics"]
