"""The parts of the campaign by name, in the order in which they run."""

from __future__ import annotations

from . import damage, faults, inputs, kills
from .trials import Part

PARTS: dict[str, Part] = {part.name: part for part in (faults.PART, kills.PART, damage.PART, inputs.PART)}
