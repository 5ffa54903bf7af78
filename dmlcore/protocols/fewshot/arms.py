"""What is compared: the six models of the paper, and any loss or ensemble as an embedding, as it is and adapted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dmlcore.errors import ConfigError

ADAPTED = "adap_"
LARGEST_UNADAPTED = 1  # an adapted arm needs two samples of a class: pairs, or one to support and one to query
Kind = Literal["classifier", "embedding", "prototypes"]


@dataclass(frozen=True)
class Arm:
    """One way from source samples and k x n target samples to predictions.

    Attributes:
        name: in tables and files.
        kind: how it learns and predicts: softmax, nearest support sample, nearest prototype.
        losses: what an embedding is trained with; several are an ensemble.
        options: of each loss, by its name.
        uses_source: begins with a model trained on the source classes.
        trains_on_target: trains on the target samples; the others only compare with them.
    """

    name: str
    kind: Kind
    losses: tuple[str, ...] = ()
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    uses_source: bool = True
    trains_on_target: bool = False

    @property
    def is_adapted(self) -> bool:
        """Whether it is an embedding that goes on training with its own loss on the target samples."""
        return self.kind != "classifier" and self.trains_on_target

    @property
    def base(self) -> str:
        """The arm whose source model it shares."""
        return self.name.removeprefix(ADAPTED) if self.is_adapted else self.name

    def is_defined(self, k: int) -> bool:
        """Whether it can do something with k samples of a class."""
        return not self.is_adapted or k > LARGEST_UNADAPTED


_HISTOGRAM = {"histogram": {"n_bins": 200}}  # 201 nodes, as the paper's code
PAPER = (
    Arm("baseline", "classifier", uses_source=False, trains_on_target=True),
    Arm("weight_transfer", "classifier", trains_on_target=True),
    Arm("hist_loss", "embedding", ("histogram",), _HISTOGRAM),
    Arm("proto_net", "prototypes", ("prototypical",)),
    Arm("adap_hist_loss", "embedding", ("histogram",), _HISTOGRAM, trains_on_target=True),
    Arm("adap_proto_net", "prototypes", ("prototypical",), trains_on_target=True),
)


def arms_of(losses: Sequence[str] = (), options: dict[str, dict[str, Any]] | None = None) -> list[Arm]:
    """The six models of the paper, then each loss or ensemble and its adapted form.

    Args:
        losses: names of losses; `a+b` joins an ensemble.
        options: of losses, by name.

    Raises:
        ConfigError: an unknown loss or option, one named twice, one that takes the name of a model of the paper.
    """
    from dmlcore import plugins
    from dmlcore.config import build_options

    arms = list(PAPER)
    names_taken = {arm.name for arm in arms}
    for text in losses:
        names = tuple(text.split("+"))
        for name in names:
            component: Any = plugins.find("loss", name).component
            build_options(component.Options, (options or {}).get(name, {}), name)
        own_options = {name: dict((options or {})[name]) for name in names if name in (options or {})}
        as_it_is = Arm(text, "embedding", names, own_options)
        adapted = Arm(ADAPTED + text, "embedding", names, own_options, trains_on_target=True)
        for arm in (as_it_is, adapted):
            if arm.name in names_taken:
                raise ConfigError(f"--losses: '{text}' is there already; each arm needs a name of its own")
            names_taken.add(arm.name)
            arms.append(arm)
    return arms
