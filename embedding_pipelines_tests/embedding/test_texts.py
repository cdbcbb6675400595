"""No text is cut unseen, and none is embedded that a model reads nothing of: whatever comes to a
model is refused, or cut and told."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from embedding_pipelines.embedding.cache import IN_MEMORY, EmbeddingCache
from embedding_pipelines.embedding.embed import embed, embed_all
from embedding_pipelines.embedding.texts import prepare
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines_tests.chain import hashing
from embedding_pipelines_tests.preprocessing.tokenizers_for_tests import count, is_blank, wordpiece
from embedding_pipelines_tests.recording import Recording

THAI = "ภาษาไทย ไม่มี"  # of which a vocabulary of Latin letters has no token


class WithVocabulary(HashingModel):
    """A model with a tokenizer of words, whose vocabulary lacks most scripts."""

    @property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        return wordpiece()

    @property
    def tokenizer_digest(self) -> str:  # type: ignore[override]
        return "wordpiece"


def with_vocabulary(max_tokens: int = 256) -> WithVocabulary:
    return WithVocabulary(Hashing(max_tokens=max_tokens), Path())


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["fox", ""], r"texts\[1\] is empty"),
        (["\u200b\u2060\x00 \u00ad"], r"texts\[0\] is empty"),
        (["\ufffd"], r"texts\[0\] \('\ufffd'\) holds nothing that .* reads"),
        (["fox", None], r"texts\[1\] is None, not a text"),
        ([7], r"texts\[0\] is 7, not a text"),
        (["a\ud800"], "half a character"),
        (["dog", "fox " * 9, "fox " * 7], r"texts\[1\] \('(fox ){9}'\) has 11 tokens; of a"),
    ],
)
def test_what_a_model_cannot_read_whole_never_reaches_it(texts: list[str], words: str) -> None:
    model = Recording(with_vocabulary(8))
    with pytest.raises(ConfigError, match=words):
        embed_all(texts, model, None)
    assert not model.texts


def test_a_text_is_cut_only_where_somebody_is_told() -> None:
    model, told = Recording(with_vocabulary(8)), list[str]()
    texts = ["the fox", "over a lazy dog the fox", "a dog"]
    vectors = embed_all([texts[0], f"{texts[1]} jump"], model, None, on_cut=told.append).vectors
    assert sorted(model.texts) == ["over a lazy dog the fox", "the fox"]
    assert len(told) == 1
    assert "has 9 tokens; of a document" in told[0]
    assert "reads 8, and it was cut there." in told[0]
    assert np.array_equal(vectors, model.embed(texts[:2], "document").vectors)
    embed_all(texts, model, None, on_cut=told.append)
    assert len(told) == 1


@given(text=st.text(st.sampled_from("fox the\n.字\u200b"), max_size=60), limit=st.integers(4, 12))
def test_a_cut_text_is_a_beginning_that_the_model_reads_whole(text: str, limit: int) -> None:
    model, tokenizer = with_vocabulary(limit), wordpiece()
    if is_blank(text, tokenizer):
        with pytest.raises(ConfigError, match="Leave it out"):
            prepare([text], model, "query", "cut")
        return
    readable = prepare([text], model, "query", "cut")
    (kept,) = readable.texts
    assert text.startswith(kept)
    assert readable.tokens == [count(tokenizer, kept)]
    assert readable.tokens[0] <= limit
    assert bool(readable.cut) == (kept != text) == (count(tokenizer, text) > limit)


def test_tokens_that_the_model_does_not_know_are_told() -> None:
    model = with_vocabulary()
    assert prepare(["the quick fox"], model, "query").notes == []
    (note,) = prepare(["the fox", THAI], model, "query").notes
    assert note.startswith("50% of the tokens are unknown to ")
    assert "most in texts[1]: it reads nothing in them" in note
    assert prepare([THAI], hashing(), "query").notes == []  # it only counts


def test_a_stream_rejects_a_text_without_content_unsent() -> None:
    model = Recording(hashing())
    rows = pa.RecordBatch.from_pydict({"text": ["fox", "\u200b", "dog"], "tokens": [1, 1, 1]})
    with EmbeddingCache(IN_MEMORY) as cache:
        (batch,) = embed([rows], model, cache, "document", lambda _: None)
    assert list(batch.rejected) == [1]
    assert batch.rejected[1].startswith("The text is empty")
    assert "\u200b" not in model.texts
