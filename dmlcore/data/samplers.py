"""How training batches are composed: what a sampler is, and making one by name. The built-in rules are plugins, fetching is in
`loading`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Sampler

from dmlcore import plugins
from dmlcore.config import build_options
from dmlcore.data.label_sets import LabelSets
from dmlcore.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """A sampler without options of its own."""


class BatchSampler(Sampler[list[int]]):
    """Base of everything `--sampler` can name. A plugin registers subclasses by the hook `dmlcore_samplers` and writes `draw`.

    The n-th batch must depend on the arguments only, so that a resumed run sees what an uninterrupted one would have seen.

    Args:
        labels: int64 [N], dense.
        classes_per_batch: P, 2..number of classes.
        samples_per_class: K >= 1.
        seed: of the stream.
        steps: batches of an epoch. The first iteration ends when the stream has given so many, the next goes on from there and
            ends after as many more. None: it never ends.
        options: an instance of `Options`, or None for the defaults.

    Attributes:
        step: batches drawn so far.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = SamplerOptions
    for_label_sets: ClassVar[type[BatchSampler] | None] = None
    """What takes its place where samples have several labels: a sampler that takes `LabelSets` for `labels`. None: it is given
    classes, which are the samples with the same labels."""

    def __init__(
        self,
        labels: np.ndarray | LabelSets,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int,
        steps: int | None = None,
        options: Any = None,
    ) -> None:
        self.labels: Any = labels if isinstance(labels, LabelSets) else np.asarray(labels)
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        self.seed = seed
        self.steps = steps
        self.options: Any = options if options is not None else build_options(self.Options, {}, self.name)
        self.step = 0

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("this sampler never ends")
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        """Index lists of length P * K, from the current step on to the end of the epoch it is in."""
        size = self.classes_per_batch * self.samples_per_class
        last = self.last_step()
        while last is None or self.step < last:
            drawn = np.asarray(self.draw(self.step))
            if drawn.shape != (size,) or drawn.dtype.kind not in "iu" or drawn.min() < 0 or drawn.max() >= len(self.labels):
                raise PluginError(
                    f"the sampler '{self.name}' drew {drawn.dtype} {list(drawn.shape)} for step {self.step}, but must give"
                    f" {size} whole numbers in 0..{len(self.labels) - 1}"
                )
            self.step += 1
            yield drawn.tolist()

    def last_step(self) -> int | None:
        """The step with which the epoch ends that the next batch belongs to. None: there are no epochs."""
        if not self.steps:
            return self.steps
        return (self.step // self.steps + 1) * self.steps

    def draw(self, step: int) -> np.ndarray:
        """The rows of a batch, int64 [P * K].

        Args:
            step: its number, from 0.
        """
        raise NotImplementedError(f"the sampler '{self.name}' must write draw()")

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: plain numbers and arrays."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stream of the same arguments exactly where `state_dict` was taken."""
        self.seed, self.step = int(state["seed"]), int(state["step"])


def create_sampler(
    name: str,
    labels: np.ndarray | LabelSets,
    classes_per_batch: int,
    samples_per_class: int,
    *,
    seed: int = 0,
    steps: int | None = None,
    **options: Any,
) -> BatchSampler:
    """A sampler by its name, for loops of your own: a list of rows per batch, as `DataLoader(batch_sampler=...)` takes them.

    Args:
        name: of the sampler, or `FILE.py:CLASS`.
        labels: int64 [N], or sets of labels where the sampler takes them or says what does.
        classes_per_batch: P, 2..number of classes.
        samples_per_class: K >= 1.
        seed: of the stream.
        steps: batches of an epoch, after which an iteration ends. None: it never ends.
        options: of the sampler.

    Raises:
        ConfigError: an unknown name or option, numbers out of range.
    """
    component: Any = plugins.find("sampler", name).component
    if isinstance(labels, LabelSets) and component.for_label_sets is not None:
        component = component.for_label_sets
    built = build_options(component.Options, options, component.name)
    return component(labels, classes_per_batch, samples_per_class, seed, steps, built)
