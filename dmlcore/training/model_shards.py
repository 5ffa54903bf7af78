"""A model divided among the processes of a run by PyTorch's `fully_shard` (FSDP2): each has its rows of every parameter, with
their gradient and their part of the optimiser's state. Whole parameters are there only while a stage computes.

The optimiser steps these rows as plain tensors, which share the memory of PyTorch's distributed ones. So any rule of an
optimizer runs, though one that looks at a whole tensor, such as its norm, sees these rows only. A checkpoint keeps the rows as
it does those of divided proxies.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmlcore.allocation import give_back_large_arrays
from dmlcore.errors import ConfigError, first_line, of_all
from dmlcore.losses.parting import Part
from dmlcore.models.stages import stages_of
from dmlcore.ranks import Group, Layout, Shard
from dmlcore.ranks.dividing import DividedRows
from dmlcore.ranks.faults import naming_dead

if TYPE_CHECKING:
    from dmlcore.models import EmbeddingModel


class Models:
    """The model of a run and the copies of it, which processes divide or not.

    Args:
        models: the first one is trained.
        group: of the ranks that divide each of them, in place. None: every process has all.
        sample: [1, ...], on the device of the models, which is tried where they are divided.

    Attributes:
        whole_parameters: those of the trained one that every process has whole.
    """

    def __init__(self, models: Sequence[EmbeddingModel], group: Group | None = None, sample: Tensor | None = None) -> None:
        self._shards: dict[nn.Module, ModelShards] = {}
        if group is not None and sample is not None:
            self._shards = {model: ModelShards(model, group, sample) for model in models}
        self._of_trained = self._shards.get(models[0])
        self.whole_parameters = [p for p in models[0].parameters() if not _is_divided(p)]

    @property
    def are_divided(self) -> bool:
        """Whether this process has a part of each."""
        return bool(self._shards)

    @property
    def rows(self) -> dict[nn.Parameter, nn.Parameter]:
        """What this process has of each parameter of the trained model that is divided."""
        return {} if self._of_trained is None else self._of_trained.rows

    def parts(self, model: EmbeddingModel) -> dict[str, Part]:
        """What this process has of each parameter of a model that is divided, by name."""
        return self._shards[model].parts if model in self._shards else {}

    def take_gradients(self) -> None:
        """Give the rows of the trained model their gradients of the last backward pass."""
        if self._of_trained is not None:
            self._of_trained.take_gradients()

    def whole_state(self, model: EmbeddingModel) -> dict[str, Tensor]:
        """The weights and buffers of a model. Where it is divided all processes call this, and the first one gets them."""
        return self._shards[model].whole_state() if model in self._shards else model.state_dict()

    def load(self, model: EmbeddingModel, state: dict[str, Tensor]) -> None:
        """Give a model weights: whole ones, or where it is divided this process's rows of them."""
        if model in self._shards:
            self._shards[model].load(state)
        else:
            model.load_state_dict(state)


