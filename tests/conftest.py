"""Shared by all tests: the folder of tests on the path for `cases`, no third-party plugins but those a test asks for, and the
CUDA kernels built for the emulator, once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("DMLCORE_PLUGINS", "")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the tests run in several processes, which must not wait busily
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="dmlcore-tests-")  # a test consents to nothing in the user's name
os.environ.pop("COLUMNS", None)  # set by a runner of parallel tests; what they print goes to a pipe, which has no width


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `cuda_emulation.build`."""
    import cuda_emulation

    folder = tmp_path_factory.mktemp("cuda_emulated")
    cuda_emulation.build(folder, sanitized=bool(cuda_emulation.sanitizers()))
    return folder


@pytest.fixture(scope="session")
def emulated(built: Path) -> ModuleType:
    """The binding of the kernels on the emulator."""
    import cuda_emulation

    return cuda_emulation.load(built / "plain" / "_cuda.so")
