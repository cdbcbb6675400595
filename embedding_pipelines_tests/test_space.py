"""The space of a vector: stable, another one by any field, and an error with a remedy to mix."""

from typing import Any

import pytest

from embedding_pipelines.errors import SpaceMismatchError
from embedding_pipelines.space import Space, require_same_space

FIELDS: dict[str, Any] = {
    "provider": "hf",
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "revision": "53aa5117",
    "dimensions": 384,
    "pooling": "mean",
    "prompts": {"query": "query: ", "document": ""},
    "max_tokens": 256,
    "normalized": True,
    "dtype": "float32",
    "codec": None,
    "pixels": None,
}
OTHER: dict[str, Any] = {
    "provider": "openai",
    "model": "sentence-transformers/all-MiniLM-L12-v2",
    "revision": "53aa5118",
    "dimensions": 385,
    "pooling": "cls",
    "prompts": {"query": "query:", "document": ""},
    "max_tokens": 255,
    "normalized": False,
    "dtype": "float16",
    "codec": "a" * 32,
    "pixels": "rgb-1 pillow-13.0.0 224 crop bicubic",
}


def test_the_id_is_the_same_for_ever() -> None:
    assert Space(**FIELDS).id == "0d41e4c273983bfc55910868ede03eb9"


def test_the_order_of_prompts_does_not_matter() -> None:
    same = {**FIELDS, "prompts": dict(reversed(FIELDS["prompts"].items()))}
    assert Space(**same).id == Space(**FIELDS).id


def test_every_field_is_tried() -> None:
    assert OTHER.keys() == FIELDS.keys() == Space.model_fields.keys()


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_makes_another_space(field: str) -> None:
    assert Space(**{**FIELDS, field: OTHER[field]}).id != Space(**FIELDS).id


def test_a_compressed_space_is_another_one_and_depends_on_the_codec() -> None:
    space = Space(**FIELDS)
    assert space.id  # cached, and not carried along
    assert len({space.id, space.with_codec("a").id, space.with_codec("b").id}) == 3
    assert space.with_codec("a").with_codec("b") == space.with_codec("b")


def test_messages_name_the_model_before_the_id() -> None:
    space = Space(**FIELDS)
    assert space.title == "hf:sentence-transformers/all-MiniLM-L6-v2 (384 dimensions)"
    end = f"(384 dimensions, codec aaaaaaaa, space {space.with_codec('a' * 32).id[:12]})"
    assert str(space.with_codec("a" * 32)) == f"{space.provider}:{space.model} {end}"


def test_mixing_is_refused_with_both_spaces_and_the_remedy() -> None:
    space, other = Space(**FIELDS), Space(**{**FIELDS, "model": "another"})
    require_same_space(space, space.id, "Table 'x'", "Do this.")
    with pytest.raises(SpaceMismatchError, match=r"Table 'x' holds vectors.*Do this\.") as caught:
        require_same_space(space, other.id, "Table 'x'", "Do this.")
    assert other.id[:12] in str(caught.value)
    assert space.id[:12] in str(caught.value)
