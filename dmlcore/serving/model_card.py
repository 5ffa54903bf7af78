"""The card of a model in Markdown, out of what is known of its training."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from dmlcore.serving.samples import Preparation
from dmlcore.texts import in_markdown

_Z = 1.96  # of a normal distribution, 95 %
_TASKS = {"images": "image-feature-extraction", "features": "feature-extraction", "texts": "sentence-similarity"}
_EXAMPLES = {"images": '"photo.jpg"', "features": "features", "texts": '"a sentence"'}


def card_of(config: dict[str, Any], form: Literal["folder", "plain", "module"] = "folder") -> str:
    """The text of `README.md`.

    Args:
        config: of a model folder.
        form: how the model is loaded: as a `folder` of dmlcore, by sentence-transformers as it is (`plain`), or by both, for
            which it holds a `module` of dmlcore.
    """
    about = config.get("about") or {}
    safe: dict[str, Any] = in_markdown(config)
    facts = in_markdown(about)
    parts = [_front(config, about), f"# {safe['name']}", _opening(safe, facts)]
    parts += ["## Use", _use(config, form)]
    parts += ["## Training", _training(safe, facts)]
    if isinstance(about.get("metrics"), dict) and about["metrics"]:
        parts += ["## Measures", _measures(facts)]
    parts += ["## Intended use and limits", _limits(safe, facts)]
    parts += ["## Licence", _licence(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` queries.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the American Statistical
    Association, 1927.
    """
    if count < 1:
        return 0.0, 1.0
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    middle, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


def _front(config: dict[str, Any], about: dict[str, Any]) -> str:
    lines = ["---", "library_name: dmlcore", f"pipeline_tag: {_TASKS[config['kind']]}"]
    if about.get("licence"):
        lines.append(f"license: {json.dumps(str(about['licence']))}")
    return "\n".join([*lines, "tags:", "- metric-learning", "- retrieval", "---"])


def _opening(config: dict[str, Any], facts: dict[str, Any]) -> str:
    what = {"images": "pictures", "features": "rows of features", "texts": "texts"}[config["kind"]]
    norm = " of unit norm" if config["has_unit_norm"] else ""
    return (
        f"Maps {what} to embeddings of {config['embedding_dim']} numbers{norm}. What belongs together lies close together, by"
        f" cosine similarity. Trained with dmlcore {config['dmlcore']}."
    )


def _use(config: dict[str, Any], form: str) -> str:
    shape = config["sample_shape"]
    takes = {
        "images": f"Pictures are resized {_resized(config)}, then cut to {shape[-1]} x {shape[-2] if len(shape) > 1 else 0}"
        f" pixels around the centre, in"
        f" {'grey' if shape[0] == 1 else 'colour'}. The network normalises the pixels itself.",
        "features": f"A sample is a row of {shape[0]} numbers, as they are in the data.",
        "texts": "A sample is a text; the network splits it into words itself.",
    }[config["kind"]]
    example = _EXAMPLES[config["kind"]]
    own = f'```python\nimport dmlcore\n\nmodel = dmlcore.load("FOLDER")\nembedding = model.encode({example})\n```'
    trust = ", trust_remote_code=True" if form == "module" else ""
    library = (
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("FOLDER"{trust})\nembeddings = model.encode([{example}])\n```'
    )
    module = (
        "sentence-transformers asks for `trust_remote_code=True`, because the folder names a module of the installed package"
        " dmlcore. The folder itself holds no code that is run."
    )
    parts = {"folder": [own], "plain": [library], "module": [own, library, module]}[form]
    return "\n\n".join([*parts, takes])


def _resized(config: dict[str, Any]) -> str:
    shape = tuple(config["sample_shape"])
    return Preparation("images", shape, **config["preprocessing"]).in_words() if len(shape) == 3 else ""


def _training(config: dict[str, Any], facts: dict[str, Any]) -> str:
    architecture = config["architecture"]
    lines = [f"- Network: {architecture['trunk']['name']}{_options(architecture['trunk']['options'])}"]
    if architecture["compressor"] is not None:
        lines.append(f"- Compressed by {architecture['compressor']['name']} from {architecture['compressor']['width']} numbers")
    names = [str(loss.get("name", "")) for loss in facts.get("losses", []) if isinstance(loss, dict)]
    if names:
        lines.append(f"- Losses: {', '.join(names)}")
    data = facts.get("data") or {}
    if data:
        lines.append(f"- Data: {data.get('name')}")
        for part, counts in (data.get("parts") or {}).items():
            lines.append(f"  - {part}: {counts.get('samples'):,} samples of {counts.get('classes'):,} classes")
    if facts.get("steps"):
        lines.append(f"- Steps: {facts['steps']}, seed {facts.get('seed')}; chosen at step {facts.get('chosen_step')}")
    return "\n".join(lines)


def _options(options: dict[str, Any]) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in options.items())
    return f" ({shown})" if shown else ""


def _measures(facts: dict[str, Any]) -> str:
    rows = ["| classes | R@1 | 95 % interval | MAP@R | queries |", "| --- | --- | --- | --- | --- |"]
    for part, values in facts["metrics"].items():
        rows.append(_row(f"{part}, held out", values))
        for name, parts in (facts.get("baselines") or {}).items():
            if part in parts:
                rows.append(_row(f"{part}, {name}", parts[part]))
    sentence = (
        "Each query is ranked against the other samples of its part, or against a gallery where the data name one. The"
        " interval is Wilson's over the queries. It says nothing of"
        " other classes or another training."
    )
    return "\n".join([*rows, "", sentence])


def _row(label: str, values: dict[str, Any]) -> str:
    share, count = values.get("recall@1"), values.get("queries")
    if share is None or not count:
        return f"| {label} | | | | |"
    low, high = interval(share, count)
    return f"| {label} | {share:.3f} | {low:.3f} to {high:.3f} | {values.get('map@r', float('nan')):.3f} | {count:,.0f} |"


def _limits(config: dict[str, Any], facts: dict[str, Any]) -> str:
    data = facts.get("data") or {}
    name = f" such as those in {data['name']}" if data.get("name") else " such as those it was trained on"
    lines = [
        f"For finding and comparing samples{name}, also of classes that were not trained on.",
        "Nobody has measured it on other kinds of samples. Measure it on your own before you rely on it. It was not made to"
        " recognise or to rate people.",
    ]
    return "\n\n".join([*lines, *(str(sentence) for sentence in facts.get("advice", []))])


def _licence(facts: dict[str, Any]) -> str:
    return str(facts["licence"]) if facts.get("licence") else "None was given: ask whoever trained the model."
