"""Which classes the user means: names, ranges of names, groups, or a random choice. Drawing from them is in `tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmlcore.data.sources import Table
from dmlcore.errors import ConfigError, suggestion

RANDOM = "random"


@dataclass(frozen=True)
class Sides:
    """Where source and target classes are drawn from.

    Attributes:
        source: class ids, sorted; empty: both sides are drawn from `target`, disjoint, anew for each replication.
        target: class ids, sorted.
        notes: what was left out, for the user.
    """

    source: list[int]
    target: list[int]
    notes: tuple[str, ...] = ()


def choose_sides(table: Table, sizes: Sequence[int], source: str, target: str | None, shots: int) -> Sides:
    """The classes that the source and target side are drawn from.

    Args:
        table: of the data.
        sizes: samples of each class of the table.
        source: a selection as `read_selection` takes it, or `random`.
        target: a selection; None: all other classes.
        shots: the largest k; a target class needs one sample more.

    Raises:
        ConfigError: an unknown class, a class on both sides, a class with too few samples. A random choice leaves classes with
            too few samples out.
    """
    all_classes = range(len(table.class_names))
    if source == RANDOM:
        if target is not None:
            raise ConfigError("--target-classes cannot be given with --source-classes random, which draws both sides")
        least = max(shots + 1, LEAST_SOURCE)
        fitting = [label for label in all_classes if sizes[label] >= least]
        left_out = len(all_classes) - len(fitting)
        notes = (f"{left_out} classes with fewer than {least} samples are left out",) if left_out else ()
        return Sides([], fitting, notes)
    sources = read_selection(table, source, "--source-classes")
    targets = read_selection(table, target, "--target-classes") if target else [c for c in all_classes if c not in set(sources)]
    both = sorted(set(sources) & set(targets))
    if both:
        named = ", ".join(f"'{table.class_names[label]}'" for label in both[:3])
        raise ConfigError(f"{len(both)} classes are on both sides, source and target: {named}{', ...' if both[3:] else ''}")
    _check_sizes(table, sizes, sources, LEAST_SOURCE, "--source-classes", "two to train and two to validate are needed")
    reason = f"k = {shots} and one to test need {shots + 1}: lower --k, or choose --target-classes"
    _check_sizes(table, sizes, targets, shots + 1, "the target classes", reason)
    return Sides(sources, targets)


LEAST_SOURCE = 4  # samples: two to train, two to validate by leaving one out


def _check_sizes(table: Table, sizes: Sequence[int], labels: Sequence[int], least: int, where: str, why: str) -> None:
    small = [label for label in labels if sizes[label] < least]
    if small:
        name, and_more = table.class_names[small[0]], f" ({len(small)} such classes)" if len(small) > 1 else ""
        raise ConfigError(f"class '{name}' of {where} has {sizes[small[0]]} samples{and_more}, but {why}")


def read_selection(table: Table, text: str, where: str) -> list[int]:
    """Class ids of a selection, sorted.

    Args:
        table: has the names of classes and, where the source knows them, their groups.
        text: names, ranges `FIRST-LAST` in the order of the table, and `@GROUP`, separated by commas.
        where: the flag, for messages.

    Raises:
        ConfigError: an unknown class or group, a range that runs backwards, nothing chosen.
    """
    number = {name: label for label, name in enumerate(table.class_names)}
    selected: set[int] = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = word.partition("-")
        if word in number:
            selected.add(number[word])
        elif word.startswith("@"):
            selected.update(_group(table, word[1:], where))
        elif dash and first in number and last in number:
            if number[first] > number[last]:
                raise ConfigError(f"{where}: the range '{word}' runs backwards: '{last}' comes before '{first}'")
            selected.update(range(number[first], number[last] + 1))
        else:
            raise ConfigError(f"{where}: there is no class '{word}'.{_nearest(word, table.class_names)}")
    if not selected:
        raise ConfigError(f"{where} chooses no class: give names, ranges such as 0-4, or @GROUP, separated by commas")
    return sorted(selected)


def _group(table: Table, name: str, where: str) -> list[int]:
    if table.class_groups is None:
        raise ConfigError(f"{where}: '@{name}' is a group, but these data have no groups of classes")
    labels = [label for label, group in enumerate(table.class_groups) if group == name]
    if not labels:
        raise ConfigError(f"{where}: there is no group '{name}'.{suggestion(name, set(table.class_groups))}")
    return labels


def _nearest(word: str, names: Sequence[str]) -> str:
    """A hint that does not list thousands of names."""
    hint = suggestion(word, names)
    if hint.startswith(" Known") and len(names) > 20:
        return f" There are {len(names):,} classes, from '{names[0]}' to '{names[-1]}'."
    return hint
