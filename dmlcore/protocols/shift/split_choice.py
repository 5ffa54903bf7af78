"""Which of the divisions that swapping went through become splits: those nearest to wanted Fréchet distances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dmlcore.config import unique_names
from dmlcore.errors import ConfigError
from dmlcore.protocols.shift.swapping import Step

_NAMES = {
    "easier": "easier{swapped}",
    "default": "default",
    "swap": "swap{swapped}",
    "removal": "swap{swapped}-remove{removed}",
}
MOST = 1000  # splits by `fid_step`: each has its episodes in the file


def evenly_spaced(steps: Sequence[Step], number: int) -> tuple[list[int], list[str]]:
    """Steps nearest to evenly spaced distances between the smallest and the largest, the default among them.

    Where one step is the nearest to several of these, further ones are taken where the gaps are widest.

    Args:
        steps: with one of the stage `default`.
        number: of steps, at least 1.

    Returns:
        Positions in `steps` by rising distance, and notes for the user.
    """
    fids = np.array([step.fid for step in steps])
    default = _default(steps)
    chosen = {default}
    if number > 1:
        targets = np.linspace(fids.min(), fids.max(), number)
        near_default = int(np.abs(targets - fids[default]).argmin())
        chosen |= {int(np.abs(fids - target).argmin()) for place, target in enumerate(targets) if place != near_default}
    while len(chosen) < min(number, len(steps)):
        gaps = np.abs(fids[:, None] - fids[sorted(chosen)]).min(1)
        gaps[sorted(chosen)] = -1
        chosen.add(int(gaps.argmax()))
    notes = [f"{number} splits were asked for, but only {len(steps)} divisions were found"] if len(steps) < number else []
    return _sorted(steps, chosen), notes


def by_targets(steps: Sequence[Step], targets: Sequence[float]) -> tuple[list[int], list[str]]:
    """Steps nearest to given distances, and the default; returns as `evenly_spaced`."""
    fids = np.array([step.fid for step in steps])
    notes = []
    for target in targets:
        if not fids.min() <= target <= fids.max():
            notes.append(f"FID {target:g} was asked for, but {fids.min():.4g} to {fids.max():.4g} was reached")
    chosen = {int(np.abs(fids - target).argmin()) for target in targets} | {_default(steps)}
    return _sorted(steps, chosen), notes


def by_step(steps: Sequence[Step], fid_step: float) -> tuple[list[int], list[str]]:
    """Steps nearest to the default's distance plus and minus multiples of `fid_step`; returns as `evenly_spaced`.

    Raises:
        ConfigError: more than a thousand splits.
    """
    fids = np.array([step.fid for step in steps])
    start = fids[_default(steps)]
    low, high = (fids.min() - start) / fid_step, (fids.max() - start) / fid_step
    if high - low > MOST:
        raise ConfigError(
            f"fid_step is {fid_step:g}, but the distances reach from {fids.min():.4g} to {fids.max():.4g}:"
            f" more than {MOST} splits. Choose a larger one"
        )
    return by_targets(steps, [float(start + turn * fid_step) for turn in range(int(np.ceil(low)), int(np.floor(high)) + 1)])


def identities(steps: Sequence[Step]) -> list[str]:
    """Different names for steps: `default`, `swap10`, `easier4`, `swap30-remove24`."""
    return unique_names(_NAMES[step.stage].format(swapped=abs(step.swapped), removed=step.removed) for step in steps)


def _default(steps: Sequence[Step]) -> int:
    return next(place for place, step in enumerate(steps) if step.stage == "default")


def _sorted(steps: Sequence[Step], chosen: set[int]) -> list[int]:
    return sorted(chosen, key=lambda place: (steps[place].fid, place))
