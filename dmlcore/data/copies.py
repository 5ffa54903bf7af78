"""Samples that stand in data more than once: the same bytes, or pictures that look nearly alike. What is done about them is in
`check`, and in `serving/clean` by the distances of a model.
"""

from __future__ import annotations

import numpy as np

SIDE = 9  # pixels of the small grey pictures that are compared
_BITS = 6  # of 128 that nearly equal pictures may differ in
_BANDS = 8  # of 16 bits: pictures that differ in 6 bits have two of them in common
_LAGS = 8  # neighbours that each picture is compared with, in the order of each band
_GREYS = 8.0  # mean difference of nearly equal pictures, of 255
_FLAT = 24  # pictures with a smaller range of greys look like every other one


def exact_pairs(digests: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Pairs of samples with the same content: each with the first one of every part that has it.

    Args:
        digests: uint64 [N].
        parts: int64 [N], numbers of the parts from 0.

    Returns:
        int64 [P, 2], the smaller row first.
    """
    _, group = np.unique(digests, return_inverse=True)
    several = np.flatnonzero(np.bincount(group)[group] > 1)
    width = int(parts.max()) + 1 if len(parts) else 1
    pairs = []
    for part in range(width):
        own = several[parts[several] == part]
        first = np.full(int(group.max()) + 1 if len(group) else 0, -1, dtype=np.int64)
        first[group[own][::-1]] = own[::-1]
        partner = first[group[several]]
        is_pair = (partner >= 0) & (partner != several)
        pairs.append(np.stack([several[is_pair], partner[is_pair]], axis=1))
    return _distinct(np.concatenate(pairs))


def near_pairs(greys: np.ndarray, has_grey: np.ndarray) -> np.ndarray:
    """Pairs of pictures that look nearly alike, by a difference hash: whether each pixel is lighter than the one before it, in
    rows and in columns. Nearly all are found, in time and memory that grow with N.

    Args:
        greys: uint8 [N, 9, 9], small grey pictures.
        has_grey: bool [N], which of them can be compared.

    Returns:
        int64 [P, 2], the smaller row first.
    """
    flat = greys.reshape(len(greys), SIDE * SIDE)
    rows = np.flatnonzero(has_grey & (flat.max(1).astype(int) - flat.min(1) >= _FLAT))
    pictures = greys[rows]
    along = pictures[:, : SIDE - 1, 1:] > pictures[:, : SIDE - 1, :-1]  # [n, 8, 8]
    down = pictures[:, 1:, : SIDE - 1] > pictures[:, :-1, : SIDE - 1]  # [n, 8, 8]
    bits = np.concatenate([along.reshape(len(rows), 64), down.reshape(len(rows), 64)], axis=1)
    bytes_of = np.packbits(bits, axis=1)  # [n, 16]
    bands = bytes_of.view(np.uint16)  # [n, 8]
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for band in range(_BANDS):
        turned = np.roll(bands, -band, axis=1)  # this band decides the order, then those behind it
        order = np.lexsort(turned.T[::-1])
        for lag in range(1, min(_LAGS, len(order) - 1) + 1):
            one, other = order[:-lag], order[lag:]
            has_band = bands[one, band] == bands[other, band]
            one, other = one[has_band], other[has_band]
            bits_apart = np.unpackbits(bytes_of[one] ^ bytes_of[other], axis=1).sum(1)
            one, other = rows[one[bits_apart <= _BITS]], rows[other[bits_apart <= _BITS]]
            apart = np.abs(flat[one].astype(np.int16) - flat[other]).mean(1)
            pairs.append(np.stack([one, other], axis=1)[apart <= _GREYS])
    return _distinct(np.concatenate(pairs))


def _distinct(pairs: np.ndarray) -> np.ndarray:
    return np.unique(np.sort(pairs, axis=1), axis=0)
