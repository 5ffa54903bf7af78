"""What the commands of `dmlcore kernels` do: list what is kept, compile before the first use, remove."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, DmlcoreError, suggestion
from dmlcore.kernels import cubins, runtime, store


def kept_functors() -> dict[str, Any]:
    """What is kept, as plain values.

    Returns:
        `folder`, and `kernels`: per entry `file`, `header`, `functors`, `level`, `compiler`, `bytes`, `seconds` of compiling,
        `made` (UTC), and `state`: `current`, `changed` (its header or dmlcore is another by now) or `header is gone`.

    Raises:
        ConfigError: others can write to the folder.
    """
    kept = [*store.entries(), *store.entries(".cubin")]
    found = [{"file": str(file), **facts, "state": _state(file, facts)} for file, facts in kept]
    return {"folder": str(store.folder()), "kernels": found}


def _state(file: Path, facts: dict[str, Any]) -> str:
    header = Path(facts["header"])
    if not header.is_file():
        return "header is gone"
    try:
        level = facts["level"]
        if level.startswith("sm_"):
            key = cubins.source_key(header, int(level.removeprefix("sm_")))
        else:
            key = runtime.source_key(header, level)
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
    done = []
    for header in _chosen(names):
        entry = {"header": str(header), "functors": [], "level": "", "compiled": False, "seconds": 0.0, "error": ""}
        try:
            made = runtime.build(header)
            entry |= {"functors": list(made.functors), "level": made.level, "compiled": made.compiled, "seconds": made.seconds}
        except DmlcoreError as error:
            entry["error"] = str(error)
        done.append(entry)
    return done


def clear_functors(names: Sequence[str] = ()) -> list[str]:
    """Remove what is kept.

    Args:
        names: of headers, without `.h`; none: everything.

    Returns:
        The files that are gone.

    Raises:
        ConfigError: others can write to the folder.
    """
    return store.clear(list(names) or None)


def _chosen(names: Sequence[str]) -> list[Path]:
    from dmlcore import plugins

    losses = {name: _header(entry.component) for name, entry in plugins.registry("loss").items()}
    if not names:
        found = [header for header in losses.values() if header is not None]
        return sorted({*found, *plugins.kernel_headers(plugins.manager())})
    chosen = []
    for name in names:
        if name.endswith(".h"):
            chosen.append(Path(name).resolve())
        elif name not in losses:
            raise ConfigError(f"there is no loss '{name}'.{suggestion(name, losses)} A header ends with `.h`.")
        else:
            header = losses[name]
            if header is None:
                raise ConfigError(f"the loss '{name}' names no header: it is built in, has no fused form, or uses another's")
            chosen.append(header)
    return list(dict.fromkeys(chosen))


def _header(component: Any) -> Path | None:
    find = getattr(component, "functor_header", None)
    return None if find is None else find()
