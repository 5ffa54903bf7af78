"""Shared by all tests: the folder of tests on the path for `cases`, and no third-party plugins but those a test asks for."""

from __future__ import annotations

import os

os.environ.setdefault("DMLCORE_PLUGINS", "")
