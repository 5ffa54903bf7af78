"""Random batches through every loss: the fused form against the definition in float64, values and gradients.

The rule of tolerance is the suite's: a kernel may err twice as much as PyTorch does at its precision, and some roundings. Where
a decision hangs on the last bit the definition jumps: it may also err as far as the definition moves within some roundings of
the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bench import Bench
from .mutations import pick
from .trials import Failure, Part

BATCHES = 5000
NEARBY, MORE_NEARBY = 6, 60  # batches beside the drawn one
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_FLOORS = {torch.float64: 1e-9}  # relative; of lower precision as in tests/test_kernels.py
_ZERO, _ZERO_DOUBLE = 1e-7, 1e-12  # of the value: what sums to nothing has no digits of its own
_VALUE_FLOOR, _GRADIENT_FLOOR = 2e-6, 4e-6
_SMALLEST_HALF, _LARGEST_HALF = 6.2e-5, 6e4  # what float16 can hold of a gradient


class Batch:
    """What is drawn for one trial.

    Attributes:
        case: row of the table of cases.
        options: that replace the row's.
        x, labels: the batch.
        keywords: references and such.
        plan: options of the plan.
        dtype: of the embeddings.
    """

    def __init__(self, draws: np.random.Generator) -> None:
        from cases import FUSED, PAIRS

        self.case = pick(draws, FUSED)
        self.dtype = pick(draws, DTYPES)
        # On a line a gradient at unit norm cancels to nothing, which only float64 shows.
        self.width = pick(draws, [*([1] if self.dtype is torch.float64 else []), 2, 3, 8, 11, 16, 33, 64])
        self.labels = torch.tensor(_labels(draws), dtype=torch.int64)
        self.classes = int(self.labels.max()) + 2
        self.x = _embeddings(draws, self.labels, self.width)
        self.keywords: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        loss = self.case.create()
        if self.case in PAIRS and draws.random() < 0.3 and "miner" in _option_names(loss):
            from dmlcore import plugins

            self.options["miner"] = pick(draws, sorted(plugins.registry("miner")))
        for name, values in type(loss).searched.items():
            if draws.random() < 0.3:
                self.options[name] = pick(draws, values)
        if self.case in PAIRS and loss.takes_references and draws.random() < 0.4:
            self._add_references(draws)
        self.x = self.x.to(self.dtype)
        self.plan = _plan(draws)

    def _add_references(self, draws: np.random.Generator) -> None:
        count = pick(draws, [1, 2, 7, 40])
        labels = torch.from_numpy(draws.integers(0, self.classes, count))
        references = _embeddings(draws, labels, self.width)
        if draws.random() < 0.5:  # the batch is among them
            references, labels = torch.cat([references, self.x]), torch.cat([labels, self.labels])
            self.keywords["own"] = count + torch.arange(len(self.labels))
        self.keywords |= {"references": references.to(self.dtype), "reference_labels": labels}

    def create(self, dtype: torch.dtype) -> Any:
        """The loss."""
        import dmlcore

        torch.manual_seed(3)
        options = {**self.case.options, **self.options}
        loss = dmlcore.losses.create(self.case.name, num_classes=self.classes, embedding_dim=self.width, **options)
        return loss.to(dtype).eval()  # a miner that draws repeats its draws

    def steepness(self) -> float:
        """What a similarity is multiplied by in an exponent."""
        options = vars(self.create(torch.float64).options)
        factors = [float(options.get(name) or 0) for name in ("scale", "softmax_scale", "gamma", "alpha", "beta")]
        return max([1.0, *factors, *(1 / float(options[name]) for name in ("temperature",) if options.get(name))])

    def __str__(self) -> str:
        against = f", {len(self.keywords['references'])} references" if self.keywords else ""
        options = {**self.case.options, **self.options}
        return f"{self.case.name} {options}, {str(self.dtype)[6:]} {list(self.x.shape)}{against}, plan {self.plan}"


def _option_names(loss: Any) -> list[str]:
    return list(type(loss).Options.__dataclass_fields__)


def _labels(draws: np.random.Generator) -> Any:
    count = pick(draws, [1, 2, 3, 5, 16, 17, 31, 48, 70])
    kind = pick(draws, ["random", "random", "random", "one class", "all different", "pairs", "one large class", "sorted"])
    if kind == "one class":
        return np.zeros(count, dtype=int)
    if kind == "all different":
        return draws.permutation(count)
    if kind == "pairs":
        return draws.permutation(np.arange(count) // 2)
    if kind == "one large class":
        return np.maximum(0, np.arange(count) - count // 2)
    labels = draws.integers(0, max(1, count // 3) + 1, count)
    return np.sort(labels) if kind == "sorted" else labels


def _embeddings(draws: np.random.Generator, labels: Tensor, width: int) -> Tensor:
    """Points around centres: ordinary, doubled, zero, opposite, with norms of all sizes."""
    count = len(labels)
    centres = draws.normal(size=(int(labels.max()) + 1, width))
    x = centres[labels.numpy()] + pick(draws, [0.0, 0.01, 0.5, 1.0]) * draws.normal(size=(count, width))
    kind = pick(draws, ["as it is", "as it is", "as it is", "doubled", "doubled elsewhere", "zero", "opposite"])
    other = draws.permutation(count)
    some = draws.random(count) < 0.3
    if kind == "doubled":
        x[some] = x[other][some]
    elif kind == "doubled elsewhere":
        x[:] = x[draws.integers(count)]
    elif kind == "zero":
        x[some] = 0
    elif kind == "opposite":
        x[some] = -x[other][some]
    norms = pick(draws, ["as they are", "as they are", "unit", "small", "large", "mixed"])
    if norms == "unit":
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    elif norms in ("small", "large"):
        x *= 1e-3 if norms == "small" else 1e3
    elif norms == "mixed":
        x *= np.logspace(-3, 3, count)[:, None]
    return torch.from_numpy(x)


def _plan(draws: np.random.Generator) -> dict[str, int]:
    choices = {"threads": [1, 2], "workspace": [0, 2000], "tile_rows": [1, 8, 70], "tile_columns": [1, 16, 90]}
    choices |= {"slot_bytes": [1, 4000], "triangle": [0]}
    return {name: pick(draws, values) for name, values in choices.items() if draws.random() < 0.25}


def run(bench: Bench, key: str) -> Failure | None:
    """One batch."""
    from cases import hold_draws

    from dmlcore.errors import ConfigError
    from dmlcore.kernels import plan_options

    batch = Batch(bench.draws(key))
    low_dtype = torch.float64 if batch.dtype is torch.float64 else torch.float32
    try:
        low, exact = batch.create(low_dtype), batch.create(torch.float64)
    except ConfigError:  # these options do not go together
        return None
    exact.load_state_dict(low.state_dict())
    hold_draws(exact, low)
    truth = _computed(exact, exact.reference, batch, torch.float64)
    if difference_of(truth, _computed(exact, exact.reference, batch, torch.float64)):
        return None  # it draws anew at every call, and has no one value
    own = _computed(low, low.reference, batch, low_dtype)
    with plan_options(**batch.plan):
        fused = _computed(low, low, batch, batch.dtype)
    errors = [_distance(a, b) for a, b in zip(own, truth, strict=True)]
    text = _compare(batch, fused, own, truth, errors, _moves(exact, batch, low_dtype, NEARBY))
    if text:  # a decision that some roundings hit seldom, or PyTorch was exact by luck
        errors = [max(pair) for pair in zip(errors, _errors_nearby(low, exact, batch, low_dtype), strict=True)]
        text = _compare(batch, fused, own, truth, errors, _moves(exact, batch, low_dtype, MORE_NEARBY))
    return Failure(f"{batch}: {text}", is_lost=True) if text else None


def _computed(
    loss: Any, compute: Any, batch: Batch, dtype: torch.dtype, beside: Callable[[Tensor], Tensor] = lambda x: x
) -> list[Tensor]:
    """The value, and the gradients of embeddings, references and parameters, in float64."""
    x = beside(batch.x.to(dtype)).clone().requires_grad_()
    keywords, leaves = dict(batch.keywords), [x]
    if "references" in keywords:
        keywords["references"] = beside(keywords["references"].to(dtype)).clone().requires_grad_()
        leaves.append(keywords["references"])
    leaves += list(loss.parameters())
    value = compute(x, batch.labels, **keywords)
    if not value.requires_grad:
        return [value.detach().double(), *(torch.zeros_like(leaf).double() for leaf in leaves)]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    pairs = zip(leaves, gradients, strict=True)
    return [value.detach().double(), *(torch.zeros_like(a).double() if g is None else g.double() for a, g in pairs)]


def difference_of(one_side: list[Tensor], other_side: list[Tensor]) -> float:
    """The largest difference of two results; NaN counts as none."""
    return max(float((a - b).abs().nan_to_num().max()) if a.numel() else 0.0 for a, b in zip(one_side, other_side, strict=True))


def _moves(exact: Any, batch: Batch, low_dtype: torch.dtype, count: int) -> list[float]:
    """How far the definition's value and gradients move within some roundings of the batch."""
    generator = torch.Generator().manual_seed(5)
    here = _computed(exact, exact.reference, batch, torch.float64)
    moves = [0.0] * len(here)
    for number in range(count):
        size = torch.finfo(low_dtype).eps * 4 ** (number % 3)
        there = _computed(exact, exact.reference, batch, torch.float64, _nearby(generator, size))
        moves = [max(move, _distance(a, b)) for move, a, b in zip(moves, there, here, strict=True)]
    return moves


