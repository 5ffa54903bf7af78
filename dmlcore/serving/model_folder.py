"""A model on its own: `model.safetensors`, `config.json`, what its trunk needs, and `README.md`, a model card. The folder needs
neither the run it comes from nor its data. Opening it runs no code from it without consent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from dmlcore import plugin_files, trust
from dmlcore.data import KINDS_OF_DATA
from dmlcore.data.images import Interpolation
from dmlcore.errors import ConfigError, DmlcoreError, TrainingError
from dmlcore.files import make_folder, plain, sync_folder, write_error
from dmlcore.models import architecture_of, build_architecture, serving_state, weights_follow
from dmlcore.serving.model import Model
from dmlcore.serving.model_card import card_of
from dmlcore.serving.samples import Preparation
from dmlcore.training.building import choose_device
from dmlcore.version import VERSION

FORMAT = "dmlcore-model-1"
GRAPH_FORMAT = "dmlcore-graph-1"
CONFIG, WEIGHTS, CARD, TRUNK, CODE = "config.json", "model.safetensors", "README.md", "trunk", "code"
_LONGEST = 2**24  # numbers of a sample: more is no sample
OF_A_MODEL = ("model", "compressor")  # kinds of components in it


def write_model(
    model: Model,
    out: str | Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
    extend: Callable[[Path, dict[str, Any]], None] = lambda folder, config: None,
) -> Path:
    """Write a model folder, whole or not at all.

    Args:
        model: that is written.
        out: the folder. One that exists is only replaced if a model was exported to it.
        name: of the model, for its card. None: that of the folder.
        licence: an identifier of SPDX, such as `mit` or `cc-by-4.0`. None: that of a model folder that is written again, else
            none is given.
        overwrite: replace it.
        extend: is given the folder before it gets its place, and what its `config.json` holds, and may write more.

    Returns:
        The folder.

    Raises:
        ConfigError: `out` exists, or the model cannot be described by a file.
        TrainingError: it cannot be written; what was there before is intact.
    """
    out = Path(out)
    with new_folder(out, overwrite=overwrite) as folder:
        config = fill_folder(model, folder, name=name or out.name, licence=licence)
        extend(folder, config)
    return out


def fill_folder(model: Model, folder: Path, *, name: str, licence: str | None = None) -> dict[str, Any]:
    """Write the files of a model folder. Arguments as of `write_model`.

    Returns:
        What its `config.json` holds.
    """
    about = {**model.about, **({"licence": licence} if licence else {})}
    architecture = architecture_of(model.model)
    for kind, part in (("model", architecture["trunk"]), ("compressor", architecture["compressor"])):
        if part is not None and plugin_files.is_reference(part["name"]):
            part["name"] = _copy_code(part["name"], folder / CODE / kind, folder)
    with weights_follow():
        model.model.trunk.keep(folder / TRUNK)
    state = {name: value.detach().cpu().clone().contiguous() for name, value in serving_state(model.model).items()}
    _safetensors().save_file(state, str(folder / WEIGHTS), metadata={"format": "pt"})
    preprocessing: dict[str, Any] = {}
    if model.kind == "images":
        preprocessing = {"interpolation": model.preparation.interpolation, "resize": model.preparation.resize}
    config = plain(
        {
            "format": FORMAT,
            "dmlcore": VERSION,
            "name": name,
            "kind": model.kind,
            "sample_shape": list(model.sample_shape),
            "embedding_dim": model.embedding_dim,
            "has_unit_norm": model.has_unit_norm,
            "preprocessing": preprocessing,
            "architecture": architecture,
            "weights": {"file": WEIGHTS, "sha256": _digest(folder / WEIGHTS)},
            "about": about,
        }
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card_of(config), encoding="utf-8")
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # the library keeps others from reading it
    return config


def read_model(folder: Path, *, device: str = "auto", trust_plugins: bool = False) -> Model:
    """The model of a folder.

    Args:
        folder: that `write_model` wrote.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_plugins: run the files of code in the folder.

    Raises:
        ConfigError: it holds code that was not consented to, or a plugin is missing.
        TrainingError: a file is damaged or missing.
    """
    on_device = choose_device(device)
    config = read_config(folder)
    kept = folder / TRUNK
    try:
        kind, shape = config["kind"], tuple(config["sample_shape"])
        if kind not in KINDS_OF_DATA or len(shape) not in (1, 3) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError("its kind or sample_shape is none")
        if torch.Size(shape).numel() > _LONGEST:
            raise ValueError("its sample_shape is too large")
        architecture = _with_places(config["architecture"], folder)
        interpolation = config["preprocessing"].get("interpolation", "bilinear")
        if interpolation not in get_args(Interpolation):
            raise ValueError("its interpolation is none")
        resize = config["preprocessing"].get("resize", 0)  # earlier versions had no margin
        if not isinstance(resize, int) or (resize and resize < max(shape[1:])):
            raise ValueError("its resize is none")
        with weights_follow(), trust.reading(trust.Folder(folder, OF_A_MODEL, trust_plugins)):
            module = build_architecture(architecture, shape, kind, kept if kept.is_dir() else None)
        module.load_state_dict(_read_weights(folder, config["weights"]["sha256"]))
    except DmlcoreError:
        raise
    except Exception as error:  # a file that was changed can hold anything, which fails in any way
        raise _damaged(folder / CONFIG, error) from error
    about = config.get("about")
    preparation = Preparation(kind, shape, interpolation, resize)
    return Model(module.to(on_device).eval(), str(folder), preparation, on_device, about if isinstance(about, dict) else {})


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a model, or a graph of one, that was exported."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("format") in (FORMAT, GRAPH_FORMAT)


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` of a model folder says.

    Raises:
        ConfigError: it is of something else.
        TrainingError: it cannot be read.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        form = config.get("format") if isinstance(config, dict) else None
        raise ConfigError(
            f"{folder} holds no model of this version of dmlcore: the format in its {CONFIG} is {form!r}, not {FORMAT!r}"
        )
    return config


@contextlib.contextmanager
def new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to be written, which takes the place of `out` when the block ends without an error.

    Raises:
        ConfigError: `out` exists, and is not to be replaced.
        TrainingError: it cannot be written.
    """
    if out.exists() and not (overwrite and is_exported(out)):
        further = ", or replace it with --overwrite" if is_exported(out) else ": it is no exported model, which may be replaced"
        raise ConfigError(f"{out} exists already; choose another --out{further}")
    make_folder(out.parent)
    folder, before = (out.with_name(f".{out.name}.{os.getpid()}{ending}") for ending in (".new", ".before"))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        yield folder
        if out.exists():
            os.replace(out, before)
        os.replace(folder, out)
        sync_folder(out.parent)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        if before.exists() and not out.exists():
            os.replace(before, out)
        for left in (folder, before):
            shutil.rmtree(left, ignore_errors=True)


