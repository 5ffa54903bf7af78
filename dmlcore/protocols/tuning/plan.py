"""What a study is: its arms, what is searched in each, and how. It is kept as `study.json`, by which the study goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlcore.config import check_range
from dmlcore.data import RecordedSplit
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.files import in_file_name, plain, write_atomically
from dmlcore.protocols.tuning import space
from dmlcore.protocols.tuning.folds import folds_of
from dmlcore.protocols.tuning.study import PRUNERS
from dmlcore.seals import seal, unseal
from dmlcore.training.building import open_splits
from dmlcore.training.configuration import RunConfig
from dmlcore.training.step_counts import count_steps

FILE, FORMAT, SPLIT = "study.json", "dmlcore-study-1", "split.json"
MOST = 100_000  # trials of an arm


@dataclass(frozen=True)
class Arm:
    """What is compared with other arms at equal trials and steps.

    Attributes:
        name: its losses.
        config: of its winner, as `RunConfig.create` takes it, before what was found.
        dimensions: what is searched.
        first: values of the first trial, the settings as they are; empty where a range leaves them out.
    """

    name: str
    config: dict[str, Any]
    dimensions: tuple[space.Dimension, ...]
    first: dict[str, Any]

    @property
    def file_name(self) -> str:
        """The name as part of a path."""
        return in_file_name(self.name.replace(",", "+"))[:80]

    def with_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """The configuration with what a trial tries."""
        return space.with_values(RunConfig.create(**self.config), values)


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        arms: with different names.
        trials: of each arm.
        folds: 1: the run's own validation classes.
        pruner: of `PRUNERS`.
        seed: of the trials and the folds.
        steps: of a training.
        evaluations: of a training.
        split: SHA-256 of the split that the folds are made of.
    """

    arms: tuple[Arm, ...]
    trials: int
    folds: int
    pruner: str
    seed: int
    steps: int
    evaluations: int
    split: str

    def fold_files(self) -> list[str]:
        """Where the folds lie in the study's folder."""
        return [SPLIT] if self.folds == 1 else [f"folds/fold-{number + 1}.json" for number in range(self.folds)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        arms = [{**dataclasses.asdict(arm), "dimensions": [d.as_dict() for d in arm.dimensions]} for arm in self.arms]
        return plain({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "arms": arms})

    @classmethod
    def of(cls, values: dict[str, Any]) -> Plan:
        """From what `as_dict` gave."""
        arms = [
            Arm(arm["name"], arm["config"], tuple(map(space.Dimension.of, arm["dimensions"])), arm["first"])
            for arm in values["arms"]
        ]
        return cls(**{**values, "arms": tuple(arms)})

    def write(self, folder: Path) -> None:
        """Write `study.json`."""
        text = json.dumps(seal({"format": FORMAT, **self.as_dict()}), indent=1) + "\n"
        write_atomically(folder / FILE, text.encode())

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read `study.json`.

        Raises:
            ConfigError: there is none.
            TrainingError: it is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(f"there is no study in {folder} (no {FILE}); `dmlcore tune` makes one")
        try:
            content, is_sealed = unseal(json.loads(path.read_bytes()))
            if not is_sealed or content.pop("format") != FORMAT:
                raise ValueError(f"it is not of the format {FORMAT}")
            return cls.of(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrainingError(f"{path} is damaged ({' '.join(str(error).split())[:120]})") from error

    def check_same(self, other: Plan, folder: Path) -> None:
        """Refuse to go on with another study, or with other data. More trials are no difference.

        Raises:
            ConfigError: there is a difference, which is named.
        """
        own, theirs = self.as_dict(), other.as_dict()
        for key in own:
            if key == "trials" or own[key] == theirs[key]:
                continue
            what = f"another {key}" if key in ("arms", "split") else f"{key} = {theirs[key]} instead of {own[key]}"
            if key == "arms":
                names = [[arm["name"] for arm in plan["arms"]] for plan in (own, theirs)]
                what = "other settings or ranges" if names[0] == names[1] else f"the arms {'; '.join(names[1])}"
            what = "folds of other data" if key == "split" else what
            raise ConfigError(f"{folder} holds a study with {what}. Choose another --out.")


def make_plan(
    arms: Sequence[tuple[str, RunConfig]], specs: dict[str, Any], *, trials: int, folds: int, pruner: str
) -> tuple[Plan, bytes]:
    """The plan of a study, and the split of its data as a file's content.

    Args:
        arms: names and configurations, which differ in their losses only.
        specs: what is searched, of `space.written`.
        trials: of each arm.
        folds: of the training and validation classes; 1: the run's own split.
        pruner: of `PRUNERS`.

    Raises:
        ConfigError: a number out of range, or something that cannot be searched.
        DataError: the data cannot be used.
    """
    check_range("trials", trials, least=1, most=MOST)
    check_range("folds", folds, least=1, most=100)
    if pruner not in PRUNERS:
        raise ConfigError(f"pruner is '{pruner}', but must be one of {', '.join(PRUNERS)}")
    names = [name for name, _ in arms]
    if len(set(names)) < len(names):
        raise ConfigError(f"arms has '{next(name for name in names if names.count(name) > 1)}' twice")
    space.check_names(specs, {table: c for _, config in arms for table, c in config.components.items()})
    configs = [RunConfig.create(**config.with_absolute_paths().as_dict()) for _, config in arms]
    if any(config.settings.run.validation == "none" for config in configs):
        raise ConfigError("tune chooses by validation, but validation is none. Say --validation classes, then train without it")
    splits = open_splits(configs[0])
    assert splits.record is not None
    if splits.train.sets is not None and folds > 1:
        raise ConfigError("the samples have several labels, so no folds share no class. Say --folds 1")
    record = splits.record()
    settings = configs[0].settings
    batch_size = min(settings.data.classes_per_batch, splits.train.num_labels) * settings.data.samples_per_class
    steps = count_steps(settings, len(splits.train), batch_size)
    planned, evaluations = [], 0
    for name, config in zip(names, configs, strict=True):
        config = RunConfig.create(**{**config.as_dict(), "steps": steps, "epochs": "none"})
        completed = config.completed(splits.kind, steps, splits.sample_shape)
        assert completed.settings.run.eval_every is not None
        evaluations = max(evaluations, -(-steps // completed.settings.run.eval_every))
        dimensions = tuple(space.dimensions(specs, config, completed))
        if not dimensions:
            raise ConfigError(f"search names nothing of the arm '{name}', so its trials would all be the same. Add a setting")
        values = {d.name: space.value_of(d.name, completed) for d in dimensions}
        first = values if all(d.step is None and d.holds(values[d.name]) for d in dimensions) else {}
        planned.append(Arm(name, plain(config.as_dict()), dimensions, first))
    folds_of(RecordedSplit.of_json(record), folds, settings.run.seed)  # refuses too many folds now
    digest = hashlib.sha256(record).hexdigest()
    return Plan(tuple(planned), trials, folds, pruner, settings.run.seed, steps, evaluations, digest), record
