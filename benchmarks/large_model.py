"""`python -m benchmarks distributed --model 64`: steps of a model of 64 million weights on two processes that have all of it
each, or divide it. For both the memory of each beside what Python and PyTorch take, and the processor time of a step. The table
is kept as large-model.csv.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from dmlcore_plugins.optimizers.adamw import AdamW
from torch import Tensor, distributed, nn

import dmlcore
from benchmarks.many_classes import peak
from benchmarks.measuring import Row, environment, write
from benchmarks.starting import told_by_ranks
from dmlcore.allocation import keep_freed_memory
from dmlcore.models import EmbeddingModel, Trunk
from dmlcore.ranks import Group, Layout, gathered_embeddings, inside, whole
from dmlcore.training.model_shards import ModelShards
from dmlcore.training.optimiser import build_optimiser
from dmlcore.training.processes import Processes
from dmlcore.training.setting_groups.optimiser import OptimiserSettings

RESULTS = Path(__file__).parent / "results" / "large-model.csv"
WIDTH, SAMPLES, STEPS, SIZE = 2048, 32, 3, 2


class _Layers(Trunk):
    """So many stages of `WIDTH x WIDTH` weights."""

    name = "layers"
    accepts = frozenset({"features"})

    def __init__(self, stages: int) -> None:
        super().__init__(None, (WIDTH,))
        self.features = WIDTH
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(stages))

    def forward(self, samples: Tensor) -> Tensor:
        for block in self.blocks:
            samples = samples + block(samples).relu()
        return samples


def rank(number: int, size: int, millions: int, is_divided: bool, folder: Path) -> None:
    """What each process runs: steps as a training takes them. It writes its row."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as `dmlcore train` does
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=number, world_size=size)
    group = Group(distributed.new_group(), gradients="sum")
    torch.manual_seed(0)
    x, labels = torch.randn(SAMPLES, WIDTH), torch.arange(SAMPLES) % 4
    own = slice(SAMPLES * number // size, SAMPLES * (number + 1) // size)
    distributed.barrier()
    before = peak()
    model: Any = EmbeddingModel(_Layers(round(millions * 1e6 / WIDTH**2)), 64)
    weights = sum(p.numel() for p in model.parameters())
    loss: Any = dmlcore.LossEnsemble(["ms"], "fixed", embedding_dim=64)
    shards = ModelShards(model, group, x[:1]) if is_divided else None
    stepper = build_optimiser(model, loss, OptimiserSettings(learning_rate=1e-4), AdamW(), rows=shards and shards.rows)
    cpu = []
    for _ in range(STEPS):
        distributed.barrier()
        used = time.process_time()
        model.zero_grad()
        stepper.zero_grad()
        outputs = model(x[own])
        layout = Layout(group, number, tuple(SAMPLES * (r + 1) // size - SAMPLES * r // size for r in range(size)))
        outputs, loss.layout = whole(outputs, gathered_embeddings(outputs, layout)[0], layout), layout
        with inside():
            loss(outputs, labels).backward()
        if shards is None:
            Processes.sum_gradients(SimpleNamespace(group=group), model.parameters())  # type: ignore[arg-type]
        else:
            shards.take_gradients()
        stepper.step()
        cpu.append(time.process_time() - used)
    row = {"million weights": weights / 1e6, "processes": size, "divided": is_divided, "cpu s": statistics.median(cpu[1:])}
    (folder / f"{number}.json").write_text(json.dumps(row | {"GB": (peak() - before) / 1e9}))
    distributed.destroy_process_group()


def main(millions: int) -> list[Row]:
    """Measure, print and keep the table."""
    rows: list[Row] = []
    for is_divided in (False, True):
        parts = told_by_ranks("large_model", SIZE, millions, is_divided)
        row = parts[0] | {key: max(part[key] for part in parts) for key in ("cpu s", "GB")}
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
        rows.append({"benchmark": "distributed", **row, **environment()})
    write(rows, RESULTS)
    return rows