def _copy_code(reference: str, target: Path, root: Path) -> str:
    """Copy the file of a component, or its whole package, and give the reference to it relative to a folder."""
    path, _, name = reference.rpartition(":")
    file = Path(path)
    make_folder(target)
    if file.name == "__init__.py":
        copy = target / file.parent.name
        shutil.copytree(file.parent, copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        copy /= file.name
    else:
        copy = Path(shutil.copy(file, target / file.name))
    return f"{copy.relative_to(root).as_posix()}:{name}"


def _with_places(architecture: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The architecture with the places of the code that lies in the folder.

    Raises:
        ValueError: the code lies elsewhere.
    """
    placed = dict(architecture)
    for part in ("trunk", "compressor"):
        about = placed[part]
        if about is not None and plugin_files.is_reference(str(about["name"])):
            path = (folder / str(about["name"])).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise ValueError("its code lies outside of the folder")
            placed[part] = {**about, "name": str(path)}
    return placed


def _read_weights(folder: Path, sha256: str) -> dict[str, Any]:
    path = folder / WEIGHTS
    try:
        if _digest(path) != sha256:
            raise TrainingError(f"{path} is damaged: its checksum is not the one in {CONFIG}. Copy it again")
        return _safetensors().load_file(str(path))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from error


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ConfigError(f"model folders need the package safetensors ({error}): `pip install safetensors`") from None


def _damaged(path: Path, error: Exception) -> TrainingError:
    if isinstance(error, FileNotFoundError):
        return TrainingError(f"{path} is missing. Copy the whole folder again")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return TrainingError(f"{path} is damaged, or was changed ({reason}). Copy or export the model again")
