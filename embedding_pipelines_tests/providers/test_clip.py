"""`clip`: one space of images and texts, whose identity holds how pixels are made."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.images import prepare, recipe
from embedding_pipelines.providers import clip
from embedding_pipelines.providers.aliases import parse_model
from embedding_pipelines.providers.base import check_reply
from embedding_pipelines.providers.clip import Clip, Labels
from embedding_pipelines_tests.clips import DIMENSIONS, SIZE, tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_images_and_texts_are_in_one_space_of_unit_vectors(folder: Path) -> None:
    with Clip(model=folder.name).open(folder.parent) as model:
        space, limits = model.space, model.limits
        assert (space.dimensions, space.max_tokens, space.normalized) == (DIMENSIONS, 77, True)
        assert space.pixels is not None
        assert space.pixels.startswith(f"{recipe()} {SIZE} crop bicubic ")
        assert limits.request_images > 0
        texts = ["a cat", "a dog", ""]
        both = model.embed(texts, "document").vectors
        check_reply(both, texts, space)
        assert np.array_equal(both, model.embed(texts, "query").vectors)  # no prompts
        square = prepare(np.full((30, 40, 3), 90, np.uint8), model.resize)
        check_reply(model.embed_images(np.stack([square])), ["square"], space)
        assert len(model.tokenizer.encode("word " * 200).ids) > 200  # it does not truncate
        assert model.options.takes_images
        assert model.release_options(folder).device == "auto"
        assert "OpenVINO" in model.computed_by


def test_a_changed_decoder_or_preprocessor_is_another_space(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Clip(model=folder.name).open(folder.parent).space
    monkeypatch.setattr(clip, "recipe", lambda: recipe().replace("pillow-", "pillow-9"))
    assert Clip(model=folder.name).open(folder.parent).space.id != before.id
    monkeypatch.undo()
    for path in folder.iterdir():
        if path.name != "preprocessor_config.json":
            (tmp_path / path.name).symlink_to(path)
    values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    changed = json.dumps(values | {"resample": 2})
    (tmp_path / "preprocessor_config.json").write_text(changed, encoding="utf-8")
    after = Clip(model=str(tmp_path)).open(folder.parent).space
    assert after.revision == before.revision
    assert after.pixels != before.pixels


def test_short_names_stand_for_commits() -> None:
    options = Clip.model_validate(parse_model("clip"))
    assert options.model == Clip().model == "openai/clip-vit-base-patch32"
    assert options.revision is not None
    for alias, size in (("clip-b16", 512), ("clip-l14", 768), ("siglip", 768), ("siglip2", 768)):
        named = Clip.model_validate(parse_model(alias))
        assert named.known_dimensions(Path("/nowhere")) == size


def test_a_folder_that_is_not_there_and_a_download_are_told(tmp_path: Path) -> None:
    (mistake,) = Clip(model="./models/clip").mistakes(tmp_path)
    assert "there is no folder" in mistake
    (doubt,) = Clip(model="openai/clip-vit-base-patch23").doubts(tmp_path)
    assert "openai/clip-vit-base-patch32" in doubt
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProviderError, match="holds no weights"):
        _ = Clip(model="empty").open(tmp_path).space


def test_labels_say_what_images_are_compared_with() -> None:
    labels = Labels(names=("cat", " dog "), template="a drawing of a {label}.")
    assert labels.texts == ["a drawing of a cat.", "a drawing of a dog."]
    for wrong, words in (
        ({"names": ()}, "at least 1 item"),
        ({"names": ("cat", "cat")}, "'cat' stands twice"),
        ({"names": ("cat",), "template": "a photo"}, "has no {label}"),
        ({"names": ("cat",), "top": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=words):
            Labels.model_validate(wrong)


def test_without_pillow_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedding_pipelines import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "PIL" else object())
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[images\]'"):
        _ = Clip(model=folder.name).open(folder.parent).space
