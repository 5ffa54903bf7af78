"""Training of everything that is compared: resumable, in several processes, a line of results per run."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import rows as kept_rows
from benchmarks.ensembles.arms import LENGTH, LOSSES, Arm, arms, members, order
from benchmarks.ensembles.data import Data, prepare

RATES = (5e-4, 1e-3, 2e-3)
RATED = ("ms", "sup_con", "norm_softmax")  # the rate that serves these three best is everybody's
TUNED_ON = (0, 1)  # seeds
RANKED_ON = 5  # seeds whose validation classes say which single is the best: fixed, so that more seeds change no arm
SMALL = {"conv": {"channels": (16, 32, 64, 128)}}  # the trunk of pictures: a quarter of the default's work
TRIALS = 4
STORED = ("recall@1", "map@r")


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        data: name of the data set.
        stage: `rates`, `trials`, `singles`, `arms`.
        arm: name.
        seed: of the split; the weights' is the settings'.
        losses: by name.
        settings: for `RunConfig.create`.
        nets: a network of its own for each loss.
    """

    data: str
    stage: str
    arm: str
    seed: int
    losses: tuple[str, ...]
    settings: dict[str, Any]
    nets: bool = False

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.data, self.stage, self.arm, self.seed


def _train(job: Job, file: str) -> dict[str, Any]:
    """In a child: train, and keep what the tables need."""
    import torch

    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp(prefix="ensembles-"))
    began, cpu = time.perf_counter(), time.process_time()
    try:
        results = _train_nets(job, file, out) if job.nets else _train_one(job.losses, job.settings, file, out / "run")
    finally:
        shutil.rmtree(out, ignore_errors=True)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return {**asdict(job), **results, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}


