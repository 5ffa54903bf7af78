"""What stands between machine code and a CUDA device: cupy loads it, finds its kernels, and launches the one that answers the
host. All that dmlcore knows of cupy stands here, and of CUDA's driver the one address that a pass needs."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmlcore.errors import DmlcoreError, first_line
from dmlcore.kernels.jit import cache

WHY_NO_CUPY = "losses compiled at run time need the package cupy on CUDA. Run `pip install 'dmlcore[gpu]'`"


class Driver:
    """Loads machine code and finds its kernels.

    Args:
        cupy: the package; tests have another one, whose kernels run on the CPU.
        launcher: address of `cuLaunchKernel`. A pass launches its kernels from C++, between those of the built-in losses and
            without Python's lock.
    """

    def __init__(self, cupy: Any, launcher: int) -> None:
        self._cupy, self.launcher = cupy, launcher
        self._kernels: dict[tuple[Path, str, int], Any] = {}  # never unloaded, as captured graphs may hold them

    def current(self) -> torch.device:
        """The device that is current.

        Raises:
            DmlcoreError: there is none.
        """
        if not torch.cuda.is_available():
            raise DmlcoreError("torch sees no CUDA device")
        return torch.device("cuda", torch.cuda.current_device())

    def capability(self, device: torch.device) -> int:
        """Of a device, as 90 for 9.0."""
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor

    def kernel(self, file: Path, symbol: str, device: torch.device) -> Any:
        """A kernel of a file on a device, as cupy's `Function`: its handle is `ptr`.

        Raises:
            ConfigError: others can write to the file.
            DmlcoreError: the driver refuses it.
        """
        key = (file, symbol, device.index or 0)
        if key not in self._kernels:
            cache.check_private(file)
            try:
                with self._cupy.cuda.Device(key[2]):
                    self._kernels[key] = self._cupy.RawModule(path=str(file)).get_function(symbol).kernel
            except RuntimeError as error:  # what cupy raises for errors of the driver
                raise DmlcoreError(f"the CUDA driver cannot load {file.name}: {error}") from error
        return self._kernels[key]

    def takes(self, kernel: Any, options: Sequence[float], device: torch.device) -> bool:
        """Ask `rows_fits` of a functor whether it takes these options. The host waits."""
        answer = torch.zeros(1, dtype=torch.int32, device=device)
        functor = np.array(options, dtype=np.float32).view(f"V{4 * len(options)}")  # one value, so it is passed as one
        stream = self._cupy.cuda.Stream.from_external(_Stream(device))
        try:
            with self._cupy.cuda.Device(device.index or 0):
                kernel((1,), (1,), (functor, answer.data_ptr()), stream=stream)
        except RuntimeError as error:
            raise DmlcoreError(f"the CUDA driver cannot launch a functor compiled at run time: {error}") from error
        return bool(answer.item())


class _Stream:
    """torch's current stream in the form that libraries exchange streams in."""

    def __init__(self, device: torch.device) -> None:
        self.address = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@functools.cache
def driver() -> Driver:
    """The driver, opened once.

    Raises:
        DmlcoreError: cupy is not installed, or there is no driver.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise DmlcoreError(why_not_there() or first_line(error)) from None
    try:
        launch = ctypes.CDLL("libcuda.so.1").cuLaunchKernel
    except OSError:
        raise DmlcoreError("there is no CUDA driver (libcuda.so.1)") from None
    return Driver(cupy, ctypes.cast(launch, ctypes.c_void_p).value or 0)


def why_not_there() -> str:
    """Why nothing loads machine code here, without importing cupy for the answer; an empty string where it is installed."""
    return WHY_NO_CUPY if importlib.util.find_spec("cupy") is None else ""
