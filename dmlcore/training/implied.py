"""What follows from settings that are left open: the weighting, the lengths of embeddings, what is served."""

from __future__ import annotations

from typing import Any

from dmlcore import plugins
from dmlcore.training.settings import WIDER, Settings

LENGTH = 64  # of what is served where nothing is said: docs/reports/ensembles.md says why


def resolved(settings: Settings) -> Settings:
    """The settings with those that are left open written out, apart from the trunk and the steps, which the data decide."""
    from dmlcore.data import default_source

    ensemble, model = settings.ensemble, settings.model
    compress = model.compress
    if compress is None:
        # An embedding is compressed unless something else says how long it shall be.
        is_open = model.embedding_dim is None and not model.student and not ensemble.is_published
        compress = LENGTH if is_open else 0
    implied: dict[str, Any] = {
        "data": settings.data.source or default_source(),
        "compress": compress,
        "embedding_dim": WIDER * compress if compress and not ensemble.is_published else LENGTH,
        "weighting": _weighting(settings),
        "classifier": "features" if ensemble.kind == "wel" else "embedding",
        "diversity": "distance" if ensemble.kind == "wedl" else "off",
        "serve": "compressed" if compress else "student" if model.student else "whole",
    }
    values = settings.values()
    return settings.replace(**{key: value for key, value in implied.items() if values[key] is None})


def _weighting(settings: Settings) -> str:
    """The weighting that follows from the losses and the ensemble: docs/reports/ensembles.md has the reasons."""
    from dmlcore.losses import NormLoss

    names = settings.losses.names
    if settings.ensemble.is_published:
        return plugins.defaults().WEIGHTING_LEARNT
    if settings.ensemble.has_heads or settings.ensemble.weights is not None or len(names) < 2:
        return plugins.defaults().WEIGHTING
    if any(issubclass(plugins.find("loss", name).component, NormLoss) for name in names):
        return plugins.defaults().WEIGHTING  # a regulariser must not pull like a loss
    return plugins.defaults().WEIGHTING_OF_SEVERAL
