"""The fonts behind `glyphs.npz`: finding the recorded ones, and choosing them anew by licence. No rendering here."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dmlcore.errors import DataError

COLUMNS: tuple[str, ...] = ("family", "file", "face", "package", "version", "licence", "licence_read_from", "sha256")

LICENCES = {  # what a face's own licence field, or the package's copyright file, may name
    "OFL": r"SIL Open ?Font|Open Font License|scripts\.sil\.org/OFL|openfontlicense\.org|\bOFL\b",
    "Apache-2.0": r"\bApache\b",
    "Bitstream Vera": r"bitstream[ -]vera|Copyright \(c\) 2003 by Bitstream",
    "MIT": r"\bMIT\b(?!-like)|\bExpat\b|free of charge, to any person obtaining a copy of this software",
    "GUST": r"GUST[ -]Font",
    "IPA": r"IPA[ _-]?Font[ _-]?License|IPA-1|\bIPA\b",
    "public domain": r"public[ -]domain",
}
REFUSED = r"\bL?A?GPL|General Public|Creative Commons|\bCC[ -]BY|non-?commercial|proprietary|ParaType"
METADATA = r"debian/|.*\.(xml|txt|md|html|py|sh|pe|am|in|ac|m4)$|.*(appdata|metainfo|Makefile|configure|install-sh)"


class Font(NamedTuple):
    """One row of `fonts.csv` and where its file lies."""

    row: dict[str, str]
    path: Path


def recorded(rows: list[dict[str, str]], folders: list[Path]) -> list[Font]:
    """The fonts of `fonts.csv` in the folders.

    Raises:
        DataError: a font is missing, or none of the files of its name has the recorded sha256.
    """
    paths = defaultdict(list)
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            paths[path.name].append(path)
    fonts = []
    for row in rows:
        description = f"{row['file']} of package {row['package']}={row['version']}"
        if row["file"] not in paths:
            places = ", ".join(map(str, folders))
            raise DataError(f"font {description} is not in {places}; --print-packages lists what to install")
        same = [path for path in paths[row["file"]] if sha256(path) == row["sha256"]]
        if not same:
            raise DataError(f"{paths[row['file']][0]} is not the recorded {description}: sha256 differs; install that version")
        fonts.append(Font(row, same[0]))
    return fonts


def survey(folders: list[Path]) -> Iterator[Font]:
    """One upright face nearest weight 400 per family, freely licensed. Needs fontTools. See `--record`."""
    from fontTools.ttLib import TTFont  # pyright: ignore[reportMissingImports]

    best: dict[str, tuple[tuple, Font]] = {}
    for package in sorted((p for folder in folders for p in folder.iterdir() if "_" in p.name), key=lambda p: p.name):
        name, version = package.name.split("_")[:2]
        copyright_file = "".join(p.read_text(errors="replace") for p in sorted(package.glob("usr/share/doc/*/copyright")))
        for path in sorted(p for p in package.rglob("*") if p.suffix.lower() in {".ttf", ".otf", ".ttc", ".otc"}):
            if path.is_symlink():
                continue
            for face in range(4 if path.read_bytes()[:4] == b"ttcf" else 1):
                try:
                    table = TTFont(path, fontNumber=face, lazy=True)
                    names, covered = table["name"], table.getBestCmap() or {}
                    metrics: Any = table["OS/2"]
                except Exception:  # a damaged or unusual font is no candidate
                    continue
                text = {key: names.getDebugName(key) or "" for key in (0, 1, 2, 4, 13, 14, 16)}
                upright = not (metrics.fsSelection & 1 or re.search("ital|obli|slant", text[4] + text[2] + path.name, re.I))
                licence = licence_of(f"{text[13]}\n{text[14]}\n{text[0]}", copyright_file)
                # few Korean designs are free, so there every weight counts as a family
                family = text[4] if 0xAC01 in covered else family_of(text[16] or text[1])
                if not (upright and licence and family) or re.search("CJK (KR|SC|TC|HK)|Mono CJK", family):
                    continue
                rank = (abs(metrics.usWeightClass - 400), abs(metrics.usWidthClass - 5), path.name, face, name)
                if family not in best or rank < best[family][0]:
                    values = (family, path.name, str(face), name, version.replace("%3a", ":"), *licence, sha256(path))
                    best[family] = rank, Font(dict(zip(COLUMNS, values, strict=True)), path)
    return iter(font for _, (_, font) in sorted(best.items()))


def family_of(name: str) -> str:
    """A family's name without the words for weight that older fonts keep in it, and YOz faces as one per package."""
    words = "Thin|Extra ?Light|Ultra ?Light|Light|Book|Regular|Roman|Medium|Semi ?Bold|Demi|Bold|Extra ?Bold|Black|Heavy"
    name = re.sub(rf"(?:[ -](?:{words}))+$", "", name.strip(), flags=re.IGNORECASE)
    return re.sub(r"^(YOz[A-Z]).*", r"\1", name)


def licences_named(text: str) -> list[str]:
    """The allowed licences that a text names."""
    return [name for name, pattern in LICENCES.items() if re.search(pattern, text, re.IGNORECASE)]


def licence_of(field: str, copyright_file: str) -> tuple[str, str] | None:
    """(licence, where it was read) of a face, or None when it is refused: not named, or not an allowed one.

    Args:
        field: the face's licence, licence URL and copyright strings (name table 13, 14 and 0). What they name decides.
        copyright_file: the Debian package's. It is asked only when the face names no licence of any kind. Every stanza
            about fonts must then name an allowed licence.
    """
    refused = re.search(REFUSED, field, re.IGNORECASE) and not re.search(r"\beither\b.*\bor\b", field, re.IGNORECASE)
    if named := licences_named(field):
        return None if refused else (named[0], "face")
    if refused or re.search("licen[cs]|permission|free software", field, re.IGNORECASE):
        return None
    stanzas = [
        dict(re.findall(r"^(Files|License):[ \t]*((?:.*(?:\n[ \t]+(?!\.).*)*))", stanza, re.MULTILINE))
        for stanza in re.split(r"\n\s*\n", copyright_file)
    ]
    stanzas = [s for s in stanzas if "Files" in s and not all(re.match(METADATA, f) for f in s["Files"].split())]
    first = [s.get("License", "").split("\n")[0] for s in stanzas]
    if stanzas:
        accepted = [[name for part in line.split(" or ") if (name := all_named(part))] for line in first]
        if all(accepted):
            return accepted[0][0], "Debian copyright file"
    elif named := licences_named(copyright_file):
        if not re.search(REFUSED, copyright_file, re.IGNORECASE):
            return named[0], "Debian copyright file"
    return None


def all_named(line: str) -> str:
    """`OFL-1.1 and MIT` -> "OFL and MIT". Empty when any licence of the conjunction is not an allowed one."""
    parts = [licences_named(part) for part in line.split(" and ")]
    return " and ".join(part[0] for part in parts) if all(parts) else ""


def sha256(path: Path) -> str:
    """The file's digest, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