def _rounded(parts: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {part: {key: round(metrics[key], 5) for key in STORED} for part, metrics in parts.items()}


def _train_one(losses: tuple[str, ...], settings: dict[str, Any], file: str, out: Path) -> dict[str, Any]:
    """One network: its figures, weights and speed."""
    from dmlcore.training import RunConfig, train

    config = RunConfig.create(data=file, plugins=",".join(losses), report=False, **settings)
    result = train(config, out=out)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    served = result["embeddings"] if "embeddings" in result else {"whole": result["metrics"]}
    return {
        "embeddings": {name: _rounded(parts) for name, parts in served.items()},
        "served": _rounded(result["metrics"]),
        "raw": _rounded(result["baselines"]["raw pixels" if "raw pixels" in result["baselines"] else "raw features"]),
        "chosen_step": result["chosen_step"],
        "weights": {str(r["step"]): [round(w, 4) for w in r["weights"].values()] for r in steps[:: max(1, len(steps) // 8)]},
        "cosines": steps[-1].get("loss_gradient_cosines", {}),
        "step_ms": round(1e3 * statistics.median(128 / r["images_per_second"] for r in steps), 3),
    }


def _train_nets(job: Job, file: str, out: Path) -> dict[str, Any]:
    """A network for each loss, of other weights each; served are the embeddings side by side, brought to the length of one."""
    import torch

    from dmlcore.ensemble.principal import principal_axes
    from dmlcore.evaluation import evaluating
    from dmlcore.serving import TrainedRun

    trained: list[dict[str, Any]] = []
    embedded: dict[str, list[torch.Tensor]] = {"train": [], "validation": [], "test": []}
    splits = None
    for number, loss in enumerate(job.losses):
        options = {key: value for key, value in job.settings.items() if not isinstance(value, dict) or key in (loss, *SMALL)}
        options["seed"] += 1000 * number  # the split is in the file: only weights and batches differ
        trained.append(_train_one((loss,), options, file, out / str(number)))
        run = TrainedRun(out / str(number), device="cpu")
        splits = splits or run.open()
        for part, rows in embedded.items():
            rows.append(evaluating.embed(run.model, getattr(splits, part)))
    assert splits is not None
    whole = {part: torch.cat(rows, 1) / len(rows) ** 0.5 for part, rows in embedded.items()}  # [N, m 64] of unit norm
    axes = principal_axes(whole["train"])
    mean, axes = axes.mean.float(), axes.axes[:LENGTH].float()
    short = {part: torch.nn.functional.normalize((rows - mean) @ axes.T) for part, rows in whole.items()}
    parts = {part: getattr(splits, part) for part in ("validation", "test")}
    embeddings = {
        name: _rounded({part: evaluating.evaluate(rows[part], dataset) for part, dataset in parts.items()})
        for name, rows in (("whole", whole), ("compressed", short))
    }
    return {
        **trained[0],
        "embeddings": embeddings,
        "served": embeddings["compressed"],
        "step_ms": round(sum(net["step_ms"] for net in trained), 3),
    }


class Runs:
    """The results so far, and how to get more.

    Args:
        file: of JSON lines, appended to; what it has is not run again.
        folder: of the tables of features, or None.
        work: for splits.
        processes: at a time.
        minutes: no run starts after that.
        steps: fewer steps a run, or None.
    """

    def __init__(
        self, file: Path, folder: Path | None, work: Path, processes: int, minutes: float | None, steps: int | None
    ) -> None:
        self.file, self.folder, self.work, self.processes, self.steps = file, folder, work, processes, steps
        self.ends = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.rows = {(row["data"], row["stage"], row["arm"], row["seed"]): row for row in kept_rows.read(file)}

    def run(self, jobs: Iterable[Job], datas: dict[str, Data]) -> bool:
        """Run what is missing; False when the time is up before the end."""
        waiting = [job for job in jobs if job.key not in self.rows]
        if not waiting:
            return True
        for data, seed in dict.fromkeys((job.data, job.seed) for job in waiting):
            prepare(datas[data], seed, self.folder, self.work)
        os.environ["OMP_NUM_THREADS"] = "1"
        root = str(Path(__file__).parents[2])  # children take over the path, and must find this module
        if root not in sys.path:
            sys.path.append(root)
        # a fresh interpreter for each, so that a run does not depend on those before it
        processes = ProcessPoolExecutor(self.processes, mp_context=get_context("spawn"))
        with processes as pool, kept_rows.appending(self.file) as append:
            queue = iter(waiting)
            running = {self._submit(pool, job, datas) for job in itertools.islice(queue, self.processes)}
            done = 0
            while running:
                finished = next(as_completed(running))
                running.discard(finished)
                row = finished.result()
                self.rows[(row["data"], row["stage"], row["arm"], row["seed"])] = row
                append(row)
                done += 1
                print(
                    f"{row['data']:14} {row['stage']:8} {row['arm']:38} seed {row['seed']}  validation"
                    f" {row['served']['validation']['map@r']:.3f}  test {row['served']['test']['map@r']:.3f}"
                    f"  {row['seconds']:5.1f} s  ({done} of {len(waiting)})",
                    flush=True,
                )
                if time.monotonic() < self.ends and (job := next(queue, None)) is not None:
                    running.add(self._submit(pool, job, datas))
        return all(job.key in self.rows for job in waiting)

    def _submit(self, pool: ProcessPoolExecutor, job: Job, datas: dict[str, Data]) -> Any:
        return pool.submit(_train, job, str(prepare(datas[job.data], job.seed, self.folder, self.work)))

    def validation(self, data: str, stage: str, arm: str, seeds: Iterable[int]) -> float:
        """Mean validation MAP@R of an arm."""
        return statistics.fmean(self.rows[data, stage, arm, s]["served"]["validation"]["map@r"] for s in seeds)

    def rate(self, data: str) -> float:
        """The learning rate chosen for a data set."""
        return max(RATES, key=lambda rate: sum(self.validation(data, "rates", f"{n} {rate:g}", TUNED_ON[:1]) for n in RATED))

    def options(self, data: str, loss: str, untried: bool) -> dict[str, Any]:
        """The options chosen for a loss; the defaults where nothing was tried."""
        tried = [(arm, options) for arm, options in ([] if untried else trials(loss))]
        best = max(tried, key=lambda trial: self.validation(data, "trials", trial[0], TUNED_ON), default=("", {}))
        return best[1]

    def ranking(self, data: str, seeds: Iterable[int]) -> list[str]:
        """The singles, best validation first."""
        seeds = list(seeds)
        return sorted(LOSSES, key=lambda loss: -self.validation(data, "singles", loss, seeds[:RANKED_ON]))


def trials(loss: str) -> list[tuple[str, dict[str, Any]]]:
    """The trials of a loss: a name and options each, the defaults first."""
    from dmlcore.ensemble.search import candidates

    tried = candidates([loss], TRIALS)
    return [(f"{loss} " + (", ".join(f"{k} {v}" for k, v in options.items()) or "defaults"), options) for _, options in tried]


def jobs_of(data: Data, stage: str, runs: Runs, seeds: list[int]) -> Iterator[Job]:
    """The jobs of a stage; each stage needs those before it."""
    steps = runs.steps or data.steps
    common: dict[str, Any] = {"steps": steps, "eval_every": max(1, steps // 5), "embedding_dim": LENGTH, "device": "cpu"}
    common |= {"log_every": steps, **(SMALL if data.pictures else {"model": "mlp", "head_start": "random"})}
    if stage == "rates":
        for loss in RATED:
            for rate in RATES:
                yield Job(data.name, stage, f"{loss} {rate:g}", 0, (loss,), {**common, "learning_rate": rate, "seed": 0})
        return
    common["learning_rate"] = runs.rate(data.name)
    if stage == "trials" and not data.pictures:
        for loss in LOSSES:
            for name, options in trials(loss):
                for seed in TUNED_ON:
                    yield Job(data.name, stage, name, seed, (loss,), {**common, "seed": seed, loss: options})
    if stage == "singles":
        for loss in LOSSES:
            for seed in seeds:
                yield _job(data, stage, Arm(loss, (loss,)), (loss,), seed, common, runs)
    if stage == "arms":
        ranking = runs.ranking(data.name, seeds)
        for _, group in itertools.groupby(sorted((arm for arm in arms() if not arm.commit), key=order), order):
            for seed, arm in itertools.product(seeds, list(group)):
                most = arm.seeds or (len(seeds) if arm.few or arm.central else RANKED_ON)
                if (arm.few if data.pictures else not arm.pictures_only) and seed in seeds[:most]:
                    yield _job(data, stage, arm, members(arm, ranking), seed, common, runs)


def _job(data: Data, stage: str, arm: Arm, losses: tuple[str, ...], seed: int, common: dict[str, Any], runs: Runs) -> Job:
    from dmlcore.config import unique_names

    settings = {**common, **arm.settings, "steps": arm.longer * common["steps"]}
    settings["seed"] = seed + arm.settings.get("seed", 0)
    for table, loss in zip(unique_names(losses), losses, strict=True):
        options = runs.options(data.name, loss, data.pictures) if loss in LOSSES else {}
        if options and arm.tuned:
            settings.setdefault(table, options)
    return Job(data.name, stage, arm.name, seed, losses, settings, arm.nets)


STAGES = ("rates", "trials", "singles", "arms")


def run_all(runs: Runs, datas: dict[str, Data], most_seeds: int | None = None) -> None:
    """Every stage of every data set, one data set after the other; ends early when the time is up."""
    for data in datas.values():
        seeds = list(range(min(data.seeds, most_seeds or data.seeds)))
        for stage in STAGES:
            if not runs.run(jobs_of(data, stage, runs, seeds), datas):
                print(f"the time is up within '{stage}' of {data.name}; the same command goes on from here")
                return
