"""How the publications train: rates, decay and schedules of the recipes, beside the published numbers.

The numbers on the right are those of the publications and of their authors' code. On the left are what the groups of the
optimizer of a recipe get.
"""

from __future__ import annotations

from typing import Any

from benchmarks.fidelity.rows import Row
from dmlcore.training import recipes

ROLES = {"trunk": None, "head": "head_factor", "classifier": "classifier_factor", "proxies": "proxies_factor"}
ROLES |= {"scalars": "scalars_factor", "weights": "weights_factor"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "wedl": {
        "trunk": 1e-4, "head": 1e-3, "classifier": 1e-3, "proxies": 0.015, "weights": 1e-4,
        "optimizer": "adam", "adam.eps": 0.01, "weight_decay": 1e-4, "proxies_decay": 1e-4, "classifier_decay": 1e-4,
        "weights_decay": 1e-4, "schedule": "constant", "weights of losses": [2.0, 1.0, 2.0, 3.0], "sampler": "shuffled",
        "diversity_weight": 0.1, "cross_entropy.label_smoothing": 0.15,
    },
    "sec_triplet": {
        "trunk": 2.5e-6, "head": 5e-6, "optimizer": "adam", "weight_decay": 2.5e-3, "schedule": "multi_step",
        "multi_step.milestones": [5000], "multi_step.gamma": 0.1, "steps": 8000, "embedding_dim": 512, "head_norm": "batch",
        "freeze_norm": "all", "samples_per_class": 3, "batch": 120, "sec.weight": 1.0,
    },
    "sec_ms": {
        "trunk": 5e-6, "head": 1e-5, "optimizer": "adam", "weight_decay": 2.5e-3, "schedule": "multi_step",
        "multi_step.milestones": [3000, 6000], "steps": 8000, "samples_per_class": 5, "batch": 120, "ms.beta": 40.0,
    },
    "oodml_margin": {
        "trunk": 1e-5, "scalars": 5e-4, "optimizer": "adam", "weight_decay": 4e-4, "schedule": "constant", "epochs": 200,
        "embedding_dim": 512, "samples_per_class": 2, "batch": 112, "margin.beta": 1.2, "margin.margin": 0.2,
        "margin.sampling": "distance_weighted", "validation": "none",
    },
    "oodml_proxy_anchor": {"trunk": 1e-5, "proxies": 0.02, "weight_decay": 4e-4, "validation": "none"},
    "oodml_s2sd": {
        "margin.beta": 0.6, "margin.rho": 0.4, "distill_heads": [1024, 1536, 2048], "distill_weight": 50.0,
        "distill_temperature": 1.0, "distill_features_weight": 50.0, "weight_decay": 4e-4, "trunk": 1e-5, "embedding_dim": 512,
    },
    "oodml_diva": {
        "trunk": 1e-5, "scalars": 5e-4, "optimizer": "adam", "weight_decay": 4e-4, "schedule": "constant", "epochs": 200,
        "embedding_dim": 128, "samples_per_class": 2, "batch": 108, "weights of losses": [1.0, 0.3, 0.3, 0.3],
        "shares": [0.75**2, 1.25**2, 1.25**2, 1.25**2], "diversity": "adversarial", "diversity_weight": 1500.0,
        "margin.beta": 1.2, "sample_specific.temperature": 0.01, "sample_specific.memory": 30 * 108,
        "sample_specific.momentum": 0.9, "class_shared.beta": 1.2, "intra_class.beta": 1.2, "validation": "none",
    },
    "oodml_r_margin": {"margin.beta": 0.6, "margin.rho": 0.4, "weight_decay": 4e-4, "trunk": 1e-5},
}  # fmt: skip


def rows() -> list[Row]:
    """A row per recipe that trains as a publication."""
    return [_row(name, published) for name, published in PUBLISHED.items()]


def _values(name: str) -> dict[str, Any]:
    """The numbers of a recipe, by the names of the published ones."""
    tables = recipes.find(name).values
    flat = {key: value for table in tables.values() if isinstance(table, dict) for key, value in table.items()}
    values = {f"{table}.{key}": v for table, inner in tables.items() if isinstance(inner, dict) for key, v in inner.items()}
    values |= {key: value for key, value in flat.items() if key != "weights"}
    values["weights of losses"] = flat.get("weights")
    for role, factor in ROLES.items():
        values[role] = flat["learning_rate"] * (1.0 if factor is None else flat.get(factor, 1.0))
    values["batch"] = flat["classes_per_batch"] * flat["samples_per_class"]
    return values


def _row(name: str, published: dict[str, Any]) -> Row:
    values = _values(name)
    differing = [key for key, value in published.items() if not _is_equal(values.get(key), value)]
    remaining = "; ".join(sentence.rstrip(".") for sentence in recipes.find(name).differs)
    evidence = f"{len(published)} settings equal" if not differing else f"{', '.join(differing)} differ"
    evidence += f". Left: {remaining}" if remaining else ""
    summary = recipes.find(name).summary.partition(":")[2].strip() or recipes.find(name).summary
    return Row(summary, "its code", f"`--recipe {name}`", "differs" if differing else "agrees", evidence)


def _is_equal(value: Any, published: Any) -> bool:
    if isinstance(published, float) and isinstance(value, int | float):
        return abs(value - published) <= 1e-9 * abs(published)
    return value == published
