"""New plugin packages from the files of `templates`: `dmlcore plugins new`."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

from dmlcore import plugins
from dmlcore.errors import ConfigError
from dmlcore.plugin_files import is_reference

TEMPLATES = Path(__file__).parent / "templates"
KINDS = tuple(kind for kind in plugins.KINDS if (TEMPLATES / f"{kind}.py.txt").exists())
_RESERVED = ("auto", "none", "all")  # words that mean something where names of plugins stand

_FUSED_NOTE = """
`$module/$name.h` is the fused form: it is compiled when the loss is first used, runs in the same pass as the losses of dmlcore,
and must give what `row_values` defines (`dmlcore plugins check $name` compares them). Where it cannot be compiled, the plain
form runs.
"""


def create_package(name: str, kind: str = "loss", *, fused: bool = False, out: str | Path | None = None) -> list[Path]:
    """Write an installable package with one component that works, its tests and a README.

    Args:
        name: of the component: lower-case letters, digits and `_`, beginning with a letter.
        kind: one of `KINDS`.
        fused: a loss with a header for its fused form.
        out: folder of the package; None: `./dmlcore-NAME`. It appears whole or not at all.

    Returns:
        The files.

    Raises:
        ConfigError: a name that cannot be used or is taken, an unknown kind, a folder that exists or cannot be made.
    """
    _check(name, kind, fused)
    distribution = f"dmlcore-{name.replace('_', '-')}"
    target = Path(out) if out is not None else Path(distribution)
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists already; choose another folder with --out")
    texts = _texts(name, kind, fused, distribution)
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=parent))
    except OSError as error:
        raise ConfigError(f"cannot write into {parent}: {error.strerror}; choose another folder with --out") from error
    try:
        for path, text in texts.items():
            (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / path).write_text(text, encoding="utf-8")
        unfinished.chmod(0o777 & ~_umask())  # a temporary folder is closed to others, a package need not be
        if target.exists():
            raise ConfigError(f"{target} exists already; choose another folder with --out")
        os.rename(unfinished, target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}; choose another folder with --out") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [target / path for path in texts]


def _check(name: str, kind: str, fused: bool) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]|[a-z]", name) or "__" in name:
        raise ConfigError(
            f"the name is '{name}', but must be lower-case letters, digits and single '_', beginning with a letter: my_{kind}"
        )
    if keyword.iskeyword(_class_name(name)) or name in _RESERVED:
        raise ConfigError(f"the name '{name}' means something else already; choose another")
    if kind not in KINDS:
        raise ConfigError(f"kind is '{kind}', but must be one of {', '.join(KINDS)}")
    if fused and kind != "loss":
        raise ConfigError(f"a {kind} has no fused form; leave --fused out")
    namesake = plugins.registry(kind).get(name)
    if namesake is not None and not is_reference(name):
        raise ConfigError(f"there is a {kind} '{name}' already, of {namesake.owner}; choose another name")


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _texts(name: str, kind: str, fused: bool, distribution: str) -> dict[str, str]:
    """The package's files, by their path in it."""
    module = f"dmlcore_{name}"
    words = {"name": name, "kind": kind, "Class": _class_name(name), "module": module, "distribution": distribution}
    words["functor"] = name
    words |= _fused_words(name) if fused else {"imports": "", "kernel_imports": "", "header": "", "functor_call": ""}
    words["package_data"] = f'\n[tool.setuptools.package-data]\n{module} = ["*.h"]\n' if fused else ""
    words["use"] = Template(plugins.KINDS[kind].example).substitute(words)
    words["note"] = Template(_FUSED_NOTE).substitute(words) if fused else ""
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}/__init__.py": f"{kind}.py",
        f"tests/test_{name}.py": f"test_{kind}.py",
    }
    if fused:
        files |= {f"{module}/{name}.h": "functor.h", f"tests/test_{name}_fused.py": "test_fused.py"}
    texts = {}
    for path, template in files.items():
        text = Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)
        texts[path] = re.sub(r"\n{4,}", "\n\n\n", text).rstrip() + "\n"
    return texts


def _fused_words(name: str) -> dict[str, str]:
    call = f'        return FunctorCall("{name}", (self.options.scale, self.options.bias))\n'
    return {
        "imports": "from pathlib import Path\nfrom typing import ClassVar\n",
        "kernel_imports": "from dmlcore.kernels import FunctorCall\n",
        "header": f'    header: ClassVar[Path] = Path(__file__).with_name("{name}.h")\n',
        "functor_call": f"\n    def functor_call(self) -> FunctorCall:\n{call}",
    }


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
