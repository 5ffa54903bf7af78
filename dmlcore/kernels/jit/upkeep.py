"""What the commands of `dmlcore kernels` do: list what is kept, compile before the first use, remove."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlcore import plugins
from dmlcore.errors import ConfigError, DmlcoreError, suggestion
from dmlcore.kernels.jit import cache, cpu_functors, cubins, sets


def kept_functors() -> dict[str, Any]:
    """What is kept, as plain values.

    Returns:
        `folder`, and `kernels`: per entry `file`, `header`, `functors`, `level`, `compiler`, `bytes`, `seconds` of compiling,
        `made` (UTC), and `state`: `current`, `changed` (its header or dmlcore is another by now) or `header is gone`.

    Raises:
        ConfigError: others can write to the folder.
    """
    entries = [*cache.entries(), *cache.entries(".cubin")]
    kernels = [{"file": str(file), **facts, "state": _state(file, facts)} for file, facts in entries]
    return {"folder": str(cache.folder()), "kernels": kernels}


def _state(file: Path, facts: dict[str, Any]) -> str:
    header = Path(facts["header"])
    if not header.is_file():
        return "header is gone"
    try:
        level = facts["level"]
        if "members" in facts:
            members = [sets.Member(header, struct, wide, tuple(numbers)) for header, struct, wide, numbers in facts["members"]]
            key = sets.source_key(members, int(level.removeprefix("sm_")))
        elif level.startswith("sm_"):
            key = cubins.source_key(header, int(level.removeprefix("sm_")))
        else:
            key = cpu_functors.source_key(header, level)
        return "current" if file.name.split("-")[1] == key else "changed"
    except (DmlcoreError, ValueError):  # everybody can write to the header; a level of another build
        return "changed"


def build_functors(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Compile headers for the instruction set in use, or find them compiled.

    Args:
        names: losses with a header of their own, or paths of headers; none: those of all installed losses and hooks.

    Returns:
        Per header `header`, `functors`, `level`, `compiled`, `seconds`, and `error` (empty where it worked).

    Raises:
        ConfigError: a name that is neither.
    """
    results = []
    for header in _headers_of(names):
        entry = {"header": str(header), "functors": [], "level": "", "compiled": False, "seconds": 0.0, "error": ""}
        try:
            built = cpu_functors.build(header)
            entry |= {
                "functors": list(built.functors),
                "level": built.level,
                "compiled": built.compiled,
                "seconds": built.seconds,
            }
        except DmlcoreError as error:
            entry["error"] = str(error)
        results.append(entry)
    return results


def clear_functors(names: Sequence[str] = ()) -> list[str]:
    """Remove what is kept.

    Args:
        names: of headers, without `.h`; none: everything.

    Returns:
        The files that are gone.

    Raises:
        ConfigError: others can write to the folder.
    """
    return cache.clear(list(names) or None)


def _headers_of(names: Sequence[str]) -> list[Path]:
    losses = {name: _header(entry.component) for name, entry in plugins.registry("loss").items()}
    if not names:
        own = [header for header in losses.values() if header is not None]
        return sorted({*own, *plugins.kernel_headers(plugins.manager())})
    paths = []
    for name in names:
        if name.endswith(".h"):
            paths.append(Path(name).resolve())
        elif name not in losses:
            raise ConfigError(f"there is no loss '{name}'.{suggestion(name, losses)} A header ends with `.h`.")
        else:
            header = losses[name]
            if header is None:
                raise ConfigError(f"the loss '{name}' names no header: it is built in, has no fused form, or uses another's")
            paths.append(header)
    return list(dict.fromkeys(paths))


def _header(component: Any) -> Path | None:
    find = getattr(component, "functor_header", None)
    return None if find is None else find()
