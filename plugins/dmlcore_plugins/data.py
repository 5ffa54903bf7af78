"""The built-in data sources: embedded glyphs, folders of images, CSV manifests, .npz arrays, published data sets."""

from __future__ import annotations

import dmlcore


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    """Sources `--data` can name."""
    from dmlcore.data.arrays import ArrayFile
    from dmlcore.data.embedded import EmbeddedGlyphs
    from dmlcore.data.folders import Folder
    from dmlcore.data.isolet import Isolet
    from dmlcore.data.manifests import Manifest
    from dmlcore.data.mnist import Mnist, MnistSample
    from dmlcore.data.omniglot import Omniglot

    return [EmbeddedGlyphs, Folder, Manifest, ArrayFile, Mnist, MnistSample, Omniglot, Isolet]
