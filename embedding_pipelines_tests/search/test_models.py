"""The models that searches ask: what becomes of their vectors."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import SpaceMismatchError
from embedding_pipelines.overlay import unreleased
from embedding_pipelines.search.bridge import ReleaseBridge
from embedding_pipelines.search.models import QueryModel
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines_tests.chain import hashing, write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.seeing import draw, seeing


def test_texts_images_and_vectors_of_the_new_model_all_go_across_the_bridge(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    release = unreleased(find_pipeline("p", home), hashing(dimensions=8))
    model, codec, cache = seeing(), CodecChain([], 8), home / "cache.sqlite"
    bridge = ReleaseBridge(model.space.id, 0.95, lambda vectors: -vectors)
    queries = QueryModel(model, codec, bridge, cache)
    photo = draw(home / "red.png", "red")
    name, image, notes = queries.embed_image(release, photo)
    text, same = queries.embed(release, "red", "refuse")
    (one,), again = queries.embed_all(release, ["red"], "refuse")
    own = model.embed(["red"], "query").vectors[0]
    numbers, last = queries.to_table(release, own, model.space)
    assert name == str(photo)
    assert notes == same == again == last
    assert "across a bridge from clip:seeing" in notes[0]
    assert image.vector is not None
    assert image.vector @ -own == pytest.approx(1, abs=0.01)
    for vector in (text.vector, one.vector, numbers):
        assert vector is not None
        assert np.array_equal(vector, -own)
    with pytest.raises(SpaceMismatchError):
        QueryModel(model, codec, None, cache).embed_image(release, photo)
