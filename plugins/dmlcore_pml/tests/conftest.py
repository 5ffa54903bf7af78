"""The plugin under test, registered without an installation when dmlcore has not found it by itself."""

from __future__ import annotations

import dmlcore_pml

from dmlcore import plugins

if "pml/contrastive_loss" not in plugins.registry("loss"):
    plugins.register(plugins.manager(), dmlcore_pml, "dmlcore-pml:pml")
    plugins.registry.cache_clear()
