"""dmlcore's losses as losses of sentence-transformers: `python examples/sentence_transformers_loop.py --steps 20`.

Without `--data` a bag of words over sentences that are made up here is trained, so that no model is downloaded; with a table
of text features (x, y), such as the embeddings of another model, a layer on top of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from feature_table import arguments, feature_table, report
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW, Dense
from torch import Tensor

import dmlcore


class LabelledLoss(torch.nn.Module):
    """A dmlcore loss where sentence-transformers wants one of its own: batches of single sentences with a label each."""

    def __init__(self, model: SentenceTransformer, loss: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        (features,) = sentence_features
        return self.loss(self.model(features)["sentence_embedding"], labels)


def made_up_sentences() -> tuple[list[str], np.ndarray]:
    """Questions about 20 things: two words of a sentence tell which thing, six are the same everywhere."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 20)
    common = np.array([f"filler{number}" for number in range(40)])
    words = [[f"thing{k}word{w}" for w in generator.integers(0, 3, 2)] + list(generator.choice(common, 6)) for k in labels]
    return [" ".join(generator.permutation(sentence)) for sentence in words], labels


def main() -> None:
    flags = arguments("dmlcore's losses as losses of sentence-transformers")
    torch.manual_seed(0)
    if flags.data:
        table = feature_table(flags.data)
        vectors = torch.cat([table.x, table.held_out_x])
        labels = torch.cat([table.y, table.held_out_y + table.num_classes]).numpy()
        modules = [Dense(vectors.shape[1], 64)]
    else:
        sentences, labels = made_up_sentences()
        vocabulary = sorted({word for sentence in sentences for word in sentence.split()})
        modules = [BoW(vocabulary), Dense(len(vocabulary), 64)]
    model = SentenceTransformer(modules=modules, device="cpu")
    seen, held_out = (np.flatnonzero((labels < (labels.max() + 1) // 2) == side) for side in (True, False))

    def features(rows: np.ndarray) -> dict[str, Tensor]:
        return {"sentence_embedding": vectors[rows]} if flags.data else model.preprocess([sentences[row] for row in rows])

    @torch.no_grad()
    def map_at_r() -> float:
        embeddings = model(features(held_out))["sentence_embedding"]
        return dmlcore.evaluation.retrieval_metrics(embeddings, torch.tensor(labels[held_out]))["map@r"]

    loss = LabelledLoss(model, dmlcore.LossEnsemble(["ms", "sup_con", "triplet"]))
    optimiser = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    before, value = map_at_r(), torch.tensor(torch.nan)
    for batch in dmlcore.data.create_sampler("class_balanced", labels[seen], 8, 4, seed=0, steps=flags.steps):
        rows = seen[batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=flags.bf16):
            value = loss([features(rows)], torch.tensor(labels[rows]))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    report(flags.steps, value.item(), before, map_at_r())


if __name__ == "__main__":
    main()
