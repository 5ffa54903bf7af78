"""What `test_model_shards.py` runs on several ranks: a model that they divide, trained beside the same in one process. It is
the program of each rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from dmlcore_plugins.optimizers.adamw import AdamW
from dmlcore_plugins.optimizers.sgd import SGD
from launched import as_rank
from torch import Tensor, distributed, nn

import dmlcore
from dmlcore.models import EmbeddingModel, Trunk
from dmlcore.ranks import Group, Layout, gathered_embeddings, inside, whole
from dmlcore.ranks.dividing import share_of
from dmlcore.training.model_shards import ModelShards, own_state
from dmlcore.training.optimiser import build_optimiser, clip
from dmlcore.training.setting_groups.optimiser import OptimiserSettings
from dmlcore.training.setting_groups.rates import RateSettings

SAMPLES, STEPS, CLIP = 18, 5, 0.3
OPTIMIZERS = {"sgd": SGD, "adamw": AdamW}


class Layers(Trunk):
    """Stages of many kinds: a number, a tied matrix, a list of layers, fewer rows than ranks."""

    name = "layers"
    accepts = frozenset({"features"})

    def __init__(self) -> None:
        super().__init__(None, (5,))
        self.features = 7
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first = nn.Linear(5, 6)
        self.back = nn.Linear(5, 6, bias=False)
        self.back.weight = self.first.weight
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, 7)

    def forward(self, samples: Tensor) -> Tensor:
        x = self.first(samples) + self.back(samples)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.last(self.norm(x)) * self.scale


def trained(optimizer: str, dtype: torch.dtype, group: Group | None) -> dict[str, Any]:
    """Steps of a model on this rank's samples: its weights, the norms of its gradients, and how many numbers a rank holds."""
    torch.manual_seed(0)
    model: Any = EmbeddingModel(Layers(), 6, normalize=False, student=4).to(dtype)
    loss: Any = dmlcore.LossEnsemble(["ms", "contrastive"], "fixed", embedding_dim=6).to(dtype)
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn(SAMPLES, 5, generator=draws, dtype=torch.float64).to(dtype), torch.arange(SAMPLES) % 5
    own, shards = slice(0, SAMPLES), None
    if group is not None:
        part = share_of(SAMPLES, group.rank, group.size)
        own, shards = slice(part.start, part.stop), ModelShards(model, group, x[:1])
    settings = OptimiserSettings(learning_rate=0.002, weight_decay=0.01)
    rates = RateSettings(layer_decay=0.7, head_factor=2.0, decay_vectors=False)
    stepper = build_optimiser(model, loss, settings, OPTIMIZERS[optimizer](), rates, rows=shards and shards.rows)
    norms = []
    for step in range(STEPS):
        model.trunk.requires_grad_(step > 0)  # frozen in the first step
        model.zero_grad()
        stepper.zero_grad()
        outputs = model(x[own])
        if group is not None:
            sizes = tuple(len(share_of(SAMPLES, rank, group.size)) for rank in range(group.size))
            layout = Layout(group, group.rank, sizes)
            outputs, loss.layout = whole(outputs, gathered_embeddings(outputs, layout)[0], layout), layout
        (loss(model.losses_part(outputs), y) + model.student_of(outputs).square().mean()).backward()
        if shards is not None:
            shards.take_gradients()
            if model.trunk.scale.grad is not None:
                distributed.all_reduce(model.trunk.scale.grad)
        norms.append(clip(stepper, CLIP, [] if shards is None else list(shards.parts.values())))
        stepper.step()
        model.eval()
        with torch.inference_mode():  # as an evaluation does
            model(x[:2])
        model.train()
    state = {key: value for entry in stepper.state.values() for key, value in entry.items()}
    held = sum(p.numel() for p in own_state(model).values())
    held += sum(v.numel() for entry in stepper.state.values() for v in entry.values() if isinstance(v, Tensor) and v.ndim)
    weights = model.state_dict() if shards is None else shards.whole_state()
    if shards is not None and group is not None and group.rank == 0:  # whole weights and rows are both taken
        before = {name: rows.clone() for name, rows in own_state(model).items()}
        for source in (weights, before):
            with torch.no_grad():
                for part in shards.parts.values():
                    part.parameter.zero_()
            shards.load(source)
            assert all(torch.equal(rows, before[name]) for name, rows in own_state(model).items())
    return {"weights": weights, "norms": torch.stack(norms), "held": held, "has_state": bool(state)}


def main(rank: int, size: int, folder: Path) -> None:
    with as_rank(rank, size, folder) as outcome:
        group = Group(distributed.new_group(), gradients="sum")
        for optimizer in OPTIMIZERS:
            for dtype in (torch.float64, torch.float32):
                name = f"{optimizer} {str(dtype).removeprefix('torch.')}"
                with inside():
                    outcome[name] = trained(optimizer, dtype, group)
                    if rank == 0:
                        outcome[f"{name} alone"] = trained(optimizer, dtype, None)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
