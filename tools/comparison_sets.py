"""`python -m tools.comparison_sets NAME OUT.npz --source PATH [--model PATH]`: data sets for `python -m benchmarks defaults`,
made from public packages.

`icons`: drawings of one thing by many icon sets, 32 x 32 grey. A class is a name that at least eight sets have, such as `bell`.
`--source` is a folder with SET/icons.json from the packages `@iconify-json/SET`. Rendered by resvg.
`icon_features`: the same drawings at 112 pixels through EfficientNet-lite0 (`--model`: its weights, a .pth file).
`letters`: 16 measured numbers of printed letters, 26 classes, from `LetterRecognition.rda` (`--source`) of R's mlbench.
`fonts`: the embedded characters of 327 fonts, and the font is the class. Fonts with fewer than 20 characters are left out.
`glosses`, `packages`, `fortunes`: a CSV of the texts of that table of `tools.feature_tables` (`--source`: as there).

"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

SIDE, FEATURE_SIDE = 32, 112  # pixels
LEAST_SETS, MOST_SETS, MOST_CLASSES = 8, 16, 400
SAME_DRAWING = 0.95  # cosine of two drawings of a class: the later one is left out
SAME_CLASS, SAME_SHARE = 0.97, 0.3  # classes that so many sets draw alike are synonyms, and the rarer one is left out
BOX = ("left", "top", "width", "height")
ENDINGS = ("", "-outline", "-line", "-regular", "-linear", "-24", "-24-regular", "-outlined", "-o")
PER_LETTER = 60
LEAST_OF_FONT, MOST_OF_FONT = 20, 40


def _drawing(data: dict, name: str) -> str | None:
    """The drawing of a name in a set as SVG, in its plain form where there are several."""
    icons = data["icons"]
    icon = next((icons[name + ending] for ending in ENDINGS if name + ending in icons), None)
    if icon is None:
        return None
    left, top, width, height = (({"left": 0, "top": 0, "width": 16, "height": 16} | data | icon)[key] for key in BOX)
    body = icon["body"].replace("currentColor", "#000")
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{body}</svg>'


def icons(folder: Path, side: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Drawings uint8 [N, side, side], labels and class names. Which drawings are kept does not depend on `side`."""
    resvg, image = importlib.import_module("resvg_py"), importlib.import_module("PIL.Image")
    sets = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/icons.json"))}

    def names_of(icons_of_set: dict) -> set[str]:
        return {name.removesuffix(ending) for name in icons_of_set for ending in ENDINGS if name.endswith(ending)}

    frequency = Counter(name for data in sets.values() for name in names_of(data["icons"]))
    names = sorted(name for name, count in frequency.items() if count >= LEAST_SETS)

    def render(data: dict, name: str, pixels: int) -> np.ndarray | None:
        if (svg := _drawing(data, name)) is None:
            return None
        png = resvg.svg_to_bytes(svg_string=svg, width=pixels, height=pixels, background="white")
        return 255 - np.asarray(image.open(io.BytesIO(bytes(png))).convert("L").resize((pixels, pixels)))

    def normal(drawing: np.ndarray) -> np.ndarray:
        values = drawing.astype(np.float32).ravel()
        return values / max(float(np.linalg.norm(values)), 1e-6)

    drawn: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for set_name, data in sets.items():
        for name in names:
            if (drawing := render(data, name, SIDE)) is not None and drawing.any():
                drawn[name][set_name] = drawing
    left_out = _synonyms({name: {key: normal(d) for key, d in own.items()} for name, own in drawn.items()})
    pictures, labels, class_names = [], [], []
    for name in sorted((n for n in drawn if n not in left_out), key=lambda n: (-len(drawn[n]), n)):
        own: list[str] = []
        for set_name, drawing in drawn[name].items():
            if all(normal(drawing) @ normal(drawn[name][other]) < SAME_DRAWING for other in own) and len(own) < MOST_SETS:
                own.append(set_name)
        if len(own) >= LEAST_SETS and len(class_names) < MOST_CLASSES:
            pictures += [drawn[name][key] if side == SIDE else render(sets[key], name, side) for key in own]
            labels += [len(class_names)] * len(own)
            class_names.append(name)
    return np.stack(pictures), np.array(labels), class_names


