"""The pin of a bundle's model: which files go along, and what is said where none does."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import BundleError
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.serving.pin import pin_of, require_portable
from embedding_pipelines_tests.seeing import Seeing


def test_a_model_of_images_is_one_of_this_machine(tmp_path: Path) -> None:
    for name in ("model.safetensors", "preprocessor_config.json", "merges.txt", "notes.py"):
        path = tmp_path / "models" / "tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    options = Clip(model="models/tiny")
    pin = pin_of(options, Seeing(options, tmp_path), tmp_path)
    names = [Path(file).name for file in pin.files]
    assert names == ["merges.txt", "model.safetensors", "preprocessor_config.json"]
    assert pin.source == "bundle"
    named = Clip(model="openai/clip-vit-base-patch32")
    pin = pin_of(named, Seeing(named, tmp_path), tmp_path)
    assert (pin.source, pin.files) == ("hub", {})
    assert (
        "'openai/clip-vit-base-patch32' at its main branch from the Hugging Face hub" in pin.fetch
    )
    with pytest.raises(BundleError, match="lies outside of the home folder"):
        require_portable(Clip(model=str(tmp_path)), tmp_path)
