"""Random changes of torchvision as changes of batches: picture by picture, each with random numbers of the batch's generator.
torchvision is imported when the first such change is asked for, and only here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmlcore.errors import ConfigError

_MOST = 2**62


def library_change(name: str, **options: Any) -> Callable[[Tensor], Tensor]:
    """A transform of torchvision.

    Args:
        name: of its class in `torchvision.transforms.v2`.
        options: of its constructor.

    Raises:
        ConfigError: torchvision is missing or too old, or refuses the options.
    """
    try:
        library = importlib.import_module("torchvision.transforms.v2")
        return getattr(library, name)(**options)
    except ImportError as error:
        raise ConfigError(f"the change needs torchvision ({error}): `pip install torchvision`") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"torchvision cannot make {name}: {error}") from None


def change_each(
    change: Callable[[Tensor], Tensor], images: Tensor, generator: torch.Generator, *, as_bytes: bool = False
) -> Tensor:
    """Each image changed with a random stream of its own. The global random state is left as it was.

    Args:
        change: takes and gives an image [C, H, W].
        images: [B, C, H, W] float32 in 0..1.
        generator: on the CPU. It gives the seed of each stream.
        as_bytes: the change is made for uint8.
    """
    if not len(images):
        return images
    seeds = torch.randint(_MOST, (len(images),), generator=generator).tolist()
    source = (images * 255).round().to(torch.uint8) if as_bytes else images
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(source, seeds, strict=True):
            torch.manual_seed(seed)
            changed.append(change(image.clone()))
    result = torch.stack(changed)
    return result.to(images.dtype).div_(255) if as_bytes else result
