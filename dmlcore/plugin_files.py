"""Components out of a single Python file that the user names, `./my_loss.py:MyLoss`, without installing anything.

The file is run when it is named, and only then: on the command line, in a configuration, or, with the user's consent
(`trust.py`), in the `config.toml` of a run that is resumed or evaluated. Only the class is used; hooks in the file are not
registered.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dmlcore import trust
from dmlcore.errors import ConfigError, DmlcoreError, PluginError, suggestion
from dmlcore.files import expanded

_LOADED: dict[type, tuple[str, str]] = {}  # class -> its kind and the reference it came by


def is_reference(name: str) -> bool:
    """Whether a name means a class in a file: `FILE.py:CLASS`, or `FILE.py` where there is one such class in it."""
    return _parts(name)[0].endswith(".py")


def _parts(reference: str) -> tuple[str, str]:
    path, colon, name = reference.rpartition(":")
    return (path, name) if colon and path.endswith(".py") else (reference, "")


def absolute(reference: str) -> str:
    """The reference with an absolute path, as a run's `config.toml` keeps it; other names as they are."""
    if not is_reference(reference):
        return reference
    path, name = _parts(reference)
    return str(expanded(path).resolve()) + (f":{name}" if name else "")


def means(reference: str, file: str | None, name: str) -> bool:
    """Whether a reference means the class `name` of a file."""
    path, class_name = _parts(absolute(reference))
    return file is not None and class_name == name and Path(file).resolve() == Path(path)


def package_modules(path: Path) -> list[Path]:
    """The files of the modules that a package's folder registers as plugins of dmlcore, as `dmlcore plugins new` writes them.

    Raises:
        ConfigError: the folder holds no such package; the message says what would work.
    """
    project = path / "pyproject.toml"
    hint = "Name a file and its class (FILE.py:CLASS), or the folder of a package with an entry point of dmlcore."
    try:
        points = tomllib.loads(project.read_text(encoding="utf-8-sig"))["project"]["entry-points"]["dmlcore"]
        modules = [str(value).partition(":")[0].strip().replace(".", "/") for value in points.values()]
    except OSError:
        raise ConfigError(f"{path} is a folder without pyproject.toml. {hint}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ConfigError(f"{project} has no table [project.entry-points.dmlcore]. {hint}") from None
    roots = (path, path / "src")  # where the sources of a package stand
    candidates = [root / module / "__init__.py" for module in modules for root in roots]
    candidates += [root / f"{module}.py" for module in modules for root in roots]
    files = [file for file in candidates if file.is_file()]
    if not files:
        raise ConfigError(f"{project} names {', '.join(points.values())}, but there are no such modules in {path}. {hint}")
    return files


def load(reference: str, kind: str, base: str) -> Any:
    """The class a reference means.

    Args:
        reference: `FILE.py:CLASS` or `FILE.py`; a path is relative to the working folder.
        kind: what it shall be, for messages.
        base: dotted name of the class it must derive from.

    Raises:
        ConfigError: no such file, no such class in it, several where none is named, or a class of another kind.
        PluginError: the file raises when it is imported. A ConfigError where dmlcore refuses what is in it.
    """
    path, name = _parts(absolute(reference))
    if not os.path.isfile(path):
        raise ConfigError(f"there is no file {path} (from '{reference}'), which should hold the {kind}")
    trust.check(path, kind)
    module = _module(path, os.stat(path).st_mtime_ns)
    room, _, base_name = base.rpartition(".")
    parent = getattr(importlib.import_module(room), base_name)
    assert isinstance(parent, type)
    classes = {
        key: value for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
    }
    fitting = {key: value for key, value in classes.items() if issubclass(value, parent) and getattr(value, "name", None)}
    if not name:
        if len(fitting) != 1:
            count = f"holds {len(fitting)} ({', '.join(fitting)})" if fitting else "holds none"
            raise ConfigError(f"{path} {count} of the {kind} classes with a `name`; say which: {reference}:CLASS")
        (component,) = fitting.values()
    elif name not in classes:
        raise ConfigError(f"{path} has no class '{name}'.{suggestion(name, fitting)}")
    elif name not in fitting:
        lack = "has no `name`" if issubclass(classes[name], parent) else f"does not derive from {base}"
        raise ConfigError(f"{reference} cannot be a {kind}: the class {lack}")
    else:
        component = fitting[name]
    _LOADED[component] = kind, f"{path}:{component.__name__}"
    return component


def is_left_out(kind: str, name: str) -> bool:
    """Whether a name means a file that is not run, since a run's folder names it and nothing of its kind is needed."""
    return is_reference(name) and trust.is_left_out(kind)


def remember(text: str) -> None:
    """Keep the user's consent to the files out of which something was loaded and that a configuration names.

    Args:
        text: of the configuration, with absolute paths.
    """
    paths = {_parts(reference)[0] for _, reference, _ in loaded()}
    trust.remember([path for path in sorted(paths) if path in text])


def loaded() -> list[tuple[str, str, Any]]:
    """Kind, absolute reference and class of everything that came out of a file so far."""
    return [(kind, reference, component) for component, (kind, reference) in _LOADED.items()]


@functools.cache
def _module(path: str, changed: int) -> ModuleType:
    """The file as a module: the same one each time while the file stays as it is."""
    name = f"dmlcore_file_{Path(path).stem}_{hashlib.sha256(f'{path} {changed}'.encode()).hexdigest()[:12]}"
    # The module of a package finds the files beside it by relative imports.
    folder = [str(Path(path).parent)] if Path(path).name == "__init__.py" else None
    loader = _SourceLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=folder)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickling and the help of options look a class's module up there
    try:
        with _without_compiled_files() if trust.is_foreign() else contextlib.nullcontext():
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        kind = ConfigError if isinstance(error, DmlcoreError) else PluginError  # what dmlcore refused, its author can mend
        said = str(error) if isinstance(error, DmlcoreError) else f"{type(error).__name__}: {error}"
        raise kind(f"{path} cannot be imported: {said}{_line_of(error, path)}") from error
    return module


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the file that the user read, and never takes a compiled one beside it, which may hold anything."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


@contextlib.contextmanager
def _without_compiled_files() -> Iterator[None]:
    """The same for what the file imports from its own package."""
    prefix, sys.pycache_prefix = sys.pycache_prefix, os.path.join(os.devnull, "none")
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = prefix, writes


def _line_of(error: BaseException, path: str) -> str:
    """` (line N)` of the file where the exception passed through it."""
    line, trace = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None or "line" in str(error) else f" (line {line})"
