"""Builds `glyphs.npz` from the fonts of Debian packages: a developer's script, not the loader.

    python -m tools.glyphs.build --print-packages      # what to install, name=version
    python -m tools.glyphs.build --fonts /usr/share/fonts --out glyphs.npz

The same fonts (`fonts.csv` records their sha256) and the same Pillow give the same file, bit for bit: every number
that decides something is an integer, or one correctly rounded float64 operation on exact integers, so neither the BLAS
nor the order of a sum matters, and "random" orders are orders of sha256 digests. `--record` chooses the fonts anew.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import re
import sys
import unicodedata
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from dmlcore_plugins.data.glyphs.characters import SHA256
from PIL import Image, ImageDraw, ImageFont, features

from dmlcore.errors import DataError
from tools.glyphs.fonts import COLUMNS, Font, recorded, survey

FONT_LIST = Path(__file__).parents[2] / "plugins" / "dmlcore_plugins" / "data" / "glyphs" / "fonts.csv"
PILLOW, FREETYPE = "13.0.0", "2.14.3"  # what the recorded file was rendered with; other FreeTypes move pixels

SIZE, INK, EM, LEVELS = 32, 28, 72, 16  # pixels, pixels of the longest side, pixels rendered per em, grey levels
SAMPLES_MIN, SAMPLES_MAX = 6, 16  # images a class
DUPLICATE = 0.92  # blurred cosine from which two images of a class count as one; sets how hard the data set is
UNICASE = 0.90  # blurred cosine from which a small letter is drawn as its capital
HOMOGLYPH, HOMOGLYPH_FONTS = 0.97, 0.30  # two characters of one font look alike; in more than this share of fonts
FONT_ACCURACY = 0.45  # of nearest class centroids; below it a font's letters are not what their code points say
UNASSIGNED = "\u0378\U0010fffe"  # no font has these, so they show the font's .notdef
SEED = "glyphs 0"

LATIN_EXTENDED = "ÆæŒœØøßÐðÞþĐđŁłĦħŊŋıſƒƏəƎǝƆɔƐɛƔɣƱʊƷʒẞŦŧɐɑɒɓɖɗɘɚɜɞɟɠɢɥɨɮɯɰɱɲɳɵɶɸɹɺɾʁʂʃʇʈʌʍʎʔʕ"
CYRILLIC_EXTENDED = "ЁЂЃЄЅІЇЈЉЊЋЌЎЏђѓєѕіїјљњћќўџѢѣѪѫѲѳѴѵҐґҒғҖҗҘҙҚқҜҝҠҡҢңҤҥҪҫҮүҰұҲҳҴҵҶҷҸҹҺһӀӘәӔӕӨөӠӡӋӌ"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~¡¢£¤¥¦§©«¬®°±¶·»¿×÷€₤₦₩₪₫₱₴₹₽‰†‡•…‹›№™∂∆∏∑√∞∫≈≠≤≥◊µ"

Character = tuple[str, str]  # (script, character)
Glyphs = dict[int, np.ndarray]  # what one font draws: index of the character -> [32, 32] uint8 levels 0..15


def inventory() -> list[Character]:
    """All (script, character) candidates. Of two homoglyphs the earlier one stays."""

    def span(first: int, last: int) -> str:
        return "".join(map(chr, range(first, last + 1)))

    def sample(script: str, candidates: str, count: int) -> str:
        return "".join(sorted(sorted(candidates, key=lambda c: digest(script, c))[:count]))

    def without_small(kana: str) -> str:  # scaled up, a small letter is the large one
        return "".join(c for c in kana if not re.search("SMALL", unicodedata.name(c)))

    def legacy(codec: str, rows: range) -> str:
        codes = (bytes((row, column)) for row in rows for column in range(0xA1, 0xFF))
        return "".join(code.decode(codec, "ignore") for code in codes)

    scripts = {
        "Latin": span(0x41, 0x5A) + span(0x61, 0x7A) + span(0x30, 0x39),
        "Latin extended": LATIN_EXTENDED,
        "Greek": span(0x391, 0x3A1) + span(0x3A3, 0x3A9) + span(0x3B1, 0x3C9),
        "Cyrillic": span(0x410, 0x44F),
        "Cyrillic extended": CYRILLIC_EXTENDED,
        "Hebrew": span(0x5D0, 0x5EA),
        "Ethiopic": "".join(chr(c + vowel) for vowel in (0, 3) for c in range(0x1200, 0x1358, 8)),
        "Punctuation": PUNCTUATION,
        "Hiragana": without_small(span(0x3042, 0x3093)),
        "Katakana": without_small(span(0x30A2, 0x30F3)),
        "Hangul": sample("Hangul", legacy("euc_kr", range(0xB0, 0xC9)), 260),
        "Kanji": sample("Kanji", legacy("euc_jp", range(0xB0, 0xD0)), 260),
    }
    return [(script, c) for script, characters in scripts.items() for c in dict.fromkeys(characters)]


def digest(*parts: str) -> str:
    """A reproducible stand-in for a random number: the sha256 of the parts and the seed."""
    return hashlib.sha256("\0".join((SEED, *parts)).encode()).hexdigest()


def render(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """One character as `[32, 32]` uint8 levels 0..15: cropped to its ink, longest side 28 pixels, centred.

    Returns None when the font draws nothing. Case and baseline are no cue afterwards, on purpose.
    """
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    page = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(page).text((4 - left, 4 - top), character, font=font, fill=255)
    box = page.getbbox()
    if box is None:
        return None
    ink = page.crop(box)
    longest = max(ink.size)
    width, height = (max(1, (2 * INK * side + longest) // (2 * longest)) for side in ink.size)
    image = Image.new("L", (SIZE, SIZE))
    image.paste(ink.resize((width, height), Image.Resampling.BICUBIC), ((SIZE - width) // 2, (SIZE - height) // 2))
    return ((np.asarray(image, np.int64) * (LEVELS - 1) + 127) // 255).astype(np.uint8)


def render_font(path: Path, face: int, characters: list[Character]) -> Glyphs:
    """Index in `characters` -> image, without the characters that the font lacks or draws as a placeholder."""
    font = ImageFont.truetype(str(path), EM, index=face, layout_engine=ImageFont.Layout.BASIC)
    missing = {image.tobytes() for c in UNASSIGNED if (image := render(font, c)) is not None}
    images: Glyphs = {}
    tried: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    for index, (script, character) in enumerate(characters):
        if tried[script] >= 8 and not drawn[script]:
            continue  # the font does not cover this script
        tried[script] += 1
        image = render(font, character)
        if image is not None and image.tobytes() not in missing:
            images[index] = image
            drawn[script] += 1
    uses = Counter(image.tobytes() for image in images.values())
    return {index: image for index, image in images.items() if uses[image.tobytes()] <= 4}


def blur(images: np.ndarray) -> np.ndarray:
    """Gaussian of .8 pixels on `[N, 32, 32]` levels as an integer kernel. Returns `[N, 1024]` float64, exact integers."""
    kernel = (1, 15, 32, 15, 1)
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (2, 2)
        padded = np.pad(images.astype(np.int64), padding)
        images = np.sum([w * np.take(padded, range(k, k + SIZE), axis) for k, w in enumerate(kernel)], axis=0)
    return images.reshape(len(images), -1).astype(np.float64)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N, D]`, `[M, D]` of integers in float64 -> `[N, M]`. Exact up to the final division (sums stay below 2**53)."""
    return (a @ b.T) / (np.sqrt((a * a).sum(1))[:, None] * np.sqrt((b * b).sum(1))[None, :])


