"""How well clusters of the embeddings agree with the classes."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.evaluation import Metric
from dmlcore.losses import unit


class Clustering(Metric):
    """k-means with as many clusters as classes, on unit vectors: NMI, AMI and F1. Needs scikit-learn.

    `nmi` is the mutual information of clusters and classes, divided by the mean of their entropies. It grows with the number of
    clusters even by chance, `ami` is corrected for that. `f1` is of pairs of samples: a pair is right where both are of one
    class, and claimed where both are in one cluster. The result does not depend on the order of the samples.

    Source: Vinh, Epps, Bailey, "Information Theoretic Measures for Clusterings Comparison", JMLR 2010; F1 of pairs as in Song,
    Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """

    name = "clustering"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `clustering`."""

        starts: int = 1
        """Times that k-means begins anew, of which the best is taken, >= 1."""
        seed: int = 0
        """Of the beginnings, >= 0."""

        def __post_init__(self) -> None:
            check_range("starts", self.starts, least=1)
            check_range("seed", self.seed, least=0, below=2**32)

    def __call__(self, embeddings: Tensor, labels: Tensor) -> dict[str, float]:
        x = unit(embeddings).cpu().numpy()
        classes, dense = np.unique(labels.cpu().numpy(), return_inverse=True)
        if len(classes) < 2:
            return dict.fromkeys(("nmi", "ami", "f1"), float("nan"))
        # k-means draws its beginnings by position, so samples are put in an order of their own.
        order = np.argsort((x * np.random.default_rng(0).normal(size=x.shape[1])).sum(1), kind="stable")
        x, dense = x[order], dense[order]
        means = _sklearn("cluster").KMeans(len(classes), n_init=self.options.starts, random_state=self.options.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer different samples than clusters
            found = means.fit_predict(x)
        measures = _sklearn("metrics")
        return {
            "nmi": float(measures.normalized_mutual_info_score(dense, found)),
            "ami": float(measures.adjusted_mutual_info_score(dense, found)),
            "f1": pair_f1(dense, found),
        }


def pair_f1(classes: np.ndarray, clusters: np.ndarray) -> float:
    """F1 of pairs of samples, NaN where no class and no cluster has two.

    Args:
        classes: int64 [N], at least 0.
        clusters: int64 [N], at least 0.
    """
    _, both = np.unique(classes * (clusters.max() + 1) + clusters, return_counts=True)
    shared, claimed, right = (
        float((sizes * (sizes - 1.0)).sum()) for sizes in (both, np.bincount(clusters), np.bincount(classes))
    )
    return 2 * shared / (claimed + right) if claimed + right else float("nan")


def _sklearn(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ConfigError(f"the metric 'clustering' needs scikit-learn ({error}). Run `pip install scikit-learn`") from None


@dmlcore.hookimpl
def dmlcore_metrics() -> list[type]:
    return [Clustering]
