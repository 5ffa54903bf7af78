"""dmlcore's losses in the Trainer of transformers: `python examples/huggingface_trainer.py --steps 20`."""

from __future__ import annotations

import tempfile

import torch
from feature_table import Split, arguments, batches, feature_table, held_out, report
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

import dmlcore

RATE = 3e-3


class Embedding(torch.nn.Module):
    """What the Trainer expects of a model: it returns its loss beside what it computes."""

    def __init__(self, dimension: int, num_classes: int) -> None:
        super().__init__()
        self.network = torch.nn.Linear(dimension, 32)
        ensemble = dmlcore.LossEnsemble(["ms", "proxy_anchor", "triplet"], num_classes=num_classes, embedding_dim=32)
        self.ensemble = dmlcore.distributed(ensemble)  # of several processes each gives its samples, and gets the loss of all

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        embeddings = self.network(x)
        if labels is None:
            return {"embeddings": embeddings}
        return {"loss": self.ensemble(embeddings, labels), "embeddings": embeddings}


def as_inputs(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A batch by the names of the model's arguments."""
    x, labels = torch.utils.data.default_collate(rows)
    return {"x": x, "labels": labels}


class ClassBalancedTrainer(Trainer):
    """The Trainer with batches of several samples per class, which metric learning needs."""

    table: Split

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        loader = batches(self.table, self.args.max_steps)
        loader.collate_fn = as_inputs
        return self.accelerator.prepare(loader)


def main() -> None:
    flags = arguments("dmlcore's losses in the Trainer of transformers")
    torch.manual_seed(0)
    table = feature_table(flags.data)
    model = Embedding(table.x.shape[1], table.num_classes)
    owned = model.ensemble.parameter_roles()  # proxies want a higher rate than the network
    groups = [{"params": model.network.parameters()}, {"params": owned["proxies"], "lr": 20 * RATE}]
    optimiser = torch.optim.AdamW(groups, lr=RATE)
    before = held_out(model.network, table)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ClassBalancedTrainer(
            model,
            TrainingArguments(
                folder,
                max_steps=flags.steps,
                logging_steps=1,
                bf16=flags.bf16,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            optimizers=(optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0)),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.table = table
        result = trainer.train()
    last = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry][-1]
    report(result.global_step, last, before, held_out(model.network.cpu(), table))


if __name__ == "__main__":
    main()
