"""dmlcore's losses with Hugging Face accelerate: `python examples/accelerate_loop.py --steps 20`."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from feature_table import arguments, batches, feature_table, held_out, report

import dmlcore

RATE = 3e-3


def main() -> None:
    flags = arguments("dmlcore's losses with accelerate")
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if flags.bf16 else "no")
    torch.manual_seed(0)
    table = feature_table(flags.data)
    network = torch.nn.Linear(table.x.shape[1], 32)
    ensemble = dmlcore.LossEnsemble(["ms", "proxy_anchor", "triplet"], num_classes=table.num_classes, embedding_dim=32)
    ensemble = dmlcore.distributed(ensemble)  # of several processes each then gives its samples, and gets the loss of all
    owned = ensemble.parameter_roles()  # proxies want a higher rate than the network
    optimiser = torch.optim.AdamW([{"params": network.parameters()}, {"params": owned["proxies"], "lr": 20 * RATE}], lr=RATE)
    before, total = held_out(network, table), torch.tensor(torch.nan)

    model, loss, optimiser, loader = accelerator.prepare(network, ensemble, optimiser, batches(table, flags.steps))
    for x, labels in loader:
        with accelerator.autocast():
            total = loss(model(x), labels)
        optimiser.zero_grad()
        accelerator.backward(total)
        accelerator.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()

    after = held_out(accelerator.unwrap_model(model, keep_fp32_wrapper=False).cpu(), table)
    report(flags.steps, total.item(), before, after)


if __name__ == "__main__":
    main()
