"""The package faiss, and a GPU that it may work on. Structures are built for the processor all the same: they are written, and
searched on machines without a GPU, as if none had been used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dmlcore.errors import ConfigError
from dmlcore.training.setting_groups.run import check_device

MOST = 2_048
"""Neighbours that faiss finds on a GPU."""
AT_ONCE = 1 << 30
"""Bytes of vectors that are copied to a GPU in one go, where they are compared one by one."""


def faiss() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed, or cannot be used; the message has the command.
    """
    try:
        return importlib.import_module("faiss")
    except (ImportError, RuntimeError) as error:  # faiss-gpu raises the latter without CUDA's libraries
        raise ConfigError(f"an index needs the package faiss ({error}). Run `pip install faiss-cpu`") from None


class Gpu:
    """A GPU, as faiss sees it.

    Args:
        number: of the GPU, from 0.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._resources = faiss().StandardGpuResources()

    def copy(self, index: Any) -> Any:
        """A structure of the processor, copied to the GPU."""
        return faiss().index_cpu_to_gpu(self._resources, self.number, index)

    def adding_to(self, lists: Any) -> Callable[[np.ndarray], None]:
        """What adds vectors float32 [n, D] to trained lists, whose nearest centres the GPU finds."""
        library, centres = faiss(), self.copy(lists.quantizer)
        search = getattr(centres, "search_numpy", centres.search)  # as in `Structure.search`

        def add(vectors: np.ndarray) -> None:
            nearest = search(vectors, 1)[1]  # [n, 1]
            lists.add_core(len(vectors), library.swig_ptr(vectors), None, library.swig_ptr(nearest))

        return add

    def nearest(self, queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of all vectors by their inner products: scores float32 and positions int64, both [Q, k].

        Args:
            queries, vectors: float32 [Q, D], [N, D].
            k: at most `MOST`, and at most N.
        """
        library = faiss()
        knn = getattr(library, "knn_gpu_numpy", library.knn_gpu)
        return knn(self._resources, queries, vectors, k, metric=library.METRIC_INNER_PRODUCT, device=self.number)


def gpu_of(device: str, rank: int = 0) -> Gpu | None:
    """The GPU for a device of PyTorch; None: the processor.

    Args:
        device: `auto` takes a GPU where faiss sees one, `cpu` takes none, `cuda` or `cuda:N` must be there.
        rank: which of several processes on this machine takes it, where the device has no number.

    Raises:
        ConfigError: no such device, or faiss is missing or sees no such GPU.
    """
    check_device(device)
    if device == "cpu":
        return None
    count = faiss().get_num_gpus()
    if not count:
        if device == "auto":
            return None
        raise ConfigError(
            f"device is '{device}', but faiss sees no GPU. Use --device auto; where there is one, faiss-gpu takes the place of"
            " faiss-cpu: `pip uninstall faiss-cpu`, then `pip install 'dmlcore[gpu]'`"
        )
    number = device.partition(":")[2]
    if number and int(number) >= count:
        raise ConfigError(f"device is '{device}', but faiss sees {count} GPU{'s' * (count > 1)}: cuda:0 to cuda:{count - 1}")
    return Gpu(int(number) if number else rank % count)
