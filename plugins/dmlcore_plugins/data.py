"""The built-in data sources: embedded glyphs, folders of images, CSV manifests, .npz arrays."""

from __future__ import annotations

import dmlcore


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    """Sources `--data` can name."""
    from dmlcore.data.arrays import ArrayFile
    from dmlcore.data.embedded import EmbeddedGlyphs
    from dmlcore.data.folders import Folder
    from dmlcore.data.manifests import Manifest

    return [EmbeddedGlyphs, Folder, Manifest, ArrayFile]
