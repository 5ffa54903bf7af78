"""The kinds of components that plugins offer, in one table. Hooks, settings, messages, checks and docs are made from it.

A new kind touches four places: a row here, the setting that chooses it (`training/setting_groups`), its contract as checks
(`testing/components.py`), and the code that uses it. A template in `authoring/templates` makes `dmlcore plugins new` write it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of component.

    Attributes:
        name: what users and messages call it.
        hook: the function by which a plugin offers its components.
        base: dotted name of the class they derive from; it is imported when one is needed.
        setting: the setting that chooses one, on the command line and in a configuration.
        summary: first line of the hook's description: what it is, and where it can be named.
        contract: what the hook returns, and what the classes promise.
        example: a command that uses one, with `$name` for its name.
        stand_in: dotted name of the class that stands, by the name `python_KIND`, for an object that a Python program gives to
            a run; empty: there are no such.
    """

    name: str
    hook: str
    base: str
    setting: str
    summary: str
    contract: str
    example: str
    stand_in: str = ""


def _table(*kinds: Kind) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds}


KINDS = _table(
    Kind(
        "loss",
        "dmlcore_losses",
        "dmlcore.losses.Loss",
        "plugins",
        "Losses: what `--plugins` can name.",
        """Subclasses of `dmlcore.losses.Loss`, each with `name` and `Options`. `forward` takes embeddings `[B, D]` floating
        point and labels `[B]` int64, with `references` `[N, D]` and `reference_labels` `[N]` where the batch is compared
        with others, and returns a scalar. A `PairLoss` writes `row_values` instead: similarities `[A, N]` and bool masks
        `[A, N]` in, values and counts `[V, A]` out.""",
        "dmlcore train --plugins ms,$name --steps 50",
        "dmlcore.losses.python_loss.PythonLoss",
    ),
    Kind(
        "miner",
        "dmlcore_miners",
        "dmlcore.losses.Miner",
        "LOSS.miner",
        "Miners, which choose the pairs that count: what `--LOSS.miner` can name.",
        """Subclasses of `dmlcore.losses.Miner`: `masks` takes cosines `[A, N]` and bool masks `[A, N]` of positives and
        negatives and returns subsets of both. A `WindowMiner` gives intervals `[4, A]` instead and stays fused.""",
        "dmlcore train --plugins contrastive --contrastive.miner $name --steps 50",
    ),
    Kind(
        "weighting",
        "dmlcore_weightings",
        "dmlcore.ensemble.Weighting",
        "weighting",
        "Ways to weigh the terms of an ensemble: what `--weighting` can name.",
        """Subclasses of `dmlcore.ensemble.Weighting`: `forward` takes the terms `[L]` and returns a scalar. `weights` is
        `[L]`.""",
        "dmlcore train --plugins ms,triplet --weighting $name --steps 50",
    ),
    Kind(
        "compressor",
        "dmlcore_compressors",
        "dmlcore.ensemble.Compressor",
        "compressor",
        "Heads behind the embedding that make it narrower, after training or beside it: what `--compressor` can name.",
        """Subclasses of `dmlcore.ensemble.Compressor`: `learn` takes training embeddings `[N, W]`, `forward` maps `[B, W]` to
        `[B, D]`.""",
        "dmlcore train --compress 32 --compressor $name --steps 50",
    ),
    Kind(
        "model",
        "dmlcore_models",
        "dmlcore.models.Trunk",
        "model",
        "Trunks: what `--model` can name.",
        """Subclasses of `dmlcore.models.Trunk`: `forward` maps samples `[B, C, H, W]` in 0..1, `[B, F]`, or texts uint8 `[B,
        bytes]` to features `[B, features]`. A linear head follows. A trunk that wraps the networks of a library names by
        `names_option` the option that stands for the network: `NAME/resnet18` is then the trunk `NAME` with that option. What
        its run must keep to build it again, such as published weights, is written by `keep`. Settings that suit the trunk, such
        as a low rate where it is trained already, are given by `preset`.""",
        "dmlcore train --model $name --data features.npz --steps 50",
        "dmlcore.models.python_model.PythonModel",
    ),
    Kind(
        "data",
        "dmlcore_datasets",
        "dmlcore.data.DataSource",
        "data",
        "Data sets: what `--data` can name.",
        """Subclasses of `dmlcore.data.DataSource`: `load` returns a `Table` of N samples, labels int64 `[N]`
        and class names. A source that reads files says by `claims` which paths mean it, and by `reads` how they look.""",
        "dmlcore train --data $name --steps 50",
        "dmlcore.data.python_data.PythonData",
    ),
    Kind(
        "transform",
        "dmlcore_transforms",
        "dmlcore.data.Transform",
        "transforms",
        "Random changes of training batches: what `--transforms` can name.",
        """Subclasses of `dmlcore.data.Transform`, called with samples `[B, ...]` float32 and a generator on the CPU, the only
        source of random numbers. They return samples of the same shape.""",
        "dmlcore train --transforms $name --steps 50",
    ),
    Kind(
        "sampler",
        "dmlcore_samplers",
        "dmlcore.data.BatchSampler",
        "sampler",
        "Rules that compose training batches: what `--sampler` can name.",
        """Subclasses of `dmlcore.data.BatchSampler`, made from the dense labels `[N]` of the training data. `draw(step)` gives
        the rows `[P * K]` of a batch, and depends on nothing but its arguments, the step and the seed. Where samples have
        several labels, those with the same labels are a class, unless `for_label_sets` names a sampler of sets of labels.""",
        "dmlcore train --sampler $name --steps 50",
    ),
    Kind(
        "optimizer",
        "dmlcore_optimizers",
        "dmlcore.training.Optimizer",
        "optimizer",
        "Rules that turn gradients into steps: what `--optimizer` can name.",
        """Subclasses of `dmlcore.training.Optimizer`: `build` takes groups of parameters, each a dict with `params`, `lr` and
        `weight_decay`, and returns a `torch.optim.Optimizer` over them. One that `climbs` gives by `perturbation` where each
        weight of the model is moved to before the gradient is taken again, on the same batch.""",
        "dmlcore train --optimizer $name --steps 50",
    ),
    Kind(
        "schedule",
        "dmlcore_schedules",
        "dmlcore.training.Schedule",
        "schedule",
        "Courses of the learning rate over the steps: what `--schedule` can name.",
        """Subclasses of `dmlcore.training.Schedule`: `factor` takes the step, the steps of the run and those of the warm-up,
        and returns the factor on the highest rate. One that goes by evaluations is told of each by `evaluated`, and says so by
        `needs_validation`. Then `state_dict` has all that it remembers.""",
        "dmlcore train --schedule $name --steps 50",
    ),
    Kind(
        "metric",
        "dmlcore_metrics",
        "dmlcore.evaluation.Metric",
        "metrics",
        "Measures of embeddings, reported beside the standard ones: what `--metrics` can name.",
        """Subclasses of `dmlcore.evaluation.Metric`, called with embeddings `[N, D]` float32 and labels `[N]` int64 of one
        part of the data. They return numbers by name, which appear as `METRIC.name` in `metrics.jsonl` and `result.json`. With
        `takes_levels` the labels are `[N, L]`, from the finest level to the coarsest, where the data have coarser labels. With
        `takes_roles` positions of `queries` and `references` are given by name, with `takes_names` the samples' `names`. By
        `curves` they may give what lies behind the numbers, which `dmlcore eval --curves` writes.""",
        "dmlcore train --metrics $name --steps 50",
    ),
    Kind(
        "logger",
        "dmlcore_loggers",
        "dmlcore.training.Logger",
        "loggers",
        "Receivers of training records: what `--loggers` can name.",
        """Subclasses of `dmlcore.training.Logger`, told of the same events as the hooks below and closed in any case. One that
        raises is warned about once, and training goes on.""",
        "dmlcore train --loggers $name --steps 50",
    ),
)
