"""What checks find: one line each, and how they are collected. What is checked is in the modules of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dmlcore.errors import PluginError


class NotApplicable(Exception):
    """Raised by a check that has nothing to say about a component; its text is the reason."""


@dataclass(frozen=True)
class Check:
    """One property that was checked.

    Attributes:
        name: what was checked.
        passed: whether it holds; True where it does not apply.
        detail: what was found, where that is of interest; what is wrong where it fails; why it does not apply.
        applies: whether it was checked at all.
    """

    name: str
    passed: bool
    detail: str = ""
    applies: bool = True

    @property
    def status(self) -> str:
        """`ok`, `fails` or `not applicable`."""
        return "not applicable" if not self.applies else "ok" if self.passed else "fails"


def _shortened(text: str) -> str:
    """One line; the matrices of `gradcheck` would hide what matters."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:400]} ..."


@dataclass
class Report:
    """The checks of one component.

    Attributes:
        kind: as in `plugins.KINDS`.
        name: of the component.
        checks: in the order they were made.
    """

    kind: str
    name: str
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all that applies holds."""
        return all(check.passed for check in self.checks)

    def check(self, name: str, run: Callable[[], str | None]) -> None:
        """Make a check.

        Args:
            name: what is checked.
            run: returns None or a remark that begins with `:` where the property holds, else what is wrong. It may raise
                `NotApplicable`; any other exception is a failure.
        """
        try:
            remark = run() or ":"
        except NotApplicable as reason:
            self.checks.append(Check(name, True, str(reason), applies=False))
            return
        except Exception as error:
            remark = f"{type(error).__name__}: {error}"
        self.checks.append(Check(name, remark.startswith(":"), _shortened(remark.removeprefix(":"))))

    def raise_failures(self) -> None:
        """Raise where a check failed.

        Raises:
            PluginError: the message lists the failures.
        """
        failed = [check for check in self.checks if not check.passed]
        if failed:
            listed = "; ".join(f"{check.name}: {check.detail}" for check in failed)
            raise PluginError(f"{self.kind} '{self.name}' fails {len(failed)} of {len(self.checks)} checks: {listed}")