def _synonyms(drawn: dict[str, dict[str, np.ndarray]]) -> set[str]:
    """Names that at least `SAME_SHARE` of the sets with both draw like a more frequent name, such as cog and settings."""
    alike: Counter[tuple[str, str]] = Counter()
    for set_name in {key for own in drawn.values() for key in own}:
        names = [name for name in sorted(drawn) if set_name in drawn[name]]
        rows = np.stack([drawn[name][set_name] for name in names])
        for i, j in zip(*np.nonzero(np.triu(rows @ rows.T > SAME_CLASS, 1)), strict=True):
            alike[names[i], names[j]] += 1
    left_out = set()
    for (first, second), count in alike.items():
        if count >= SAME_SHARE * len(drawn[first].keys() & drawn[second].keys()):
            left_out.add(min(first, second, key=lambda name: (len(drawn[name]), name)))
    return left_out


def icon_features(folder: Path, weights: Path) -> tuple[np.ndarray, np.ndarray]:
    """EfficientNet-lite0's features [N, 1280] of the icons."""
    pictures, labels, _ = icons(folder, FEATURE_SIDE)
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 64):
            images = 1 - torch.from_numpy(pictures[start : start + 64]).float()[:, None].expand(-1, 3, -1, -1) / 255
            places = network.extract_features((images - 0.498) / 0.502)  # [b, 1280, h, w]
            parts.append(places.mean((2, 3)).numpy())
    return np.concatenate(parts), labels


def letters(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """16 numbers of each letter, scaled to 0..1, at most `PER_LETTER` a class."""
    table = importlib.import_module("rdata").read_rda(file)["LetterRecognition"]
    labels = np.unique(np.asarray(table["lettr"], dtype=str), return_inverse=True)[1]
    x = table.drop(columns="lettr").to_numpy(dtype=np.float32) / 15
    order = np.random.default_rng(0).permutation(len(labels))
    rows = np.sort(np.concatenate([order[labels[order] == label][:PER_LETTER] for label in range(26)]))
    return x[rows], labels[rows]


def fonts() -> tuple[np.ndarray, np.ndarray]:
    """Embedded characters uint8 [N, 32, 32] and their fonts."""
    characters = importlib.import_module("dmlcore_plugins.data.glyphs.characters")
    loaded = characters.load()
    owners = np.asarray(loaded.fonts)
    order = np.random.default_rng(0).permutation(len(owners))
    rows = [order[owners[order] == font][:MOST_OF_FONT] for font in range(owners.max() + 1)]
    rows = [own for own in rows if len(own) >= LEAST_OF_FONT]
    labels = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    return np.asarray(loaded.images)[np.concatenate(rows)], labels


def texts(name: str, source: Path, out: Path) -> str:
    """A CSV of `text`, `label`: what `tools.feature_tables` makes features of."""
    from tools.feature_tables import TEXTS

    rows, labels = TEXTS[name](source)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(rows, labels.tolist(), strict=True)])
    return f"{out}: {len(labels)} texts of {len(np.unique(labels))} classes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["icons", "icon_features", "letters", "fonts", "glosses", "packages", "fortunes"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if options.name in ("glosses", "packages", "fortunes"):
        print(texts(options.name, options.source, options.out))
        return
    if options.name == "icons":
        x, y, _ = icons(options.source, SIDE)
    elif options.name == "icon_features":
        x, y = icon_features(options.source, options.model)
    else:
        x, y = letters(options.source) if options.name == "letters" else fonts()
    np.savez_compressed(options.out, x=x.astype(np.float16) if options.name == "icon_features" else x, y=y)
    print(f"{options.out}: {len(y)} samples of {len(np.unique(y))} classes, {x.shape[1:]} each, {x.dtype}")


if __name__ == "__main__":
    main()
