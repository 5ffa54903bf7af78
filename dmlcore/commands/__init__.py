"""One module per command of `dmlcore`: its flags, its action and what it prints. The folder is the registry: a module here with
the hook `dmlcore_commands` is a command, the others are what several commands share.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules() -> list[ModuleType]:
    """The modules of this folder that add commands."""
    names = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
    return [module for name in names if hasattr(module := importlib.import_module(name), "dmlcore_commands")]
