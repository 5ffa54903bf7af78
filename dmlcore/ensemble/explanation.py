"""What `explain` returns: the passes of a call, their plans, memory and time, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PlannedPass:
    """One pass over the similarities of anchors and references.

    Attributes:
        losses: names of the members that share it.
        anchors, references: numbers of rows; `references` is None for a batch against itself.
        plan: what the planner chose: `threads`, `triangle`, `tile_rows`, `tile_columns`, `tiles`, `cells` (similarities in
            them), `chunks`, `searches`, `streamed` (the larger side is not copied), `stored_bytes` (0: similarities are
            computed again in backward), `slot_bytes`, `kept_bytes` (from forward to backward), `forward_bytes` and
            `backward_bytes` (beside them).
        gigaflops: rate of the tiles' products, per thread.
        product_seconds: of all products of forward and backward.
        loss_seconds: of everything else, by member.
    """

    losses: tuple[str, ...]
    anchors: int
    references: int | None
    plan: dict[str, int]
    gigaflops: float
    product_seconds: float
    loss_seconds: tuple[float, ...]

    @property
    def bytes(self) -> int:
        """The most that is allocated at a time, gradients and the ordered copies of the vectors included. A side that is not
        copied has neither: its gradient goes into the tensor of the caller."""
        return self.plan["kept_bytes"] + max(self.plan["forward_bytes"], self.plan["backward_bytes"])

    @property
    def seconds(self) -> float:
        return self.product_seconds + sum(self.loss_seconds)

    def __str__(self) -> str:
        plan = self.plan
        against = "themselves" if self.references is None else f"{self.references} references"
        shape = "tiles above the diagonal, each for its rows and its columns" if plan["triangle"] else "tiles"
        stored = (
            f"similarities stored from forward to backward: {size_text(plan['stored_bytes'])}"
            if plan["stored_bytes"]
            else "similarities computed again in backward"
        )
        chunks = f", anchors in {plan['chunks']} chunks" if plan["chunks"] > 1 else ""
        slots = f", slots of the positives: {size_text(plan['slot_bytes'])}" if plan["slot_bytes"] else ""
        parts = [f"products {time_text(self.product_seconds)} (at {self.gigaflops:.0f} GFLOP/s a thread)"]
        parts += [f"{name} {time_text(seconds)}" for name, seconds in zip(self.losses, self.loss_seconds, strict=True)]
        return "\n".join(
            [
                f"{', '.join(self.losses)}: one pass, {self.anchors} anchors against {against}",
                f"  {plan['tiles']} {shape}, {plan['tile_rows']} x {plan['tile_columns']}{chunks}; threads: {plan['threads']}",
                f"  {stored}{slots}",
                f"  memory {size_text(self.bytes)}: {size_text(plan['kept_bytes'])} from forward to backward, beside them "
                f"{size_text(plan['forward_bytes'])} in forward, {size_text(plan['backward_bytes'])} in backward",
                f"  time {time_text(self.seconds)}: {', '.join(parts)}",
            ]
        )


@dataclass(frozen=True)
class PlainLoss:
    """A member that runs in plain PyTorch.

    Attributes:
        name: the member.
        reason: why it is not fused.
        bytes, seconds: of forward and backward, extrapolated from small batches by the square of the number of samples.
    """

    name: str
    reason: str
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.name}: plain PyTorch ({self.reason})\n  memory {size_text(self.bytes)}, time {time_text(self.seconds)}"


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns; `print` it.

    Attributes:
        title: the batch and the machine.
        passes: the fused passes.
        plain: members without one.
        overhead_seconds: of Python, autograd and the reductions, per step.
    """

    title: str
    passes: tuple[PlannedPass, ...]
    plain: tuple[PlainLoss, ...]
    overhead_seconds: float = field(default=0.0)

    @property
    def bytes(self) -> int:
        """Predicted memory of a step: passes keep theirs until backward."""
        lasting = sum(planned.plan["kept_bytes"] for planned in self.passes) + sum(loss.bytes for loss in self.plain)
        return lasting + max((planned.bytes - planned.plan["kept_bytes"] for planned in self.passes), default=0)

    @property
    def seconds(self) -> float:
        """Predicted time of forward and backward."""
        of_members = sum(planned.seconds for planned in self.passes) + sum(loss.seconds for loss in self.plain)
        return of_members + self.overhead_seconds

    def __str__(self) -> str:
        calls = time_text(self.overhead_seconds)
        whole = f"in all: memory {size_text(self.bytes)}, time {time_text(self.seconds)} (calls: {calls}); predicted"
        return "\n".join([self.title, *map(str, self.passes), *map(str, self.plain), whole])


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def time_text(seconds: float) -> str:
    """Seconds for people."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.0f} us"
