"""Samples on a page: small pictures where there are any, else names. Each is kept once, however often it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from dmlcore.reports.html import Raw, brief, escape
from dmlcore.reports.run_facts import PartView
from dmlcore.reports.thumbnails import DRAWN, thumbnails

MOST, MOST_DRAWN = 360, 900  # thumbnails of a page: of photographs, and of small drawings, which take fewer bytes
OF_A_CLASS = (2, 12)  # pictures of a class, at least and at most
MOST_TAKEN_FOR = 5  # classes that a class is taken for


class Pictured:
    """The samples that a page shows.

    Args:
        view: where they are.
    """

    def __init__(self, view: PartView) -> None:
        self.view = view
        self.has_pictures = len(view.dataset.sample_shape) == 3
        self._shown: dict[int, None] = {}  # positions and classes in the order in which they came first
        self._mentioned: dict[int, None] = {}

    def sample(self, position: int, mark: str = "", about: str = "") -> str:
        """A sample as HTML: its picture or name, and its class.

        Args:
            position: in the part.
            mark: `right`, `wrong` or empty.
            about: what stands below the name of the class.
        """
        self._shown.setdefault(position)
        label = int(self.view.dataset.dense_labels[position])
        self.mention([label])
        name, title = self.view.dataset.class_names[label], self.view.sample_names[position]
        title = f"sample {title}" if title.isdigit() else title
        picture = f'<img data-s="{position}" alt="">' if self.has_pictures else f"<i>{escape(title)}</i>"
        small = f"<small>{escape(about)}</small>" if about else ""
        return (
            f'<button type="button" class="sample {mark}" data-class="{label}" title="{escape(title)}">'
            f"{picture}<b>{escape(name)}</b>{small}</button>"
        )

    def class_link(self, label: int) -> Raw:
        """A class's name, which opens what the page knows of it."""
        self.mention([label])
        name = self.view.dataset.class_names[label]
        return Raw(f'<button type="button" class="of-class" data-class="{label}">{escape(name)}</button>')

    def mention(self, labels: Iterable[int]) -> None:
        """Let the page know classes that can be clicked."""
        self._mentioned.update(dict.fromkeys(int(label) for label in labels))

    def for_script(self) -> dict[str, Any]:
        """Pictures by position, and of each class its name, samples, measures, pictures, and what it is taken for."""
        view = self.view
        sizes = np.bincount(view.dataset.dense_labels)
        taken_for = self._taken_for()
        self.mention(other for entries in taken_for.values() for other, _ in entries)
        by_class = self._by_class() if self.has_pictures else {}
        positions = [*self._shown, *(position for row in by_class.values() for position in row)]
        pictures = thumbnails(view.dataset, positions[: self._most]) if self.has_pictures else {}
        pictures_of: dict[int, list[int]] = {}
        for position in pictures:
            pictures_of.setdefault(int(view.dataset.dense_labels[position]), []).append(position)
        classes = {
            label: [
                brief(view.dataset.class_names[label]),
                int(sizes[label]),
                round(float(view.scores.recall[label]), 3),
                round(float(view.scores.map_at_r[label]), 3),
                pictures_of.get(label, []),
                taken_for.get(label, []),
            ]
            for label in self._mentioned
        }
        return {"pictures": pictures, "classes": classes, "hasPictures": self.has_pictures}

    @property
    def _most(self) -> int:
        return MOST_DRAWN if max(self.view.dataset.sample_shape[1:]) <= DRAWN else MOST

    def _by_class(self) -> dict[int, list[int]]:
        """Further pictures of the classes that are mentioned, as many of each as there is room for."""
        labels = self.view.dataset.dense_labels
        each = min(max((self._most - len(self._shown)) // max(len(self._mentioned), 1), OF_A_CLASS[0]), OF_A_CLASS[1])
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], np.arange(self.view.dataset.num_classes + 1))
        chosen = {}
        for label in self._mentioned:
            rows = order[starts[label] : starts[label + 1]]
            chosen[label] = rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int))].tolist()
        return chosen

    def _taken_for(self) -> dict[int, list[list[int]]]:
        """By class that is mentioned, the classes of its queries' nearest neighbours where these are others, with counts. None
        where samples have several labels."""
        if self.view.confusions is None:
            return {}
        labels, inspected = self.view.dataset.dense_labels, self.view.inspected
        pairs = Counter(zip(labels[inspected.queries].tolist(), labels[inspected.neighbours[:, 0]].tolist(), strict=True))
        taken_for: dict[int, list[list[int]]] = {}
        for (of, near), count in pairs.most_common():
            if of != near and of in self._mentioned and len(taken_for.setdefault(of, [])) < MOST_TAKEN_FOR:
                taken_for[of].append([near, count])
        return taken_for
