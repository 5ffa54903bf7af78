"""`python -m tools.feature_tables TABLE OUT.npz --model PATH [--source PATH]`: tables of features of pretrained networks, for
`python -m benchmarks features` and `defaults`. The networks come inside packages and are named by files.

Pictures go through torchvision's MobileNetV2 (`--model`: its weights, a .pth file), texts through a sentence encoder
(`--model`: its folder).

`glyphs`: the first classes of the embedded characters.
`fonts`: the embedded characters of fonts with many of them, classed by font.
`glosses`: definitions of WordNet, classed by the subject of their file (animal, food, motion ...). Debian's `wordnet-base` has
them (`--source`: their folder).
`packages`: one-line descriptions of Debian's packages, classed by section (`--source`: what `apt-cache dumpavail` prints).
`fortunes`: sayings of Debian's `fortunes`, classed by their file (`--source`: its folder).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

WORDNET = Path("/usr/share/wordnet")
PER_CLASS = 60  # texts
LEAST = 20  # texts of a class
CLASSES = 300  # of characters
SIDE = 96  # pixels


def glyphs(weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """MobileNetV2's features of the first classes of the embedded characters."""
    from dmlcore.data import load_table

    _, table = load_table("glyphs")
    rows = np.flatnonzero(table.labels < CLASSES)
    return _picture_features(table.samples.fetch(rows), weights), table.labels[rows]


def fonts(weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """MobileNetV2's features of embedded characters, and their fonts."""
    from tools import comparison_sets

    images, labels = comparison_sets.fonts()
    return _picture_features(torch.from_numpy(images)[:, None].float() / 255, weights), labels


def _picture_features(images: torch.Tensor, weights: Path) -> np.ndarray:
    """MobileNetV2's features [N, 1280] of grey pictures [N, 1, 32, 32] from 0 to 1."""
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.classifier = torch.nn.Sequential()
    network.eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    parts = []
    with torch.inference_mode():
        for batch in images.split(64):
            larger = torch.nn.functional.interpolate(batch, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
            parts.append(network((larger - mean) / std).numpy())
    return np.concatenate(parts)


def definitions(wordnet: Path = WORDNET) -> tuple[list[str], np.ndarray]:
    """Definitions of nouns and verbs, at most `PER_CLASS` of a class, and their labels: WordNet's files of them."""
    by_class: dict[int, list[str]] = {}
    for part in ("noun", "verb"):
        for line in (wordnet / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                by_class.setdefault(int(line.split()[1]), []).append(line.rpartition("|")[2].partition(";")[0].strip())
    return _some_of_each(by_class)


def packages(file: Path) -> tuple[list[str], np.ndarray]:
    """Descriptions of packages, at most `PER_CLASS` of a section, and their sections."""
    by_section: dict[str, list[str]] = {}
    for entry in file.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        text = next((fields[name] for name in ("Description-en", "Description") if name in fields), None)
        if text and "Section" in fields:
            by_section.setdefault(fields["Section"].rpartition("/")[2], []).append(text)
    return _some_of_each({section: sorted(set(own)) for section, own in by_section.items()})


def fortunes(folder: Path) -> tuple[list[str], np.ndarray]:
    """Sayings, at most `PER_CLASS` of a file, and the names of these."""
    files = sorted(path for path in folder.iterdir() if not path.suffix and path.with_suffix(".dat").exists())
    sayings = {path.name: path.read_text(encoding="utf-8").split("\n%\n") for path in files}
    return _some_of_each({name: [" ".join(text.split()) for text in own if text.strip()] for name, own in sayings.items()})


def _some_of_each(by_class: dict) -> tuple[list[str], np.ndarray]:
    """At most `PER_CLASS` texts of each class that has `LEAST`, and their classes."""
    generator = np.random.default_rng(0)
    texts, labels = [], []
    for label, own in sorted(by_class.items()):
        rows = generator.permutation(len(own))[:PER_CLASS]
        if len(rows) >= LEAST:
            texts += [own[row] for row in rows]
            labels += [label] * len(rows)
    return texts, np.array(labels)


def sentence_features(
    read: Callable[[Path], tuple[list[str], np.ndarray]], source: Path, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] of texts, and their classes by number.

    Args:
        read: gives texts and labels.
        source: of the texts.
        folder: of the encoder.
    """
    from sentence_transformers import SentenceTransformer

    texts, labels = read(source)
    features = SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=64, show_progress_bar=False)
    return np.asarray(features), np.unique(labels, return_inverse=True)[1]


PICTURES = {"glyphs": glyphs, "fonts": fonts}
TEXTS = {"glosses": definitions, "packages": packages, "fortunes": fortunes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*PICTURES, *TEXTS])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--source", type=Path, help=f"of texts (glosses: {WORDNET} where nothing is said)")
    options = parser.parse_args()
    if options.table in TEXTS and options.table != "glosses" and options.source is None:
        parser.error(f"{options.table} needs --source")
    if options.table in PICTURES:
        x, y = PICTURES[options.table](options.model)
    else:
        x, y = sentence_features(TEXTS[options.table], options.source or WORDNET, options.model)
    np.savez(options.out, x=x.astype(np.float16), y=y)
    print(f"{options.out}: {len(y)} samples of {len(np.unique(y))} classes, {x.shape[1]} numbers each")


if __name__ == "__main__":
    main()
