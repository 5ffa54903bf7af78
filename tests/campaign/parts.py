"""The parts of the campaign by name, in the order in which they run."""

from __future__ import annotations

from . import coverage, damage, faults, flags, inputs, kills, losses, ranks, readers, soak
from .trials import Part

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        faults.PART,
        kills.PART,
        ranks.PART,
        damage.PART,
        inputs.PART,
        readers.PART,
        flags.PART,
        losses.PART,
        soak.PART,
        coverage.PART,
    )
}
