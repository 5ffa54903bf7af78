"""dmlcore's losses in Lightning: `python examples/lightning_loop.py --steps 20`. `--processes 2` trains in two processes."""

from __future__ import annotations

import logging

import lightning
import torch
from feature_table import Split, arguments, batches, feature_table, held_out, report
from torch import Tensor
from torch.utils.data import DataLoader

import dmlcore

RATE = 3e-3


class Embedding(lightning.LightningModule):
    """A linear embedding with an ensemble; what the losses own (proxies, weights) is saved with the module."""

    def __init__(self, table: Split, steps: int) -> None:
        super().__init__()
        self.table, self.steps = table, steps
        self.network = torch.nn.Linear(table.x.shape[1], 32)
        ensemble = dmlcore.LossEnsemble(["ms", "proxy_anchor", "triplet"], num_classes=table.num_classes, embedding_dim=32)
        self.ensemble = dmlcore.distributed(ensemble)  # of several processes each gives its samples, and gets the loss of all
        self.last = float("nan")

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def train_dataloader(self) -> DataLoader:
        return batches(self.table, self.steps, self.trainer.global_rank, self.trainer.world_size)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, labels = batch
        total = self.ensemble(self(x), labels)  # fused losses take bfloat16 embeddings as autocast leaves them
        self.log_dict({f"loss/{name}": value for name, value in self.ensemble.terms.items()})
        self.last = total.item()
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        owned = self.ensemble.parameter_roles()  # proxies want a higher rate than the network
        groups = [{"params": list(self.network.parameters())}, {"params": owned["proxies"], "lr": 20 * RATE}]
        return torch.optim.AdamW(groups, lr=RATE)


def main() -> None:
    flags = arguments("dmlcore's losses in Lightning", processes=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    table = feature_table(flags.data)
    model = Embedding(table, flags.steps)
    before = held_out(model, table)
    trainer = lightning.Trainer(
        max_steps=flags.steps,
        precision="bf16-mixed" if flags.bf16 else "32-true",
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=flags.processes,
        strategy="ddp" if flags.processes > 1 else "auto",
        use_distributed_sampler=False,  # each process takes its part of the same batches
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model)
    if trainer.is_global_zero:
        report(trainer.global_step, model.last, before, held_out(model.cpu(), table))


if __name__ == "__main__":
    main()
