"""The settings of `dmlcore splits ood`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmlcore.config import check_range
from dmlcore.errors import ConfigError


@dataclass(frozen=True)
class BuildOptions:
    """How splits of shifted classes are built."""

    model: str = "features"
    """What describes a class, by its mean: `features` (the data as they are: features, or pixels averaged down to 32 x 32), a
    trunk by name, with its options, or the folder of a finished run."""
    image_size: int | None = None
    """Side of the square images in pixels (default: what the data has, or the model wants)."""
    device: str = "auto"
    """Where a model runs: `auto`, `cpu`, `cuda` or `cuda:N`."""
    workers: int = 0
    """Processes that decode image files."""
    seed: int = 0
    """Of everything that is drawn: the default split, validation classes, episodes, the order of groups, an untrained model."""
    start: Literal["auto", "data", "random"] = "auto"
    """The default split: the `data`'s own (validation classes count as training), or `random` halves; with the driver `groups`
    random halves of every group. `auto`: the data's own where it has one, by classes."""
    test_fraction: float = 0.5
    """Share of the classes on the test side of a random default split."""
    driver: Literal["means", "groups"] = "means"
    """What is swapped: classes ranked by the `means` of the two sides, or the `groups` named by `test_groups`."""
    test_groups: tuple[str, ...] = ()
    """Groups of classes that move to the test side, separated by commas; for the driver `groups`."""
    pairs: int | None = None
    """Classes exchanged, or left out of each side, per iteration (default: 2 % of the smaller side)."""
    history: int = 5
    """Positions of the last so many exchanged pairs stay, and those of the last iteration in any case."""
    easier_history: int = 30
    """The same on the way to easier splits."""
    patience: int = 5
    """Iterations without success in a row after which a plateau is reached."""
    iterations: int = 200
    """Iterations of swapping at most, in each direction."""
    easier: bool | None = None
    """Go towards easier splits too (default: with the driver `means`)."""
    removal: float = 0.35
    """Share of each side that may be left out beyond what swapping reaches; 0: none."""
    number: int | None = None
    """Splits, evenly spaced in FID (default: 8)."""
    fid_step: float | None = None
    """FID from one split to the next, instead of `number`."""
    fids: tuple[float, ...] | None = None
    """FIDs of the splits, separated by commas, instead of `number`."""
    shots: tuple[int, ...] | None = None
    """Support samples per class, separated by commas (default: 2, 5 and 10, as far as the classes have so many)."""
    episodes: int = 10
    """Episodes for each number of shots."""
    short_classes: Literal["lend", "refuse"] = "lend"
    """Classes with fewer than k + 2 samples `lend` all but two to an episode, or are refused."""

    def __post_init__(self) -> None:
        for name in ("pairs", "number", "patience"):
            check_range(name, getattr(self, name), least=1)
        for name in ("history", "easier_history", "iterations", "episodes", "workers"):
            check_range(name, getattr(self, name), least=0)
        check_range("seed", self.seed, least=0, most=2**32 - 1)
        check_range("test_fraction", self.test_fraction, above=0, below=1)
        check_range("removal", self.removal, least=0, below=1)
        check_range("fid_step", self.fid_step, above=0)
        for fid in self.fids or ():
            check_range("fids", fid, least=0)
        spacings = [name for name in ("number", "fid_step", "fids") if getattr(self, name) is not None]
        if len(spacings) > 1:
            raise ConfigError(f"{spacings[0]} and {spacings[1]} are both given, but say the same in different ways")
        if self.driver == "groups" and not self.test_groups:
            raise ConfigError("the driver 'groups' needs test_groups, the groups that move to the test side")
        if self.driver == "groups" and self.easier:
            raise ConfigError("the driver 'groups' starts from halves of every group and knows nothing easier")
        if self.driver == "groups" and self.start == "data":
            raise ConfigError("the driver 'groups' starts from halves of every group, not from a split of the data")
        if self.driver == "means" and self.test_groups:
            raise ConfigError("test_groups are given, but the driver is 'means'. Say --driver groups, or leave them out")
