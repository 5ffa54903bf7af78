"""Objects of pytorch-metric-learning from text: `lp(p=1)` is `LpDistance(p=1)`. For distances, reducers, regularisers and the
functions that fill new weights.
"""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from typing import Any

import torch
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning.utils.common_functions import TorchInitWrapper

from dmlcore.errors import ConfigError, suggestion

KINDS = {
    "distance": (distances, "Distance"),
    "reducer": (reducers, "Reducer"),
    "embedding_regularizer": (regularizers, "Regularizer"),
    "weight_regularizer": (regularizers, "Regularizer"),
}
"""Options that take an object: where its class lies, and the word that ends many of their names."""

SUFFIXES = ("_distance", "_similarity", "_reducer", "_regularizer")
LEFT_OUT = {"BatchedDistance", "DoNothingReducer"}  # no distance matrix; no number


def snake(name: str) -> str:
    """`NTXentLoss` as `nt_xent_loss`."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


@cache
def choices_of(option: str) -> dict[str, Any]:
    """What an option may name, by the short name: `lp`, `cosine`, `avg_non_zero`."""
    if option == "weight_init_func":
        return {
            name[:-1]: function
            for name, function in vars(torch.nn.init).items()
            if name.endswith("_") and not name.startswith("_") and inspect.isfunction(function)
        }
    module, _ = KINDS[option]
    components = {}
    for name, component in vars(module).items():
        if inspect.isclass(component) and not name.startswith("Base") and name not in LEFT_OUT:
            short = snake(name)
            for suffix in SUFFIXES:
                short = short.removesuffix(suffix)
            components[short.removesuffix("_reducers")] = component
    return components


def build(option: str, text: str, where: str, **filled: Any) -> Any:
    """The object that a text describes.

    Args:
        option: a key of `KINDS`, or `weight_init_func`.
        text: a name, or a call with arguments by name: `threshold(low=0.1)`, `per_anchor(reducer=sum)`.
        where: the option with its owner, for messages.
        filled: arguments that are added where the class has them and the text does not give them (`num_classes`).

    Raises:
        ConfigError: text of another form, an unknown name, arguments that the class refuses.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise _malformed(where, text) from None
    return _built(tree, option, text, where, filled)


def literal(text: str, where: str) -> Any:
    """A number or a tuple of numbers from text.

    Raises:
        ConfigError: it is something else.
    """
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError):
        raise ConfigError(f"{where} is '{text}', but must be numbers, such as (0.2, 0.8)") from None


def _malformed(where: str, text: str) -> ConfigError:
    return ConfigError(f"{where} is '{text}', but must be a name, or a name and arguments: lp(p=1)")


def _built(tree: ast.expr, option: str, text: str, where: str, filled: dict[str, Any]) -> Any:
    name, keywords = (tree.func, tree.keywords) if isinstance(tree, ast.Call) else (tree, [])
    if not isinstance(name, ast.Name) or (isinstance(tree, ast.Call) and tree.args):
        raise _malformed(where, text)
    choices = choices_of(option)
    short = name.id
    for suffix in SUFFIXES:
        short = short.removesuffix(suffix)
    if short not in choices:
        raise ConfigError(f"{where} names '{name.id}'.{suggestion(short, choices)} Known: {', '.join(sorted(choices))}.")
    arguments = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise _malformed(where, text)
        arguments[keyword.arg] = _value(keyword.value, option, text, where, filled)
    component = choices[short]
    if option == "weight_init_func":
        return _initialiser(component, arguments, where)
    for argument, value in filled.items():
        if value is not None and argument in inspect.signature(component).parameters:
            arguments.setdefault(argument, value)
    try:
        return component(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{where} is '{text}', which {component.__name__} refuses: {_reason(error)}") from error


def _initialiser(function: Any, arguments: dict[str, Any], where: str) -> TorchInitWrapper:
    initialiser = TorchInitWrapper(function, **arguments)
    try:
        initialiser(torch.empty(2, 2))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: torch.nn.init.{function.__name__} refuses its arguments: {_reason(error)}") from error
    return initialiser


def _value(tree: ast.expr, option: str, text: str, where: str, filled: dict[str, Any]) -> Any:
    """An argument: a literal, `true`, `false`, `none`, or for reducers another reducer or a dict of them."""
    words = {"true": True, "false": False, "none": None}
    if isinstance(tree, ast.Name) and tree.id in words:
        return words[tree.id]
    if option == "reducer" and isinstance(tree, ast.Dict):
        return {
            ast.literal_eval(key): _built(value, option, text, where, filled)
            for key, value in zip(tree.keys, tree.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(tree, ast.Name | ast.Call):
        return _built(tree, option, text, where, filled)
    try:
        value = ast.literal_eval(tree)
    except ValueError:
        raise _malformed(where, text) from None
    return torch.tensor(value) if isinstance(value, list | tuple) else value


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
