"""`dmlcore index`: build an index to search in, look at one, add to it, remove from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from dmlcore import console, launch
from dmlcore.commands.line import CommandLine
from dmlcore.commands.sharing import SHARING, started
from dmlcore.commands.trained import LOADING, data_options
from dmlcore.commands.words import data_flags, list_flag, loading, words_flag
from dmlcore.errors import ConfigError
from dmlcore.flags import COMMON, command, flag
from dmlcore.hookspecs import hookimpl


@hookimpl
def dmlcore_commands(app: App, line: CommandLine) -> None:
    is_built = line.command == "index" and not {"add", "remove"} & line.values_of("add", "remove").keys()
    flags = [
        words_flag("MODEL GALLERY, or a file that `dmlcore embed` wrote, to build an index; the folder of an index otherwise."),
        flag("out", Path | None, "The new folder to write the index to."),
        flag("kind", str | None, "`flat`, `hnsw`, `ivf-flat` or `ivf-pq` (default: by size and memory)."),
        flag("memory", float, "Gigabytes that searching may take in memory.", 2.0),
        flag("seed", int, "Seed of what is drawn.", 0),
        list_flag("add", "Data, or a file of embeddings, to add. An entry of the same path is replaced."),
        list_flag("remove", "Remove the entries that meet this condition, such as `label=cup` or `path=a.jpg`."),
        flag("model", str | None, "The model that embeds what is added (default: the one that the index was built with)."),
        *(data_flags(line, "index", 1) if is_built else []),
        *LOADING,
        *SHARING,
        *COMMON,
    ]

    def index(*words: str, out: Path | None, processes: int, timeout: str, **values: Any) -> int:
        if out is None and (processes > 1 or launch.place().size > 1):
            raise ConfigError("processes can share the building of an index; it is changed by one")
        if (status := started(processes, line.words)) is not None:
            return status
        from dmlcore.serving.processes import sharing

        asked = values["device"]
        with sharing(asked, timeout) as device:  # a GPU for each process, unless none was asked for
            return _index(*words, out=out, gpu="auto" if asked == "auto" else device, **{**values, "device": device})

    app.command(command(index, flags, "Build an index to search in, look at one, add to it or remove from it."), name="index")


def _index(
    *words: str,
    out: Path | None,
    kind: str | None,
    memory: float,
    seed: int,
    add: list[str] | None,
    remove: list[str] | None,
    model: str | None,
    gpu: str,
    json: bool,
    debug: bool,
    **values: Any,
) -> int:
    if out is None and len(words) == 1:
        change = _change(words[0], add or [], remove or [], model, loading(values), gpu)
        console.show_json(change) if json else _show_change(words[0], change)
        return 0
    if out is None:
        raise ConfigError(
            "`dmlcore index` needs --out DIR with MODEL GALLERY or a file of embeddings to build an index, or the folder of one"
        )
    if add or remove or model or not 1 <= len(words) <= 2:
        raise ConfigError(
            "with --out an index is built: give MODEL GALLERY, or one file of embeddings, and no --add or --remove"
        )
    about = _build(words, out, kind, memory, seed, loading(values), data_options(values), gpu)
    if launch.is_silent():
        return 0
    console.show_json(about) if json else _show_built(out, about)
    return 0


def _build(
    words: tuple[str, ...],
    out: Path,
    kind: str | None,
    memory: float,
    seed: int,
    how: dict[str, Any],
    options: dict[str, Any],
    device: str,
) -> dict[str, Any]:
    from dmlcore.files import expanded
    from dmlcore.ranks.dividing import agreeing, dividing
    from dmlcore.serving import load
    from dmlcore.serving.faiss_package import faiss, gpu_of
    from dmlcore.serving.gathering import gather_on_first
    from dmlcore.serving.index import build_index
    from dmlcore.serving.index_files import IndexFolder
    from dmlcore.serving.index_shards import help_first

    with agreeing(dividing()):
        faiss()  # what is missing is said before anything is embedded
        gpu = gpu_of(device, launch.place().local_rank)
        IndexFolder(out).check_free()
        model = load(words[0], **how) if len(words) == 2 else None
    entries = gather_on_first(words[-1], model, options)
    if entries is None:
        help_first(gpu)
        return {}
    is_local = expanded(words[0]).exists()  # else it is an address
    path = None if model is None else str(expanded(words[0]).resolve()) if is_local else words[0]
    for note in entries.notes:
        console.say(note)
    index = build_index(entries, out, kind=kind, memory=memory, seed=seed, model=path, gpu=gpu)
    return _facts(index.about)


def _change(
    folder: str, additions: list[str], conditions: list[str], model: str | None, how: dict[str, Any], device: str
) -> dict[str, Any]:
    from dmlcore.files import expanded
    from dmlcore.serving import load
    from dmlcore.serving.entries import is_embeddings
    from dmlcore.serving.faiss_package import gpu_of
    from dmlcore.serving.gathering import gather
    from dmlcore.serving.index import Index
    from dmlcore.serving.index_changes import add_entries, remove_entries
    from dmlcore.serving.search import model_of

    index = Index(folder)
    gpu = gpu_of(device) if additions else None
    counts: dict[str, Any] = {"added": 0, "replaced": 0, "removed": 0}
    if conditions:
        result = remove_entries(folder, conditions)
        counts["removed"], index = result["removed"], result["index"]
    needs_model = any(not is_embeddings(expanded(data)) for data in additions)
    path = model_of(index, model, is_needed=needs_model)
    loaded = load(path, **how) if path is not None and needs_model else None
    for data in additions:
        entries = gather(data, loaded)
        for note in entries.notes:
            console.say(note)
        result = add_entries(folder, entries, gpu)
        counts["added"] += result["added"]
        counts["replaced"] += result["replaced"]
        index = result["index"]
    return {**(counts if additions or conditions else {}), **_facts(index.about)}


def _facts(about: dict[str, Any]) -> dict[str, Any]:
    """What is told of an index."""
    keys = ("kind", "reason", "dim", "columns", "model", "effort", "measures")
    size = sum(entry["bytes"] for entry in about["files"].values())
    return {"entries": about["count"] - about["removed"], **{key: about[key] for key in keys}, "bytes": size}


def _show_built(folder: Path, about: dict[str, Any]) -> None:
    console.show_sentences(about["reason"])
    _show_measures(about["measures"])
    console.show(f"Index: {folder} ({about['entries']:,} entries, {about['bytes'] / 1e6:.1f} MB)")
    console.show(f"Search in it by: dmlcore search {folder} QUERY")


def _show_measures(measures: dict[str, Any]) -> None:
    recall = [f"{name} {value:.3f}" for name, value in measures.items() if name.startswith("recall@")]
    if recall:
        console.show_sentences(
            f"Beside exact search: {', '.join(recall)}, {measures['milliseconds']:.2g} ms a query"
            f" ({measures['queries']:,} entries as queries)"
        )


def _show_change(folder: str, about: dict[str, Any]) -> None:
    if "added" in about:
        console.show(f"{about['added']:,} added, {about['replaced']:,} replaced, {about['removed']:,} removed")
    console.show(f"Index: {folder} ({about['entries']:,} entries of {about['dim']}, {about['bytes'] / 1e6:.1f} MB)")
    console.show_sentences(about["reason"])
    _show_measures(about["measures"])
    console.show(f"Columns: {', '.join(about['columns'])}")
    console.show(f"Model: {about['model'] or 'not known; the embeddings came from a file'}")
