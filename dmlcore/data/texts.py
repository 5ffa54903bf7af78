"""Texts as samples. A text is the bytes of its UTF-8, filled up with zeros. So data know nothing of any model's words: trunks
for texts split them themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.sources import Table

TEXT_BYTES = 8192  # of a sample: more than 512 words of any language, which most encoders take
_MULTIPLIER = 2654435761  # Knuth's: spreads numbers that follow on each other over all buckets


class TextStore:
    """Texts in memory.

    Args:
        texts: without the character 0. What is longer than `TEXT_BYTES` bytes is cut off at the end of a character.

    Attributes:
        cut: how many were cut off.
    """

    in_memory = True

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "replace") for text in texts]
        self.cut = sum(len(content) > TEXT_BYTES for content in encoded)
        self._contents = [
            content if len(content) <= TEXT_BYTES else content[:TEXT_BYTES].decode(errors="ignore").encode()
            for content in encoded
        ]

    def __len__(self) -> int:
        return len(self._contents)

    def fetch(self, indices: np.ndarray) -> Tensor:
        """uint8 [b, TEXT_BYTES]."""
        samples = np.zeros((len(indices), TEXT_BYTES), dtype=np.uint8)
        for row, index in enumerate(indices):
            content = self._contents[int(index)]
            samples[row, : len(content)] = np.frombuffer(content, dtype=np.uint8)
        return torch.from_numpy(samples)


def text_table(texts: Sequence[str], labels: np.ndarray, class_names: list[str], *, split: np.ndarray | None = None) -> Table:
    """A table of texts.

    Args:
        texts: N, none of them empty.
        labels: int64 [N], index into `class_names`.
        class_names: a name per class.
        split: text [N] or None.
    """
    store = TextStore(texts)
    notes = [f"{store.cut} texts are longer than {TEXT_BYTES} bytes and were cut off there"] if store.cut else []
    return Table("texts", store, labels, class_names, (TEXT_BYTES,), split, notes)


def texts_of(samples: Tensor) -> list[str]:
    """The texts of samples uint8 [B, bytes]."""
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in samples.cpu().numpy()]


def count_trigrams(samples: Tensor, buckets: int = 2048) -> Tensor:
    """How often each three bytes on end occur in texts, spread over buckets, as `log(1 + count)`: float32 [B, buckets].

    Args:
        samples: uint8 [B, bytes].
        buckets: columns; different trigrams may share one.
    """
    width = samples.shape[1]
    if not torch.compiler.is_compiling():  # a graph takes all bytes: its form may not follow from what they are
        used = samples.any(0).nonzero()
        width = int(used.max()) + 1 if len(used) else 0
    # A zero before and two behind: a text of one byte has three trigrams.
    codes = torch.nn.functional.pad(samples[:, :width].long(), (1, 2))  # [B, width + 3]
    is_there = (codes[:, :-2] + codes[:, 1:-1] + codes[:, 2:]) > 0
    joined = (codes[:, :-2] << 16) + (codes[:, 1:-1] << 8) + codes[:, 2:]
    bucket = ((joined * _MULTIPLIER) >> 12) % buckets
    counts = torch.zeros(samples.shape[0], buckets, device=samples.device)
    return counts.scatter_add_(1, bucket, is_there.float()).log1p_()
