"""Data, a model and losses that a Python program gives to a run as objects, where a configuration has names. No torch here.

A configuration names them `python_data`, `python_model` and `python_loss`. A run that is resumed or evaluated needs them again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmlcore import plugins
from dmlcore.config import unique_names
from dmlcore.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from dmlcore.losses import Loss


@dataclass(frozen=True, eq=False)
class Objects:
    """What was given as objects.

    Attributes:
        data: anything that `open_data` takes. None: the data have a name.
        model: maps samples to features. None: the model has a name.
        losses: in the order of the names `python_loss` among the run's losses.
    """

    data: Any = None
    model: nn.Module | None = None
    losses: tuple[Loss | Callable[..., Any], ...] = ()

    def __bool__(self) -> bool:
        return self.data is not None or self.model is not None or bool(self.losses)


def parted(data: Any, model: Any, losses: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], Objects]:
    """Settings and options by keyword, and the objects among what `train` was given.

    Args:
        data, model, losses: names, objects, or dicts that hold settings of the group of that name. Losses may be a list of
            names and objects. None: nothing is said.
        values: the other settings and options.

    Raises:
        ConfigError: an object that is none of these, or losses that are given twice.
    """
    values = dict(values)
    if losses is not None and not isinstance(losses, dict) and "plugins" in values:
        raise ConfigError("losses and plugins both name the losses; leave one out")
    if data is not None:
        is_setting = _is_name(data) or (isinstance(data, dict) and "x" not in data and not _holds_data(data))
        values["data"] = "python_data" if not is_setting else str(data) if _is_name(data) else data
        data = None if is_setting else data
    if model is not None:
        is_setting = _is_name(model) or isinstance(model, dict)
        if not is_setting and not hasattr(model, "parameters"):
            raise ConfigError(f"model is {type(model).__name__}, but must be a name or a torch.nn.Module")
        values["model"] = model if is_setting else "python_model"
        model = None if is_setting else model
    members: list[Any] = []
    if isinstance(losses, dict) or _is_name(losses):
        values["losses" if isinstance(losses, dict) else "plugins"] = losses
    elif losses is not None:
        members = list(losses) if isinstance(losses, list | tuple) else [losses]
        names = [member if isinstance(member, str) else _name_of(member) for member in members]
        for table, member in zip(unique_names(names), members, strict=True):
            if not isinstance(member, str) and _is_described(member):
                values[table] = {**vars(member.options), **values.get(table, {})}
        values["plugins"] = tuple(names)
    given = tuple(member for member in members if not isinstance(member, str) and not _is_described(member))
    return values, Objects(data, model, given)


def check_objects(
    objects: Objects, names: Mapping[str, tuple[str, ...]], where: str, kinds: Collection[str] = ("data", "model", "loss")
) -> None:
    """See that a run gets the objects that it was made with, and no others.

    Args:
        objects: what is given.
        names: of the run's components, by kind.
        where: the run's folder, for messages.
        kinds: that are needed now.

    Raises:
        ConfigError: one is missing, or there is one too many. The message says how to give them.
    """
    needed = needed_objects(names)
    counts = {"data": objects.data is not None, "model": objects.model is not None, "loss": len(objects.losses)}
    for kind, count in counts.items():
        if int(count) > needed.get(kind, 0):
            raise ConfigError(f"the run in {where} names its {kind} itself ({', '.join(names[kind])}); give no object for it")
    if any(int(counts[kind]) < count for kind, count in needed.items() if kind in kinds):
        raise ConfigError(f"the run in {where} was given objects in Python ({', '.join(needed)}). {how_to_give(needed, where)}")


def needed_objects(names: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """How many objects of each kind a run needs; without those of which it needs none.

    Args:
        names: of the run's components, by kind.
    """
    counts = {kind: sum(plugins.is_stand_in(kind, name) for name in names.get(kind, ())) for kind in ("data", "model", "loss")}
    return {kind: count for kind, count in counts.items() if count}


def how_to_give(needed: Mapping[str, int], where: str) -> str:
    """The calls that go on with a run and evaluate it."""
    words = {"data": "data=...", "model": "model=...", "loss": "losses=[...]"}
    given = ", ".join(words[kind] for kind in needed)
    return (
        f"Continue it from Python by dmlcore.train(resume='{where}', {given}), and evaluate it by"
        f" dmlcore.serving.TrainedRun('{where}', {given}).evaluate()"
    )


def built_loss(loss: Loss | Callable[..., Any]) -> Loss:
    """A copy of a loss object, of which any module or function may be one."""
    from dmlcore.losses import Loss
    from dmlcore.losses.python_loss import PythonLoss

    copied = copy.deepcopy(loss)
    return copied if isinstance(copied, Loss) else PythonLoss(call=copied)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "__fspath__")


def _holds_data(data: dict[str, Any]) -> bool:
    """Whether a dict holds data sets by part, and no settings."""
    return bool(data) and all(hasattr(part, "with_format") for part in data.values())


def _name_of(loss: Any) -> str:
    """The name by which a run records a loss object.

    Raises:
        ConfigError: it is no loss, or a regulariser that nobody can find again.
    """
    from dmlcore.losses import NormLoss

    if _is_described(loss):
        return loss.name
    if isinstance(loss, NormLoss):
        raise ConfigError(f"the regulariser {type(loss).__name__} must go by a name: register it, or name it as FILE.py:CLASS")
    if not callable(loss) or isinstance(loss, type):
        raise ConfigError(f"a loss is {type(loss).__name__}, but must be a name, a dmlcore loss, or take embeddings and labels")
    return "python_loss"


def _is_described(loss: Any) -> bool:
    """Whether a name and options say all about a loss: it is registered, as its miner, and has nothing to learn."""
    from dmlcore.losses import Loss

    if not isinstance(loss, Loss) or any(True for _ in loss.parameters()):
        return False
    parts = {"loss": loss, "miner": getattr(loss, "miner", None)}
    return all(
        part is None or ((entry := plugins.registry(kind).get(part.name)) is not None and entry.component is type(part))
        for kind, part in parts.items()
    )
