"""A trained model in forms for others to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dmlcore.errors import ConfigError
from dmlcore.serving.model import Model
from dmlcore.serving.model_folder import write_model
from dmlcore.serving.sentence_modules import add_sentence_modules


def export_folder(
    model: Model,
    out: str | Path,
    *,
    form: Literal["safetensors", "hf"] = "safetensors",
    name: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model as a folder of its own.

    Args:
        model: that is written.
        out: the folder.
        form: `safetensors`, a model folder that `dmlcore.load` reads; `hf`, one that sentence-transformers reads.
        name: for its card. None: that of the folder.
        licence: an identifier of SPDX, for its card.
        overwrite: replace a model folder that exists.

    Returns:
        `out`, its `files`, `bytes`, and `use`: how it is loaded.

    Raises:
        ConfigError: `out` exists, or no file can describe the model.
        TrainingError: it cannot be written.
    """
    if form not in ("safetensors", "hf"):
        raise ConfigError(f"form is '{form}', but must be safetensors or hf")
    if form == "hf" and model.kind == "features":
        raise ConfigError(
            "sentence-transformers takes texts and pictures, but this model takes rows of features: use --safetensors"
        )
    is_plain: list[bool] = []

    def extend(folder: Path, config: dict[str, Any]) -> None:
        if form == "hf":
            is_plain.append(add_sentence_modules(model, folder, config))

    out = write_model(model, out, name=name, licence=licence, overwrite=overwrite, extend=extend)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    use = f'Use it by: dmlcore.load("{out}").encode(...)'
    if form == "hf" and is_plain[0]:
        use = f'Use it by: SentenceTransformer("{out}"). It needs no code of dmlcore.'
    elif form == "hf":
        use = (
            f'Use it by: SentenceTransformer("{out}", trust_remote_code=True) where dmlcore is installed, since it names a'
            f" module of dmlcore. dmlcore.load reads it too."
        )
    return {
        "out": str(out),
        "form": form,
        "files": [path.relative_to(out).as_posix() for path in files],
        "bytes": sum(path.stat().st_size for path in files),
        "use": use,
    }
