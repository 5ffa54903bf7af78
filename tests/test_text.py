"""Texts as data, and encoders of transformers and sentence-transformers, built tiny from a configuration."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlcore.data import TEXT_BYTES, TextStore, count_trigrams, open_data, texts_of
from dmlcore.errors import ConfigError, DataError
from dmlcore.models import ImagesWanted, build_model, images_wanted
from dmlcore.serving import TrainedRun
from dmlcore.training import RunConfig, train

THINGS = ("account", "card", "letter", "house", "car", "book", "phone", "garden")
WORDS = ("open", "my", "the", "please", "new", "old", "lost", "find", "a", "where", "is", "##s", *THINGS)
QUICK: dict[str, Any] = {"plugins": "ms", "classes_per_batch": 4, "samples_per_class": 2, "eval_every": 2, "compress": 8}


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("training must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    lines = [f'"{start} {thing}, {end}",{thing}' for thing in THINGS for start, end in _PHRASES]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return tmp_path / "texts.csv"


_PHRASES = (("open my", "please"), ("find the", "please"), ("where is a new", "old"), ("lost my old", "find"))


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")


@pytest.fixture(scope="module")
def saved_bert(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def bert(saved_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_bert, tmp_path / "bert"))


def trunk_of(folder: Path | str, **options: Any) -> Any:
    model = build_model(f"hf/{folder}", sample_shape=(TEXT_BYTES,), kind="texts", options=options)
    return model.trunk.eval()


def samples(*texts: str) -> torch.Tensor:
    return TextStore(texts).fetch(np.arange(len(texts)))


def test_texts_come_back_as_they_were() -> None:
    texts = ("a cat", "Über den Wolken", "猫が好き", "x" * TEXT_BYTES)
    assert texts_of(samples(*texts)) == list(texts)
    long = TextStore(["é" * TEXT_BYTES, "short"])
    assert long.cut == 1 and texts_of(long.fetch(np.array([0]))) == ["é" * (TEXT_BYTES // 2)]


def test_trigrams_are_counted() -> None:
    counts = count_trigrams(samples("aaaa", "aaaab", "b", ""), 512)
    assert counts.shape == (4, 512) and counts[3].sum() == 0
    # \0aa aaa aaa aa\0 a\0\0, which no two of share a bucket here
    assert sorted(counts[0][counts[0] > 0].expm1().round().tolist()) == [1, 1, 1, 2]
    assert torch.equal(counts[:1], count_trigrams(samples("aaaa"), 512))  # whatever stands beside it
    query, *rest = torch.nn.functional.normalize(count_trigrams(samples("my old car", "my old card", "where is it")))
    assert query @ rest[0] > 0.7 > 0.2 > query @ rest[1]


def test_a_csv_of_texts(texts: Path) -> None:
    with texts.open("a", encoding="utf-8") as file:
        file.write('"open my card, please",card\n"open my card, please",phone\n,card\n"no label",\n')
    splits = open_data(texts)
    assert splits.kind == "texts" and splits.sample_shape == (TEXT_BYTES,)
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == len(THINGS) * len(_PHRASES)
    assert splits.train.batch([0]).dtype == torch.uint8
    notes = " ".join(splits.notes)
    assert "2 rows without a text or a label" in notes and "1 rows that repeat an earlier one" in notes
    assert "1 rows that give an earlier text a second label" in notes
    (texts.parent / "both.csv").write_text("path,text,label\nx.png,a,b\n")
    with pytest.raises(DataError, match="1 of 1 images"):  # a list of images has its texts beside them
        open_data(texts.parent / "both.csv")
    (texts.parent / "none.csv").write_text("text,label\n,\n")
    with pytest.raises(DataError, match="lists no texts"):
        open_data(texts.parent / "none.csv")


def test_training_on_texts_without_another_library(texts: Path, tmp_path: Path) -> None:
    result = train(data=str(texts), steps=4, out=tmp_path / "run", **QUICK)
    assert RunConfig.read(tmp_path / "run" / "config.toml").settings.model.trunk == "trigrams"
    assert set(result["baselines"]) == {"raw trigrams", "before training"}
    again = TrainedRun(tmp_path / "run").evaluate()
    assert again["metrics"]["test"] == pytest.approx(result["metrics"]["test"], abs=1e-6)
    with pytest.raises(ConfigError, match="'crop' changes images, but the data are texts"):
        train(data=str(texts), transforms="crop", steps=1, out=tmp_path / "cropped", **QUICK)
    with pytest.raises(ConfigError, match="model 'conv' takes images, but the data are texts. Models for texts: hf, trigrams"):
        train(data=str(texts), model="conv", steps=1, out=tmp_path / "conv", **QUICK)


def test_an_encoder_gives_what_transformers_gives(transformers: Any, bert: Path) -> None:
    texts = ["open my cards please", "where", "find the old house, lost the letter"]
    network = transformers.BertModel.from_pretrained(bert).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(bert)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = network(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        trunk = trunk_of(bert)
        assert torch.allclose(trunk(samples(*texts)), (states * mask).sum(1) / mask.sum(1), atol=1e-6)
        assert torch.allclose(trunk_of(bert, pool="cls")(samples(*texts)), states[:, 0], atol=1e-6)
        assert torch.allclose(trunk(samples(texts[1])), trunk(samples(*texts))[1:2], atol=1e-6)  # whatever it is filled up to
        assert trunk(samples("")).isfinite().all()
        short = trunk_of(bert, length=4)
        assert torch.allclose(short(samples("open my house please")), short(samples("open my card now")), atol=1e-6)
    assert trunk.length == 24 and trunk.features == 16
    with pytest.raises(ConfigError, match=r"hf.length is 99, but this encoder takes 24 tokens"):
        trunk_of(bert, length=99)


def test_sentence_transformers_say_how_they_pool(transformers: Any, bert: Path) -> None:
    def pooled(settings: dict[str, Any], *further: str) -> str:
        kinds = ("Transformer", "Pooling", *further, "Normalize")
        modules = [
            {"path": "" if kind == "Transformer" else kind, "type": f"sentence_transformers.models.{kind}"} for kind in kinds
        ]
        (bert / "modules.json").write_text(json.dumps(modules))
        (bert / "Pooling").mkdir(exist_ok=True)
        (bert / "Pooling" / "config.json").write_text(json.dumps(settings))
        return trunk_of(bert).pool.how

    assert pooled({"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}) == "cls"
    assert pooled({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}) == "avg"
    assert pooled({"embedding_dimension": 16, "pooling_mode": "max"}) == "max"
    with pytest.raises(ConfigError, match="pools by lasttoken: choose another by --hf.pool"):
        pooled({"pooling_mode_lasttoken": True})
    with pytest.raises(ConfigError, match="has the module Dense of sentence-transformers, which is not supported"):
        pooled({"pooling_mode": "mean"}, "Dense")
    (bert / "modules.json").write_text(json.dumps([{"path": "../elsewhere", "type": "Transformer"}]))
    with pytest.raises(DataError, match="names a folder outside of its own"):
        trunk_of(bert)


def test_a_run_keeps_the_tokenizer_and_the_weights(texts: Path, bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(data=str(texts), model="hf/./bert", steps=4, out=tmp_path / "run", **QUICK)
    shutil.rmtree(bert)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = TrainedRun(tmp_path / "moved")
    again = run.evaluate()
    assert again["metrics"]["test"] == pytest.approx(result["metrics"]["test"], abs=1e-6)
    assert again["baselines"] == result["baselines"]
    assert run(samples("open my house please")).shape == (1, 8)
    assert train(resume=tmp_path / "moved", steps=6)["baselines"] == result["baselines"]


def test_weights_of_an_encoder_from_a_file(transformers: Any, bert: Path, tmp_path: Path) -> None:
    trained = transformers.BertForMaskedLM(transformers.AutoConfig.from_pretrained(bert))
    torch.save({f"module.{name}": value for name, value in trained.state_dict().items()}, tmp_path / "w.pt")
    trunk = trunk_of(bert, weights=str(tmp_path / "w.pt"))
    assert torch.equal(trunk.network.embeddings.word_embeddings.weight, trained.bert.embeddings.word_embeddings.weight)
    drawn = trunk_of(bert, weights="none")
    assert not torch.equal(drawn.network.embeddings.word_embeddings.weight, trunk.network.embeddings.word_embeddings.weight)


def test_nothing_in_a_folder_is_run(bert: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    (bert / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Evil()}, bert / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        trunk_of(bert)
    config = json.loads((bert / "config.json").read_text())
    (bert / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (bert / "config.json").write_text(json.dumps({**config, **own}))
    with pytest.raises(DataError, match="cannot be loaded"):
        trunk_of(bert)
    assert not (tmp_path / "ran").exists()


def test_mistakes_about_folders(transformers: Any, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a folder or a repository: --model hf/FOLDER"):
        build_model("hf", sample_shape=(TEXT_BYTES,), kind="texts")
    with pytest.raises(DataError, match="there is no folder './gone' of a model"):
        trunk_of("./gone")
    with pytest.raises(ConfigError, match=r"'someone/encoder' are not on this computer.*`hf download someone/encoder`"):
        trunk_of("someone/encoder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no model of transformers: it has no config.json"):
        trunk_of(tmp_path / "empty")
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (bert / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match="the folder .* has no tokenizer"):
        trunk_of(bert)


def test_an_encoder_of_images(transformers: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=32, patch_size=8, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    processor = {
        "image_mean": [0.5, 0.5, 0.25],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "size": {"height": 32, "width": 32},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert images_wanted(f"hf/{tmp_path}") == ImagesWanted(32, "bicubic")
    trunk: Any = build_model(f"hf/{tmp_path}", sample_shape=(1, 48, 48), kind="images").trunk.eval()
    assert trunk.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert trunk.mean.flatten().tolist() == [0.5, 0.5, 0.25] and trunk.features == 16
    images = torch.rand(2, 1, 48, 48)
    network = transformers.ViTModel.from_pretrained(tmp_path).eval()
    pixels = (images.expand(-1, 3, -1, -1) - trunk.mean) / trunk.std
    with torch.no_grad():
        right = network(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        assert torch.allclose(trunk(images), right[:, 0], atol=1e-5)
        averaged = build_model(f"hf/{tmp_path}", sample_shape=(1, 48, 48), kind="images", options={"pool": "avg"}).trunk.eval()
        assert torch.allclose(averaged(images), right[:, 1:].mean(1), atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**processor, "image_std": [0.5, 0, "a"]}))
    with pytest.raises(DataError, match="'image_std' in .* must be three numbers"):
        build_model(f"hf/{tmp_path}", sample_shape=(1, 48, 48), kind="images")
