"""The settings of a run, in groups. Each group is a group of the help and a table of a configuration file. Where settings stand
without their groups (on the command line, in Python, at the top level of a file), each goes by its key. No torch here.

What the settings choose is in `components.py`, what follows from settings left open in `implied.py`.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from dmlcore.config import check_range, convert, seconds_of
from dmlcore.errors import ConfigError
from dmlcore.plugins import defaults

DEFAULT_STEPS = 700
LEARNING_RATE = 2e-3  # of what begins at random
LONGEST = 4096  # of what is served: fitting a compressor takes the square of 4 times that in float64, 2 GB
MOST = 2**20  # classes, and samples of a class, in a batch: more is a slip of the keyboard
WIDER = 4  # times longer an embedding is before compression
AUTO = ("auto",)  # as losses: they are chosen on the validation classes


def check_device(name: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"device is '{name}', but must be auto, cpu, cuda or cuda:N")


def _setting(key: str, default: Any) -> Any:
    """A field whose key is not its name: the key must say more, since it stands without the group."""
    return field(default=default, metadata={"key": key})


@dataclass(frozen=True)
class LossSettings:
    """Losses, and what they are compared with."""

    names: tuple[str, ...] = _setting("plugins", defaults().LOSSES)
    """Losses to train with, separated by commas. A loss named twice is used twice; its second options are `NAME_2`. `auto`
    tries losses and values of their main option on the validation classes first and takes those near the best."""
    auto_losses: tuple[str, ...] | None = None
    """Losses that `auto` tries (default: all that declare values to try)."""
    auto_trials: int = 4
    """Trials of each loss, over values of its main option."""
    auto_steps: int | None = None
    """Optimiser steps of a trial (default: half of the run's)."""
    auto_within: float = 0.02
    """How far below the best validation MAP@R a member may lie."""
    auto_most: int = 4
    """Members at most."""
    memory: int = 0
    """Embeddings of the last batches that losses between samples compare a batch with, a batch or more; 0: the batch itself."""
    memory_warmup: int = 0
    """Steps before the memory is used; it fills meanwhile."""

    def __post_init__(self) -> None:
        if not any(self.names):
            raise ConfigError("plugins is empty, but must name at least one loss, e.g. ms,triplet")
        if not all(self.names):
            raise ConfigError(f"plugins is '{','.join(self.names)}', where a name is missing between two commas or at an end")
        if "auto" in self.names and not self.is_automatic:
            raise ConfigError("plugins has auto among other names; give it alone, and what it may choose from as auto_losses")
        if not self.is_automatic:
            defaults_of_auto = {f.name: f.default for f in dataclasses.fields(self) if f.name.startswith("auto_")}
            idle = [name for name, default in defaults_of_auto.items() if getattr(self, name) != default]
            if idle:
                raise ConfigError(f"{idle[0]} is given, but it is for plugins = auto, and plugins is {','.join(self.names)}")
        check_range("auto_within", self.auto_within, least=0)
        _check_each(self, ("auto_trials", "auto_steps", "auto_most"), least=1)
        check_range("memory", self.memory, least=0, most=2**31)
        check_range("memory_warmup", self.memory_warmup, least=0)

    @property
    def is_automatic(self) -> bool:
        """Whether the losses are still to be chosen, on the validation classes."""
        return self.names == AUTO


@dataclass(frozen=True)
class EnsembleSettings:
    """How several losses share a model."""

    kind: Literal["shared", "heads", "wel", "wedl"] = _setting("ensemble", "shared")
    """`shared`: one embedding for all losses; `heads`: a linear head for each. The published methods: `wel` is `shared` with
    learned weights and classifiers on the trunk's features, `wedl` is `heads` with learned weights and a diversity term."""
    weighting: str | None = None
    """How the losses are weighed against each other (default: gradients of equal norm for several losses on one embedding,
    unless `weights` are given or one is a regulariser of norms; learned weights with `wel` and `wedl`; else fixed ones)."""
    weights: tuple[float, ...] | None = None
    """Weight of each loss, in the order of `plugins` (default: 1 each)."""
    classifier: Literal["embedding", "features"] | None = None
    """What losses that can take the trunk's features see: the `embedding`, or the `features` (default with `wel`)."""
    diversity: Literal["off", "distance"] | None = None
    """A term that drives heads apart: `distance` between them, as published (default with `wedl`)."""
    diversity_weight: float = 0.01
    """Weight of the diversity term."""

    def __post_init__(self) -> None:
        for weight in self.weights or ():
            check_range("weights", weight, least=0)
        check_range("diversity_weight", self.diversity_weight, least=0)
        if self.diversity not in (None, "off") and not self.has_heads:
            raise ConfigError("diversity needs a head per loss: ensemble = heads or wedl")

    @property
    def has_heads(self) -> bool:
        """Whether each loss has a head of its own."""
        return self.kind in ("heads", "wedl")

    @property
    def is_published(self) -> bool:
        """Whether it is one of the published methods, WEL or WEDL."""
        return self.kind in ("wel", "wedl")


@dataclass(frozen=True)
class DataSettings:
    """Samples, and how batches are made of them."""

    source: str | None = _setting("data", None)
    """Data set by name, a folder with one sub-folder per class, a CSV list of images or texts, or an .npz with x and y; where
    only `splits` are given, what these were made of (default: the embedded characters)."""
    fractions: tuple[float, ...] = (0.5, 0.15, 0.35)
    """Fractions of the classes for training, validation and test, where the data has no split of its own."""
    splits: str | None = None
    """File of class splits, as `dmlcore splits` makes it, that says which classes are trained on and which are tested."""
    split: str | None = None
    """Id of a split in `splits` (default: its default split)."""
    level: str | None = None
    """Level of the labels that the losses train on, of those that the data's option `levels` names (default: the label)."""
    image_size: int | None = None
    """Side of the square images in pixels (default: what the data has)."""
    transforms: tuple[str, ...] | None = None
    """Random changes of training batches, separated by commas, in their order (default: what the data brings)."""
    workers: int | None = None
    """Processes that decode image files; they change no batch (default: one per thread but one, at most 8, where pictures do
    not fit in memory)."""
    classes_per_batch: int = 32
    """Classes in a batch; fewer where the data has fewer."""
    samples_per_class: int = 4
    """Samples of each class in a batch."""
    sampler: str = defaults().SAMPLER
    """How batches of `classes_per_batch` times `samples_per_class` are composed."""

    def __post_init__(self) -> None:
        if len(self.fractions) != 3:
            raise ConfigError(f"fractions has {len(self.fractions)} numbers, but must have 3: training, validation, test")
        for fraction in self.fractions:
            check_range("fractions", fraction, least=0, most=1)
        if self.split is not None and self.splits is None:
            raise ConfigError(f"split is '{self.split}', but there is no file to find it in; give splits as well")
        _check_each(self, ("image_size", "classes_per_batch"), least=1, most=MOST)
        check_range("samples_per_class", self.samples_per_class, least=2, most=MOST)
        check_range("workers", self.workers, least=0, most=1024)


@dataclass(frozen=True)
class ModelSettings:
    """The network and its embedding."""

    trunk: str | None = _setting("model", None)
    """Trunk by name, or a network of a library as LIBRARY/NAME (default: a small one for the kind of data)."""
    embedding_dim: int | None = None
    """Length of an embedding, or of each head, before compression (default: that of the data for features; else 256,
    compressed to 64; 4 times `compress` where that is given; 64 without compression, and with `wel` and `wedl`)."""
    head: Literal["linear", "none"] = "linear"
    """What stands between trunk and embedding: a linear map, or nothing. An embedding is then as long as the trunk is wide."""
    compress: int | None = None
    """Length of the embedding after compression; 0: none (default: 64 where `embedding_dim` is 256 by default, else 0)."""
    head_start: Literal["random", "principal"] | None = None
    """How the embedding head begins: at `random`, or as the `principal` axes of the trunk's features, which keeps what a
    trained trunk, or features, know already (default: `principal` for these, else `random`)."""
    init: str | None = None
    """Folder of a run whose best weights the model begins with. A head of another length begins anew."""
    compile: bool = False
    """Let torch.compile compile the model."""
    gradient_checkpointing: bool = False
    """Keep few activations of the trunk and compute the others again in the backward pass: less memory, a third more time."""
    channels_last: bool = False
    """Keep images and weights of the trunk with the channels innermost, which many convolutions are faster with."""
    compressor: str = defaults().COMPRESSOR
    """How embeddings are compressed, where they are."""
    student: int = 0
    """Length of an extra head that learns the similarities of the whole embedding while the others train; 0: none."""
    student_weight: float = 1.0
    """Weight of the student's term; its gradient stops at the trunk."""
    serve: Literal["whole", "compressed", "student"] | None = None
    """What the model gives as its embedding (default: `compressed` where there is that, else `student`, else `whole`)."""

    def __post_init__(self) -> None:
        check_range("student_weight", self.student_weight, least=0)
        if self.head == "none" and self.head_start == "principal":
            raise ConfigError("head_start is principal, but head is none: there is no head that could begin so")
        _check_each(self, ("compress", "student"), least=0, most=LONGEST)
        check_range("embedding_dim", self.embedding_dim, least=1, most=WIDER * LONGEST)
        needed = {"compressed": "compress", "student": "student"}.get(self.serve or "")
        if needed and not getattr(self, needed):
            raise ConfigError(f"serve is '{self.serve}', but {needed} is 0")


@dataclass(frozen=True)
class OptimiserSettings:
    """Optimizer, learning rates, decay and clipping."""

    optimizer: str = defaults().OPTIMIZER
    """What turns gradients into steps."""
    learning_rate: float | None = None
    """Highest learning rate of the trunk; it rises over `warmup` steps and falls as a cosine (default: 2e-3; 5e-4 for
    features, and what suits the trunk where it is trained already)."""
    warmup: int = 50
    """Steps over which the learning rate rises."""
    head_factor: float = 1.0
    """Learning rate of the embedding head, relative to the trunk's."""
    proxies_factor: float = 20.0
    """Learning rate of proxies, relative to the trunk's."""
    scalars_factor: float = 1.0
    """Learning rate of learnable numbers inside losses, relative to the trunk's."""
    weights_factor: float = 1.0
    """Learning rate of learnable ensemble weights, relative to the trunk's."""
    weight_decay: float = 1e-4
    """Decay of the trunk and the head."""
    clip: float | None = 10.0
    """Largest norm of the gradient, of the model and of everything else apart; `none` switches clipping off."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision in which the model runs while it trains; losses and weights stay in float32."""
    accumulate: int = 1
    """Parts in which a batch goes through the model. The gradient is that of the whole batch, at the memory of one part and the
    time of one more forward pass."""
    average: float | None = None
    """Decay of a running average of the weights (EMA), such as 0.999, which is evaluated and served (default: none)."""
    freeze: int = 0
    """Steps at the beginning in which the trunk is not trained."""

    def __post_init__(self) -> None:
        _check_each(self, ("warmup", "weight_decay", "freeze"), least=0)
        check_range("accumulate", self.accumulate, least=1)
        check_range("average", self.average, above=0, below=1)
        rates = ("learning_rate", "clip", "head_factor", "proxies_factor", "scalars_factor", "weights_factor")
        _check_each(self, rates, above=0)


@dataclass(frozen=True)
class RunSettings:
    """Length, evaluations, device and seed."""

    steps: int | None = None
    """Optimiser steps (default: 700, unless `epochs` is given)."""
    epochs: int | None = None
    """Passes over the training samples, instead of `steps`."""
    eval_every: int = 100
    """Steps between evaluations on the validation classes, each with a checkpoint."""
    log_every: int = 50
    """Steps between lines of progress where there is no terminal."""
    patience: int | None = None
    """Evaluations in a row without a better one after which training ends (default: it runs through all steps)."""
    metrics: tuple[str, ...] = ()
    """Measures of embeddings beside those of retrieval, separated by commas."""
    loggers: tuple[str, ...] = ()
    """Further loggers, separated by commas."""
    report: bool = True
    """Write `report.html`, a page to look at, when the run ends."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    seed: int = 0
    """Seed of the split, the weights, the batches and the augmentation."""
    stop_after: str | None = None
    """Time, such as `3h50m`, after which the run saves a checkpoint and ends. `--resume` goes on."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps and epochs are both given; leave one out")
        _check_each(self, ("steps", "epochs", "eval_every", "log_every", "patience"), least=1)
        check_range("seed", self.seed, least=0)
        if self.stop_after is not None:
            seconds_of(self.stop_after, "stop_after")
        check_device(self.device)


