"""Which of the divisions that swapping went through become splits: those nearest to the Fréchet distances asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dmlcore.config import unique_names
from dmlcore.errors import ConfigError
from dmlcore.protocols.shift.swapping import Division

_NAMES = {
    "easier": "easier{swapped}",
    "default": "default",
    "swap": "swap{swapped}",
    "removal": "swap{swapped}-remove{removed}",
}
MOST = 1000  # splits by `fid_step`: each has its episodes in the file


def evenly_spaced(divisions: Sequence[Division], number: int) -> tuple[list[int], list[str]]:
    """Divisions nearest to evenly spaced distances between the smallest and the largest, the default among them.

    Where one division is the nearest to several of these, further ones are taken where the gaps are widest.

    Args:
        divisions: with one of the stage `default`.
        number: of divisions, at least 1.

    Returns:
        Positions in `divisions` by rising distance, and notes for the user.
    """
    fids = np.array([division.fid for division in divisions])
    default = _default(divisions)
    places = {default}
    if number > 1:
        targets = np.linspace(fids.min(), fids.max(), number)
        near_default = int(np.abs(targets - fids[default]).argmin())
        places |= {int(np.abs(fids - target).argmin()) for place, target in enumerate(targets) if place != near_default}
    while len(places) < min(number, len(divisions)):
        gaps = np.abs(fids[:, None] - fids[sorted(places)]).min(1)
        gaps[sorted(places)] = -1
        places.add(int(gaps.argmax()))
    notes = (
        [f"{number} splits were asked for, but only {len(divisions)} divisions were found"] if len(divisions) < number else []
    )
    return _sorted(divisions, places), notes


def by_targets(divisions: Sequence[Division], targets: Sequence[float]) -> tuple[list[int], list[str]]:
    """Divisions nearest to given distances, and the default. Returns as `evenly_spaced`."""
    fids = np.array([division.fid for division in divisions])
    notes = []
    for target in targets:
        if not fids.min() <= target <= fids.max():
            notes.append(f"FID {target:g} was asked for, but {fids.min():.4g} to {fids.max():.4g} was reached")
    places = {int(np.abs(fids - target).argmin()) for target in targets} | {_default(divisions)}
    return _sorted(divisions, places), notes


def by_spacing(divisions: Sequence[Division], fid_step: float) -> tuple[list[int], list[str]]:
    """Divisions nearest to the default's distance plus and minus multiples of `fid_step`. Returns as `evenly_spaced`.

    Raises:
        ConfigError: more than a thousand splits.
    """
    fids = np.array([division.fid for division in divisions])
    start = fids[_default(divisions)]
    low, high = (fids.min() - start) / fid_step, (fids.max() - start) / fid_step
    if high - low > MOST:
        raise ConfigError(
            f"fid_step is {fid_step:g}, but the distances reach from {fids.min():.4g} to {fids.max():.4g}:"
            f" more than {MOST} splits. Choose a larger one"
        )
    return by_targets(divisions, [float(start + turn * fid_step) for turn in range(int(np.ceil(low)), int(np.floor(high)) + 1)])


def identities(divisions: Sequence[Division]) -> list[str]:
    """Different names for divisions: `default`, `swap10`, `easier4`, `swap30-remove24`."""
    return unique_names(
        _NAMES[division.stage].format(swapped=abs(division.swapped), removed=division.removed) for division in divisions
    )


def _default(divisions: Sequence[Division]) -> int:
    return next(place for place, division in enumerate(divisions) if division.stage == "default")


def _sorted(divisions: Sequence[Division], places: set[int]) -> list[int]:
    return sorted(places, key=lambda place: (divisions[place].fid, place))
