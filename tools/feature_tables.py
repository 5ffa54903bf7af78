"""`python -m tools.feature_tables glyphs|glosses OUT.npz --model PATH`: two tables of features of pretrained networks, for
`python -m benchmarks features`. Both networks come inside packages and are named by their files.

`glyphs` takes pictures of characters through torchvision's MobileNetV2 (`--model`: its weights, a .pth file). `glosses` takes
definitions of WordNet, classed by the subject of their file (animal, food, motion ...), through a sentence encoder (`--model`:
its folder; Debian's `wordnet-base` has the texts).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

WORDNET = Path("/usr/share/wordnet")
PER_CLASS = 60  # glosses
CLASSES = 300  # of characters
SIDE = 96  # pixels


def glyphs(weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """MobileNetV2's features of the first classes of the embedded characters."""
    from torchvision.models import mobilenet_v2

    from dmlcore.data import load_table

    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.classifier = torch.nn.Identity()
    network.eval()
    _, table = load_table("glyphs")
    rows = np.flatnonzero(table.labels < CLASSES)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), 64):
            images = table.samples.fetch(rows[start : start + 64])  # [b, 1, 32, 32]
            images = torch.nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
            parts.append(network((images - mean) / std).numpy())
    return np.concatenate(parts), table.labels[rows]


def definitions(wordnet: Path = WORDNET) -> tuple[list[str], np.ndarray]:
    """Definitions of nouns and verbs, at most `PER_CLASS` of a class, and their labels: WordNet's files of them."""
    by_class: dict[int, list[str]] = {}
    for part in ("noun", "verb"):
        for line in (wordnet / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                by_class.setdefault(int(line.split()[1]), []).append(line.rpartition("|")[2].partition(";")[0].strip())
    generator = np.random.default_rng(0)
    texts, labels = [], []
    for label, own in sorted(by_class.items()):
        rows = generator.permutation(len(own))[:PER_CLASS]
        texts += [own[number] for number in rows]
        labels += [label] * len(rows)
    return texts, np.array(labels)


def glosses(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sentence features of definitions."""
    from sentence_transformers import SentenceTransformer

    texts, labels = definitions()
    features = SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=64, show_progress_bar=False)
    return np.asarray(features), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["glyphs", "glosses"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    x, y = {"glyphs": glyphs, "glosses": glosses}[options.table](options.model)
    np.savez(options.out, x=x.astype(np.float16), y=y)
    print(f"{options.out}: {len(y)} samples of {len(np.unique(y))} classes, {x.shape[1]} numbers each")


if __name__ == "__main__":
    main()
