"""The parts of a run, built from its configuration: data, model, ensemble, memory, sampler, and components that need nothing
but their options. The optimiser is built in `optimiser.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dmlcore import losses, plugins
from dmlcore.config import build_options
from dmlcore.data import BatchSampler, LabelledDataset, RecordedSplit, SplitFile, Splits, Transforms, open_data
from dmlcore.ensemble import Compressor, LossEnsemble
from dmlcore.errors import ConfigError
from dmlcore.models import EmbeddingModel, ImagesWanted, build_model, build_trunk, images_wanted
from dmlcore.training import checkpoints
from dmlcore.training.components import Component
from dmlcore.training.configuration import RunConfig
from dmlcore.training.distillation import Distillation
from dmlcore.training.folder import RunFolder
from dmlcore.training.implied import default_model
from dmlcore.training.keys import KeyEncoder, key_encoder
from dmlcore.training.objects import built_loss
from dmlcore.training.setting_groups.run import check_device


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one.

    Raises:
        ConfigError: no such device; CUDA is asked for and is not there.
    """
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is '{name}', but this computer has {torch.cuda.device_count()} CUDA devices. Use --device auto."
        )
    return device


def images_of(config: RunConfig, kept: Path | None = None) -> ImagesWanted:
    """The images that a configuration's trunk was made for.

    Args:
        config: what to do.
        kept: what the run's folder keeps of the trunk, as `RunFolder.kept_trunk` says.
    """
    trunk = config.settings.model.trunk
    return images_wanted(trunk, config.options_of("model") if trunk else None, kept)


def open_splits(
    config: RunConfig, recorded: RecordedSplit | None = None, *, is_whole: bool = False, kept: Path | None = None
) -> Splits:
    """The data of a configuration, in its three parts.

    Args:
        config: what to do.
        recorded: the split that the run's folder keeps, if it does.
        is_whole: refuse data that lack a sample of `recorded`.
        kept: as for `images_of`.
    """
    settings = config.settings.data
    images = images_of(config, kept)
    splits = open_data(
        settings.source if config.objects.data is None else config.objects.data,
        options=config.options_of("data"),
        fractions=(settings.fractions[0], settings.fractions[1], settings.fractions[2]),
        seed=config.settings.run.seed,
        image_size=settings.image_size,
        default_image_size=images.size,
        interpolation=images.interpolation,
        class_split=SplitFile.read(settings.splits).find(settings.split) if settings.splits and recorded is None else None,
        validation=config.settings.run.validation,
        recorded=recorded,
        is_whole=is_whole,
        needs_labels=settings.views is None,
    )
    if settings.level is not None:
        splits.train = splits.train.at_level(settings.level)
    if settings.transforms is not None:
        splits.train.augmentation = Transforms(build_components(config, "transform"), splits.kind)
    return splits


def build_components(config: RunConfig, kind: str) -> list[Any]:
    """The chosen components of a kind that need nothing but their options: transforms, metrics, loggers."""
    return [_class_of(component)(_options(config, table)) for table, component in config.of_kind(kind).items()]


def build_sampler(config: RunConfig, train: LabelledDataset, classes_per_batch: int, steps: int) -> BatchSampler:
    """What composes the training batches."""
    ((table, component),) = config.of_kind("sampler").items()
    settings, sampler = config.settings, _class_of(component)
    labels = train.dense_labels
    if train.sets is not None and sampler.for_label_sets is not None:
        sampler, labels = sampler.for_label_sets, train.judged_sets()
    return sampler(
        labels,
        classes_per_batch,
        settings.data.samples_per_class,
        settings.run.seed,
        steps=steps,
        options=_options(config, table),
    )


def with_width_of_trunk(config: RunConfig, sample_shape: tuple[int, ...], kind: str, kept: Path | None = None) -> RunConfig:
    """The configuration with embeddings as long as its trunk is wide, which is built to see it.

    Args:
        config: without a length of embeddings.
        sample_shape: shape of one sample.
        kind: `images`, `features` or `texts`.
        kept: as for `images_of`.
    """
    settings = config.settings
    trunk = build_trunk(
        settings.model.trunk or default_model(settings, kind) if config.objects.model is None else config.objects.model,
        sample_shape=tuple(sample_shape),
        kind=kind,
        options=config.options_of("model"),
        seed=settings.run.seed,
        kept=kept,
    )
    return dataclasses.replace(config, settings=settings.replace(embedding_dim=trunk.features))


