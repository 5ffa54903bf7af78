"""Where a default of dmlcore is another form than a publication's, which an option gives: how far the two are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import dmlcore
from benchmarks.fidelity.rows import SEEDS, Distance, Row, batch, distance

FORMS: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("Multi-Similarity of ooDML's code", "ms", {"average": "active"}, {}, "mean over all anchors, as in the paper"),
    ("margin loss of ooDML's code", "margin", {"average": "triplets"}, {}, "divided by the non-zero terms"),
    ("N-pair on the sphere", "nt_xent", {"temperature": 0.04, "pairs": "one_per_class"}, {"temperature": 0.04}, "all pairs"),
    (
        "triplets of the spherical constraint", "triplet", {"distance": "squared_euclidean", "margin": 1.0, "average": "all"},
        {"margin": 1.0}, "Euclidean distance, mean over triplets with a value",
    ),
    (
        "Proxy-NCA of the ensembles", "proxy_nca", {"variant": "wedl", "smoothing": "others"}, {"variant": "wedl"},
        "smoothed over all classes",
    ),
    (
        "classifier of the ensembles", "cross_entropy", {"label_smoothing": 0.15, "smoothing": "others"},
        {"label_smoothing": 0.15}, "smoothed over all classes",
    ),
]  # fmt: skip


def rows() -> list[Row]:
    """All rows."""
    return [*(_row(*form) for form in FORMS), _clamped()]


def _loss(name: str, options: dict[str, Any], seed: int, width: int) -> Any:
    torch.manual_seed(seed)
    return dmlcore.losses.create(name, num_classes=6, embedding_dim=width, **options).double()


def _row(component: str, name: str, published: dict[str, Any], ours: dict[str, Any], what: str) -> Row:
    distances = []
    for seed in SEEDS:
        x, labels = batch(seed)
        theirs, mine = (_loss(name, options, seed, x.shape[1]) for options in (published, ours))
        distances.append(distance(lambda e, f=theirs, y=labels: f(e, y), lambda e, f=mine, y=labels: f(e, y), [x]))
    options = ", ".join(f"`{key} = {value}`" for key, value in published.items() if ours.get(key) != value)
    return Row(component, f"{options} of `{name}`", f"default: {what}", "documented", _said(distances))


def _said(distances: list[Distance]) -> str:
    value = max(d.value for d in distances)
    lengths = [d.length for d in distances]
    return (
        f"value up to {100 * value:.0f} % apart, gradient: cosine {min(d.cosine for d in distances):.3f} and more, length"
        f" {min(lengths):.2f} to {max(lengths):.2f}"
    )


def _clamped() -> Row:
    """The authors' code of ooDML raises cosines below 1e-10 to that, which no paper says."""

    def theirs(x: Tensor, labels: Tensor, proxies: Tensor) -> Tensor:
        cosines = (normalize(x, dim=1) @ normalize(proxies, dim=1).T).clamp(1e-10, 1)
        widened = torch.cos(torch.arccos(cosines) + 0.5)
        return cross_entropy(16 * torch.where(torch.eye(6, dtype=torch.bool)[labels], widened, cosines), labels)

    distances = []
    for seed in SEEDS:
        x, labels = batch(seed)
        loss = _loss("arcface", {"margin": 28.64788975654116, "scale": 16.0}, seed, x.shape[1])
        proxies = loss.proxies.detach()
        distances.append(distance(lambda e, y=labels, p=proxies: theirs(e, y, p), lambda e, f=loss, y=labels: f(e, y), [x]))
    return Row("ArcFace of ooDML's code", "none", "negative cosines stay, as in the paper", "documented", _said(distances))