@dataclass(frozen=True)
class Settings:
    """The settings of a run, apart from the options of its losses, model and data."""

    losses: LossSettings = field(default_factory=LossSettings)
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        names, weights = self.losses.names, self.ensemble.weights
        if weights is None:
            return
        if self.losses.is_automatic:
            raise ConfigError("weights are given, but plugins is auto: how many losses there will be is not known")
        if len(weights) != len(names):
            raise ConfigError(f"weights has {len(weights)} numbers for {len(names)} losses ({', '.join(names)})")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """From values by key; texts are converted as on the command line.

        Raises:
            ConfigError: a value of the wrong type or out of range.
        """
        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for key, value in values.items():
            place = PLACES[key]
            groups[place.group][place.name] = convert(value, place.type, key)
        return cls(**{name: GROUPS[name](**fields) for name, fields in groups.items()})

    def values(self) -> dict[str, Any]:
        """All settings by key."""
        return {key: getattr(getattr(self, place.group), place.name) for key, place in PLACES.items()}

    def replace(self, **values: Any) -> Settings:
        """The same with other values of some keys."""
        return Settings.of({**self.values(), **values})


@dataclass(frozen=True)
class Place:
    """Where the setting of a key stands.

    Attributes:
        group: name of the group, a field of `Settings`.
        name: of the field in the group.
        type: of the value.
        default: of the value.
    """

    group: str
    name: str
    type: Any
    default: Any


def _check_each(settings: Any, names: tuple[str, ...], **limits: float) -> None:
    for name in names:
        check_range(name, getattr(settings, name), **limits)


def _places() -> dict[str, Place]:
    places: dict[str, Place] = {}
    for group, fields in GROUPS.items():
        types = typing.get_type_hints(fields)
        for f in dataclasses.fields(fields):
            key = f.metadata.get("key", f.name)
            assert key not in places, key
            places[key] = Place(group, f.name, types[f.name], f.default)
    return places


GROUPS: dict[str, type] = {
    "losses": LossSettings,
    "ensemble": EnsembleSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "optimiser": OptimiserSettings,
    "run": RunSettings,
}
PLACES = _places()
"""Every setting by its key."""
