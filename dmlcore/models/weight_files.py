"""Files of a network's weights: reading them without running code, and assigning them to a network. The prefixes that names
may have are in `weight_names`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmlcore.errors import ConfigError, DataError, first_line
from dmlcore.files import code_in, write_atomically
from dmlcore.models.weight_names import without_prefixes

_WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts store weights
_CLASSIFIER = 2  # entries of a linear layer: the classifier, which a trunk has none of
_LEAST_CACHED = 1024  # bytes: less is what an interrupted download leaves


_FOLLOWING: ContextVar[bool] = ContextVar("following", default=False)


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """While a model is built, or written, whose whole state is kept apart: its trunk then reads, or writes, no weights."""
    token = _FOLLOWING.set(True)
    try:
        yield
    finally:
        _FOLLOWING.reset(token)


def do_weights_follow() -> bool:
    """Whether this is inside `weights_follow`."""
    return _FOLLOWING.get()


def read_weights(file: Path) -> dict[str, Any]:
    """The weights in a file, by name, on the CPU. Nothing in the file is run.

    Args:
        file: `.safetensors`, or anything that `torch.save` wrote.

    Raises:
        DataError: no such file, or one that holds no state dict of tensors, or holds code.
        ConfigError: the package for `.safetensors` is missing.
    """
    if not file.is_file():
        raise DataError(f"there is no weights file '{file}'")
    try:
        if file.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise ConfigError("reading .safetensors needs the package safetensors: `pip install safetensors`") from None
    except Exception as error:  # the two libraries raise many types, several of them bare RuntimeError or UnpicklingError
        holds = f"holds code ({code}), which is never run" if (code := code_in(error, file)) else "cannot be read"
        raise DataError(f"the weights file '{file}' {holds}. A state dict of tensors is needed") from error
    if not isinstance(weights, Mapping):
        raise DataError(f"the weights file '{file}' holds a {type(weights).__name__}, but a state dict of tensors is needed")
    for wrapper in _WRAPPERS:
        if isinstance(weights.get(wrapper), Mapping):
            weights = weights[wrapper]
    return dict(weights)


def write_weights(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a network's state, for `read_weights`.

    Raises:
        TrainingError: the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in weights.items()}, buffer)
    write_atomically(file, buffer.getbuffer())


def load_weights(
    network: nn.Module,
    file: Path,
    name: str,
    *,
    further_prefix: str = "",
    ignored: tuple[str, ...] = (),
    adapt: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Assign the weights in a file to a network. Each of its entries must be there, in its shape.

    Args:
        network: without its classifier.
        file: as `read_weights` takes it. Prefixes that wrappers put before the names do not matter.
        name: of the network, for messages.
        further_prefix: one more prefix that does not matter.
        ignored: beginnings of names that may stand in the file and are not needed, such as those of classifiers.
        adapt: makes weights of this version of the network from those of another version or image size. Called only where the
            weights do not fit as they are.

    Raises:
        DataError: the file cannot be read.
        ConfigError: it holds the weights of another network.
    """
    expected = network.state_dict()
    try:
        weights = without_prefixes(read_weights(file), expected, further_prefix)
    except DataError:
        raise
    except ConfigError as error:
        raise ConfigError(f"the weights in '{file}' cannot be assigned: {error}") from None
    if adapt is not None and _misfit(weights, expected):
        try:
            weights = adapt(dict(weights))
        except Exception as error:  # the library's own conversion fails in any way for weights of another network
            raise ConfigError(f"the weights in '{file}' are not of '{name}': {first_line(error)}") from error
    misfit = _misfit(weights, expected)
    if misfit:
        raise ConfigError(f"the weights in '{file}' are not of '{name}': the file {misfit}")
    left = [entry for entry in weights if entry not in expected and not entry.startswith(ignored)]
    if len(left) > _CLASSIFIER:
        raise ConfigError(
            f"the weights in '{file}' are not of '{name}': the file has {len(left)} entries too many, such as '{left[0]}'"
        )
    network.load_state_dict({entry: value for entry, value in weights.items() if entry in expected}, strict=False)


def in_torch_cache(url: str) -> Path | None:
    """Where the download of a URL lies in PyTorch's cache on this computer. None: it is not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    return file if file.is_file() and file.stat().st_size >= _LEAST_CACHED else None


def _misfit(weights: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str:
    """What is wrong with a file's weights, in words; empty: every entry has its value."""
    missing = sorted(name for name in expected if name not in weights and not name.endswith("num_batches_tracked"))
    if missing:
        return f"lacks {len(missing)} of {len(expected)} entries, the first is '{missing[0]}'"
    wrong = sorted(name for name, value in expected.items() if name in weights and _shape(weights[name]) != value.shape)
    return f"has another shape of '{wrong[0]}'" if wrong else ""


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)
