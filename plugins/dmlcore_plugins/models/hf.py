"""Encoders of images and texts from folders that transformers or sentence-transformers wrote, or from the local cache of the
Hugging Face hub. transformers is imported when the first such trunk is asked for, and only here.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.data import texts_of
from dmlcore.errors import ConfigError, DataError
from dmlcore.files import expanded, make_folder, write_atomically
from dmlcore.models import (
    Pool,
    PretrainedOptions,
    PretrainedTrunk,
    do_weights_follow,
    import_library,
    load_weights,
    not_here,
    rows_of,
)

_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # neither fetched nor run
_BICUBIC = 3  # Pillow's number, which image processors have as `resample`
_LONGEST = 256  # tokens: longer texts are rarely told apart by what follows
_HEADS = ("pooler.", "cls.", "classifier.", "lm_head.", "predictions.", "embeddings.position_ids")
_SMALL_FILES = (".json", ".txt", ".model")  # configurations and tokenizers, beside the weights
_MOST_CACHED = 2**18  # texts whose tokens are kept
_POOLINGS: dict[str, Literal["avg", "max", "cls"]] = {"mean": "avg", "max": "max", "cls": "cls"}  # by sentence-transformers
_POOLING_FLAGS = ("cls_token", "mean_tokens", "max_tokens")  # as every version of sentence-transformers reads them


@dataclass(frozen=True)
class HuggingFaceOptions(PretrainedOptions):
    """Options of the Hugging Face trunk."""

    arch: str = ""
    """A folder that transformers or sentence-transformers saved, or the name of a repository that lies in the local cache."""
    length: int | None = None
    """Tokens of a text; what follows is cut off (default: what the encoder was made for, at most 256)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("length", self.length, least=2)


class HuggingFaceTrunk(PretrainedTrunk):
    """An encoder of transformers without its head. Texts are split by its own tokenizer. Nothing in a folder is run."""

    name = "hf"
    Options = HuggingFaceOptions
    accepts = frozenset(("images", "texts"))
    names_option = "arch"

    def __init__(self, options: HuggingFaceOptions, sample_shape: tuple[int, ...]) -> None:
        super().__init__(options, sample_shape)
        self.folder = _Folder.find(options)
        self.takes_texts = len(sample_shape) == 1
        self.network = self.folder.network(options, takes_texts=self.takes_texts)
        self.expect(self.folder.channels("image_mean"), self.folder.channels("image_std"))
        if self.takes_texts:
            self.pool = Pool(self.folder.pooling() if options.pool == "auto" else options.pool)
            self.tokenizer = self.folder.tokenizer()
            self.length = _length(options, self.folder, self.network, self.tokenizer)
            self._tokens: dict[str, list[int]] = {}
        else:
            self.pool = None if options.pool == "auto" else Pool(options.pool)
        signature = inspect.signature(self.network.forward).parameters
        # Transformers of images have a position for each patch of the size they were made for.
        self._arguments = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in signature else {}
        samples = torch.zeros(1, *sample_shape, dtype=torch.uint8 if self.takes_texts else torch.float32)
        self.adapt()
        self.features = self.count_features(samples, self.image_size(options))

    @classmethod
    def image_size(cls, options: HuggingFaceOptions) -> int:
        """What the image processor cuts images to, pixels."""
        folder = _Folder.find(options)
        for size in (folder.images.get("crop_size"), folder.images.get("size"), folder.config.get("image_size")):
            size = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
            if isinstance(size, int) and size > 0:
                return size
        return 224

    @classmethod
    def interpolation(cls, options: HuggingFaceOptions) -> Literal["bilinear", "bicubic"]:
        """How the image processor resizes images."""
        return "bicubic" if _Folder.find(options).images.get("resample") == _BICUBIC else "bilinear"

    def forward(self, samples: Tensor) -> Tensor:
        """Features [B, features] of images [B, C, H, W] in 0..1, or of texts uint8 [B, bytes]."""
        if self.takes_texts:
            tokens, is_there = self._padded(texts_of(samples), samples.device)
            return self.graph_forward(tokens, is_there.long())
        output = self.network(pixel_values=self.normalised(samples), **self._arguments)
        places = rows_of(output.last_hidden_state)  # [B, N, C]
        is_map = output.last_hidden_state.ndim == 4
        if self.pool is not None:
            own = 0 if is_map or self.options.pool == "cls" else self._own_places(samples, places.shape[1])
            return self.pool(places[:, own:])
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        return places.mean(1) if is_map else places[:, 0]

    def graph_inputs(self, samples: Tensor) -> dict[str, Tensor]:
        """Of texts their tokens, which the tokenizer in the folder of the graph makes."""
        if not self.takes_texts:
            return super().graph_inputs(samples)
        tokens, is_there = self._padded(texts_of(samples), samples.device)
        return {"input_ids": tokens, "attention_mask": is_there.long()}

    def graph_forward(self, *inputs: Tensor) -> Tensor:
        """Features [B, features] of images, or of tokens int64 [B, L] and which of them are there, 1 or 0."""
        if not self.takes_texts:
            return self(*inputs)
        assert self.pool is not None
        tokens, is_there = inputs
        places = self.network(input_ids=tokens, attention_mask=is_there).last_hidden_state  # [B, L, C]
        return self.pool(places, is_there.bool())

    def _own_places(self, images: Tensor, count: int) -> int:
        """How many of the places stand for the whole image, which come before those of its patches."""
        side = getattr(self.network.config, "patch_size", None)
        patches = (images.shape[2] // side) * (images.shape[3] // side) if isinstance(side, int) else count
        return max(count - patches, 0)

    def sentence_modules(self, folder: Path) -> list[dict[str, Any]] | None:
        """Its network and tokenizer as a Transformer of sentence-transformers, with a Pooling behind it."""
        modes = {ours: theirs for theirs, ours in _POOLINGS.items()}
        network: Any = self.network
        if not self.takes_texts or self.pool is None or self.pool.how not in modes or network.config.is_encoder_decoder:
            return None
        place, pooling = make_folder(folder / "0_Transformer"), make_folder(folder / "1_Pooling")
        network.save_pretrained(place)
        self.tokenizer.save_pretrained(place)
        settings = {"max_seq_length": self.length, "do_lower_case": False}
        write_atomically(place / "sentence_bert_config.json", json.dumps(settings).encode())
        flags = {f"pooling_mode_{word}": word.startswith(modes[self.pool.how]) for word in _POOLING_FLAGS}
        write_atomically(pooling / "config.json", json.dumps({"word_embedding_dimension": self.features, **flags}).encode())
        kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
        return [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]

    def keep(self, folder: Path) -> None:
        """Write the configuration and the tokenizer too."""
        super().keep(folder)
        make_folder(folder)
        self.folder.copy(folder)

    def shared_options(self) -> HuggingFaceOptions:
        """The options without the places of files and folders."""
        return with_changes(super().shared_options(), arch=self.folder.root.name)

    @classmethod
    def kept(cls, options: HuggingFaceOptions, folder: Path) -> HuggingFaceOptions:
        """Options by which everything comes from the run's folder."""
        return with_changes(super().kept(options, folder), arch=str(folder))

    def _padded(self, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens int64 [B, L] of texts, filled up to the longest of the batch, and bool [B, L]: which are the text's."""
        new = [text for text in dict.fromkeys(texts) if text not in self._tokens]
        if len(self._tokens) + len(new) > _MOST_CACHED:
            self._tokens.clear()
            new = list(dict.fromkeys(texts))
        if new:
            split = self.tokenizer(new, truncation=True, max_length=self.length, return_attention_mask=False)["input_ids"]
            self._tokens.update(zip(new, split, strict=True))
        rows = [self._tokens[text] or [self._filler] for text in texts]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [self._filler] * (longest - len(row)) for row in rows])
        is_there = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
        return tokens.to(device, non_blocking=True), is_there.to(device, non_blocking=True)

    @property
    def _filler(self) -> int:
        return self.tokenizer.pad_token_id or 0


