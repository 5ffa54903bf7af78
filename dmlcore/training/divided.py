"""The parameters of losses and of the model of which each process has a part, in checkpoints: they lie in a folder beside the
file that names it. Of the weights that are served that file has all, so that it is loaded as ever.

The folder is written by PyTorch's distributed checkpoint, a file of each process, as safetensors: opening these runs no code,
and any number of processes reads them. `last.pt` is put in its place after the folder is complete, so what it names is whole.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed

from dmlcore.errors import TrainingError, of_all
from dmlcore.files import make_folder, sync_folder
from dmlcore.losses import CrossBatchMemory
from dmlcore.losses.parting import Part, divide_classes
from dmlcore.ranks import Group, Shard, sharding
from dmlcore.training import checkpoints
from dmlcore.training.building import build_ensemble, build_memory
from dmlcore.training.configuration import RunConfig

if TYPE_CHECKING:
    from dmlcore.ensemble import LossEnsemble
    from dmlcore.models import EmbeddingModel
    from dmlcore.training.processes import Processes

OPTIMISER, MEMORY, QUEUE = "optimiser", "memory", "queue"


def build_divided(config: RunConfig, classes: int, features: int, processes: Processes | None) -> LossEnsemble:
    """The losses of a run. Where the settings ask for it each process has its own classes of those with proxies.

    Args:
        config: completed.
        classes: of the training data.
        features: columns of the trunk's output.
        processes: of the run; None: there is one, which has everything.

    Raises:
        ConfigError: a loss whose classes cannot be divided.
    """
    if processes is None or not config.settings.losses.shard_proxies:
        return build_ensemble(config, classes, features)
    with sharding(processes.group):
        ensemble = build_ensemble(config, classes, features)
    divide_classes(ensemble, processes.group)
    return ensemble


def build_divided_memory(
    config: RunConfig, ensemble: LossEnsemble, model: EmbeddingModel, batch_size: int, processes: Processes | None
) -> CrossBatchMemory | None:
    """The memory of a run, as `build_memory`. Where the settings ask for it each process has its own part of the entries.

    Raises:
        ConfigError: it cannot hold a batch, or a loss needs all entries.
    """
    memory = build_memory(config, ensemble, model, batch_size)
    if memory is not None and config.settings.losses.shard_memory:
        memory.divide(Group("local") if processes is None else processes.group)
    return memory


class Table(NamedTuple):
    """A tensor of which each process has the rows of its classes, as a checkpoint describes it. Or those of its places in the
    memory, which count as classes of one row.

    Attributes:
        place: `ensemble`, or another module of the state, and the parameter's name; or `optimiser`, the number of the
            parameter, and the key of its state; or `memory` and `queue`.
        classes: of all processes.
        each: rows of a class.
        tail: shape of a row.
        dtype: by its name.
    """

    place: tuple[str, ...]
    classes: int
    each: int
    tail: tuple[int, ...]
    dtype: str

    def empty(self, shard: Shard | None) -> Tensor:
        """Zeros for the classes of a process, a row for each class, or for those of all."""
        count = self.classes if shard is None else shard.stop - shard.first
        return torch.zeros(count, self.each * math.prod(self.tail), dtype=getattr(torch, self.dtype))


class DividedParameters:
    """The parameters of a run of which this process has a part, with their optimiser's state, and its part of the memory.

    Args:
        modules: the parts by name, of each module that the state of the run has by such parts; `ensemble` is one.
        trained: the parts of the model that are trained, which are in no state.
        optimiser: of the run.
        memory: of the run, or None.
        processes: of the run; None: there is one, which has everything.

    Attributes:
        parts: those that an optimiser may step.
    """

    def __init__(
        self,
        modules: Mapping[str, Mapping[str, Part]],
        trained: Iterable[Part],
        optimiser: torch.optim.Optimizer,
        memory: CrossBatchMemory | None,
        processes: Processes | None,
    ) -> None:
        self.modules = {name: parts for name, parts in modules.items() if parts}
        self.parts = [*modules["ensemble"].values(), *trained]
        self.of_memory = None if memory is None else memory.shard
        self.processes = processes
        self._named: list[str] = []
        numbers = {id(p): n for n, p in enumerate(p for group in optimiser.param_groups for p in group["params"])}
        self._stepped = {numbers[id(part.parameter)]: part for part in self.parts if id(part.parameter) in numbers}

    def without(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state without what is in the folder."""
        if self.of_memory is not None and MEMORY in state:
            state = {**state, MEMORY: {name: tensor for name, tensor in state[MEMORY].items() if name != QUEUE}}
        for module, parts in self.modules.items():
            if module in state:
                state = {**state, module: {name: t for name, t in state[module].items() if name not in parts}}
        if OPTIMISER in state and self._stepped:
            own = {**state[OPTIMISER]["state"]}
            for number, part in self._stepped.items():
                own[number] = {key: v for key, v in own.get(number, {}).items() if not _is_of(v, part)}
            state = {**state, OPTIMISER: {**state[OPTIMISER], "state": own}}
        return state

    def save(self, folder: Path, state: dict[str, Any]) -> dict[str, Any] | None:
        """Write the parts of all processes, which all call this; returns what `read` needs. None: nothing is divided.

        Args:
            folder: of checkpoints.
            state: of the run, complete.

        Raises:
            TrainingError: in all processes, if one cannot write.
        """
        if not self.parts and self.of_memory is None:
            return None
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        assert self.processes is not None
        tables = list(self._tables(state))
        if not tables:  # an optimiser without a state
            return None
        path = folder / self.processes.same(f"{checkpoints.SHARDS}{state['step']}-{secrets.token_hex(4)}")
        tensors = {"/".join(table.place): self._spread(table, shard, tensor) for table, shard, tensor in tables}
        try:
            make_folder(path)
            writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
            save(tensors, storage_writer=writer, process_group=self.processes.group.process_group)
        except (CheckpointException, OSError) as error:  # the first derives from BaseException, and all processes get it
            raise of_all(TrainingError(f"the checkpoint {path} cannot be written: {_told(error)}")) from None
        names = sorted(file.name for file in path.iterdir())
        lists: list[Any] = [None] * self.processes.size
        own = {name: _checksum(path / name) for name in names[self.processes.rank :: self.processes.size]}
        distributed.all_gather_object(lists, own, group=self.processes.group.process_group)
        sync_folder(path)
        files = {name: checksum for sums in lists for name, checksum in sums.items()}
        return {"folder": path.name, "files": files, "tables": [[list(t.place), *map(_plain, t[1:])] for t, _, _ in tables]}

    def forget(self, folder: Path, shards: dict[str, Any] | None) -> None:
        """Remove what no checkpoint names any more, after one was put in its place.

        Args:
            folder: of checkpoints.
            shards: what `save` gave for that one. The one before it stays too.
        """
        self._named = [*self._named[-1:], *([] if shards is None else [shards["folder"]])]
        checkpoints.forget_shards(folder, self._named)

    def completed(self, folder: Path, state: dict[str, Any]) -> dict[str, Any]:
        """A state with what this process has of the divided parameters, whatever number of processes saved it.

        Args:
            folder: of checkpoints.
            state: of a checkpoint.

        Raises:
            TrainingError: a file is damaged.
        """
        described = state.get("shards")
        self._named = [] if described is None else [described["folder"]]
        if described is None and not self.parts:  # a memory takes its part of a whole queue by itself
            return state
        tables = [] if described is None else [Table(tuple(p), c, e, tuple(t), d) for p, c, e, t, d in described["tables"]]
        state = self._cut(state, {table.place for table in tables})
        if described is None:
            return state
        self._check(folder / described["folder"], described["files"])
        own = {table: table.empty(self._shard(table)) for table in tables}
        self._load(folder / described["folder"], own)
        for table, tensor in own.items():
            tensor = tensor.reshape(len(tensor) * table.each, *table.tail)
            if table.place[0] == MEMORY:
                state[MEMORY] = {**state[MEMORY], QUEUE: tensor}
            elif table.place[0] == OPTIMISER:
                state[OPTIMISER]["state"].setdefault(int(table.place[1]), {})[table.place[2]] = tensor
            else:
                state[table.place[0]][table.place[1]] = tensor
        return state

    def _cut(self, state: dict[str, Any], elsewhere: Collection[tuple[str, ...]]) -> dict[str, Any]:
        """A copy of a state with this process's part of what it holds whole, because it was not divided when it was saved.

        Args:
            state: of a checkpoint.
            elsewhere: the places of what is in the folder.
        """
        names = {"ensemble", *self.modules, *(place[0] for place in elsewhere)} - {OPTIMISER, MEMORY}
        state = {**state, **{name: {**state[name]} for name in names}}
        states = {number: {**values} for number, values in state[OPTIMISER]["state"].items()}
        state[OPTIMISER] = {**state[OPTIMISER], "state": states}
        for module, parts in self.modules.items():
            for name, part in parts.items():
                if (module, name) not in elsewhere:
                    state[module][name] = state[module][name][part.shard.rows(part.each)].clone()
        for number, part in self._stepped.items():
            rows, whole = part.shard.rows(part.each), (part.shard.classes * part.each, *part.parameter.shape[1:])
            for key, value in states.get(number, {}).items():
                if isinstance(value, Tensor) and value.shape == whole:
                    states[number][key] = value[rows].clone()
        return state

    def _tables(self, state: dict[str, Any]) -> Iterator[tuple[Table, Shard, Tensor]]:
        if self.of_memory is not None:
            queue = state[MEMORY][QUEUE]
            yield _table((MEMORY, QUEUE), self.of_memory.classes, 1, queue), self.of_memory, queue
        for module, parts in self.modules.items():
            for name, part in parts.items():
                tensor = state[module][name]
                yield _table((module, name), part.shard.classes, part.each, tensor), part.shard, tensor
        for number, part in self._stepped.items():
            for key, value in state[OPTIMISER]["state"].get(number, {}).items():
                if _is_of(value, part):
                    place = (OPTIMISER, str(number), key)
                    yield _table(place, part.shard.classes, part.each, value), part.shard, value

    def _shard(self, table: Table) -> Shard | None:
        module, name, *_ = table.place
        if module == MEMORY:
            is_divided = self.of_memory is not None
        else:
            is_divided = int(name) in self._stepped if module == OPTIMISER else name in self.modules.get(module, {})
        return Shard.of(table.classes, self.processes.group) if is_divided and self.processes is not None else None

    def _spread(self, table: Table, shard: Shard, tensor: Tensor) -> Tensor:
        """A tensor as PyTorch's distributed checkpoint takes it: which rows of the whole these are."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor import Shard as Rows

        assert self.processes is not None
        width = table.each * math.prod(table.tail)
        mesh = DeviceMesh.from_group(self.processes.group.process_group, self.processes.device.type)  # type: ignore[arg-type]
        local = tensor.detach().reshape(shard.stop - shard.first, width)
        shape = torch.Size((table.classes, width))
        return DTensor.from_local(local, mesh, [Rows(0)], shape=shape, stride=(width, 1), run_check=False)

    def _load(self, path: Path, own: dict[Table, Tensor]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        tensors, group = {}, None
        for table, tensor in own.items():
            shard = self._shard(table)
            if shard is not None and self.processes is not None:
                group, tensor = self.processes.group.process_group, tensor.to(self.processes.device)
                own[table] = tensor
            tensors["/".join(table.place)] = tensor if shard is None else self._spread(table, shard, tensor)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that there is one process
                reader = HuggingFaceStorageReader(str(path))
                load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
        except (CheckpointException, Exception) as error:
            raise TrainingError(f"the checkpoint {path} does not fit the run: {_told(error)}") from None

    def _check(self, path: Path, files: dict[str, str]) -> None:
        """Raise where a file is another than was written. Processes divide the reading."""
        first, step = (0, 1) if self.processes is None else (self.processes.rank, self.processes.size)
        wrong = [name for name in sorted(files)[first::step] if not _is_sound(path / name, files[name])]
        if self.processes is not None:
            lists: list[Any] = [None] * step
            distributed.all_gather_object(lists, wrong, group=self.processes.group.process_group)
            wrong = [name for names in lists for name in names]
        if wrong:
            raise TrainingError(
                f"{path / wrong[0]} is damaged or missing. Another one may be intact: use --checkpoint previous"
            )


def _table(place: tuple[str, ...], classes: int, each: int, tensor: Tensor) -> Table:
    return Table(place, classes, each, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))


def _is_of(value: Any, part: Part) -> bool:
    """Whether a number of an optimiser is one for each number of a parameter."""
    return isinstance(value, Tensor) and value.shape == part.parameter.shape


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_sound(path: Path, checksum: str) -> bool:
    try:
        return _checksum(path) == checksum
    except OSError:
        return False


def _told(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__
