"""Only unknown texts reach the provider, once each; what it replies is not believed blindly."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.embedding.embed import EmbedCounts, embed
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import Role, Vectors
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines_tests.chain import Recording


def run(
    texts: list[str], ledger: Ledger, provider: Recording, role: Role = "document"
) -> tuple[Vectors, EmbedCounts, int]:
    counts, told = EmbedCounts(), []
    tokens = [len(text.split()) for text in texts]
    vectors = embed(texts, tokens, provider, ledger, role, counts, told.append)
    return vectors, counts, sum(told)


def test_each_text_is_embedded_once_and_comes_back_in_order(tmp_path: Path) -> None:
    texts = ["b b", "a", "b b", "", "c c c", "a"]
    with Ledger(tmp_path / "l") as ledger:
        provider = Recording(inner=Hashing(), call_texts=2)
        vectors, counts, told = run(texts, ledger, provider)
        assert np.allclose(vectors, Hashing().embed(texts, "document"), atol=1e-6)
        assert sorted(provider.texts) == ["", "a", "b b", "c c c"]
        assert (counts.texts, counts.from_ledger, counts.embedded, counts.calls) == (4, 0, 4, 2)
        assert counts.embedded_tokens == 6
        assert told == sum(len(text.split()) for text in texts)
        again, counts, told = run([*texts, "new"], ledger, provider)
        assert np.array_equal(again[:-1], vectors)
        assert provider.texts[4:] == ["new"]
        assert (counts.from_ledger, counts.embedded) == (4, 1)
        assert run([], ledger, provider)[0].shape == (0, 64)


def test_documents_and_queries_and_two_models_are_kept_apart(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        for provider in (Recording(inner=Hashing()), Recording(inner=Hashing(dimensions=32))):
            for role in ("document", "query"):
                run(["text"], ledger, provider, role)
            assert provider.texts == ["text", "text"]


def test_what_was_embedded_before_a_failure_is_kept(tmp_path: Path) -> None:
    class Failing(Recording):
        def embed(self, inputs: Sequence[str], input_type: Role) -> Vectors:
            if "a" in inputs:
                raise ProviderError("the service is down")
            return super().embed(inputs, input_type)

    with Ledger(tmp_path / "l") as ledger:
        with pytest.raises(ProviderError, match="is down"):
            run(["a", "b b", "c c c"], ledger, Failing(inner=Hashing(), call_texts=1))
        healthy = Recording(inner=Hashing())
        run(["a", "b b", "c c c"], ledger, healthy)
        assert healthy.texts == ["a"]


class Replying(Recording):
    value: float | None = None  # all numbers of the second vector
    constant: bool = False
    rows: int = 0  # more than asked for

    def embed(self, inputs: Sequence[str], input_type: Role) -> Vectors:
        vectors = super().embed(inputs, input_type)
        if self.value is not None:
            vectors[1] = self.value
        if self.constant:
            vectors[:] = vectors[0]
        return np.concatenate([vectors, vectors[: self.rows]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": 0.0}, "a zero vector for 1 of 3 texts, first for 'two words'"),
        ({"value": float("nan")}, "NaN or infinity for 1 of 3"),
        ({"value": float("inf")}, "NaN or infinity for 1 of 3"),
        ({"value": 1.0}, "not of unit length for 1 of 3"),
        ({"rows": 1}, r"an array of shape \(4, 64\) for \(3, 64\)"),
        ({"constant": True}, "one and the same vector for 3 different texts"),
    ],
)
def test_a_reply_that_cannot_be_right_is_not_stored(tmp_path: Path, options: dict, message: str) -> None:
    with Ledger(tmp_path / "l") as ledger:
        with pytest.raises(ProviderError, match=message):
            run(["three words here", "two words", "one"], ledger, Replying(inner=Hashing(), **options))
        assert len(ledger) == 0


def test_texts_that_are_the_same_to_the_model_may_have_the_same_vector(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        vectors, counts, _ = run(["Apple pie", "apple PIE", "APPLE pie"], ledger, Recording(inner=Hashing()))
        assert (vectors == vectors[0]).all()
        assert len(ledger) == 3
        assert counts.embedded == 3
