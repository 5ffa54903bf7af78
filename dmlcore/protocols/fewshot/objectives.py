"""How each kind of arm learns from a part of the data, and how well it does on one: classifiers, embeddings, prototypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmlcore import losses
from dmlcore.ensemble import LossEnsemble
from dmlcore.protocols.fewshot import batches, predicting
from dmlcore.protocols.fewshot.arms import Arm
from dmlcore.protocols.fewshot.budgets import Budget
from dmlcore.protocols.fewshot.samples import Samples
from dmlcore.protocols.fewshot.tasks import Part


class Learner:
    """A network that learns as an arm does.

    Args:
        arm: what it is.
        network: a `Classifier`, or samples to embeddings.
        samples: gives the samples of parts.
        part: what it learns from; every class has a sample, for arms that are no classifiers two.
        budget: sizes and rates.
        width: D of the embeddings.
        rng: composes batches. The losses draw from torch's global generator.
    """

    def __init__(
        self,
        arm: Arm,
        network: nn.Module,
        samples: Samples,
        part: Part,
        budget: Budget,
        width: int,
        rng: np.random.Generator,
    ) -> None:
        self.arm, self.network, self.samples, self.part, self.budget, self.rng = arm, network, samples, part, budget, rng
        self.labels = torch.from_numpy(part.labels)
        self.ensemble = _ensemble(arm, part.classes, width) if arm.kind == "embedding" else None
        self.prototypical = losses.create("prototypical") if arm.kind == "prototypes" else None
        self.optimiser = torch.optim.Adam(self._groups())

    def _groups(self) -> list[dict[str, Any]]:
        rate = self.budget.prototype_rate if self.arm.kind == "prototypes" else self.budget.learning_rate
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters()), "lr": rate}]
        owned = self.ensemble.parameter_roles() if self.ensemble is not None else {}
        for role, parameters in owned.items():
            if parameters:
                groups.append({"params": parameters, "lr": rate * (PROXIES_FACTOR if role == "proxies" else 1)})
        return groups

    def losses_of_a_round(self, support: int = 0, queries: int = 0) -> Iterator[Tensor]:
        """An epoch, or for prototypes `budget.episode_check` episodes.

        Args:
            support: samples of a class in an episode.
            queries: of a class in an episode; 0: all that are left.
        """
        if self.arm.kind == "prototypes":
            assert self.prototypical is not None
            for _ in range(self.budget.episode_check):
                support_rows, query_rows = batches.episode(self.part, support, queries, self.rng)
                outputs = self.network(self.samples.fetch(self.part.rows[np.concatenate([support_rows, query_rows])]))
                references, embeddings = outputs.split([len(support_rows), len(query_rows)])
                yield self.prototypical(
                    embeddings,
                    self.labels[query_rows],
                    references=references,
                    reference_labels=self.labels[support_rows],
                )
            return
        is_classifier, budget = self.arm.kind == "classifier", self.budget
        deal = batches.shuffled if is_classifier else batches.by_class
        for positions in deal(self.part, (is_classifier and budget.classifier_batch) or budget.batch, self.rng):
            outputs = self.network(self.samples.fetch(self.part.rows[positions]))
            labels = self.labels[positions]
            if self.ensemble is None:
                yield functional.cross_entropy(outputs, labels)
            else:
                yield self.ensemble(outputs, labels)

    def outputs(self, part: Part) -> Tensor:
        """Logits or raw embeddings of a part, in evaluation mode."""
        return predicting.in_batches(self.network, lambda piece: self.samples.fetch(part.rows[piece]), len(part))

    def training_score(self) -> float:
        """How well it does on its own part: accuracy, Recall@1 leaving one out, nearest prototype leaving one out."""
        return self.alone(self.part)

    def alone(self, part: Part) -> float:
        """The score of a part by itself, see `training_score`."""
        outputs, labels = self.outputs(part), torch.from_numpy(part.labels)
        if self.arm.kind == "classifier":
            return float((outputs.argmax(1) == labels).double().mean())
        if self.arm.kind == "embedding":
            return predicting.leave_one_out_recall(outputs, labels)
        return predicting.leave_one_out_prototypes(outputs, labels, part.classes)

    def source_score(self, validation: Part) -> float:
        """How well it does on validation samples of its own classes: accuracy, Recall@1 leaving one out, nearest prototype."""
        if self.arm.kind != "prototypes":
            return self.alone(validation)
        most = self.budget.validation_prototypes
        return self.accuracy(self.part.first(most) if most else self.part, validation)

    def accuracy(self, support: Part, queries: Part) -> float:
        """Share of the queries whose label is predicted right."""
        return float((self.predict(support, queries) == torch.from_numpy(queries.labels)).double().mean())

    def predict(self, support: Part, queries: Part) -> Tensor:
        """Labels of the queries `[Q]`: nearest support sample, nearest prototype, or softmax."""
        return predict(self.arm, self.network, self.samples, support, queries)


PROXIES_FACTOR = 20.0  # as in training: proxies move far to follow their class


def predict(arm: Arm, network: nn.Module, samples: Samples, support: Part, queries: Part) -> Tensor:
    """Labels of queries `[Q]` by an arm's rule; classifiers do not look at the support samples."""
    outputs = predicting.in_batches(network, lambda piece: samples.fetch(queries.rows[piece]), len(queries))
    if arm.kind == "classifier":
        return outputs.argmax(1)
    references = predicting.in_batches(network, lambda piece: samples.fetch(support.rows[piece]), len(support))
    labels = torch.from_numpy(support.labels)
    if arm.kind == "embedding":
        return predicting.nearest_support(outputs, references, labels)
    return predicting.nearest_prototype(outputs, predicting.prototypes_of(references, labels, support.classes))


def _ensemble(arm: Arm, classes: int, width: int) -> LossEnsemble:
    """The losses of an embedding; several are weighed as `dmlcore train` does by default, to equal norms of their gradients."""
    members = [
        losses.create(name, num_classes=classes, embedding_dim=width, **arm.options.get(name, {})) for name in arm.losses
    ]
    can_equal = len(members) > 1 and not any(isinstance(loss, losses.NormLoss) for loss in members)
    return LossEnsemble(list(members), "equal_gradient_norms" if can_equal else "fixed")
