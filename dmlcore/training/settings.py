"""What a training run is made of: the settings, and the options of the components they choose. Values come from sources
(a TOML file, the command line, keyword arguments), later ones win. No torch here.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dmlcore.config import build_options, check_range, unique_names
from dmlcore.errors import ConfigError, suggestion
from dmlcore.plugin_files import absolute

DEFAULT_MODELS = {"images": "conv", "features": "mlp"}
DEFAULT_STEPS = 700
LENGTH, WIDER = 64, 4  # of what is served, and how many times longer it is before compression: docs/ensembles.md says why
LONGEST = 4096  # of what is served: fitting a compressor takes the square of 4 times that in float64, 2 GB
AUTO = ("auto",)  # as plugins: the losses are chosen on the validation classes
# The settings that choose components, or that decide whether one is needed.
CHOOSING = (
    "plugins",
    "ensemble",
    "weighting",
    "weights",
    "embedding_dim",
    "student",
    "compress",
    "compressor",
    "data",
    "model",
    "transforms",
    "sampler",
    "metrics",
    "loggers",
)


@dataclass(frozen=True)
class Settings:
    """The settings of a training run, apart from the options of its losses, model and data."""

    plugins: tuple[str, ...] = ("circle", "binomial_deviance", "norm_softmax")
    """Losses to train with, separated by commas. A loss named twice is used twice; its second options are `NAME_2`. `auto`
    tries losses and values of their main option on the validation classes first and takes those near the best."""
    auto_losses: tuple[str, ...] | None = None
    """Losses that `auto` tries (default: all that declare values to try)."""
    auto_trials: int = 4
    """Trials of each loss, over values of its main option."""
    auto_steps: int | None = None
    """Optimiser steps of a trial (default: half of the run's)."""
    auto_within: float = 0.02
    """How far below the best validation MAP@R a member may lie."""
    auto_most: int = 4
    """Members at most."""
    ensemble: Literal["shared", "heads", "wel", "wedl"] = "shared"
    """`shared`: one embedding for all losses; `heads`: a linear head for each. The published methods: `wel` is `shared` with
    learned weights and classifiers on the trunk's features, `wedl` is `heads` with learned weights and a diversity term."""
    weighting: str | None = None
    """How the losses are weighed against each other (default: `equal_gradient_norms` for several losses on one embedding,
    unless `weights` are given or one is a regulariser of norms; with `wel` and `wedl` `floor_square_penalty`; else `fixed`)."""
    weights: tuple[float, ...] | None = None
    """Weight of each loss, in the order of `plugins` (default: 1 each)."""
    classifier: Literal["embedding", "features"] | None = None
    """What `cross_entropy` sees: its `embedding`, or the trunk's `features` (default with `wel`)."""
    diversity: Literal["off", "distance"] | None = None
    """A term that drives heads apart: `distance` between them, as published (default with `wedl`)."""
    diversity_weight: float = 0.01
    """Weight of the diversity term."""
    compress: int | None = None
    """Length of the embedding after compression; 0: none (default: 64 with the default `embedding_dim`, else 0)."""
    compressor: str = "pca"
    """How embeddings are compressed: `pca`, `whitened_pca`, `linear`, `lin_tanh_lin`."""
    student: int = 0
    """Length of an extra head that learns the similarities of the whole embedding while the others train; 0: none."""
    student_weight: float = 1.0
    """Weight of the student's term; its gradient stops at the trunk."""
    serve: Literal["whole", "compressed", "student"] | None = None
    """What the model gives as its embedding (default: `compressed` where there is that, else `student`, else `whole`)."""
    data: str = "glyphs"
    """Data set by name, a folder with one sub-folder per class, a CSV manifest, or an .npz with x and y; where only `splits`
    are given, what these were made of."""
    fractions: tuple[float, ...] = (0.5, 0.15, 0.35)
    """Fractions of the classes for training, validation and test, where the data has no split of its own."""
    splits: str | None = None
    """File of class splits, as `dmlcore splits` makes it, that says which classes are trained on and which are tested."""
    split: str | None = None
    """Id of a split in `splits` (default: its default split)."""
    image_size: int | None = None
    """Side of the square images in pixels (default: what the data has)."""
    transforms: tuple[str, ...] | None = None
    """Random changes of training batches, separated by commas, in their order (default: what the data brings)."""
    workers: int = 0
    """Processes that decode image files."""
    model: str | None = None
    """Trunk by name (default: `conv` for images, `mlp` for features)."""
    embedding_dim: int | None = None
    """Length of an embedding, or of each head, before compression (default: 256, compressed to 64; 4 times `compress` where
    that is given; 64 without compression, and with `wel` and `wedl`)."""
    steps: int | None = None
    """Optimiser steps (default: 700, unless `epochs` is given)."""
    epochs: int | None = None
    """Passes over the training samples, instead of `steps`."""
    classes_per_batch: int = 32
    """Classes in a batch; fewer where the data has fewer."""
    samples_per_class: int = 4
    """Samples of each class in a batch."""
    sampler: str = "class_balanced"
    """How batches of `classes_per_batch` times `samples_per_class` are composed."""
    memory: int = 0
    """Embeddings of the last batches that losses between samples compare a batch with, a batch or more; 0: the batch itself."""
    memory_warmup: int = 0
    """Steps before the memory is used; it fills meanwhile."""
    learning_rate: float = 2e-3
    """Highest learning rate of the trunk; it rises over `warmup` steps and falls as a cosine."""
    warmup: int = 50
    """Steps over which the learning rate rises."""
    head_factor: float = 1.0
    """Learning rate of the embedding head, relative to the trunk's."""
    proxies_factor: float = 20.0
    """Learning rate of proxies, relative to the trunk's."""
    scalars_factor: float = 1.0
    """Learning rate of learnable numbers inside losses, relative to the trunk's."""
    weights_factor: float = 1.0
    """Learning rate of learnable ensemble weights, relative to the trunk's."""
    weight_decay: float = 1e-4
    """AdamW's decay of the trunk and the head."""
    clip: float | None = 10.0
    """Largest norm of the gradient, of the model and of everything else apart; `none` switches clipping off."""
    eval_every: int = 100
    """Steps between evaluations on the validation classes, each with a checkpoint."""
    log_every: int = 50
    """Steps between lines of progress where there is no terminal."""
    metrics: tuple[str, ...] = ()
    """Measures of embeddings beside those of retrieval, separated by commas."""
    loggers: tuple[str, ...] = ()
    """Further loggers, separated by commas."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    seed: int = 0
    """Seed of the split, the weights, the batches and the augmentation."""

    def __post_init__(self) -> None:
        if not self.plugins or not all(self.plugins):
            raise ConfigError("plugins is empty, but must name at least one loss, e.g. ms,triplet")
        if "auto" in self.plugins and self.plugins != AUTO:
            raise ConfigError("plugins has auto among other names; give it alone, and what it may choose from as auto_losses")
        if self.plugins == AUTO and self.weights is not None:
            raise ConfigError("weights are given, but plugins is auto: how many losses there will be is not known")
        if self.weights is not None and len(self.weights) != len(self.plugins):
            raise ConfigError(
                f"weights has {len(self.weights)} numbers for {len(self.plugins)} losses ({', '.join(self.plugins)})"
            )
        for weight in self.weights or ():
            check_range("weights", weight, least=0)
        for name in ("diversity_weight", "student_weight"):
            check_range(name, getattr(self, name), least=0)
        for name in ("compress", "student"):
            check_range(name, getattr(self, name), least=0, most=LONGEST)
        check_range("embedding_dim", self.embedding_dim, least=1, most=WIDER * LONGEST)
        if self.serve in ("compressed", "student") and not getattr(
            self, "compress" if self.serve == "compressed" else "student"
        ):
            raise ConfigError(f"serve is '{self.serve}', but {'compress' if self.serve == 'compressed' else 'student'} is 0")
        if self.diversity not in (None, "off") and not self.has_heads:
            raise ConfigError("diversity needs a head per loss: ensemble = heads or wedl")
        if len(self.fractions) != 3:
            raise ConfigError(f"fractions has {len(self.fractions)} numbers, but must have 3: training, validation, test")
        for fraction in self.fractions:
            check_range("fractions", fraction, least=0, most=1)
        if self.split is not None and self.splits is None:
            raise ConfigError(f"split is '{self.split}', but there is no file to find it in; give splits as well")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps and epochs are both given; leave one out")
        if self.plugins != AUTO:
            defaults = {f.name: f.default for f in dataclasses.fields(Settings) if f.name.startswith("auto_")}
            idle = [name for name, default in defaults.items() if getattr(self, name) != default]
            if idle:
                raise ConfigError(f"{idle[0]} is given, but it is for plugins = auto, and plugins is {','.join(self.plugins)}")
        check_range("auto_within", self.auto_within, least=0)
        for name in (
            "auto_trials",
            "auto_steps",
            "auto_most",
            "steps",
            "epochs",
            "classes_per_batch",
            "eval_every",
            "log_every",
            "image_size",
        ):
            check_range(name, getattr(self, name), least=1)
        check_range("samples_per_class", self.samples_per_class, least=2)
        for name in ("warmup", "workers", "seed", "weight_decay", "memory", "memory_warmup"):
            check_range(name, getattr(self, name), least=0)
        for name in ("learning_rate", "clip", "head_factor", "proxies_factor", "scalars_factor", "weights_factor"):
            check_range(name, getattr(self, name), above=0)
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdigit():
            raise ConfigError(f"device is '{self.device}', but must be auto, cpu, cuda or cuda:N")

    @property
    def has_heads(self) -> bool:
        """Whether each loss has a head of its own."""
        return self.ensemble in ("heads", "wedl")

    def _pull_equally(self) -> bool:
        """Whether gradients of equal norm are the default: docs/ensembles.md has the reasons."""
        from dmlcore import plugins
        from dmlcore.losses import NormLoss

        if self.has_heads or self.weights is not None or len(self.plugins) < 2:
            return False
        return not any(issubclass(plugins.find("loss", name).component, NormLoss) for name in self.plugins)

    def resolved(self) -> Settings:
        """The same with what is left open written out: what `ensemble` implies, and the lengths of embeddings."""
        published = self.ensemble in ("wel", "wedl")
        compress = self.compress
        if compress is None:
            compress = LENGTH if self.embedding_dim is None and not published and not self.student else 0
        implied: dict[str, Any] = {
            "compress": compress,
            "embedding_dim": WIDER * compress if compress and not published else LENGTH,
            "weighting": "floor_square_penalty" if published else "equal_gradient_norms" if self._pull_equally() else "fixed",
            "classifier": "features" if self.ensemble == "wel" else "embedding",
            "diversity": "distance" if self.ensemble == "wedl" else "off",
            "serve": "compressed" if compress else "student" if self.student else "whole",
        }
        return dataclasses.replace(self, **{key: value for key, value in implied.items() if getattr(self, key) is None})


@dataclass(frozen=True)
class Source:
    """Values from one place.

    Attributes:
        label: the file, put before messages; empty for the command line and for Python.
        values: settings by name.
        tables: options by name, by component.
    """

    label: str
    values: dict[str, Any]
    tables: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, given: dict[str, Any], label: str = "") -> Source:
        """Part nested values into settings and tables; `-` in names is read as `_`."""
        tables = {
            name: {k.replace("-", "_"): v for k, v in value.items()} for name, value in given.items() if isinstance(value, dict)
        }
        return cls(label, {k.replace("-", "_"): v for k, v in given.items() if not isinstance(v, dict)}, tables)

    @classmethod
    def read(cls, path: str | Path) -> Source:
        """Read a TOML file.

        Raises:
            ConfigError: the file is missing or is no TOML.
        """
        try:
            with open(path, "rb") as file:
                return cls.of(tomllib.load(file), str(path))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.label}: {message}" if self.label else message)


def with_data_of_splits(sources: list[Source]) -> list[Source]:
    """The sources, behind one with the data that a file of splits was made of, where `splits` is given and no `data`.

    Raises:
        DataError: the file cannot be read, or its data are gone.
    """
    files = [source.values["splits"] for source in sources if source.values.get("splits") not in (None, "none")]
    if not files or any("data" in source.values for source in sources):
        return sources
    from dmlcore.data import SplitFile

    file = SplitFile.read(files[-1])
    tables = {data_component(file.data).table: dict(file.options)} if file.options else {}
    return [Source(str(files[-1]), {"data": file.data}, tables), *sources]


@dataclass(frozen=True)
class Component:
    """A chosen component.

    Attributes:
        table: name of the table of its options, as in `--TABLE.option`.
        kind: as in `plugins.KINDS`.
        name: as the settings choose it.
        options: its options class; None: it takes none.
        implied: options that the name itself gives, such as the path behind `--data`.
    """

    table: str
    kind: str
    name: str
    options: type | None
    implied: dict[str, Any] = field(default_factory=dict)

    def option_names(self) -> list[str]:
        """Options that can be given."""
        return (
            [f.name for f in dataclasses.fields(self.options) if f.name not in self.implied] if self.options is not None else []
        )


def data_component(name: str) -> Component:
    """The source that `--data` names, whose path is implied."""
    from dmlcore.data import find_source

    source, implied = find_source(name)
    return Component(source.name, "data", name, source.Options, implied)


def model_component(name: str) -> Component:
    """The trunk that `--model` names."""
    from dmlcore.models import find_trunk

    trunk, implied = find_trunk(name, "images")
    return Component(trunk.name, "model", name, trunk.Options, implied)


def components(settings: Settings) -> dict[str, Component]:
    """The components that settings choose, by the table of their options.

    Without a `model`, the default model of every kind of data is among them, since the kind is known only from the data.

    Raises:
        ConfigError: an unknown name, or two components whose options would share a table.
    """
    from dmlcore import plugins

    def named(kind: str, name: str, table: str = "") -> Component:
        component = plugins.find(kind, name).component
        return Component(table or component.name, kind, name, getattr(component, "Options", None))

    names = () if settings.plugins == AUTO else settings.plugins
    tables_of = unique_names(_short_name("loss", name) for name in names)
    chosen = [named("loss", name, table) for table, name in zip(tables_of, names, strict=True)]
    settings = settings.resolved()
    assert settings.weighting is not None
    chosen.append(named("weighting", settings.weighting))
    if settings.compress:
        chosen.append(named("compressor", settings.compressor))
    chosen += [model_component(name) for name in ([settings.model] if settings.model else DEFAULT_MODELS.values())]
    chosen.append(data_component(settings.data))
    chosen += [named("transform", name) for name in settings.transforms or ()]
    chosen.append(named("sampler", settings.sampler))
    chosen += [named("metric", name) for name in settings.metrics]
    chosen += [named("logger", name) for name in settings.loggers]
    tables: dict[str, Component] = {}
    for component in chosen:
        if component.table in tables:
            other = tables[component.table]
            raise ConfigError(
                f"'{component.table}' is chosen twice, as {other.kind} and as {component.kind};"
                f" their options cannot be told apart"
            )
        tables[component.table] = component
    return tables


def _short_name(kind: str, name: str) -> str:
    """A component's own name, where it is chosen by the file it stands in."""
    from dmlcore import plugins

    return plugins.find(kind, name).component.name if plugins.plugin_files.is_reference(name) else name


def choose(sources: list[Source]) -> tuple[Settings, dict[str, Component]]:
    """Settings with only their choices of components taken from the sources, and those components.

    Raises:
        ConfigError: as `components`; the message names the file where the choice came from one.
    """
    parts = [(source, {key: source.values[key] for key in CHOOSING if key in source.values}) for source in sources]
    settings = _build(Settings, parts, "")
    try:
        return settings, components(settings)
    except ConfigError as error:
        for key in CHOOSING:
            owner = next((source for source, values in reversed(parts) if key in values), None)
            if owner and owner.label and any(f"'{name}'" in str(error).partition(".")[0] for name in _names(owner.values[key])):
                raise type(error)(str(owner.error(f"{key}: {error}"))) from None
        raise


def _names(value: Any) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []


def not_chosen(table: str, chosen: dict[str, Component], settings: Settings) -> str:
    """Why a table of options is refused: it belongs to something that is not chosen, or to nothing at all."""
    from dmlcore import plugins

    for kind in plugins.KINDS:
        if table in plugins.registry(kind):
            if kind == "miner":
                return f"'{table}' is a miner; its options stand behind its name: --LOSS.miner '{table}(option=value)'"
            selected = ", ".join(c.table for c in chosen.values() if c.kind == kind) or "none"
            setting = plugins.KINDS[kind].setting
            return (
                f"options of '{table}' are given, but that {kind} is not selected ({setting}: {selected})."
                f" Select it by --{setting}, or leave its options out."
            )
    return f"there is nothing called '{table}' to give options to.{suggestion(table, chosen)}"


@dataclass(frozen=True)
class RunConfig:
    """A complete, checked description of a run.

    Attributes:
        settings: the settings.
        chosen: the chosen components, by table.
        options: the options given to each component, by table; complete once `completed` was called.
    """

    settings: Settings = field(default_factory=Settings)
    chosen: dict[str, Component] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def create(cls, **given: Any) -> RunConfig:
        """From keyword arguments: settings, and a dict per component, e.g. `create(plugins="ms", ms={"alpha": 4})`."""
        return cls.resolve([Source.of(given)])

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        """From a TOML file."""
        return cls.resolve([Source.read(path)])

    @classmethod
    def resolve(cls, sources: list[Source]) -> RunConfig:
        """Check and merge sources; later ones win.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range, options of something that is not chosen;
                the message names the file where the value came from one.
        """
        names = [f.name for f in dataclasses.fields(Settings)]
        sources = with_data_of_splits(sources)
        for source in sources:
            for key in source.values:
                if key not in names:
                    raise source.error(f"unknown key '{key}'.{suggestion(key, names)}")
        settings = _build(Settings, [(source, source.values) for source in sources], "")
        _, chosen = choose(sources)
        for source in sources:
            for table, values in source.tables.items():
                if table not in chosen:
                    if table in names:
                        raise source.error(f"'{table}' is a setting, not a table of options")
                    raise source.error(not_chosen(table, chosen, settings))
                known = chosen[table].option_names()
                for key in values:
                    if key not in known:
                        raise source.error(f"{table} has no option '{key}'.{suggestion(key, known) or ' It has none.'}")
        options = {}
        for table, component in chosen.items():
            parts = [(source, source.tables.get(table, {})) for source in sources]
            if component.options is not None and any(values for _, values in parts):
                built = _build(component.options, [(Source("", {}, {}), component.implied), *parts], table)
                options[table] = {key: getattr(built, key) for _, values in parts for key in values}
        return cls(settings, chosen, options)

    def completed(self, kind: str, steps: int) -> RunConfig:
        """The same with nothing left open: the model named, steps counted, paths absolute, every option written out.

        Args:
            kind: `images` or `features`, from the data.
            steps: number of steps, counted from the epochs where those were given.

        Raises:
            ConfigError: options were given for the default model of another kind of data.
        """
        model = self.settings.model or DEFAULT_MODELS[kind]
        chosen = {table: c for table, c in self.chosen.items() if c.kind != "model" or c.name == model}
        for table in self.options:
            if table not in chosen:
                raise ConfigError(
                    f"options of '{table}' are given, but the model for {kind} is '{model}'."
                    f" Say --model {table}, or leave them out."
                )
        source = next(c for c in chosen.values() if c.kind == "data")
        data = str(Path(source.name).expanduser().resolve()) if source.implied else source.name
        settings = dataclasses.replace(self.settings.resolved(), model=model, steps=steps, epochs=None, data=data)
        if settings.splits is not None:
            settings = dataclasses.replace(settings, splits=str(Path(settings.splits).expanduser().resolve()))
        settings = _with_absolute_files(settings)
        chosen = {table: dataclasses.replace(c, name=absolute(c.name)) for table, c in chosen.items()}
        options = {}
        for table, component in chosen.items():
            if component.options is not None:
                built = build_options(component.options, {**component.implied, **self.options.get(table, {})}, table)
                options[table] = {name: getattr(built, name) for name in component.option_names()}
        return RunConfig(settings, chosen, options)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as in the TOML file: None is left out where it is the default, else `"none"`."""
        nested: dict[str, Any] = _plain(Settings, dataclasses.asdict(self.settings))
        for table, values in self.options.items():
            component = self.chosen[table]
            if component.options is not None and values:
                nested[table] = _plain(component.options, values)
        return nested

    def options_of(self, kind: str) -> dict[str, Any]:
        """Options given to the one component of a kind."""
        return next((self.options.get(table, {}) for table, c in self.chosen.items() if c.kind == kind), {})

    def toml(self) -> str:
        """The text of `config.toml`."""
        import tomli_w

        return tomli_w.dumps(self.as_dict())


def _build(options: type, parts: list[tuple[Source, dict[str, Any]]], owner: str) -> Any:
    merged = {key: value for _, values in parts for key, value in values.items()}
    try:
        return build_options(options, merged, owner or "settings")
    except ConfigError as error:
        # The value that fails on its own is to blame; name the file it came from.
        for source, values in reversed(parts):
            for key, value in values.items():
                try:
                    build_options(options, {key: value}, owner or "settings")
                except ConfigError as alone:
                    if str(alone) == str(error):
                        raise source.error(_short(str(error))) from None
        raise ConfigError(_short(str(error))) from None


def _short(message: str) -> str:
    return message.removeprefix("settings: ").removeprefix("settings.")


def _with_absolute_files(settings: Settings) -> Settings:
    """Settings that name components by files do so by absolute paths, so that the run can be repeated from anywhere."""
    found: dict[str, Any] = {}
    for name in CHOOSING:
        value = getattr(settings, name)
        if isinstance(value, str):
            found[name] = absolute(value)
        elif isinstance(value, tuple) and value != AUTO and name != "weights":
            found[name] = tuple(absolute(one) for one in value)
    return dataclasses.replace(settings, **found)


def _plain(options: type, values: dict[str, Any]) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(options)}
    plain = {}
    for key, value in values.items():
        if value is None and defaults.get(key) is None:
            continue
        plain[key] = "none" if value is None else list(value) if isinstance(value, tuple) else value
    return plain