def build_run_model(config: RunConfig, sample_shape: tuple[int, ...], kind: str, kept: Path | None = None) -> EmbeddingModel:
    """The untrained model of a configuration: the same weights each time.

    Args:
        config: completed.
        sample_shape: shape of one sample.
        kind: `images`, `features` or `texts`.
        kept: as for `images_of`.

    Raises:
        ConfigError: there are heads, but every loss is a regulariser.
    """
    settings = config.settings
    assert settings.model.embedding_dim is not None
    head_names = _heads(config)
    if not head_names:
        raise ConfigError("every loss is a regulariser; heads need losses of their own")
    heads = len(head_names)
    shares = settings.ensemble.shares
    if shares is not None and len(shares) != heads:
        raise ConfigError(f"shares has {len(shares)} numbers for {heads} heads ({', '.join(head_names)})")
    losses_of_run = _losses(config)
    reads_norms = any(loss.reads_norms(options) for loss, options in losses_of_run.values())
    return build_model(
        settings.model.trunk if config.objects.model is None else config.objects.model,
        sample_shape=tuple(sample_shape),
        kind=kind,
        embedding_dim=settings.model.embedding_dim,
        options=config.options_of("model"),
        normalize=not reads_norms,
        has_head=settings.model.head != "none",
        head_norm=settings.model.head_norm,
        head_hidden=settings.model.head_hidden if settings.model.head == "mlp" else 0,
        seed=settings.run.seed,
        kept=kept,
        heads=heads,
        head_names=head_names if heads > 1 else (),
        heads_see_blocks=settings.ensemble.heads_see == "blocks",
        shows_features=any(_takes_features(config, loss) for loss, _ in losses_of_run.values()),
        student=settings.model.student,
        distill_heads=settings.model.distill_heads,
        distills_features=settings.model.distill_features_weight > 0,
        compressor=_build_compressor(config, heads * settings.model.embedding_dim),
        served=settings.model.serve or "whole",
    )


def build_untrained_model(config: RunConfig, folder: RunFolder, sample_shape: tuple[int, ...], kind: str) -> EmbeddingModel:
    """The model as the run began: of a module from Python, which may now come with other weights, with those it had then.

    Raises:
        ConfigError: as `build_run_model`; or another module than the run's was given.
    """
    model = build_run_model(config, sample_shape, kind, folder.kept_trunk)
    start = None if config.objects.model is None else checkpoints.load_start(folder.checkpoints)
    if start is not None:
        try:
            model.load_state_dict(start["model"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"the model is another one than that of the run in {folder.path}: {reason}") from None
    return model


def _build_compressor(config: RunConfig, width: int) -> Compressor | None:
    for component in config.of_kind("compressor").values():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.settings.run.seed)
            return _class_of(component)(width, config.settings.model.compress, **config.options_of("compressor"))
    return None


def build_ensemble(config: RunConfig, num_classes: int, features: int = 0) -> LossEnsemble:
    """The losses of a configuration and their weighting.

    Args:
        config: completed.
        num_classes: C of the training data.
        features: columns of the trunk's output, for losses that take it.

    Raises:
        ConfigError: a loss needs more classes, or more samples of a class, than a batch has.
    """
    settings = config.settings
    assert settings.ensemble.weighting is not None
    columns = _columns(config, features)
    members: list[losses.Loss] = []
    given = iter(config.objects.losses)
    for (table, component), seen in zip(config.of_kind("loss").items(), columns, strict=True):
        if plugins.is_stand_in("loss", component.name) and (loss := next(given, None)) is not None:
            members.append(built_loss(loss))
            continue
        width = settings.model.embedding_dim if seen is None else seen[1] - seen[0]
        options = config.options.get(table, {})
        members.append(losses.create(component.name, num_classes=num_classes, embedding_dim=width, **options))
    _leave_classes_out(members, settings.losses.sampled_classes, settings.run.seed)
    for loss in members:
        least, samples = loss.least_samples(loss.options), settings.data.samples_per_class
        if samples < least:
            raise ConfigError(
                f"{loss.name} compares {least} samples of a class, but samples_per_class is {samples}. Raise it, or look for an"
                f" option of {loss.name} that needs fewer"
            )
        least, classes = loss.least_classes(loss.options), min(settings.data.classes_per_batch, num_classes)
        if classes < least:
            reason = f"{num_classes} are trained on" if classes == num_classes else f"classes_per_batch is {classes}"
            raise ConfigError(f"{loss.name} compares samples of {least} classes, but {reason}. Give it more, or leave it out")
    return LossEnsemble(
        list(members),
        settings.ensemble.weighting,
        list(settings.ensemble.weights) if settings.ensemble.weights else None,
        weighting_options=config.options_of("weighting"),
        columns=columns if any(columns) else None,
        num_classes=num_classes,
        embedding_dim=settings.model.embedding_dim,
    )


def _leave_classes_out(members: Sequence[losses.Loss], fraction: float, seed: int) -> None:
    if fraction == 1:
        return
    owners = [loss for loss in members if loss.needs_classes]
    if not owners:
        raise ConfigError("sampled_classes leaves out classes of losses with proxies, and there is none; leave it out")
    for loss in owners:
        if not isinstance(loss, losses.ProxyLoss):
            raise ConfigError(f"'{loss.name}' does not say that classes could be left out; leave sampled_classes out")
        loss.sample_classes(fraction, seed)