def is_unicase(images: dict[str, np.ndarray]) -> bool:
    """Whether small letters are drawn as capitals: more than a third of nine pairs look alike."""
    pairs = [(images[c], images[c.upper()]) for c in "abdeghnqr" if c in images and c.upper() in images]
    if not pairs:
        return False
    small, capital = (blur(np.stack(side)) for side in zip(*pairs, strict=True))
    return bool(3 * (np.diag(cosines(small, capital)) > UNICASE).sum() > len(pairs))


def homoglyphs(glyphs: list[Glyphs], count: int) -> set[int]:
    """Classes to drop: same-font cosine > .97 with an earlier kept class in more than 30 % of the fonts with both.

    Args:
        glyphs: for each font, class -> `[32, 32]` levels.
        count: number of classes.
    """
    both, alike = (np.zeros((count, count), np.int64) for _ in range(2))
    for images in glyphs:
        classes = np.array(sorted(images), np.int64)
        if len(classes):
            x = np.stack([images[c] for c in classes]).reshape(len(classes), -1).astype(np.float64)
            both[np.ix_(classes, classes)] += 1
            alike[np.ix_(classes, classes)] += cosines(x, x) > HOMOGLYPH
    same = alike > HOMOGLYPH_FONTS * both
    dropped: set[int] = set()
    for c in range(count):
        if any(other < c and other not in dropped for other in np.flatnonzero(same[c])):
            dropped.add(c)
    return dropped


