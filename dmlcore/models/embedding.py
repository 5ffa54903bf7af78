"""A trunk with its embedding heads as one model: `forward` gives what losses train on, `serve` gives the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore.errors import ConfigError
from dmlcore.models.heads import BlockHeads, HeadNorm, make_head
from dmlcore.models.trunks import Trunk

if TYPE_CHECKING:
    from dmlcore.ensemble import Compressor

Served = Literal["whole", "compressed", "student"]


class EmbeddingModel(nn.Module):
    """A trunk with a linear head, or with several side by side: `normalize(head(trunk(samples)))`.

    Training calls the model itself, since wrappers for several devices and compilers hook `forward`. What is trained is used
    by `serve`.

    With several heads, each a loss's own, the whole embedding is the concatenation of `sqrt(share_i) x_i` with unit vectors
    `x_i`, so that squared distances add up: `||z - z'||^2 = sum_i share_i ||x_i - x'_i||^2`. It can be compressed, and a
    student head can learn its structure; `served` says which of them is the embedding.

    Args:
        trunk: samples to features.
        embedding_dim: D >= 1, of each head.
        normalize: give the embeddings unit norm; False for losses that need their norms.
        has_head: False: the trunk's features are the embedding.
        head_norm: what stands between trunk and head: `layer` a LayerNorm, `batch` a BatchNorm, `none` nothing.
        head_hidden: units of a hidden ReLU layer of the head. 0: the head is linear. None: as many as the trunk has features.
        heads: m >= 1.
        head_names: of the heads, for reports.
        heads_see_blocks: each head sees another block of the trunk (`BlockHeads`); else every one sees all features.
        shows_features: the losses see the trunk's features too, in the last columns of what `forward` gives.
        student: length of the student's embedding; 0: none.
        distill_heads: lengths of wide heads that teach the embedding. They are there in training only.
        distills_features: training sees the trunk's features too, for what teaches the embedding.
        compressor: of the whole embedding, or None.
        served: `whole`, `compressed` or `student`.

    Attributes:
        shares: `[m]` >= 0, sum 1.

    Source: Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning
    Methods", MTAP 2023: heads, weighted concatenation and compression. The student is ours. Wide heads: Roth, Milbich, Ommer,
    Cohen, Ghassemi, "Simultaneous Similarity-based Self-Distillation for Deep Metric Learning", ICML 2021.
    """

    shares: Tensor

    def __init__(
        self,
        trunk: Trunk,
        embedding_dim: int,
        *,
        normalize: bool = True,
        has_head: bool = True,
        head_norm: HeadNorm = "none",
        head_hidden: int | None = 0,
        heads: int = 1,
        head_names: Sequence[str] = (),
        heads_see_blocks: bool = False,
        shows_features: bool = False,
        student: int = 0,
        distill_heads: Sequence[int] = (),
        distills_features: bool = False,
        compressor: Compressor | None = None,
        served: Served = "whole",
    ) -> None:
        super().__init__()
        self.trunk = trunk
        hidden = trunk.features if head_hidden is None else head_hidden
        if has_head and heads_see_blocks:
            self.head = BlockHeads(trunk.block_features, heads, embedding_dim, head_norm, hidden, trunk.name)
        elif has_head:
            self.head = make_head(trunk.features, heads * embedding_dim, head_norm, hidden)
        elif heads > 1 or trunk.features != embedding_dim:
            raise ConfigError(
                f"without a head there is one embedding of the model's {trunk.features} columns, but {heads} of {embedding_dim}"
                f" were asked for. Say embedding_dim {trunk.features}, or leave the head"
            )
        else:
            self.head = nn.Identity()
        self.head_norm: HeadNorm = head_norm if has_head else "none"
        self.head_hidden = hidden if has_head else 0
        self.heads = heads
        self.head_names = list(head_names) or [str(number) for number in range(1, heads + 1)]
        self.heads_see_blocks = heads_see_blocks
        self.head_dim = embedding_dim
        self.normalize = normalize
        self.shows_features = shows_features
        if heads > 1:
            self.register_buffer("shares", torch.full((heads,), 1.0 / heads))
        self.student = nn.Linear(trunk.features, student) if student else None
        self.distill_heads = nn.ModuleList(make_head(trunk.features, length, "none", length) for length in distill_heads)
        self.distill_lengths = [*distill_heads, *([trunk.features] if distills_features else [])]
        self.distills_features = distills_features
        self.compressor = compressor
        for name, missing in (("student", not student), ("compressed", compressor is None)):
            if served == name and missing:
                raise ConfigError(f"served is '{name}', but the model has no {name.replace('compressed', 'compressor')}")
        self.served: Served = served

    @property
    def whole_dim(self) -> int:
        """Length of the whole embedding."""
        return self.heads * self.head_dim

    @property
    def losses_dim(self) -> int:
        """Columns that the losses see."""
        return self.whole_dim + (self.trunk.features if self.shows_features else 0)

    @property
    def embedding_dim(self) -> int:
        """Length of what is served."""
        if self.served == "student":
            assert self.student is not None
            return self.student.out_features
        return self.compressor.out if self.served == "compressed" and self.compressor is not None else self.whole_dim

    @property
    def needs_features_to_start(self) -> bool:
        """Whether `start_head` needs features: a head that is no shorter than they are keeps them as they are."""
        return self.head_dim < self.trunk.features

    def start_head(self, features: Tensor | None) -> None:
        """Let each head begin as the projection on the principal axes of features: before training, cosines of embeddings are
        those of the features, as near as D numbers can bring them.

        Args:
            features: [N, F] of the trunk; they are used by their directions, as they are compared. None where the head is no
                shorter than they are: it begins as the identity.
        """
        linear = self.head[1] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(linear, nn.Linear) and self.head_hidden == 0
        if features is None:
            axes = torch.eye(self.head_dim, self.trunk.features, device=linear.weight.device)
        else:
            unit = functional.normalize(features.double(), dim=1)
            axes = torch.linalg.eigh(unit.T @ unit).eigenvectors.flip(1)[:, : self.head_dim].T  # [D, F], largest first
        with torch.no_grad():
            linear.weight.copy_(axes.repeat(self.heads, 1))
            linear.bias.zero_()

    def forward(self, samples: Tensor) -> Tensor:
        """What losses see, in training what teaches the embedding, and the student's embedding last.

        Args:
            samples: [B, ...].

        Returns:
            [B, m D + F if features are shown + `distill_lengths` in training + length of the student]: heads (unit norm if
            `normalize`, else raw), the trunk's features as they are, the wide heads that teach (as the heads), the features as
            they are and without a gradient, the student's raw embedding (no gradient of its reaches the trunk).
        """
        return self._outputs(self.trunk(samples))

    def _outputs(self, features: Tensor) -> Tensor:
        raw = self.head(features)  # [B, m D]
        parts = [self.unit(raw).flatten(1) if self.normalize else raw]
        if self.shows_features:
            parts.append(features)
        if self.training:
            for head in self.distill_heads:
                wide = head(features)
                parts.append(_unit(wide) if self.normalize else wide)
            if self.distills_features:
                parts.append(features.detach())
        if self.student is not None:
            parts.append(self.student(features.detach()))
        return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].dtype) for part in parts], 1)

    def serve(self, samples: Tensor) -> Tensor:
        """The embedding of samples [B, ...]: [B, D] (unit norm if `normalize`, else raw), or the weighted concatenation, the
        compressed or the student's embedding, which have unit norm."""
        return self._served(self(samples))

    def serve_features(self, features: Tensor) -> Tensor:
        """`serve` of samples whose features [B, F] the trunk has given."""
        return self._served(self._outputs(features))

    def _served(self, outputs: Tensor) -> Tensor:
        if self.served == "student":
            return functional.normalize(self.student_of(outputs).float(), dim=1)
        whole = self.whole(outputs)
        return self.compressed(whole) if self.served == "compressed" else whole

    def losses_part(self, outputs: Tensor) -> Tensor:
        """What the losses see [B, `losses_dim`] out of what `forward` gave."""
        return outputs if self.student is None and not self.distill_lengths else outputs[:, : self.losses_dim]

    def distill_parts(self, outputs: Tensor) -> list[Tensor]:
        """What each wide head gave [B, length], and then the features [B, F] if they teach too, out of what `forward` gave in
        training."""
        columns = outputs[:, self.losses_dim : self.losses_dim + sum(self.distill_lengths)]
        return list(columns.split(self.distill_lengths, 1))

    def unit(self, heads: Tensor) -> Tensor:
        """Unit vectors [B, m, D] of heads side by side [B, m D]."""
        return _unit(heads.unflatten(1, (self.heads, self.head_dim)))

    def student_of(self, outputs: Tensor) -> Tensor:
        """The student's raw embedding [B, d] out of what `forward` gave."""
        assert self.student is not None
        return outputs[:, outputs.shape[1] - self.student.out_features :]

    def whole(self, outputs: Tensor) -> Tensor:
        """The whole embedding [B, m D] out of what `forward` gave: of one head as it is, of several their weighted
        concatenation."""
        heads = outputs[:, : self.whole_dim]
        if self.heads == 1:
            return heads
        return (self.unit(heads) * self.shares.sqrt()[:, None]).flatten(1)

    def embeddings(self, outputs: Tensor) -> dict[str, Tensor]:
        """Everything that could be served, by name: `whole`, the heads, `compressed`, `student`."""
        whole = self.whole(outputs)
        embeddings = {"whole": whole}
        if self.heads > 1:
            units = self.unit(outputs[:, : self.whole_dim])  # [B, m, D]
            embeddings |= {f"head {name}": units[:, k] for k, name in enumerate(self.head_names)}
        if self.compressor is not None:
            embeddings["compressed"] = self.compressed(whole)
        if self.student is not None:
            embeddings["student"] = functional.normalize(self.student_of(outputs).float(), dim=1)
        return embeddings

    def compressible(self, whole: Tensor) -> Tensor:
        """What a compressor sees of whole embeddings [B, m D]: float32 of unit norm."""
        return functional.normalize(whole.float(), dim=1) if self.heads == 1 else whole.float()

    def compressed(self, whole: Tensor) -> Tensor:
        """The compressed embedding [B, d] of whole embeddings [B, m D], for a model with a compressor."""
        assert self.compressor is not None
        return functional.normalize(self.compressor(self.compressible(whole)), dim=1)


def _unit(vectors: Tensor) -> Tensor:
    """Unit vectors along the last axis, in float32 at least: in half precision the square of a large component overflows."""
    return functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
