"""The contracts of data sets, transforms and samplers as checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.config import build_options
from dmlcore.data import KINDS_OF_DATA, ROLES, BatchSampler, DataSource, Table, Transform
from dmlcore.testing.report import NotApplicable, Report

SHAPES = {"images": (3, 16, 12), "features": (10,)}  # of what transforms can change


def check_data(component: type[DataSource], options: dict[str, Any], report: Report) -> None:
    """What `load` gives, and that it gives the same again."""
    source = component(build_options(component.Options, options, component.name))
    loaded: list[Table] = []

    def loads() -> str | None:
        table = source.load()
        loaded.append(table)
        if table.kind not in KINDS_OF_DATA:
            return f"kind is '{table.kind}', but must be one of {', '.join(KINDS_OF_DATA)}"
        return f": {len(table.samples):,} {table.kind} of {len(table.class_names):,} classes"

    def table() -> Table:
        if not loaded:
            raise NotApplicable("it does not load")
        return loaded[0]

    def labels() -> str | None:
        t = table()
        if not isinstance(t.labels, np.ndarray) or t.labels.dtype != np.int64 or t.labels.shape != (len(t.samples),):
            return f"labels must be an int64 array of {len(t.samples)}, one per sample"
        if len(t.labels) and (t.labels.min() < 0 or t.labels.max() >= len(t.class_names)):
            return f"labels are {t.labels.min()}..{t.labels.max()}, but there are {len(t.class_names)} class names"
        counts = np.bincount(t.labels, minlength=len(t.class_names))
        if (counts > 1).sum() < 3:
            return "fewer than three classes have two samples: nothing could be trained, chosen and tested"
        return f": {counts.min():,} to {counts.max():,} samples in a class"

    def samples() -> str | None:
        t = table()
        index = np.array([len(t.samples) - 1, 0, 0], dtype=np.int64)
        batch = t.samples.fetch(index)
        dtype = torch.uint8 if t.kind == "texts" else torch.float32
        if batch.dtype != dtype or tuple(batch.shape) != (3, *t.sample_shape):
            return f"fetch gives {batch.dtype} {list(batch.shape)}, but must give {dtype} {[3, *t.sample_shape]}"
        if not bool(torch.isfinite(batch).all()):
            return "samples are not finite"
        if t.kind == "images" and (len(t.sample_shape) != 3 or float(batch.min()) < 0 or float(batch.max()) > 1):
            return "images must be [C, H, W] in 0..1"
        return None if torch.equal(batch[1], batch[2]) else "the same sample is not the same twice"

    def split() -> str | None:
        t = table()
        parts = source.split(t, 0)
        if parts is None:
            return ": classes are divided at random"
        names = {"train", "validation", "test", *ROLES, ""}
        if len(parts) != len(t.samples) or not set(np.unique(parts)) <= names:
            return f"split must be {len(t.samples)} words of train, validation, test, query, gallery"
        return None if np.array_equal(parts, np.asarray(source.split(t, 0))) else "the same seed gives another split"

    def again() -> str | None:
        first, second = table(), component(source.options).load()
        if first.class_names != second.class_names or not np.array_equal(first.labels, second.labels):
            return "loading again gives other labels"
        index = np.arange(min(8, len(first.samples)))
        same = torch.equal(first.samples.fetch(index), second.samples.fetch(index))
        return None if same else "loading again gives other samples"

    def sampled() -> str | None:
        from dmlcore.data import open_data

        try:
            parts = open_data(component.name, options=options)
        except Exception as error:
            if "there is no data set" in str(error):
                raise NotApplicable("it is not installed, so it has no name to open it by") from None
            raise
        return f": {', '.join(f'{part} {len(getattr(parts, part)):,}' for part in ('train', 'validation', 'test'))}"

    for name, run in (
        ("load", loads),
        ("labels", labels),
        ("samples", samples),
        ("split", split),
        ("loading again", again),
        ("opened by its name", sampled),
    ):
        report.check(name, run)


def check_transform(component: type[Transform], options: dict[str, Any], report: Report) -> None:
    """Shape and dtype kept, randomness from the generator only, arguments left alone."""

    def samples(kind: str, count: int) -> Tensor:
        return torch.rand(count, *SHAPES[kind], generator=torch.Generator().manual_seed(1))

    def changed(batch: Tensor, seed: int = 0) -> Tensor:
        return component(**options)(batch, torch.Generator().manual_seed(seed))

    def keeps_shape(kind: str) -> str | None:
        for count in (6, 1):
            batch = samples(kind, count)
            out = changed(batch)
            if out.shape != batch.shape or out.dtype != batch.dtype:
                return f"{list(batch.shape)} of {batch.dtype} become {list(out.shape)} of {out.dtype}"
            if not bool(torch.isfinite(out).all()):
                return "what it gives is not finite"
            if not torch.equal(batch, samples(kind, count)):
                return "it changes its argument in place"
        return None

    for kind in sorted(component.accepts):
        report.check(f"shape, dtype, argument: {kind}", lambda kind=kind: keeps_shape(kind))
    kind = sorted(component.accepts)[0] if component.accepts else "images"

    def randomness() -> str | None:
        before = torch.get_rng_state()
        first, again = changed(samples(kind, 6)), changed(samples(kind, 6))
        if not torch.equal(before, torch.get_rng_state()):
            return "it draws from torch's global random stream instead of the generator it is given"
        return None if torch.equal(first, again) else "the same generator gives other samples"

    report.check("all randomness from the generator", randomness)


def check_sampler(component: type[BatchSampler], options: dict[str, Any], report: Report) -> None:
    """Sizes and ranges, repeatability, exact resumption."""
    labels = np.repeat(np.arange(6), [9, 4, 2, 7, 3, 5])
    labels = np.random.default_rng(0).permutation(labels)
    p, k = 3, 4

    def create(seed: int = 0, steps: int | None = 8) -> BatchSampler:
        return component(labels, p, k, seed, steps=steps, options=build_options(component.Options, options, component.name))

    def batches() -> str | None:
        drawn = list(create())
        if len(drawn) != 8:
            return f"with steps = 8 it gives {len(drawn)} batches"
        for batch in drawn:
            if not isinstance(batch, list) or len(batch) != p * k:
                return f"a batch must be a list of {p * k} rows"
            if min(batch) < 0 or max(batch) >= len(labels):
                return f"rows must be in 0..{len(labels) - 1}, got {min(batch)}..{max(batch)}"
        return None

    def repeats() -> str | None:
        state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
        first, again = list(create()), list(create())
        if not np.array_equal(state, np.random.get_state()[1]):  # type: ignore[index]
            return "it draws from numpy's global random stream; make a generator of the seed and the step"
        if first != again:
            return "the same seed gives other batches"
        return None if first != list(create(seed=1)) else "another seed gives the same batches"

    def resumes() -> str | None:
        whole = list(create())
        first = create()
        stream = iter(first)
        head = [next(stream) for _ in range(3)]
        state = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in first.state_dict().items()}
        second = create()
        second.load_state_dict(state)  # as it comes out of a checkpoint
        return None if head + list(second) == whole else "a stream continued from state_dict is not the uninterrupted one"

    report.check("size and range of batches", batches)
    report.check("the seed decides, and nothing else", repeats)
    report.check("state round trip: resuming", resumes)