def misdrawn(glyphs: list[Glyphs], scripts: list[str]) -> set[tuple[int, str]]:
    """(font, script) pairs whose images lie nearest to their own class's centroid in less than 45 % of the cases."""
    centroids = np.zeros((len(scripts), SIZE * SIZE))
    for images in glyphs:
        if images:
            centroids[list(images)] += blur(np.stack(list(images.values())))
    centroids //= 16  # keeps sums of squares below 2**53
    wrong = set()
    for font, images in enumerate(glyphs):
        for script in dict.fromkeys(scripts[c] for c in images):
            classes = np.array([c for c in images if scripts[c] == script])
            rivals = np.array([c for c, s in enumerate(scripts) if s == script and centroids[c].any()])
            nearest = rivals[cosines(blur(np.stack([images[c] for c in classes])), centroids[rivals]).argmax(1)]
            if (nearest == classes).sum() < FONT_ACCURACY * len(classes):
                wrong.add((font, script))
    return wrong


def distinct(images: np.ndarray) -> list[int]:
    """Indices of at most 16 of `[N, 32, 32]`, taken in order, each with blurred cosine < .92 to all taken before."""
    x = blur(images)
    similar = cosines(x, x)
    distinct_images: list[int] = []
    for index in range(len(images)):
        if len(distinct_images) < SAMPLES_MAX and not (similar[index, distinct_images] >= DUPLICATE).any():
            distinct_images.append(index)
    return distinct_images


def choose(names: list[str], glyphs: list[Glyphs], characters: list[Character]) -> list[tuple[int, int]]:
    """Cleans the rendered glyphs: the recipe's steps 2 to 5. Returns the (class, font) pairs that stay, sorted."""
    scripts = [script for script, _ in characters]
    glyphs = [{} if is_unicase({characters[c][1]: g[c] for c in g}) else dict(g) for g in glyphs]
    wrong = misdrawn(glyphs, scripts)
    glyphs = [{c: image for c, image in g.items() if (font, scripts[c]) not in wrong} for font, g in enumerate(glyphs)]
    dropped = homoglyphs(glyphs, len(characters))
    classes_of = defaultdict(set)
    for images in glyphs:
        for c, image in images.items():
            if c not in dropped:
                classes_of[image.tobytes()].add(c)
    samples = []
    for c in sorted(set(range(len(characters))) - dropped):
        fonts = [f for f, images in enumerate(glyphs) if c in images and len(classes_of[images[c].tobytes()]) == 1]
        fonts.sort(key=lambda f: digest(characters[c][1], names[f]))
        if len(fonts) >= SAMPLES_MIN:
            places = distinct(np.stack([glyphs[f][c] for f in fonts]))
            if len(places) >= SAMPLES_MIN:
                samples += [(c, f) for f in sorted(fonts[i] for i in places)]
    return samples


