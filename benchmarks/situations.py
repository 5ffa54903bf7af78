"""`python -m benchmarks situations`: where users are. Few slopes, small batches, large memories, many proxies, mined pairs, and
how long a program takes to start. One thread, CPU time, each case in turn with its bare products.

Another installation can be measured beside this one (`--against PYTHON`, its interpreter), in turn. Both run this file in fresh
processes. It uses nothing but what every version of dmlcore offers.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOPES = (0.003, 0.01, 0.05, 0.1, 0.2)
"""Shares of the negatives within the margin of `contrastive`."""
FOUR = ("ms", "contrastive", "sup_con", "nt_xent")
FIVE = ("ms", "contrastive", "sup_con", "circle", "triplet")
ENTRIES = 100_000  # of a memory, or proxies
SECONDS = 0.6  # of repeats of a case in one process
Step = Callable[[], object]

CASES: dict[str, tuple[str, int, int, Any]] = {  # kind, N, d, what else
    **{f"contrastive, {100 * share:g} % of slopes": ("slopes", 2048, 128, share) for share in SLOPES},
    "contrastive, 5 % of slopes, d = 512": ("slopes", 2048, 512, 0.05),
    "ms, separated classes": ("separated", 2048, 128, ("ms", {})),
    "triplet, separated classes": ("separated", 2048, 128, ("triplet", {})),
    "triplet semihard, separated classes": ("separated", 2048, 128, ("triplet", {"mining": "semihard"})),
    "one loss, N = 64": ("small", 64, 64, ("ms",)),
    "one loss, N = 128": ("small", 128, 128, ("ms",)),
    "five losses, N = 128": ("small", 128, 128, FIVE),
    "five losses, N = 256, d = 512": ("small", 256, 512, FIVE),
    "memory of 100,000, one loss": ("memory", 128, 128, ("ms",)),
    "memory of 100,000, four losses": ("memory", 128, 128, FOUR),
    "arcface, 100,000 proxies": ("proxies", 128, 128, "arcface"),
    "proxy_anchor, 100,000 proxies": ("proxies", 128, 128, "proxy_anchor"),
    "mined by windows": ("separated", 2048, 128, ("contrastive", {"miner": "multi_similarity"})),
    "smooth_ap, separated classes": ("separated", 2048, 128, ("smooth_ap", {})),
    **{f"smooth_ap, separated classes of {m}": ("separated", 2048, 128, ("smooth_ap", {}, m)) for m in (64, 256, 512)},
    **{f"smooth_ap, classes of {m}": ("mixed", 2048, 128, ("smooth_ap", {}, m)) for m in (4, 64, 256)},
    "triplet, classes of 256": ("mixed", 2048, 128, ("triplet", {}, 256)),
    "triplet semihard, classes of 256": ("mixed", 2048, 128, ("triplet", {"mining": "semihard"}, 256)),
    "lifted_structure, classes of 256": ("mixed", 2048, 128, ("lifted_structure", {}, 256)),
    "ms, label matrix, N = 256": ("matrix", 256, 128, ("ms", {})),
    "ms, label matrix, N = 2048": ("matrix", 2048, 128, ("ms", {})),
    "angular": ("mixed", 2048, 128, ("angular", {})),
    "snr_contrastive": ("mixed", 2048, 128, ("snr_contrastive", {})),
    "intra_pair_variance, N = 128": ("mixed", 128, 128, ("intra_pair_variance", {})),
    "training step on features, default losses": ("training", 128, 384, None),
    "mined semihard, separated classes": ("separated", 2048, 128, ("contrastive", {"miner": "semihard"})),
}
STARTS: dict[str, list[str]] = {
    "import torch": ["-c", "import torch"],
    "import of the losses": ["-c", "import dmlcore; dmlcore.losses"],
    "dmlcore plugins, again": ["-m", "dmlcore", "plugins"],
    "a mistyped command": ["-m", "dmlcore", "trian"],
    "a run of one step": ["-m", "dmlcore", "train", "--data", "glyphs", "--device", "cpu", "--steps", "1"],
}


def _steps(case: str) -> tuple[Step, Step]:
    """A step of the case, forward and backward as a user calls it, and the bare products it cannot do without. Of training it
    is a whole step, and the same with a loss that costs next to nothing."""
    import torch

    import dmlcore
    from dmlcore.losses import create

    kind, n, d, more = CASES[case]
    if kind == "training":
        return _training_step(d), _training_step(d, lambda embeddings, labels: embeddings.square().mean())
    generator = torch.Generator().manual_seed(0)
    per_class = more[2] if kind in ("separated", "mixed") and len(more) > 2 else 4
    labels = (torch.arange(n) // per_class)[torch.randperm(n, generator=generator)]
    centres = torch.randn(n // per_class, d, generator=generator)
    x = (kind != "mixed") * centres[labels] + 0.5 * torch.randn(n, d, generator=generator)
    references = torch.randn(ENTRIES, d, generator=generator) if kind in ("memory", "proxies") else x

    def together(names: tuple[str, ...]) -> Any:
        losses = [create(name) for name in names]
        return losses[0] if len(losses) == 1 else dmlcore.LossEnsemble(losses)

    if kind == "slopes":
        unit = torch.nn.functional.normalize(x)
        distances = (2 - 2 * unit @ unit.T).clamp_min(0).sqrt()[labels[:, None] != labels].flatten()
        loss = create("contrastive", neg_margin=float(distances[:1_000_000].quantile(more)))
    elif kind in ("separated", "mixed", "matrix"):
        loss = create(more[0], **more[1])
        if kind == "matrix":  # two labels of each sample
            labels = torch.nn.functional.one_hot(torch.stack([labels, labels.roll(1)]), n // per_class).sum(0).clamp_max(1)
    elif kind == "small":
        loss = together(more)
    elif kind == "proxies":
        loss = create(more, num_classes=ENTRIES, embedding_dim=d)
        labels = torch.randint(0, ENTRIES, (n,), generator=generator)
    else:
        loss = dmlcore.CrossBatchMemory(together(more), ENTRIES, d)
        state = loss.memory_state()
        entry_labels = torch.randint(0, ENTRIES // 40, (ENTRIES,), generator=generator)
        loss.load_memory_state(state | {"queue": references, "labels": entry_labels, "filled": torch.tensor(ENTRIES)})
    leaf = x.clone().requires_grad_()
    similarities, of_anchors, of_references = torch.empty(n, len(references)), torch.empty(n, d), torch.empty_like(references)

    def run() -> None:
        loss(leaf, labels).backward()
        leaf.grad = None
        loss.zero_grad(set_to_none=True)

    def products() -> None:
        torch.mm(x, references.T, out=similarities)
        torch.mm(similarities, references, out=of_anchors)
        if kind == "proxies":
            torch.mm(similarities.T, x, out=of_references)

    return run, products


def _training_step(width: int, loss: Any = None) -> Step:
    """A step of training on a table of features as `dmlcore train` takes it, with its default losses or another one."""
    import numpy as np

    from dmlcore.training import RunConfig
    from dmlcore.training.folder import RunFolder
    from dmlcore.training.loop import Training
    from dmlcore.training.objects import Objects
    from dmlcore.training.run import Run

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(80), 50)
    np.savez(folder / "table.npz", x=random.standard_normal((len(labels), width), dtype=np.float32), y=labels)
    losses = {} if loss is None else {"plugins": "python_loss"}
    config = RunConfig.create(steps=10**6, eval_every=10**6, device="cpu", data=str(folder / "table.npz"), **losses)
    config = config if loss is None else config.with_objects(Objects(losses=(loss,)))
    training = Training(Run(config, RunFolder(folder / "run")), [], None)
    batches = training.run.batches()
    return lambda: training.step(batches)


def measure(case: str, seconds: float = SECONDS) -> dict[str, float]:
    """The fastest of the repeats: others on the machine only ever add time. Seconds of a step and of the bare products."""
    import torch

    torch.set_num_threads(1)
    run, products = _steps(case)
    times: list[tuple[float, float]] = []
    began = time.process_time()
    while len(times) < 6 or (time.process_time() - began < seconds and len(times) < 2000):
        before = time.process_time()
        run()
        middle = time.process_time()
        products()
        times.append((middle - before, time.process_time() - middle))
    steps, bare = zip(*times[2:], strict=True)
    return {"seconds": min(steps), "products_seconds": min(bare)}


def start(python: str, words: list[str], folder: str) -> float:
    """CPU seconds of a fresh process of this interpreter, the second time. Its modules are then compiled, as they are where
    Python may keep what it has compiled."""
    environment = {**os.environ, "DML_CACHE": folder, "PYTHONPYCACHEPREFIX": folder}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([python, *words], capture_output=True, cwd=folder, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(against: str | None = None, only: str | None = None, seconds: float = SECONDS, rounds: int = 2) -> list[dict[str, Any]]:
    """A row per case: seconds and the ratio to the bare products, and both of the other installation if any.

    Args:
        against: another interpreter.
        only: part of the names of cases.
        seconds: of repeats of a case in one process.
        rounds: processes of each installation, in turn.
    """
    arms = {"": sys.executable, **({"against_": against} if against else {})}
    rows: dict[str, dict[str, Any]] = {}
    for case in [*CASES, *STARTS]:
        if only is None or only in case:
            rows[case] = {"case": case, **({"n": CASES[case][1], "d": CASES[case][2]} if case in CASES else {})}
    cases = [case for case in rows if case in CASES]
    for _ in range(rounds):
        for arm, python in arms.items():
            if cases:
                command = [python, __file__, json.dumps(cases), str(seconds)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                for case, times in json.loads(done.stdout.splitlines()[-1]).items():
                    _keep_fastest(rows[case], arm, times)
            for case in set(rows) & set(STARTS):
                with tempfile.TemporaryDirectory() as folder:
                    _keep_fastest(rows[case], arm, {"seconds": start(python, STARTS[case], folder)})
    for row in rows.values():
        for arm in arms:
            if f"{arm}products_seconds" in row:
                row[f"{arm}ratio_to_products"] = row[f"{arm}seconds"] / row[f"{arm}products_seconds"]
    return list(rows.values())


def _keep_fastest(row: dict[str, Any], arm: str, times: dict[str, float]) -> None:
    for name, value in times.items():
        row[f"{arm}{name}"] = min(value, row.get(f"{arm}{name}", value))


def text(row: dict[str, Any]) -> str:
    """A row as a line."""
    parts = [f"{row['case']:36}"]
    for arm in ("against_", ""):
        if f"{arm}seconds" in row:
            parts.append(f"{1e3 * row[f'{arm}seconds']:9.2f} ms")
            if f"{arm}ratio_to_products" in row:
                parts.append(f"{row[f'{arm}ratio_to_products']:6.2f} x products")
            parts.append("before," if arm else "")
    return " ".join(parts).rstrip()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: the package that is measured is the interpreter's own
    print(json.dumps({case: measure(case, float(sys.argv[2])) for case in json.loads(sys.argv[1])}))
