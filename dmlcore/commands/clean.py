"""`dmlcore clean`: what to look at in data: near duplicates, likely wrong labels, outliers, classes that overlap."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING, data_options
from dmlcore.commands.words import OVERWRITE, data_flags, loading
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

SHOWN = 5  # faults of a kind that are named


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        flag("data", str, "A data set's name, a path, or a file that `dmlcore embed` wrote.", is_positional=True),
        flag("model", str | None, "The model that tells what is similar (default: pixels, features or trigrams tell it)."),
        flag("out", Path | None, "A .csv to write, with a row for each fault."),
        flag("html", Path | None, "A page with pictures to write."),
        flag("find", str, "What to look for: `duplicate`, `label`, `outlier`, `overlap`, separated by commas.", "all"),
        flag("k", int, "Neighbours that are asked about a label.", 10),
        flag("alike", float | None, "Similarity of near duplicates (default: 0.97 of pictures, 0.998 of other vectors)."),
        flag("far", float, "Robust standard deviations from which a sample is an outlier.", 4.0),
        *data_flags(line, "clean", 0),
        OVERWRITE,
        *LOADING,
        *COMMON,
    ]
    app.command(
        command(_clean, flags, "Find near duplicates, likely wrong labels, outliers and overlaps in data."), name="clean"
    )


def _clean(
    data: str,
    *,
    model: str | None,
    out: Path | None,
    html: Path | None,
    find: str,
    k: int,
    alike: float | None,
    far: float,
    overwrite: bool,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    from dmlcore.files import check_new, expanded, make_folder, write_atomically
    from dmlcore.serving import load
    from dmlcore.serving.clean import KINDS, Subject, faults_csv, find_faults, subject_of
    from dmlcore.serving.clean_page import clean_page
    from dmlcore.serving.entries import is_embeddings, normalised, read_embeddings

    for path, option, ending in ((out, "out", ".csv"), (html, "html", ".html")):
        if path is not None:
            check_new(path, [ending], option, overwrite=overwrite)
    kinds = KINDS if find == "all" else tuple(word.strip() for word in find.split(","))
    how = loading(values)
    if model is None and is_embeddings(expanded(data)):
        subject = Subject(normalised(read_embeddings(data)))
    else:
        subject = subject_of(data, load(model, **how) if model is not None else None, data_options(values))
    faults = find_faults(subject, k=k, alike=alike, far=far, kinds=kinds)
    for path, content in ((out, faults_csv), (html, lambda s, f: clean_page(s, f, data))):
        if path is not None:
            make_folder(path.parent)
            write_atomically(path, content(subject, faults))
    if json:
        about = {"data": data, "samples": faults.samples, "found": faults.counts()}
        console.show_json({**about, "faults": [dataclasses.asdict(fault) for fault in faults.faults], "notes": faults.notes})
        return 0
    for note in faults.notes:
        console.say(note)
    _show(subject, faults)
    for path, words in ((out, "Written"), (html, "Look at it")):
        if path is not None:
            console.show(f"{words}: {path}")
    return 0


def _show(subject: Any, faults: Any) -> None:
    from dmlcore.serving.clean_page import TITLES

    entries = subject.entries
    for kind, count in faults.counts().items():
        console.show(
            f"{TITLES[kind]}: {count:,} of {faults.samples:,} samples" if kind != "overlap" else f"{TITLES[kind]}: {count:,}"
        )
        for fault in [fault for fault in faults.faults if fault.kind == kind][:SHOWN]:
            names = [
                entries.path[position] if entries.path is not None else f"row {entries.row[position]}"
                for position in (fault.position, fault.other)
                if position is not None and (kind != "overlap")
            ]
            console.show("  " + "  ".join(filter(None, [f"{fault.score:.3f}", *names, fault.note])))