def pack(names: list[str], glyphs: list[Glyphs], characters: list[Character], samples: list[tuple[int, int]]) -> bytes:
    """The bytes of the npz: two 4-bit pixels a byte (left one high), no pickles, fixed zip dates."""
    classes = sorted({c for c, _ in samples})
    script_names = list(dict.fromkeys(characters[c][0] for c in classes))
    levels = np.stack([glyphs[f][c] for c, f in samples]).reshape(len(samples), -1)
    arrays = {
        "images": levels[:, ::2] << 4 | levels[:, 1::2],  # [N, 512]
        "labels": np.array([classes.index(c) for c, _ in samples], np.int16),
        "fonts": np.array([f for _, f in samples], np.int16),
        "class_names": np.array([characters[c][1] for c in classes]),
        "class_codepoints": np.array([ord(characters[c][1]) for c in classes], np.int32),
        "class_scripts": np.array([script_names.index(characters[c][0]) for c in classes], np.uint8),
        "script_names": np.array(script_names),
        "font_names": np.array(names),
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return file.getvalue()


def build(fonts: list[Font], recording: bool) -> tuple[bytes, list[Font]]:
    """Renders and cleans. Returns the npz's bytes and the fonts in its table: all, or when recording the ones used."""
    characters = inventory()
    glyphs = []
    for number, font in enumerate(fonts, 1):
        glyphs.append(render_font(font.path, int(font.row["face"]), characters))
        print(f"\r{number}/{len(fonts)} fonts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    while True:
        names = [font.row["family"] for font in fonts]
        samples = choose(names, glyphs, characters)
        used = sorted({f for _, f in samples})
        if not recording or len(used) == len(fonts):
            return pack(names, glyphs, characters, samples), fonts
        fonts, glyphs = [fonts[f] for f in used], [glyphs[f] for f in used]


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.glyphs.build", description=(__doc__ or "").split("\n")[0])
    folders = {"type": Path, "action": "extend", "nargs": "+", "default": [], "metavar": "DIR"}
    parser.add_argument("--fonts", **folders, help="where the fonts are, at any depth")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="the file to write")
    parser.add_argument("--print-packages", action="store_true", help="print the packages to install, name=version, and stop")
    record = "choose the fonts anew and write fonts.csv; DIR then holds a folder NAME_VERSION_all per package; needs fontTools"
    parser.add_argument("--record", action="store_true", help=record)
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """What the options ask for. Returns the exit status."""
    rows = list(csv.DictReader(FONT_LIST.open(encoding="utf-8"))) if FONT_LIST.exists() else []
    if options.print_packages:
        print(*sorted({f"{row['package']}={row['version']}" for row in rows}), sep="\n")
        return 0
    if not options.fonts or not options.out:
        raise DataError("--fonts DIR and --out FILE.npz are needed; see --help")
    if not rows and not options.record:
        raise DataError(f"{FONT_LIST.name} is missing; --record makes it")
    fonts = list(survey(options.fonts)) if options.record else recorded(rows, options.fonts)
    data, fonts = build(fonts, options.record)
    options.out.write_bytes(data)
    digest_of_file = hashlib.sha256(data).hexdigest()
    print(f"{options.out}: {len(data):,} bytes, sha256 {digest_of_file}")
    if options.record:
        with FONT_LIST.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(font.row for font in fonts)
    elif digest_of_file != SHA256:
        versions = f"Pillow {features.version('pil')}, FreeType {features.version('freetype2')}"
        raise DataError(f"expected sha256 {SHA256}, made with Pillow {PILLOW}, FreeType {FREETYPE}; this is {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
