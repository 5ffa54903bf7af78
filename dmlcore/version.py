"""The version of the installed package."""

from __future__ import annotations

from importlib import metadata

try:
    VERSION = metadata.version("dmlcore")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0.0.0"
