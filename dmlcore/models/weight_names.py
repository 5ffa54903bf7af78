"""Names of weights in files of other training scripts: the prefixes that their wrappers put before a network's own names."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from dmlcore.errors import ConfigError

# Of torch.compile, DataParallel, the attributes that Lightning modules and self-supervised methods keep a network under, and
# of dmlcore's own checkpoints.
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.", "encoder_q.", "trunk.", "network.")


def without_prefixes(weights: Mapping[str, Any], expected: Container[str], further: str = "") -> dict[str, Any]:
    """The weights by the network's own names, whatever wrappers stood around it, in any nesting.

    Where the network is a part of the file, such as `model.backbone.conv1.weight` beside `model.head.weight`, the rest of the
    file is left out.

    Args:
        weights: a state dict.
        expected: names of the network's own entries.
        further: a prefix of the network's library, such as `bert.`; empty: none.

    Raises:
        ConfigError: two entries have the same name without their prefixes.
    """
    plain: dict[str, str] = {}
    for name in weights:
        short = _without(name, expected, (*_PREFIXES, further) if further else _PREFIXES)
        if short in expected and short in plain:
            raise ConfigError(f"'{plain[short]}' and '{name}' may both be the network's '{short}': keep one of them")
        plain.setdefault(short, name)
    around = {plain[short][: -len(short)] for short in plain if short in expected and plain[short].endswith(short)}
    if around and "" not in around:  # the network is a part: what stands outside of it is something else
        plain = {short: name for short, name in plain.items() if name.startswith(tuple(around))}
    return {short: weights[name] for short, name in plain.items()}


def _without(name: str, expected: Container[str], prefixes: tuple[str, ...]) -> str:
    """The name without the prefixes before it, and without those of compiled parts inside it."""
    while name not in expected:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None:
            return name.replace("._orig_mod.", ".")
        name = name.removeprefix(prefix)
    return name
