"""The command line that was typed, looked at before it is parsed: which command it means, and which components it names, whose
options then become flags of that command (`--ms.alpha 4`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from dmlcore.errors import DataError, suggestion
from dmlcore.flags import component_flags
from dmlcore.training.components import Component, data_component, why_not_chosen


class CommandLine:
    """The words behind `dmlcore`.

    Args:
        words: as typed.

    Attributes:
        words: as typed.
        command: the first word that is no flag; empty where there is none.
        components: what the words name, by the table of its options.
        losses_flag: the flag by which this command chooses losses.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = list(words)
        self.command = next((word for word in self.words if not word.startswith("-")), "")
        self.components: dict[str, Component] = {}
        self.losses_flag = "plugins"

    @property
    def wants_help(self) -> bool:
        """Whether the help is asked for."""
        return not {"--help", "-h"}.isdisjoint(self.words)

    def values_of(self, *names: str) -> dict[str, str]:
        """Values of some flags, wherever they stand."""
        values = {}
        for index, word in enumerate(self.words):
            flag, equals, value = word.partition("=")
            name = flag.removeprefix("--").replace("-", "_")
            if flag.startswith("--") and name in names:
                values[name] = value if equals else "".join(self.words[index + 1 : index + 2])
        return values

    def add(self, component: Component) -> list[inspect.Parameter]:
        """Take a component among those that are named, and give its options as flags: none or one group."""
        self.components[component.table] = component
        return [component_flags(component)] if component.option_names() else []

    def option_flags(self) -> list[inspect.Parameter]:
        """Flags of all components that are named, a group each."""
        return [component_flags(component) for component in self.components.values() if component.option_names()]

    def add_data(self, command: str, *, place: int | None = None) -> list[inspect.Parameter]:
        """Flags of the data source that `--data` names, where the line is for this command.

        Args:
            command: its name, the first word.
            place: of the word that may name the data instead, a path that need not be one of a source.
        """
        if self.command != command:
            return []
        data = self.values_of("data").get("data")
        if data is not None or place is None:
            return self.add(data_component(data)) if data else []
        words = self.words[: place + 1]
        if len(words) <= place or any(word.startswith("-") for word in words):
            return []
        try:
            return self.add(data_component(words[place]))
        except DataError:  # such as a single picture, or what is not there, which is told when it is opened
            return []

    def why_not_option(self, word: str) -> str:
        """Why a flag `--TABLE.option` is refused; empty where it is no such flag or no component is named."""
        table, dot, option = word.partition("=")[0].removeprefix("--").partition(".")
        if dot and table in self.components:
            names = self.components[table].option_names()
            return f"{table} has no option '{option}'.{suggestion(option, names)} `dmlcore plugins {table}` lists them."
        if dot and self.components:
            reason = why_not_chosen(table, self.components)
            return f"{word}: {reason.replace('plugins', self.losses_flag)}"
        return ""
