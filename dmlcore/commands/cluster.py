"""`dmlcore cluster`: groups of similar samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console
from dmlcore.commands.line import CommandLine
from dmlcore.commands.trained import LOADING, data_options
from dmlcore.commands.words import OVERWRITE, data_flags, loading, words_flag
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl

SHOWN = 15  # groups of the table


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    flags = [
        words_flag("MODEL DATA, or a file that `dmlcore embed` wrote."),
        flag("by", str, "`kmeans`, `agglomerative` or `hdbscan`.", "kmeans"),
        flag("count", int | None, "Clusters (default: as many as classes, else the number with the highest silhouette)."),
        flag("least", int, "Entries of a group of hdbscan, at least.", 5),
        flag("seed", int, "Seed of what is drawn.", 0),
        flag("out", Path | None, "A .csv to write, with a row for each sample."),
        *data_flags(line, "cluster", 1),
        OVERWRITE,
        *LOADING,
        *COMMON,
    ]
    app.command(command(_cluster, flags, "Group similar samples, and compare groups with labels."), name="cluster")


def _cluster(
    *words: str,
    by: str,
    count: int | None,
    least: int,
    seed: int,
    out: Path | None,
    overwrite: bool,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    from dmlcore.files import check_new, make_folder, write_atomically
    from dmlcore.serving import gather, load
    from dmlcore.serving.cluster import cluster, clusters_csv

    if not 1 <= len(words) <= 2:
        raise ConfigError("`dmlcore cluster` needs MODEL DATA, or a file of embeddings. See `dmlcore cluster --help`.")
    if out is not None:
        check_new(out, [".csv"], "out", overwrite=overwrite)
    how = loading(values)
    model = load(words[0], **how) if len(words) == 2 else None
    entries = gather(words[-1], model, data_options(values))
    clusters = cluster(entries, by=by, count=count, least=least, seed=seed)
    if out is not None:
        make_folder(out.parent)
        write_atomically(out, clusters_csv(entries, clusters))
    if json:
        about = {"by": by, "clusters": clusters.count, "reason": clusters.reason, **clusters.measures}
        console.show_json({**about, "numbers": clusters.numbers, "notes": clusters.notes})
        return 0
    for note in clusters.notes:
        console.say(note)
    console.show_sentences(f"{clusters.count:,} clusters of {len(entries):,} samples by {by} ({clusters.reason})")
    rows = []
    for number in range(min(clusters.count, SHOWN)):
        members = (clusters.numbers == number).nonzero()[0].tolist()
        names = Counter(entries.label[row] for row in members) if entries.label is not None else Counter()
        rows.append([str(number), f"{len(members):,}", ", ".join(f"{name} ({size:,})" for name, size in names.most_common(3))])
    console.show_table(["cluster", "samples", "labels"], rows)
    if clusters.count > SHOWN:
        console.show(f"{clusters.count - SHOWN:,} more are not shown; --out and --json have them.")
    if clusters.measures:
        console.show(
            "  ".join(f"{name.upper() if name != 'purity' else name} {value:.3f}" for name, value in clusters.measures.items())
        )
    if out is not None:
        console.show(f"Written: {out}")
    return 0
