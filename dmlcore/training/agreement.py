"""Whether the processes of a training are about to train the same: the same settings, versions, data and checkpoint. Only what
they draw is their own."""

from __future__ import annotations

import hashlib
import json

import torch

from dmlcore.data import LabelledDataset
from dmlcore.training.processes import Processes
from dmlcore.training.run import Run
from dmlcore.training.versions import versions


def check_run(processes: Processes, run: Run, state: str) -> None:
    """Raise ConfigError where processes train something else.

    Args:
        processes: that train together.
        run: before its first step.
        state: what it goes on from, in words.
    """
    processes.check_same(
        {
            "settings": run.config.toml(),
            "versions": "\n".join(f"{name} {version}" for name, version in versions().items()),
            "training data": facts_of_data(run.splits.train),
            "validation data": facts_of_data(run.splits.validation),
            "checkpoint": state,
        }
    )


def draw_apart(rank: int, seed: int, step: int) -> None:
    """Let a process draw other numbers from PyTorch's generators than the first one, which goes on with its own: dropout must
    not do the same to the samples of all. Everything else draws by seeds of its own.

    Args:
        rank: of the process.
        seed: of the run.
        step: that is done.
    """
    if rank:
        numbers = json.dumps((seed, step, rank)).encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(numbers).digest()[:7], "little"))


def facts_of_data(dataset: LabelledDataset) -> str:
    """A checksum of labels and of some samples."""
    total = hashlib.sha256(dataset.labels.tobytes())
    total.update(json.dumps([len(dataset), list(dataset.sample_shape), dataset.class_names]).encode())
    total.update(dataset.spread(8).batch(range(min(8, len(dataset)))).contiguous().numpy().tobytes())
    return total.hexdigest()