class ModelShards:
    """A model that is divided in place. Its parameters keep their names.

    Args:
        model: on its device, the same on all ranks. It cannot be copied any more.
        group: of the ranks, which all call every method.
        sample: [1, ...], which is tried.

    Attributes:
        parts: what this rank has of each parameter that is divided, by name. Their values are the model's. The compressor,
            which trains alone, and single numbers are whole on every rank.

    Raises:
        ConfigError: the model cannot be divided.
    """

    def __init__(self, model: EmbeddingModel, group: Group, sample: Tensor) -> None:
        self.model, self.group = model, group
        compressor = [] if model.compressor is None else list(model.compressor.parameters())
        whole = {*compressor, *(p for p in model.parameters() if p.ndim == 0)}
        if sample.device.type == "cpu":
            give_back_large_arrays()  # stages that are gathered and forgotten would pile up between what stays
        try:
            with naming_dead(group.size, lambda: "No step was taken"):
                self._divide(whole, sample.device.type)
                self._try(sample)
        except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = first_line(error)[:160]
            refusal = ConfigError(f"the model '{model.trunk.name}' cannot be divided ({reason}). Leave shard_model out")
            is_own = isinstance(error, torch.OutOfMemoryError)  # others may have more memory, and nobody else would tell
            raise refusal if is_own else of_all(refusal) from error
        self._divided: dict[str, Any] = {name: p for name, p in model.named_parameters() if _is_divided(p)}
        self.parts = {
            name: Part(nn.Parameter(p.to_local().detach()), Shard.of(len(p), group), 1) for name, p in self._divided.items()
        }

    @property
    def rows(self) -> dict[nn.Parameter, nn.Parameter]:
        """What this rank has of each parameter of the model that is divided."""
        return {self._divided[name]: part.parameter for name, part in self.parts.items()}

    def take_gradients(self) -> None:
        """Give the rows their gradients of the last backward pass, which the model forgets."""
        for name, part in self.parts.items():
            gradient = self._divided[name].grad
            part.parameter.grad = None if gradient is None else gradient.to_local()
            self._divided[name].grad = None

    def whole_state(self) -> dict[str, Tensor]:
        """All weights and buffers by name, on the first rank's CPU; nothing on the others. They are gathered one by one."""
        state = {}
        for name, tensor in self.model.state_dict().items():
            gathered = self._gathered(tensor) if _is_divided(tensor) else tensor
            if gathered is not None and self.group.rank == 0:
                state[name] = gathered.cpu()
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load weights and buffers, whole ones or this rank's rows of them.

        Raises:
            KeyError: one is missing.
            ValueError: one has another shape.
        """
        for name, tensor in self.model.state_dict().items():
            value, rows = state[name], own_rows(tensor)
            if _is_divided(tensor) and value.shape == tensor.shape:
                value = value[Shard.of(len(tensor), self.group).rows(1)]
            if value.shape != rows.shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, not {tuple(tensor.shape)}")
            rows.copy_(value)

    def _divide(self, whole: set[nn.Parameter], device: str) -> None:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        # outputs that are views are not changed in place here
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
        mesh = DeviceMesh.from_group(self.group.process_group, device)  # type: ignore[arg-type]
        for module in (*_units(self.model), self.model):
            # the last one too is divided again after it has computed: what is left whole would miss the next step
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):  # the whole gradient is the sum of those of the ranks' samples
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    @torch.no_grad()
    def _try(self, sample: Tensor) -> None:
        """Compute something, so that a model that cannot is refused. PyTorch makes the tensors here that it gathers into, and
        those made in `inference_mode` could not be trained with."""
        was_training = self.model.training
        self.model.eval()(sample)
        self.model.train(was_training)

    def _gathered(self, tensor: Any) -> Tensor | None:
        layout = Layout(self.group, self.group.rank, Shard.sizes(len(tensor), self.group.size))
        return DividedRows(own_rows(tensor).contiguous(), layout).on_first()


def own_rows(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: its rows where it is divided, else all. It shares the memory."""
    local: Any = tensor
    return local.to_local().detach() if _is_divided(tensor) else tensor


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, with this process's rows of what is divided."""
    return {name: own_rows(tensor) for name, tensor in module.state_dict().items()}


def _is_divided(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def _units(model: EmbeddingModel) -> Iterator[nn.Module]:
    """The parts of a trunk whose parameters are gathered together: its stages. What is no matrix, and what several parts
    share, is gathered with the head."""
    seen = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for stage in stages_of(model.trunk):
        for module in stage.modules:
            for unit in _called(module):
                weights = list(unit.parameters())
                is_alone = all(seen[id(p)] == 1 for p in weights)
                if unit is not model.trunk and is_alone and any(p.ndim > 1 for p in weights):
                    yield unit


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """A module, or the modules of one that only holds them."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from _called(child)
    else:
        yield module
