"""What the examples share: a table of features with its labels, half of the classes held out, and how well those are found."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import dmlcore


class Split(NamedTuple):
    """`x` float32 [N, D] and `y` int64 [N] of the training classes 0..C-1, and of classes that are held out."""

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor

    @property
    def num_classes(self) -> int:
        return int(self.y.max()) + 1


def arguments(about: str, processes: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps")
    parser.add_argument("--data", help=".npz with x [N, D] and y [N]; without it a synthetic table")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    if processes:
        parser.add_argument("--processes", type=int, default=1, help="that train together")
    return parser.parse_args()


def feature_table(path: str | None) -> Split:
    """The table in a file, or a synthetic one: classes differ in 8 directions, samples in all 64."""
    if path is None:
        generator = np.random.default_rng(0)
        y = np.repeat(np.arange(40), 12)
        mixing = generator.normal(size=(8, 64)) / 8
        x = 2 * generator.normal(size=(40, 8))[y] @ mixing + generator.normal(size=(len(y), 64)) @ np.diag(
            np.linspace(0, 1, 64)
        )
    else:
        with np.load(path) as table:
            x, y = table["x"], table["y"]
    y = np.unique(y, return_inverse=True)[1]
    seen = y < (y.max() + 1) // 2
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return Split(x[seen], y[seen], x[~seen], y[~seen])


def batches(table: Split, steps: int, rank: int = 0, size: int = 1) -> torch.utils.data.DataLoader:
    """Batches `(x, y)` of 8 classes with 4 samples each, or the part of each that is one process's of several."""
    sampler = dmlcore.data.create_sampler("class_balanced", table.y.numpy(), 8, 4, seed=0, steps=steps)
    if size > 1:
        sampler = [list(batch)[rank::size] for batch in sampler]
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(table.x, table.y), batch_sampler=sampler)


@torch.no_grad()
def held_out(embed: Callable[[Tensor], Tensor], table: Split) -> float:
    """MAP@R of the held-out classes."""
    return dmlcore.evaluation.retrieval_metrics(embed(table.held_out_x), table.held_out_y)["map@r"]


def report(steps: int, loss: float, before: float, after: float) -> None:
    print(f"{steps} steps, last loss {loss:.3f}; MAP@R of held-out classes {before:.3f} -> {after:.3f}")
