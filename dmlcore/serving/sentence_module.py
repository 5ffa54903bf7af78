"""The module by which sentence-transformers uses a model folder. Only sentence-transformers imports this, when its user allowed
that by `trust_remote_code=True`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlcore.serving.model import Model
from dmlcore.serving.model_folder import fill_folder, read_model

_Base: Any = importlib.import_module("sentence_transformers.models").Module


class Encoder(_Base):
    """Preprocessing and network of a model folder.

    Args:
        model: of the folder.
    """

    save_in_root = True

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model
        self.network = model.model

    @property
    def modalities(self) -> list[str]:
        """What it takes, in words of sentence-transformers."""
        return ["image"] if self.encoder.kind == "images" else ["text"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Samples as the network takes them.

        Args:
            inputs: pictures, rows of numbers or texts.
            prompt: stands before each text.
        """
        samples = [f"{prompt}{text}" for text in inputs] if prompt and self.encoder.kind == "texts" else list(inputs)
        (batch,) = self.encoder.preparation.batches(samples, max(len(samples), 1), 0)
        return {"samples": batch}

    def tokenize(self, texts: Sequence[Any], **options: Any) -> dict[str, Any]:
        """`preprocess`, as older versions call it."""
        return self.preprocess(texts, **options)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` [B, D]."""
        return {**features, "sentence_embedding": self.network.serve(features["samples"])}

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.encoder.embedding_dim

    def get_sentence_embedding_dimension(self) -> int:
        """D, as older versions call it."""
        return self.encoder.embedding_dim

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the model folder with the weights as they are now."""
        fill_folder(self.encoder, Path(output_path), name=Path(output_path).name)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Encoder:
        """From a folder, or a repository on the hub. Code of other plugins in it is not run."""
        folder = Path(model_name_or_path, subfolder)
        if not os.path.isdir(folder):
            names = ("token", "cache_folder", "revision", "local_files_only")
            known = {name: options[name] for name in names if name in options}
            folder = Path(cls.load_dir_path(model_name_or_path, subfolder, **known))
        return cls(read_model(folder, device="cpu"))
