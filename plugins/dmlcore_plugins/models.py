"""The built-in trunks: small ones of our own, and all classification networks of torchvision."""

from __future__ import annotations

import dmlcore


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    """Trunks `--model` can name."""
    from dmlcore.models.small_trunks import Conv, Identity, Mlp
    from dmlcore.models.torchvision_trunk import TorchvisionTrunk

    return [Conv, Mlp, Identity, TorchvisionTrunk]
