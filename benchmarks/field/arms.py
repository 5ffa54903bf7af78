"""What is compared. All arms have the same data, trunk, batches, steps, width and served length. They differ in their losses,
and in how these are joined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError
from dmlcore.training import RunConfig, recipes
from dmlcore.training.building import open_splits
from dmlcore.training.components import choose
from dmlcore.training.sources import Source, with_implied

SINGLES = (  # those of the reality check that compare pairs, triplets or proxies, and later ones
    "contrastive",
    "triplet",
    "margin",
    "ms",
    "snr_contrastive",
    "fast_ap",
    "nt_xent",
    "circle",
    "binomial_deviance",
    "norm_softmax",
    "cosface",
    "arcface",
    "soft_triple",
    "proxy_nca",
    "proxy_anchor",
)
ENSEMBLES = ("wel", "wedl", "wedl_c", "default")
OF_METHOD = {  # settings of a published ensemble that are its own, apart from the options of its losses
    "losses": ("plugins",),
    "ensemble": ("ensemble", "weights", "diversity_weight"),
    "rates": ("classifier_factor", "proxies_factor", "weights_factor", "proxies_decay", "classifier_decay", "weights_decay"),
}
SAME = ("steps", "epochs", "eval_every", "patience", "validation", "seed", "classes_per_batch", "samples_per_class", "data")
COMPRESSED_HEADS = 2  # the heads of `wedl_c` have the length of what is served over this: 64 and 128 numbers as published


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: in the tables.
        config: of its run, before anything is searched.
        is_single: has one loss.
    """

    name: str
    config: RunConfig
    is_single: bool


@dataclass(frozen=True)
class Shape:
    """Lengths that all arms share.

    Attributes:
        width: of the embedding that the losses see.
        compress: what it is compressed to; 0: it is not.
    """

    width: int
    compress: int

    @property
    def served(self) -> int:
        return self.compress or self.width


def source_of(words: Sequence[str]) -> Source:
    """Settings and options of `dmlcore train` as they are typed: `--data cub --cub.path birds --steps=500`.

    Raises:
        ConfigError: a word that is no flag, a flag without a value, or what the arms decide.
    """
    nested: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ConfigError(f"'{word}' is no flag of the comparison, nor one of `dmlcore train` such as --steps 500")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"--{name} has no value; settings of `dmlcore train` are given as --{name} VALUE here")
            value = queue.pop(0)
        table, dot, key = name.rpartition(".")
        key = key.replace("-", "_")
        if key in ("plugins", "ensemble", "seeds", "folds", "out", "resume") and not dot:
            raise ConfigError(f"--{name} is not for the comparison: its arms name the losses, --folds and --seeds the repeats")
        (nested.setdefault(table, {}) if dot else nested)[key] = value
    return Source.of(nested)


def resolve(names: Sequence[str], sources: list[Source]) -> list[Arm]:
    """The arms by name: sets of losses such as `ms` and `ms,triplet`, one of `ENSEMBLES`, or a file of settings, `mine.toml`.

    Args:
        names: different ones.
        sources: of what all arms share: recipe, file, flags.

    Raises:
        ConfigError: an arm that cannot be trained, that differs from the others in more than its losses, or is named twice;
            options of what no arm has.
    """
    names = [",".join(part.strip() for part in name.split(",")) for name in names]
    if len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"arms is '{';'.join(names)}', but must be different names with `;` between them")
    common = [*sources, Source.of({"report": "false"})]
    shape = _shape(common) if any(name in ENSEMBLES for name in names) else Shape(0, 0)
    own = [_own(name, shape) for name in names]
    tables = [set(choose(with_implied([*common, source]))[1]) for source in own]
    everywhere = set.union(*tables)
    arms = []
    for name, source, present in zip(names, own, tables, strict=True):
        # Options of a loss are for the arms that have it, but for ensembles, which have them as published. What no arm has is
        # refused.
        present -= set(source.tables) if name in ENSEMBLES else set()
        shared = [
            Source(s.label, s.values, {t: v for t, v in s.tables.items() if t in present or t not in everywhere})
            for s in common
        ]
        config = RunConfig.resolve([*shared, source]).with_absolute_paths()
        if config.settings.losses.is_automatic:
            raise ConfigError("auto chooses losses by a search of its own, so it is no arm. Name the losses")
        arms.append(Arm(_label(name), config, len(config.settings.losses.names) == 1))
    _check_same(arms)
    return arms


def _label(name: str) -> str:
    return Path(name).stem if name.endswith(".toml") else name


def _check_same(arms: list[Arm]) -> None:
    first = arms[0].config.settings.values()
    for arm in arms[1:]:
        values = arm.config.settings.values()
        for key in SAME:
            if values[key] != first[key]:
                raise ConfigError(
                    f"the arm '{arm.name}' has {key} = {values[key]}, '{arms[0].name}' {first[key]}. All arms have the same"
                    f" data and budget: give --{key.replace('_', '-')} for all, and take it out of the file"
                )
    labels = [arm.name for arm in arms]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"arms has '{next(label for label in labels if labels.count(label) > 1)}' twice")


def _shape(sources: list[Source]) -> Shape:
    """Width and compression of what the shared settings train."""
    config = RunConfig.resolve([dataclasses.replace(source, gives_way=True) for source in sources])  # options of arms' losses
    splits = open_splits(config)
    model = config.completed(splits.kind, 1, splits.sample_shape).settings.model
    if model.embedding_dim is None:
        raise ConfigError("head is none, so an ensemble's heads have no length. Leave --head out, or compare single losses")
    return Shape(model.embedding_dim, model.compress or 0)


def _own(name: str, shape: Shape) -> Source:
    """What an arm has beside what all share."""
    if name.endswith(".toml"):
        return Source.read(name)
    if name == "default":
        return Source.of({"plugins": RunConfig.create().settings.losses.names})
    if name not in ENSEMBLES:
        return Source.of({"plugins": name})
    values = recipes.find(name).values
    method: dict[str, Any] = {k: v for group, keys in OF_METHOD.items() for k, v in values[group].items() if k in keys}
    method |= {loss: values[loss] for loss in method["plugins"] if loss in values}
    count = len(method["plugins"])
    if name == "wel":
        method |= {"embedding_dim": shape.width, "compress": shape.compress}
    elif name == "wedl":
        method |= {"embedding_dim": _part_of(shape.width, count, name), "compress": shape.compress}
    else:
        compressor = values["model"]["compressor"]
        method |= {"embedding_dim": _part_of(shape.served, COMPRESSED_HEADS, name), "compress": shape.served}
        method |= {"compressor": compressor, compressor: {**values[compressor], "hidden": shape.served}}
    return Source.of(method)


def _part_of(length: int, count: int, name: str) -> int:
    if length < count:
        raise ConfigError(f"the arm '{name}' shares {length} numbers among {count} heads. Say a larger --embedding-dim")
    return length // count
