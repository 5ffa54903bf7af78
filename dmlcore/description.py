"""What there is, as plain values for tables and JSON: everything plugins offer, and the system dmlcore runs on."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from typing import Any, Literal

from dmlcore.config import option_help, option_types


def describe_components() -> list[dict[str, Any]]:
    """Everything plugins offer: kind, name, owner, version, summary, help, options, and for losses where they are fused."""
    from dmlcore import plugins

    described = []
    for kind in plugins.KINDS:
        for name, entry in plugins.registry(kind).items():
            text = inspect.cleandoc(entry.component.__doc__ or "")
            facts = {
                "kind": kind,
                "name": name,
                "title": entry.title,
                "paper": entry.paper,
                "aliases": list(entry.aliases),
                "owner": entry.owner,
                "version": entry.version,
                "summary": first_sentence(text),
                "help": text,
                "options": describe_options(getattr(entry.component, "Options", None)),
            }
            described.append({**facts, **(_fusion(name) if kind == "loss" else {})})
    return described


def describe_options(options: type | None) -> list[dict[str, Any]]:
    """Name, type, default and help of each option of an options class."""
    if options is None:
        return []
    texts, kinds = option_help(options), option_types(options)
    return [
        {
            "name": field.name,
            "type": _type_name(kinds[field.name]),
            "default": default_of(field),
            "help": texts.get(field.name, ""),
        }
        for field in dataclasses.fields(options)
    ]


def describe_system() -> dict[str, Any]:
    """Versions, devices and kernels."""
    import torch

    from dmlcore import kernels
    from dmlcore.training.versions import versions

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(torch.cuda.device_count())]
    return {"versions": versions(), "devices": devices, "kernels": kernels.info()}


def default_of(field: dataclasses.Field) -> Any:
    """The default of a dataclass field; None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line and without its full stop. Full stops inside formulas end nothing."""
    words = " ".join(text.partition("\n\n")[0].split())
    for stop in re.finditer(r"\.(?= [^a-z0-9]|$)", words):
        before = words[: stop.start()]
        if before.count("`") % 2 == 0 and before.count("(") == before.count(")"):
            return before
    return words.rstrip(".")


def _fusion(name: str) -> dict[str, Any]:
    from dmlcore import kernels, losses

    try:
        loss = losses.create(name, num_classes=2, embedding_dim=2)
        call = loss.functor_call() if isinstance(loss, losses.RowLoss) else ""
        functor = call if isinstance(call, str) else call.functor
        on_cuda = loss.is_fused and not kernels.why_not("cuda") and functor in kernels.functors("cuda")
        places = ["cpu"] * loss.is_fused + ["cuda"] * on_cuda
        has_form = isinstance(loss, losses.RowLoss) and not isinstance(call, str)
        return {
            "has_fused_form": has_form,
            "is_fused": loss.is_fused,
            "fused_on": places,
            "why_not_fused": loss.why_not_fused,
        }
    except Exception as error:  # a plugin's own failure must not hide the others
        reason = f"it cannot be created with its defaults: {error}"
        return {"has_fused_form": False, "is_fused": False, "fused_on": [], "why_not_fused": reason}


def _type_name(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if origin in (typing.Union, types.UnionType):
        return " | ".join("none" if choice is type(None) else _type_name(choice) for choice in typing.get_args(kind))
    if origin in (tuple, list):
        return f"{_type_name(typing.get_args(kind)[0])},..."
    words = {int: "whole number", float: "number", str: "text", bool: "true | false"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