def build_distillation(config: RunConfig, model: EmbeddingModel, num_classes: int) -> Distillation | None:
    """What teaches the embedding by wide heads, each with the losses of the run on it, or None where there are none.

    Raises:
        ConfigError: a loss is an object from Python, which cannot be built again for another length.
    """
    settings = config.settings
    if not settings.model.distill_heads:
        return None
    if config.objects.losses:
        raise ConfigError("distill_heads builds the losses again for each head, so name them: objects cannot be built again")
    ensembles = []
    for length in settings.model.distill_heads:
        members = [
            losses.create(component.name, num_classes=num_classes, embedding_dim=length, **config.options.get(table, {}))
            for table, component in config.of_kind("loss").items()
        ]
        ensembles.append(
            LossEnsemble(
                list(members),
                settings.ensemble.weighting or plugins.defaults().WEIGHTING,
                list(settings.ensemble.weights) if settings.ensemble.weights else None,
                weighting_options=config.options_of("weighting"),
            )
        )
    return Distillation(model, ensembles, settings.model)


def build_memory(
    config: RunConfig, ensemble: LossEnsemble, model: EmbeddingModel, batch_size: int
) -> losses.CrossBatchMemory | None:
    """The memory that the losses compare batches with, or None where the settings ask for none.

    Raises:
        ConfigError: it cannot hold a batch.
    """
    settings = config.settings.losses
    if settings.memory == 0:
        return None
    if settings.memory < batch_size:
        raise ConfigError(f"memory is {settings.memory}, but must hold at least a batch, {batch_size} samples")
    return losses.CrossBatchMemory(ensemble, settings.memory, model.losses_dim, warmup=settings.memory_warmup)


def build_keys(config: RunConfig, ensemble: LossEnsemble, model: EmbeddingModel, splits: Splits) -> KeyEncoder | None:
    """What makes the keys for the losses that take them, or None where none does.

    Raises:
        ConfigError: beside a memory or wide heads, which give losses no keys. Also as `key_encoder`.
    """
    encoder = key_encoder(ensemble.names, ensemble.members, model, splits)
    if encoder is not None:
        beside = [name for name in ("memory", "distill_heads") if config.settings.values()[name]]
        name = next(name for name, loss in zip(ensemble.names, ensemble.members, strict=True) if loss.key_momentum is not None)
        if beside:
            raise ConfigError(f"{name} compares samples with their keys, which {beside[0]} has none of. Leave one of them out")
    return encoder


def _class_of(component: Component) -> Any:
    return plugins.find(component.kind, component.name).component


def _options(config: RunConfig, table: str) -> Any:
    """The options of a chosen component; None where it takes none."""
    options = config.components[table].options
    return None if options is None else build_options(options, config.options.get(table, {}), table)


def _losses(config: RunConfig) -> dict[str, tuple[type[losses.Loss], Any]]:
    """The class and the options of each loss, by its table; of an object, its own."""
    classes: dict[str, tuple[type[losses.Loss], Any]] = {}
    given = iter(config.objects.losses)
    for table, component in config.of_kind("loss").items():
        classes[table] = _class_of(component), _options(config, table)
        if plugins.is_stand_in("loss", component.name) and isinstance(loss := next(given, None), losses.Loss):
            classes[table] = type(loss), loss.options
    return classes


def _is_regulariser(loss: type[losses.Loss]) -> bool:
    return issubclass(loss, losses.NormLoss)


def _takes_features(config: RunConfig, loss: type[losses.Loss]) -> bool:
    return config.settings.ensemble.classifier == "features" and loss.sees_features


def _heads(config: RunConfig) -> list[str]:
    """Names of the heads: the tables of the losses that have one of their own, or one name for the head they share."""
    if not config.settings.ensemble.has_heads:
        return ["shared"]
    return [table for table, (loss, _) in _losses(config).items() if not _is_regulariser(loss)]


def _columns(config: RunConfig, features: int) -> list[tuple[int, int] | None]:
    """The columns of the model's outputs that each loss sees, first and behind the last; None: all of them."""
    settings = config.settings
    members = [loss for loss, _ in _losses(config).values()]
    width = settings.model.embedding_dim or 0
    whole = width * len(_heads(config))
    shows_features = any(_takes_features(config, loss) for loss in members)
    if not (settings.ensemble.has_heads or shows_features or settings.model.student):
        return [None] * len(members)
    columns: list[tuple[int, int] | None] = []
    head = 0
    for loss in members:
        if settings.ensemble.has_heads and _is_regulariser(loss):
            columns.append(None)  # it has no head of its own and sees those of all losses
            continue
        # The features stand behind the embeddings.
        first, length = (whole, features) if _takes_features(config, loss) else (head * width, width)
        columns.append((first, first + length))
        if settings.ensemble.has_heads:
            head += 1
    return columns
