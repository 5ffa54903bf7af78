"""What is compared, and how it is decided. This file was written before any of its figures existed.

**Candidates.** Losses with their default options on one embedding, a weighting, and on pictures a learning rate. Everything
else is what `dmlcore train` does with the kind of data: features begin as they are, pictures are compressed from 256 numbers
to 64.

**Rule.** A candidate's regret on a data set is the validation MAP@R of the best candidate there minus its own, as means over
seeds. The rule takes the candidate of least mean regret. `alike` takes one set and weighting for all kinds of data, `by kind`
one for each. Learning rates are always chosen by kind.

**Judgement.** Each data set in turn is left out, the rule runs on the others, and what it takes is judged on the test classes
of the one left out: by the test MAP@R of the candidate that is best there in hindsight, minus its own.

**Decision.** The default changes to what the rule takes from all data sets, if over data sets that beats today's default on
test classes by a mean difference whose 95 % t-interval is above zero, and if it is nowhere more than 1.5 points behind it.

**Tricks** (pictures). Features of several blocks, quarter turns as classes, and both, each for the default and for single
losses. A trick becomes a default if its mean gain over data sets is above zero by its interval for the default's losses.
Ensembles win only by what they gain beside the single loss with the same trick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SEEDS = {"features": 2, "images": 2, "texts": 2}
STEPS = {"images": 200, "texts": 300}  # features: the default
RATE = {"images": 2e-3, "features": 5e-4, "texts": 2e-3}  # what runs do today
SMALL: dict[str, dict[str, Any]] = {
    "images": {"conv": {"channels": (16, 32, 64, 128)}},  # a quarter of the default's work
    "features": {"model": "identity", "eval_every": 100},  # the default then
    "texts": {"head_start": "random", "embedding_dim": 256, "compress": 64},  # the default then
}
TODAY = ("circle", "binomial_deviance", "norm_softmax")
TRIO = ("ms", "proxy_anchor", "triplet")
WITHOUT_PROXIES = ("circle", "binomial_deviance", "sup_con")
SPREAD = 4.0  # of the gradients' lengths that the mixed weighting leaves alone


@dataclass(frozen=True)
class Candidate:
    """Losses, weighting and rate.

    Attributes:
        losses: by name.
        weighting: `equal` gradient norms, `fixed` weights, or `mixed`, which is between; a single loss has `fixed`.
        rate: over the rate of today, by kind of data.
        trick: settings beside, by name in `TRICKS` or `EXPLANATIONS`.
    """

    losses: tuple[str, ...]
    weighting: str = "fixed"
    rate: float = 1.0
    trick: str = ""

    @property
    def choice(self) -> str:
        """Losses and weighting, in words."""
        return ", ".join(self.losses) + (f" ({self.weighting})" if len(self.losses) > 1 else "")

    @property
    def name(self) -> str:
        return self.choice + (f", rate x {self.rate:g}" if self.rate != 1 else "") + (f", {self.trick}" if self.trick else "")

    def settings(self, kind: str) -> dict[str, Any]:
        """For `dmlcore.train`."""
        settings: dict[str, Any] = {"plugins": self.losses, "learning_rate": self.rate * RATE[kind], **SMALL.get(kind, {})}
        if kind in STEPS:
            settings |= {"steps": STEPS[kind], "eval_every": STEPS[kind] // 5}
        if len(self.losses) > 1:
            settings["weighting"] = "fixed" if self.weighting == "fixed" else "equal_gradient_norms"
            if self.weighting == "mixed":
                settings["equal_gradient_norms"] = {"spread": SPREAD}
        changed = (TRICKS | EXPLANATIONS)[self.trick]
        conv = {**settings.get("conv", {}), **changed.get("conv", {})}
        settings |= changed
        return settings | ({"conv": conv} if conv else {})


TRICKS: dict[str, dict[str, Any]] = {
    "": {},
    "three blocks": {"conv": {"pooled_blocks": 3}},
    "turns": {"rotated_classes": True},
    "three blocks, turns": {"conv": {"pooled_blocks": 3}, "rotated_classes": True},
}
EXPLANATIONS: dict[str, dict[str, Any]] = {
    "proxies x 5": {"proxies_factor": 100.0},
    "proxies / 5": {"proxies_factor": 4.0},
    "3 x steps": {"steps": 3 * STEPS["images"], "eval_every": 3 * STEPS["images"] // 5},
    "proxies x 5, 3 x steps": {"proxies_factor": 100.0, "steps": 3 * STEPS["images"], "eval_every": 3 * STEPS["images"] // 5},
    "full width": {"conv": {"channels": (32, 64, 128, 256)}},
}
"""What may explain that a loss with proxies falls behind on pictures, each changed alone."""
EXPLAINED = ("glyphs", "emoji pictures")  # data sets
CHOICES = (
    *(Candidate(losses, weighting) for losses in (TODAY, TRIO) for weighting in ("equal", "fixed", "mixed")),
    Candidate(WITHOUT_PROXIES, "equal"),
    *(Candidate((loss,)) for loss in ("proxy_anchor", "ms", "sup_con")),
)
RATES = {"features": (1.0,), "images": (1.0, 2.0), "texts": (1.0, 2.0)}
TRICKED = (Candidate(TODAY, "equal"), Candidate(("ms",)), Candidate(("proxy_anchor",)))


def candidates(kind: str) -> list[Candidate]:
    """Of a kind of data."""
    return [Candidate(c.losses, c.weighting, rate) for rate in RATES[kind] for c in CHOICES]


def tricked(rate: float) -> list[Candidate]:
    """Losses with every trick, at the rate that was chosen for pictures."""
    return [Candidate(c.losses, c.weighting, rate, trick) for trick in TRICKS for c in TRICKED]


def explaining() -> list[Candidate]:
    """A loss with proxies and one without, with each explanation."""
    return [Candidate(losses, trick=why) for why in EXPLANATIONS for losses in (("proxy_anchor",), ("ms",))]
