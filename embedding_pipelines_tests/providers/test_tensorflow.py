"""`tensorflow`: what can be told without loading a model; TensorFlow itself is no part of the
development install."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.providers.base import Limits
from embedding_pipelines.providers.tensorflow import Tensorflow


def folder(home: Path) -> Path:
    (home / "model/variables").mkdir(parents=True)
    (home / "model/saved_model.pb").write_bytes(b"\x08\x01")
    return home / "model"


def test_without_tensorflow_one_line_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(home)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    with pytest.raises(
        ConfigError, match=r"pip install 'embedding-pipelines\[tensorflow\]'"
    ) as caught:
        Tensorflow(model="model").open(home).embed(["a"], "query")
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize("name", ["gone", "file.keras", "."])
def test_a_folder_that_is_no_saved_model_is_named_before_anything_is_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (home / "file.keras").touch()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        ProviderError, match=r"holds a file saved_model\.pb\. Name one that"
    ) as caught:
        _ = Tensorflow(model=name).open(home).space
    assert str(home / name) in str(caught.value)


def test_the_limits_and_the_tokenizer_need_no_model(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    model = Tensorflow(model="gone", max_tokens=128, request_texts=16).open(home)
    assert model.limits == Limits(max_tokens=128, request_tokens=2_048, request_texts=16)
    assert len(model.tokenizer.encode("A cat sleeps.").ids) == 5


def test_options_that_are_none_are_refused() -> None:
    with pytest.raises(ValidationError, match="model"):
        Tensorflow.model_validate({"signature": "serving_default"})
    with pytest.raises(ValidationError, match="signatures"):
        Tensorflow.model_validate({"model": "m", "signatures": "serving_default"})
