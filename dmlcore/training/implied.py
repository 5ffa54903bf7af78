"""What follows from settings that are left open: the weighting, the lengths of embeddings, what is served."""

from __future__ import annotations

from typing import Any

from dmlcore import plugins
from dmlcore.training.setting_groups.model import WIDER
from dmlcore.training.setting_groups.optimiser import LEARNING_RATE
from dmlcore.training.setting_groups.run import DEFAULT_EVAL_EVERY
from dmlcore.training.settings import Settings

LENGTH = 64  # of what is served where nothing is said: docs/reports/ensembles-in-detail.md says why


def chosen(settings: Settings) -> Settings:
    """The settings with the choices of components that are left open, and do not depend on the data, written out."""
    from dmlcore.data import default_source

    implied = {"data": settings.data.source or default_source(), "weighting": _weighting(settings)}
    return _with(settings, implied)


def default_model(settings: Settings, kind: str) -> str:
    """The trunk of a kind of data where none is named."""
    from dmlcore.models import default_trunk

    return (settings.ensemble.kind != "shared" and plugins.defaults().TRUNKS_AT_RANDOM.get(kind)) or default_trunk(kind)


def may_compress(settings: Settings) -> bool:
    """Whether the embedding may be compressed; a preset of the trunk may still say that it is not."""
    compress, model = settings.model.compress, settings.model
    if compress is not None:
        return bool(compress)
    # An embedding is compressed unless something else says how long it shall be.
    return model.embedding_dim is None and not model.student and not settings.ensemble.is_published


def resolved(settings: Settings, preset: dict[str, Any]) -> Settings:
    """The settings with those that are left open written out, apart from the trunk and the steps, which the data decide.

    Args:
        settings: as given.
        preset: of the trunk. It is for one embedding that all losses share.
    """
    ensemble, model = settings.ensemble, settings.model
    preset = dict(preset) if ensemble.kind == "shared" else {}
    if not model.can_start_principal:
        preset.pop("head_start", None)
    if model.head == "none":  # the trunk itself says how long the embedding is
        preset.pop("embedding_dim", None)
    compress = model.compress
    if compress is None:
        compress = preset.get("compress", LENGTH) if may_compress(settings) else 0
    implied: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "head_start": "random",
        "eval_every": DEFAULT_EVAL_EVERY,
        "embedding_dim": WIDER * compress if compress and not ensemble.is_published else LENGTH,
        "classifier": "features" if ensemble.kind == "wel" else "embedding",
        "diversity": "distance" if ensemble.kind == "wedl" else "off",
        "serve": "compressed" if compress else "student" if model.student else "whole",
        **preset,
        "compress": compress,
    }
    return _with(chosen(settings), implied)


def _with(settings: Settings, implied: dict[str, Any]) -> Settings:
    values = settings.values()
    return settings.replace(**{key: value for key, value in implied.items() if values[key] is None})


def _weighting(settings: Settings) -> str:
    """The weighting that follows from the losses and the ensemble: docs/reports/defaults.md has the reasons."""
    from dmlcore.losses import NormLoss

    names = settings.losses.names
    if settings.ensemble.is_published:
        return plugins.defaults().WEIGHTING_LEARNT
    if settings.ensemble.has_heads or settings.ensemble.weights is not None or len(names) < 2:
        return plugins.defaults().WEIGHTING
    if any(issubclass(plugins.find("loss", name).component, NormLoss) for name in names):
        return plugins.defaults().WEIGHTING  # a regulariser must not pull like a loss
    return plugins.defaults().WEIGHTING_OF_SEVERAL
