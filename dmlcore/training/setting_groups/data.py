"""Settings of the samples of a run and of its batches."""

from __future__ import annotations

from dataclasses import dataclass

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.plugins import defaults
from dmlcore.training.setting_groups.fields import check_each, setting

MOST = 2**20  # classes, and samples of a class, in a batch: more is a slip of the keyboard


@dataclass(frozen=True)
class DataSettings:
    """Samples, and how batches are made of them."""

    source: str | None = setting("data", None)
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
    views: int | None = None
    """Learn without labels: each sample is a class of its own, of which a batch has so many views, by the random changes of
    training. `classes_per_batch` then counts samples (default: classes are learnt)."""

    rotated_classes: bool = False
    """Train on quarter turns of square pictures as classes of their own: four times as many classes."""

    def __post_init__(self) -> None:
        if len(self.fractions) != 3:
            raise ConfigError(f"fractions has {len(self.fractions)} numbers, but must have 3: training, validation, test")
        for fraction in self.fractions:
            check_range("fractions", fraction, least=0, most=1)
        if self.split is not None and self.splits is None:
            raise ConfigError(f"split is '{self.split}', but there is no file to find it in; give splits as well")
        self._check_views()
        check_each(self, ("image_size", "classes_per_batch"), least=1, most=MOST)
        check_range("samples_per_class", self.samples_per_class, least=2, most=MOST)
        check_range("workers", self.workers, least=0, most=1024)

    def _check_views(self) -> None:
        if self.views is None:
            return
        check_range("views", self.views, least=2, most=MOST)
        if self.samples_per_class != self.views:
            raise ConfigError(
                f"views is {self.views}, and samples_per_class is {self.samples_per_class}: a sample is a class, and its views"
                f" are the samples of it. Leave samples_per_class out, or make it {self.views} where a recipe sets it"
            )
        if self.level is not None:
            raise ConfigError(f"level is '{self.level}', but views learns without labels; leave one out")
        if self.rotated_classes:
            raise ConfigError("rotated_classes turns classes, but views learns without labels; leave one out")
        if self.sampler not in (defaults().SAMPLER, defaults().SAMPLER_OF_VIEWS):
            raise ConfigError(
                f"sampler is '{self.sampler}', but a batch of views holds each sample {self.views} times; leave it"
                f" out, or make it {defaults().SAMPLER_OF_VIEWS} where a recipe sets it"
            )
