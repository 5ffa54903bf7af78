"""What an ensemble trains beside its losses: terms that keep heads apart and teach a student, and the compressor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlcore import progress
from dmlcore.ensemble import AdversarialDiversity, Compressor, distance_diversity, similarity_matching
from dmlcore.evaluation import evaluating
from dmlcore.ranks.dividing import DividedRows
from dmlcore.training.settings import Settings

if TYPE_CHECKING:
    from dmlcore.data import LabelledDataset
    from dmlcore.models import EmbeddingModel
    from dmlcore.training.processes import Processes

FITTED = 20_000  # samples that a head or a compressor is fitted to, at most, evenly spread over the training data
PER_DIMENSION = 4  # samples of a compressor: axes of 2, 4 or 25 for each number of an embedding serve alike
LEAST = 1_024
OF_A_CLASS = 16  # samples, where a compressor compares those of one class


class Extras:
    """The terms of a step beside the losses.

    Args:
        model: gives the outputs.
        settings: resolved.

    Attributes:
        adversary: what the heads play against, with weights of its own, or None.
    """

    def __init__(self, model: EmbeddingModel, settings: Settings) -> None:
        self.model = model
        kind = settings.ensemble.diversity
        self.diversity_weight = 0.0 if kind in (None, "off") else settings.ensemble.diversity_weight
        self.adversary = None
        if kind == "adversarial" and model.heads > 1:
            self.adversary = AdversarialDiversity(model.heads, model.head_dim)
        self.student_weight = settings.model.student_weight

    def terms(self, outputs: Tensor) -> dict[str, Tensor]:
        """The weighted terms by name, for `outputs` of the model in training."""
        model, terms = self.model, {}
        if self.diversity_weight and model.heads > 1:
            heads = model.unit(outputs[:, : model.whole_dim])  # [B, m, D]
            apart = distance_diversity(heads) if self.adversary is None else self.adversary(heads)
            terms["diversity"] = self.diversity_weight * apart
        if self.student_weight and model.student is not None:
            matching = similarity_matching(model.student_of(outputs), model.whole(outputs))
            terms["student"] = self.student_weight * matching
        return terms


class Compression:
    """Keeps a model's compressor up to date: trained a step after every step of the model, or fitted before an evaluation.

    Args:
        model: with or without a compressor.
        seed: of the fit.
        served: whose compressor is fitted, where it is another model: the one with averaged weights.
    """

    def __init__(self, model: EmbeddingModel, seed: int, served: EmbeddingModel | None = None) -> None:
        self.model = model
        self.served = served or model
        self.seed = seed
        compressor = model.compressor
        self.optimiser = None
        if compressor is not None and compressor.is_online:
            self.optimiser = compressor.online_optimiser()

    @property
    def is_fitted(self) -> bool:
        """Whether the compressor is fitted to embeddings, rather than trained online."""
        return self.model.compressor is not None and self.optimiser is None

    def step(self, samples: Tensor, processes: Processes | None = None) -> float | None:
        """Train an online compressor on a batch, after the model's own step; returns its loss before the step.

        Args:
            samples: of this process.
            processes: whose samples together are the batch.
        """
        compressor = self.model.compressor
        if compressor is None or self.optimiser is None:
            return None
        with torch.no_grad():
            outputs = self.model(samples)
            outputs = outputs if processes is None else processes.whole_of_parts(outputs)
            z = self.model.compressible(self.model.whole(outputs))  # [B, m D]
        self.optimiser.zero_grad(set_to_none=True)
        value = compressor.online_loss(z)
        value.backward()
        loss = float(value.detach())
        if math.isfinite(loss):  # otherwise Adam's means would stay spoilt
            self.optimiser.step()
        return loss

    def fit(self, dataset: LabelledDataset, workers: int | None) -> None:
        """Fit a compressor that is not trained online to the embeddings of the training data, without augmentation."""
        compressor = self.served.compressor
        if compressor is None or not self.is_fitted:
            return
        z, labels = self._embedded(dataset, workers, LEAST, PER_DIMENSION)
        with progress.task(f"fitting {compressor.name}"):
            compressor.fit(z, labels, seed=self.seed)

    def refine(
        self, train: LabelledDataset, validation: LabelledDataset, whole: Tensor | DividedRows | None, workers: int | None
    ) -> dict[str, float]:
        """Let the compressor try several maps, if it has them, and keep the one that serves the validation part best.

        Args:
            train: that they are fitted to, twice as many samples as for `fit`.
            validation: that is ranked.
            whole: embeddings of the validation part [N, W], where they are there.
            workers: processes that decode image files.

        Returns:
            The MAP@R of the validation part by the name of each map, that of the one that is kept first. Empty: there is one.
        """
        compressor = self.served.compressor
        if compressor is None or not self.is_fitted or type(compressor).refine is Compressor.refine:
            return {}
        z, labels = self._embedded(train, workers, 2 * LEAST, 2 * PER_DIMENSION)
        rows = (
            evaluating.named_rows(self.served, validation, workers=workers, only="whole")["whole"] if whole is None else whole
        )

        def score() -> float:
            with torch.inference_mode():
                narrow = self.served.compressed
                embeddings = rows.mapped(narrow) if isinstance(rows, DividedRows) else narrow(rows)
                return evaluating.evaluate(embeddings, validation)["map@r"]

        with progress.task(f"fitting {compressor.name}"):
            return compressor.refine(z, labels, score, seed=self.seed)

    def _embedded(self, dataset: LabelledDataset, workers: int | None, least: int, per_dimension: int) -> tuple[Tensor, Tensor]:
        """Whole embeddings and labels of samples, or of classes, that are evenly spread over the data."""
        compressor = self.served.compressor
        assert compressor is not None
        most = min(max(least, per_dimension * compressor.width), FITTED)
        part = dataset.spread_classes(most, OF_A_CLASS) if compressor.uses_labels else dataset.spread(most)
        whole = evaluating.embed_named(self.served, part, workers=workers, only="whole")["whole"]
        return self.served.compressible(whole), torch.from_numpy(part.labels).to(whole.device)

    def state_dict(self) -> dict[str, Any] | None:
        """State of the compressor's optimiser, or None."""
        return None if self.optimiser is None else self.optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore what `state_dict` gave."""
        if self.optimiser is not None and state is not None:
            self.optimiser.load_state_dict(state)
