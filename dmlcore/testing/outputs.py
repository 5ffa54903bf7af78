"""The contracts of models, compressors, measures and loggers as checks."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.config import build_options
from dmlcore.data import TEXT_BYTES, TextStore
from dmlcore.ensemble import Compressor
from dmlcore.errors import ConfigError
from dmlcore.evaluation import Metric
from dmlcore.models import EmbeddingModel, Trunk
from dmlcore.testing.batches import batches, near
from dmlcore.testing.report import NotApplicable, Report

SHAPES = {"images": [(3, 32, 32), (1, 28, 28)], "features": [(10,)], "texts": [(TEXT_BYTES,)]}
_TEXTS = ("a small black cat", "cats", "Über den Wolken", "a longer text of more words than the others have")


def check_model(component: type[Trunk], options: dict[str, Any], report: Report) -> None:
    """Features of every kind of data it accepts, gradients, a batch of one, repeatability, state, behind a head."""

    def create(shape: tuple[int, ...]) -> Trunk:
        torch.manual_seed(0)
        return component(build_options(component.Options, options, component.name), shape)

    def samples(shape: tuple[int, ...], count: int = 4) -> Tensor:
        if shape == (TEXT_BYTES,):
            return TextStore(_TEXTS).fetch(np.arange(count))
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))

    def features(shape: tuple[int, ...]) -> str | None:
        trunk = create(shape)
        if not isinstance(getattr(trunk, "features", None), int) or trunk.features < 1:
            return "the constructor must set `features`, the columns of the output"
        out = trunk(samples(shape))
        if tuple(out.shape) != (4, trunk.features):
            return f"4 samples give {list(out.shape)}, but must give [4, {trunk.features}]"
        if not bool(torch.isfinite(out).all()):
            return "features are not finite"
        if any(p.requires_grad for p in trunk.parameters()):
            out.square().sum().backward()
            if not any(p.grad is not None and bool(p.grad.any()) for p in trunk.parameters()):
                return "no gradient reaches the parameters"
        return f": {trunk.features} features, {sum(p.numel() for p in trunk.parameters()):,} parameters"

    def evaluation(shape: tuple[int, ...]) -> str | None:
        trunk = create(shape).eval()
        with torch.no_grad():
            whole, single = trunk(samples(shape)), trunk(samples(shape)[:1])
            if not torch.equal(whole, trunk(samples(shape))):
                return "in evaluation mode the same samples give other features"
        return None if near(single, whole[:1], 1e-4) else "a sample's features depend on the other samples of the batch"

    def state(shape: tuple[int, ...]) -> str | None:
        trunk, other = create(shape), create(shape)
        trunk(samples(shape))
        other.load_state_dict(trunk.state_dict())
        with torch.no_grad():
            same = near(trunk.eval()(samples(shape)), other.eval()(samples(shape)), 1e-6)
        return None if same else "state_dict does not restore the trunk"

    def behind_a_head(shape: tuple[int, ...]) -> str | None:
        out = EmbeddingModel(create(shape), 8)(samples(shape))
        return None if tuple(out.shape) == (4, 8) else f"with a head of 8 the embeddings are {list(out.shape)}"

    unknown = set(component.accepts) - set(SHAPES)
    report.check("accepts", lambda: f"unknown kinds of data: {', '.join(sorted(unknown))}" if unknown else None)
    for kind in sorted(set(component.accepts) & set(SHAPES)):
        for shape in SHAPES[kind]:
            report.check(f"features and gradients: {kind} {list(shape)}", lambda shape=shape: features(shape))
        shape = SHAPES[kind][0]
        report.check(f"evaluation mode, a batch of one: {kind}", lambda shape=shape: evaluation(shape))
        report.check(f"state round trip: {kind}", lambda shape=shape: state(shape))
        report.check(f"behind a head: {kind}", lambda shape=shape: behind_a_head(shape))


def check_compressor(component: type[Compressor], options: dict[str, Any], report: Report) -> None:
    """Width of what it gives, repeatability, degenerate data, state."""
    width, out = 12, 5
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(96, width, generator=generator) @ torch.randn(width, width, generator=generator)
    labels = torch.arange(96) % 8

    def learnt(data: Tensor, narrow: int = out) -> Compressor:
        torch.manual_seed(0)
        compressor = component(width, narrow, **options)
        if not compressor.is_online:
            compressor.fit(data, labels[: len(data)], seed=0)
            return compressor
        optimiser = torch.optim.Adam(compressor.parameters(), lr=compressor.options.learning_rate)
        for _ in range(3):
            optimiser.zero_grad()
            compressor.online_loss(data).backward()
            optimiser.step()
        return compressor

    def gives(data: Tensor, narrow: int = out) -> str | None:
        try:
            compressor = learnt(data, narrow)
        except ConfigError as error:
            return f": refused, {error}"
        compressed = compressor(z)
        if tuple(compressed.shape) != (96, narrow):
            return f"96 embeddings give {list(compressed.shape)}, but must give [96, {narrow}]"
        return None if bool(torch.isfinite(compressed).all()) else "what it gives is not finite"

    def repeats() -> str | None:
        before = torch.get_rng_state()
        if component(width, out, **options).is_online:
            raise NotApplicable("it is trained online, by the run's random stream")
        torch.set_rng_state(before)
        first = learnt(z)(z)
        return None if torch.equal(first, learnt(z)(z)) else "the same data and seed give another map"

    def state() -> str | None:
        first, other = learnt(z), component(width, out, **options)
        other.load_state_dict(first.state_dict())
        return None if torch.equal(first(z), other(z)) else "state_dict does not restore the map"

    def unfitted() -> str | None:
        compressor = component(width, out, **options)
        if compressor.is_online:
            raise NotApplicable("it is trained online")
        try:
            compressor(z)
        except ConfigError:
            return None
        return "before it is fitted it must refuse: call check_fitted() in forward"

    report.check("ordinary embeddings", lambda: gives(z))
    report.check("the full width", lambda: gives(z, width))
    report.check("two embeddings", lambda: gives(z[:2]))
    report.check("all embeddings alike", lambda: gives(z[:1].repeat(96, 1)))
    report.check("the same data and seed give the same map", repeats)
    report.check("state round trip", state)
    report.check("refuses before it is fitted", unfitted)


def check_metric(component: type[Metric], options: dict[str, Any], report: Report) -> None:
    """Numbers by name, whatever the data; order and arguments left alone."""

    def values(x: Tensor, y: Tensor) -> dict[str, float]:
        measured = component(**options)(x, y)
        assert isinstance(measured, dict) and measured, f"it must return numbers by name, got {measured!r:.60}"
        return {str(name): float(value) for name, value in measured.items()}

    def numbers(x: Tensor, y: Tensor) -> str | None:
        measured = values(x, y)
        return f": {', '.join(f'{name} {value:.3g}' for name, value in measured.items())}"

    for name, (x, y) in batches().items():
        report.check(f"numbers by name: {name}", lambda x=x, y=y: numbers(x.float(), y))
    x, y = batches()["random"]
    x = x.float()

    def order() -> str | None:
        shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        first, other = values(x, y), values(x[shuffle], y[shuffle])
        same = first.keys() == other.keys() and all(
            (math.isnan(first[name]) and math.isnan(other[name]))
            or math.isclose(first[name], other[name], rel_tol=1e-4, abs_tol=1e-6)
            for name in first
        )
        return None if same else f"the order of the samples changes it: {first} and {other}"

    def arguments() -> str | None:
        a, b = x.clone(), y.clone()
        values(a, b)
        return None if torch.equal(a, x) and torch.equal(b, y) else "it changes its arguments in place"

    report.check("order of the samples", order)
    report.check("arguments stay as they are", arguments)


def check_logger(component: type, options: dict[str, Any], report: Report) -> None:
    """A short training with it, from beginning to end."""

    def training() -> str | None:
        from dmlcore.training import train

        kind: Any = getattr(component, "Options", None)
        logger = component(None if kind is None else build_options(kind, options, component.name))  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "features.npz"
            y = np.repeat(np.arange(12), 4)
            np.savez(data, x=np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32), y=y)
            result = train(
                out=Path(folder) / "run",
                data=str(data),
                plugins="contrastive",
                steps=2,
                eval_every=1,
                embedding_dim=4,
                classes_per_batch=4,
                loggers=[logger],
            )
        return "; ".join(result.get("warnings", [])) or None

    report.check("hears of a training", training)
