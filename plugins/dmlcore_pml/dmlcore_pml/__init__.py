"""The losses and miners of pytorch-metric-learning as plugins of dmlcore, under names such as `pml/multi_similarity_loss`.

That library and torch are imported when dmlcore asks for losses or miners, not with this module.
"""

from __future__ import annotations

import re
from importlib import metadata

import dmlcore
from dmlcore.errors import PluginError

LIBRARY, OLDEST = "pytorch-metric-learning", (2, 9)


def library_version() -> str:
    """The version of pytorch-metric-learning that is installed.

    Raises:
        PluginError: there is none, or one before 2.9.
    """
    oldest = ".".join(map(str, OLDEST))
    try:
        version = metadata.version(LIBRARY)
    except metadata.PackageNotFoundError:
        raise PluginError(
            f"dmlcore-pml needs {LIBRARY} >= {oldest}, which is not installed: pip install '{LIBRARY}>={oldest}'"
        ) from None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers or tuple(map(int, numbers.groups())) < OLDEST:
        raise PluginError(f"dmlcore-pml needs {LIBRARY} >= {oldest}, but {version} is installed: pip install -U {LIBRARY}")
    return version


library_version()


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    from dmlcore_pml.losses import classes

    return list(classes().values())


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    from dmlcore_pml.miners import classes

    return list(classes().values())
