"""Whether the processes of a training are about to train the same: the same settings, versions, data and checkpoint."""

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
    if processes.rank:  # dropout must not do the same to the samples of all; everything else draws by seeds of its own
        numbers = (run.config.settings.run.seed, run.step, processes.rank)
        torch.manual_seed(int.from_bytes(hashlib.sha256(json.dumps(numbers).encode()).digest()[:7], "little"))


def facts_of_data(dataset: LabelledDataset) -> str:
    """A checksum of labels and of some samples."""
    total = hashlib.sha256(dataset.labels.tobytes())
    total.update(json.dumps([len(dataset), list(dataset.sample_shape), dataset.class_names]).encode())
    total.update(dataset.spread(8).batch(range(min(8, len(dataset)))).contiguous().numpy().tobytes())
    return total.hexdigest()