class _Folder:
    """A folder of transformers, or of sentence-transformers around one.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        modules = _read_json(root / "modules.json", [])
        self.modules = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
        first = str(self.modules[0].get("path", "")) if self.modules else ""
        self.path = self._inside(first) if first else root
        self.config: dict[str, Any] = _read_json(self.path / "config.json", {})
        self.images: dict[str, Any] = _read_json(self.path / "preprocessor_config.json", {})

    @classmethod
    def find(cls, options: HuggingFaceOptions) -> _Folder:
        """The folder that the options mean.

        Raises:
            ConfigError: there is none, and no such repository in the cache; the message says how to fetch it.
        """
        if not options.arch:
            raise ConfigError("the model 'hf' needs a folder or a repository: --model hf/FOLDER, or --model hf/OWNER/NAME")
        path = expanded(options.arch)
        if not path.is_dir():
            hub = import_library("huggingface_hub", "huggingface_hub")
            if path.is_absolute() or options.arch.startswith((".", "~")) or options.arch.count("/") > 1:
                raise DataError(f"there is no folder '{options.arch}' of a model (from hf/{options.arch})")
            try:
                path = Path(hub.snapshot_download(options.arch, local_files_only=True))
            except Exception:  # of many types: a name that cannot be one, nothing in the cache
                raise not_here(options.arch, "hf", f"hf download {options.arch}") from None
        folder = cls(path)
        if not folder.config:
            raise DataError(f"the folder '{path}' holds no model of transformers: it has no config.json that can be read")
        return folder

    def channels(self, name: str) -> list[float] | None:
        """Numbers for red, green and blue out of the image processor's settings. None: it has none.

        Raises:
            DataError: they are something else.
        """
        values = self.images.get(name)
        if values is None:
            return None
        is_number = (
            [isinstance(value, int | float) and 0 <= value < 1e3 for value in values] if isinstance(values, list) else []
        )
        if len(is_number) != 3 or not all(is_number) or (name == "image_std" and 0 in values):
            raise DataError(f"'{name}' in '{self.path / 'preprocessor_config.json'}' must be three numbers")
        return values

    def network(self, options: HuggingFaceOptions, *, takes_texts: bool) -> nn.Module:
        """The encoder of images or of texts, with its weights."""
        transformers = import_library("transformers", "transformers")
        with _quiet(transformers):
            try:
                config = transformers.AutoConfig.from_pretrained(str(self.path), **_SAFE)
                config = getattr(config, "text_config" if takes_texts else "vision_config", None) or config
                if options.has_file or options.is_drawn or do_weights_follow():
                    network = transformers.AutoModel.from_config(config, trust_remote_code=False).float()
                    missing: set[str] = set()
                else:
                    network, told = transformers.AutoModel.from_pretrained(
                        str(self.path), config=config, dtype=torch.float32, output_loading_info=True, **_SAFE
                    )
                    missing = {name for name in told["missing_keys"] if ".pooler." not in f".{name}"}
            except Exception as error:  # transformers raises nearly every type for folders that it cannot use
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise DataError(f"the model in '{self.path}' cannot be loaded: {reason[:200]}") from error
        if missing:
            raise DataError(f"the weights in '{self.path}' lack {len(missing)} entries, the first is '{min(missing)}'")
        network = network.get_encoder() if getattr(config, "is_encoder_decoder", False) else network
        if isinstance(getattr(getattr(network, "pooler", None), "dense", None), nn.Linear):
            network.pooler = None  # made for guessing the next sentence or a class; untrained in many folders
        if options.has_file and not do_weights_follow():
            prefix = f"{network.base_model_prefix}." if getattr(network, "base_model_prefix", "") else ""
            load_weights(network, Path(options.weights), options.arch, further_prefix=prefix, ignored=_HEADS)
        return network

    def tokenizer(self) -> Any:
        """What splits texts into tokens."""
        transformers = import_library("transformers", "transformers")
        with _quiet(transformers):
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(str(self.path), **_SAFE)
            except Exception as error:  # as above
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise DataError(f"the tokenizer in '{self.path}' cannot be loaded: {reason[:200]}") from error
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where the files are missing
            raise DataError(f"the folder '{self.path}' has no tokenizer, which encoders of texts need")
        return tokenizer

    def pooling(self) -> Literal["avg", "max", "cls"]:
        """How sentence-transformers pools the tokens; their mean where nothing is said."""
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in self.modules]
        further = set(kinds) - {"Transformer", "Pooling", "Normalize"}
        if further:
            raise ConfigError(f"'{self.root}' has the module {min(further)} of sentence-transformers, which is not supported")
        if "Pooling" not in kinds:
            return "avg"
        place = str(self.modules[kinds.index("Pooling")].get("path", ""))
        settings = _read_json(self._inside(place) / "config.json", {})
        modes = settings.get("pooling_mode")
        if modes is None:  # as older versions of sentence-transformers wrote it
            words = {
                name.removeprefix("pooling_mode_"): is_on for name, is_on in settings.items() if name.startswith("pooling_m")
            }
            modes = [word.removesuffix("_tokens").removesuffix("_token") for word, is_on in words.items() if is_on is True]
        names = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
        if len(names) != 1 or names[0] not in _POOLINGS:
            raise ConfigError(f"'{self.root}' pools by {' and '.join(names) or 'nothing'}: choose another by --hf.pool")
        return _POOLINGS[names[0]]

    def copy(self, target: Path) -> None:
        """Write the small files to another folder: all that makes a network and a tokenizer but the weights."""
        places = {self.root, self.path, *(self._inside(str(module.get("path", ""))) for module in self.modules)}
        for place in places:
            if not place.is_dir():
                continue
            folder = make_folder(target / place.relative_to(self.root))
            for file in place.iterdir():
                if file.suffix in _SMALL_FILES and not file.name.endswith(".index.json") and file.is_file():
                    write_atomically(folder / file.name, file.read_bytes())

    def _inside(self, place: str) -> Path:
        """A folder in this one.

        Raises:
            DataError: it is outside.
        """
        path = self.root / place
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"'{self.root / 'modules.json'}' names a folder outside of its own: {place!r}")
        return path


def _length(options: HuggingFaceOptions, folder: _Folder, network: Any, tokenizer: Any) -> int:
    """Tokens of a text at most."""
    most = [
        length
        for length in (tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None))
        if isinstance(length, int) and length > 0
    ]
    if options.length is not None:
        if most and options.length > min(most):
            raise ConfigError(f"hf.length is {options.length}, but this encoder takes {min(most)} tokens")
        return options.length
    made_for = _read_json(folder.path / "sentence_bert_config.json", {}).get("max_seq_length")
    return min([made_for if isinstance(made_for, int) and made_for > 0 else _LONGEST, *most])


def _read_json(file: Path, otherwise: Any) -> Any:
    """What a small file holds; `otherwise` where it is missing, or of another type."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return otherwise
    return value if isinstance(value, type(otherwise)) else otherwise


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep remarks and bars of transformers off the terminal."""
    log = transformers.utils.logging
    before = log.get_verbosity()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)


@dmlcore.hookimpl
def dmlcore_models() -> list[type]:
    return [HuggingFaceTrunk]
