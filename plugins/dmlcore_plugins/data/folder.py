"""Images in one sub-folder per class, also below folders named after the parts of a split."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import (
    IMAGE_SUFFIXES,
    SPLIT_WORDS,
    DataSource,
    FileOptions,
    ImageSearch,
    PathList,
    Pictures,
    PublishedImages,
    Table,
    find_source,
    is_image,
    mark_of,
    open_index,
    picture_table,
    sub_folders,
    tidy_names,
)
from dmlcore.errors import DataError
from dmlcore.files import expanded, writable_text

_NAMED = 3  # folders named in a note
_ABOVE = 2  # folders above that are looked at for lists


class Folder(DataSource):
    """Images in one sub-folder per class. Deeper folders count for the class above them, and links to folders are followed.
    Hidden ones are not read.
    """

    name = "folder"
    Options = FileOptions
    reads = "a folder with a sub-folder per class"
    gives_way = True

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Every folder."""
        return path.is_dir()

    def load(self) -> Table:
        """Find the images and read as many as fit in memory.

        Raises:
            DataError: no such folder, one that cannot be opened, no sub-folder, no image.
        """
        if not self.options.path:
            raise DataError("the data 'folder' needs a path: --data DIR, or --folder.path DIR")
        root = expanded(self.options.path)
        if not root.is_dir():
            raise DataError(f"there is no folder '{root}'")
        index = open_index(self, str(root))
        if not index.is_known:
            index.learn(self._searched(root), str(root))
        table = picture_table(self, index, str(root))
        if len(table.class_names) == 1 and self.needs_labels:
            only = table.class_names[0]
            raise DataError(f"folder '{root}' holds one class, '{only}', but learning compares classes{_hint(root)}")
        table.skipped = [*_note_on_lists(root), *table.skipped]
        return table

    def _searched(self, root: Path) -> Pictures:
        """What is in the folder."""
        marks = {str(root): mark_of(str(root))}
        if not self.needs_labels and not sub_folders(root):  # pictures of nobody knows what
            parts, folders, notes = [""], [root], list[str]()
            tidied, remarks = {root.name: ""}, list[str]()
        else:
            parts, folders, notes = _classes(root)
            tidied, remarks = tidy_names(folder.name for folder in folders)
        class_names = sorted(set(tidied.values()))
        number = {name: label for label, name in enumerate(class_names)}
        search = ImageSearch(root)
        above = [] if folders == [root] else [root, *{folder.parent for folder in folders}]
        # A folder that is called like a part, but has no classes yet, is looked into again when it has.
        places = [*above, *(folder for folder in sub_folders(root) if any(parts) and _part_word(folder))]
        marks |= {str(folder): mark_of(str(folder)) for folder in places}
        images = search.images(folders, within=above)
        counts = [len(files) for files in images]
        if not sum(counts):
            reasons = "".join(f". {note.capitalize()}" for note in search.notes())
            raise DataError(
                f"folder '{root}' holds no images (known: {' '.join(sorted(IMAGE_SUFFIXES))}){_hint(root)}{reasons}"
            )
        return Pictures(
            paths=PathList.of(itertools.chain.from_iterable(images), str(root)),
            labels=np.repeat([number[tidied[folder.name]] for folder in folders], counts),
            class_names=class_names,
            split=np.repeat(parts, counts) if any(parts) else None,
            notes=[*notes, *search.notes(), *remarks],
            marks=marks | search.marks,
        )


def _classes(root: Path) -> tuple[list[str], list[Path], list[str]]:
    """Of every class its part of the split, empty where there are no parts, and its folder. And notes."""
    folders = sub_folders(root)
    if not folders:
        raise DataError(
            f"folder '{root}' has no sub-folders: put the images of each class into a folder of its own{_hint(root)}"
        )
    part_of = {folder: SPLIT_WORDS[word] for folder in folders if (word := _part_word(folder)) and sub_folders(folder)}
    if "train" not in part_of.values() or len(set(part_of.values())) == 1:  # a lone `train` may be a class of vehicles
        return [""] * len(folders), folders, _loose([root])
    notes = [f"the sub-folders {', '.join(folder.name for folder in part_of)} are read as the parts of a split"]
    rest = [writable_text(folder.name) for folder in folders if folder not in part_of]
    if rest:
        shown = ", ".join(f"'{name}'" for name in rest[:_NAMED]) + (", ..." if len(rest) > _NAMED else "")
        notes.append(f"{len(rest)} sub-folders that are no such part, or have no classes, were not read: {shown}")
    classes = [(part, folder) for place, part in part_of.items() for folder in sub_folders(place)]
    return [part for part, _ in classes], [folder for _, folder in classes], notes + _loose([root, *part_of])


def _part_word(folder: Path) -> str:
    """What a folder is called if it is called like a part of a split. Numbers are more likely names of classes."""
    word = folder.name.strip().lower()
    return word if word in SPLIT_WORDS and not word.isdigit() else ""


def _loose(folders: list[Path]) -> list[str]:
    count = sum(is_image(entry) for folder in folders for entry in os.scandir(folder))
    return [f"{count} images directly in the folder belong to no class and were ignored"] if count else []


def _note_on_lists(root: Path) -> list[str]:
    """What to say where a folder lies in a published data set, whose lists have other classes and parts."""
    for above in list(Path(os.path.abspath(root)).parents)[:_ABOVE]:
        try:
            component = find_source(str(above))[0]
        except DataError:
            continue
        if issubclass(component, PublishedImages):
            return [
                f"the folder lies in '{writable_text(str(above))}', which holds the lists of {component.title}: its published"
                f" classes and parts are read by --data {component.name} --{component.name}.path DIR, with that folder"
            ]
    return []


def _hint(root: Path) -> str:
    manifests = sorted(root.glob("*.csv"))
    if manifests:
        return f". Did you mean the manifest '{manifests[0]}'?"
    folders = sub_folders(root)
    if len(folders) == 1 and (len(sub_folders(folders[0])) > 1 or find_source(str(folders[0]))[0] is not Folder):
        return f". Did you mean '{folders[0]}'?"
    if len(folders) == 1:
        return (
            ". Put the images of each class into a folder of its own, or list them in a .csv with path,label. Published data"
            " sets are read with their lists, which must lie beside the images"
        )
    return ""


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Folder]
