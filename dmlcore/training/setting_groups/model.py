"""Settings of the network of a run and of its embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.plugins import defaults
from dmlcore.training.setting_groups.fields import check_each, setting

LONGEST = 4096  # of what is served: fitting a compressor takes the square of 4 times that in float64, 2 GB
WIDER = 4  # times longer an embedding is before compression


@dataclass(frozen=True)
class ModelSettings:
    """The network and its embedding."""

    trunk: str | None = setting("model", None)
    """Trunk by name, or a network of a library as LIBRARY/NAME (default: a small one for the kind of data)."""
    embedding_dim: int | None = None
    """Length of an embedding, or of each head, before compression (default: that of the data for features; else 256,
    compressed to 64; 4 times `compress` where that is given; 64 without compression, and with `wel` and `wedl`)."""
    head: Literal["linear", "mlp", "none"] = "linear"
    """What stands between trunk and embedding: a linear map, two of them with a ReLU between, or nothing. Without a head an
    embedding is as long as the trunk is wide."""
    head_hidden: int | None = None
    """Hidden units of the head `mlp` (default: as many as the trunk has features)."""
    head_norm: Literal["none", "layer", "batch"] = "none"
    """What normalises the trunk's features before the head: LayerNorm, BatchNorm or nothing."""
    compress: int | None = None
    """Length of the embedding after compression; 0: none (default: 64 where `embedding_dim` is 256 by default, else 0)."""
    head_start: Literal["random", "principal"] | None = None
    """How the embedding head begins: at `random`, or as the `principal` axes of the trunk's features, which keeps what a
    trained trunk, or features, know already (default: `principal` for these, else `random`)."""
    start: Literal["preset", "race"] | None = None
    """How a run on features or pictures begins: by the `preset` of its trunk, or with a `race` of a few settings, of which the
    best one on the validation part is the run. On features two models race, each for half of the steps: a linear map that
    begins as the features, and one with hidden units beside them. On pictures the losses and the rate race, each setting for
    all of the steps: three times the work (default: `race` on features, where model, length, rate and steps are left open;
    else `preset`)."""
    init: str | None = None
    """Folder of a run whose best weights the model begins with. A head of another length begins anew."""
    compile: bool = False
    """Let torch.compile compile the model."""
    gradient_checkpointing: bool = False
    """Keep few activations of the trunk and compute the others again in the backward pass: less memory, a third more time."""
    channels_last: bool = False
    """Keep images and weights of the trunk with the channels innermost, which many convolutions are faster with."""
    shard_model: bool = False
    """With several processes: divide the parameters of the model, their gradients and the optimiser's state among them (FSDP),
    for a model that does not fit into one. The run stays the same, up to rounding."""
    compressor: str = defaults().COMPRESSOR
    """How embeddings are compressed, where they are."""
    student: int = 0
    """Length of an extra head that learns the similarities of the whole embedding while the others train; 0: none."""
    student_weight: float = 1.0
    """Weight of the student's term; its gradient stops at the trunk."""
    distill_heads: tuple[int, ...] = ()
    """Lengths of wide heads that teach the embedding their similarities: `512,1024`. Each has two layers and losses of its own,
    and is left out when the model serves."""
    distill_weight: float = 50.0
    """Weight of what the wide heads teach."""
    distill_temperature: float = 1.0
    """Temperature of the similarities that are taught."""
    distill_features_weight: float = 0.0
    """Weight of what the trunk's own features teach the embedding beside the wide heads; 0: nothing."""
    distill_features_after: int = 0
    """Steps before the features teach."""
    serve: Literal["whole", "compressed", "student"] | None = None
    """What the model gives as its embedding (default: `compressed` where there is that, else `student`, else `whole`)."""

    def __post_init__(self) -> None:
        check_each(self, ("student_weight", "distill_weight", "distill_features_weight", "distill_features_after"), least=0)
        check_range("distill_temperature", self.distill_temperature, above=0)
        for length in self.distill_heads:
            check_range("distill_heads", length, least=1, most=WIDER * LONGEST)
        if self.distill_features_weight and not self.distill_heads:
            raise ConfigError("distill_features_weight is given, but distill_heads is not: name the lengths of wide heads")
        if self.head_start == "principal" and not self.can_start_principal:
            what = f"head is {self.head}" if self.head != "linear" else f"head_norm is {self.head_norm}"
            raise ConfigError(f"head_start is principal, but {what}: only a linear head on the features themselves begins so")
        if self.head == "none" and self.head_norm != "none":
            raise ConfigError(f"head_norm is {self.head_norm}, but head is none: there is no head that it could stand before")
        if self.head != "mlp" and self.head_hidden is not None:
            raise ConfigError(f"head_hidden is given, but it is for head = mlp, and head is {self.head}")
        check_range("head_hidden", self.head_hidden, least=1, most=WIDER * LONGEST)
        check_each(self, ("compress", "student"), least=0, most=LONGEST)
        check_range("embedding_dim", self.embedding_dim, least=1, most=WIDER * LONGEST)
        needed = {"compressed": "compress", "student": "student"}.get(self.serve or "")
        if needed and not getattr(self, needed):
            raise ConfigError(f"serve is '{self.serve}', but {needed} is 0")

    @property
    def can_start_principal(self) -> bool:
        """Whether the head is a linear map of the trunk's features, which can begin as their principal axes."""
        return self.head == "linear" and self.head_norm == "none"