def _errors_nearby(low: Any, exact: Any, batch: Batch, low_dtype: torch.dtype) -> list[float]:
    """The largest errors of PyTorch at its precision on batches beside this one, which round otherwise."""
    errors: list[float] = []
    for number in range(MORE_NEARBY):
        results = []
        for loss, dtype in ((low, low_dtype), (exact, torch.float64)):
            step = _nearby(torch.Generator().manual_seed(number), 1e-6)
            # Rounded before it is given to either, so that both see the same batch.
            results.append(
                _computed(loss, loss.reference, batch, dtype, lambda x, step=step: step(x.double()).to(low_dtype).to(x))
            )
        here = [_distance(a, b) for a, b in zip(*results, strict=True)]
        errors = [max(pair) for pair in zip(errors or here, here, strict=True)]
    return errors


def _nearby(generator: torch.Generator, size: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * (1 + size * torch.randn(x.shape, generator=generator, dtype=torch.float64))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


def _compare(
    batch: Batch, fused: list[Tensor], own: list[Tensor], truth: list[Tensor], errors: list[float], moves: list[float]
) -> str:
    """What is wrong, or an empty text.

    Args:
        batch: that was computed.
        fused, own, truth: value and gradients of the kernel, of PyTorch at its precision and in float64.
        errors: of PyTorch at its precision.
        moves: of the definition, within some roundings.
    """
    names = ["the value", "the gradient of embeddings", "the gradient of references"]
    norms = batch.x.double().norm(dim=1)
    smallest = float(norms[norms > 0].min()) if bool((norms > 0).any()) else 1.0
    zero = (_ZERO_DOUBLE if batch.dtype is torch.float64 else _ZERO) * (1 + float(truth[0].abs().max()))
    is_half = batch.dtype in (torch.float16, torch.bfloat16)
    for index, (result, plain, exact) in enumerate(zip(fused, own, truth, strict=True)):
        name = names[index] if index < (3 if batch.keywords else 2) else "a gradient of parameters"
        if not bool(torch.isfinite(exact).all() & torch.isfinite(plain).all()):
            continue  # nothing to compare with at this precision
        if not exact.numel():
            continue
        largest = float(exact.abs().max())
        is_of_inputs = 0 < index < (3 if batch.keywords else 2)
        floor = _FLOORS.get(batch.dtype, _GRADIENT_FLOOR if index else _VALUE_FLOOR) * largest + zero
        if index == 0:  # of similarities that are rounded, the exponents are some times as wrong
            floor += torch.finfo(torch.float64 if batch.dtype is torch.float64 else torch.float32).eps * batch.steepness()
            if batch.dtype is torch.float64:  # distances of coincident points are roots of roundings, and truth has its own
                floor += torch.finfo(torch.float64).eps ** 0.5 * largest
        if is_of_inputs:
            floor += zero / smallest
        if is_half and is_of_inputs:  # the result itself is rounded
            if batch.dtype is torch.float16 and largest > _LARGEST_HALF:
                continue
            floor += 2 * torch.finfo(batch.dtype).eps * largest + (_SMALLEST_HALF if batch.dtype is torch.float16 else 0)
        allowed = 2 * errors[index] + 4 * moves[index] + floor
        error = _distance(result, exact)
        if not error <= allowed:
            return f"{name} errs by {error:.2g} of {largest:.2g}, PyTorch by {errors[index]:.2g}"
    return ""


def keys(bench: Bench) -> list[str]:
    """`losses/NUMBER`."""
    return [f"losses/{number}" for number in range(BATCHES)]


PART = Part("losses", keys, run)
