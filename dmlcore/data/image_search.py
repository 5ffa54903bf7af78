"""Image files below the folders of classes: what is followed, left out and said. What a class is, is not decided here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmlcore.data.images import IMAGE_SUFFIXES
from dmlcore.data.picture_index import Mark, mark_of
from dmlcore.errors import DataError
from dmlcore.files import writable_text

# Folders that systems put beside a user's own; some hold small copies of the images.
_OF_SYSTEMS = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"))
_NAMED = 3  # folders named in a note


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder, and links to such, by name. Hidden ones and those of the operating system are left out.

    Raises:
        DataError: the folder cannot be opened.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"the folder '{folder}' cannot be opened: {error.strerror}") from error
    return sorted(Path(entry.path) for entry in entries if _is_shown(entry.name) and _is_folder(entry))


@dataclass
class ImageSearch:
    """A search for image files below several folders.

    Real folders are read before links to folders, and no folder twice: a link into a folder that belongs to a class does not
    put its images into a second one, and a loop of links ends. Pipes, sockets and devices are never opened.

    Attributes:
        root: that paths in notes are shown relative to.
        others: files that are no images.
        linked: links to folders that were followed.
        repeated: links to folders that had been read already.
        closed: folders that cannot be opened, with the reason.
        broken: links beside the folders that lead nowhere.
        marks: by folder that was read, and link that leads nowhere, what tells whether it changes, as it was before.
    """

    root: Path
    others: int = 0
    linked: int = 0
    repeated: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)

    def images(self, folders: Sequence[Path], within: Sequence[Path] = ()) -> list[list[str]]:
        """The image files below each of some folders, in a fixed order.

        Args:
            folders: of the classes. They may be links.
            within: folders above these, which a link must not lead to.
        """
        below: list[list[str]] = [[] for _ in folders]
        seen = {identity for folder in within if (identity := _identity(folder))}
        for entry in (entry for folder in dict.fromkeys(within) for entry in os.scandir(folder) if _is_shown(entry.name)):
            if self._mark_if_broken(entry) and not is_image(entry):
                self.broken.append(self._shown(Path(entry.path)))
        waiting: list[tuple[int, Path]] = []
        for index, folder in enumerate(folders):
            if folder.is_symlink():
                waiting.append((index, folder))
            else:
                below[index] += self._walk(folder, seen, waiting, index)
        for index, link in waiting:  # grows while links are found behind links
            if _identity(link) in seen:
                self.repeated.append(self._shown(link))
                continue
            self.linked += 1
            below[index] += self._walk(link, seen, waiting, index)
        return below

    def notes(self) -> list[str]:
        """What a user should know about it."""
        notes = [f"{self.others} files that are no images were ignored"] if self.others else []
        notes += [f"{self.linked} links to folders were followed"] if self.linked else []
        for names, what in (
            (self.repeated, "links to folders that are read already were skipped"),
            (self.closed, "folders that cannot be opened were skipped"),
            (self.broken, "links beside the folders of classes lead nowhere and were skipped"),
        ):
            if names:
                notes.append(f"{len(names)} {what}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}")
        return notes

    def _walk(self, top: Path, seen: set[tuple[int, int]], waiting: list[tuple[int, Path]], index: int) -> list[str]:
        images: list[str] = []
        stack = [top]
        while stack:
            folder = stack.pop()
            identity = _identity(folder)
            if identity is None or identity in seen:  # bound to a second place, as mounts can be
                continue
            seen.add(identity)
            self.marks[str(folder)] = mark_of(str(folder))
            try:
                entries = sorted((entry for entry in os.scandir(folder) if _is_shown(entry.name)), key=lambda entry: entry.name)
            except OSError as error:
                self.closed.append(f"{self._shown(folder)} ({error.strerror})")
                continue
            deeper = [entry for entry in entries if _is_folder(entry)]
            names = {entry.name for entry in deeper}
            for entry in entries:
                if entry.name in names:
                    continue
                if is_image(entry):
                    images.append(entry.path)
                else:
                    self.others += 1
                    self._mark_if_broken(entry)
            waiting += [(index, Path(entry.path)) for entry in deeper if entry.is_symlink()]
            stack += [Path(entry.path) for entry in reversed(deeper) if not entry.is_symlink()]
        return images

    def _mark_if_broken(self, entry: os.DirEntry[str]) -> bool:
        """Whether it is a link that leads nowhere. What it leads to may come, as with a disk that is mounted later."""
        if not entry.is_symlink() or os.path.exists(entry.path):
            return False
        self.marks[entry.path] = mark_of(entry.path)
        return True

    def _shown(self, path: Path) -> str:
        return f"'{writable_text(os.path.relpath(path, self.root))}'"


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is called like an image, and is a file or a broken link, which is reported when it is read."""
    if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES or entry.name.startswith("."):
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link that leads to itself
        return True


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _OF_SYSTEMS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from all others, however it is reached. None: it is gone or out of reach."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
