"""What every provider must keep; each kind's test calls it, then adds what is special to it."""

import numpy as np

from embedding_pipelines.providers.base import (
    NORM_TOLERANCE,
    EmbeddingModel,
    InputType,
    check_reply,
)
from embedding_pipelines.vectors import Vectors

TEXTS = [
    "A cat sleeps on the warm roof.",
    "On the warm roof a cat is sleeping.",
    "The court dismissed the appeal.",
    "",
    " ",
    "x",
    "Ünïcødé 😀 漢字 \u200d\u0000 \n\t end",
    "word " * 1_000,
]


def check_provider(model: EmbeddingModel) -> None:
    """Shape, order, determinism, geometry, an honest space, and options that survive JSON; of an
    open model, which is closed in the end."""
    options, space, limits = model.options, model.space, model.limits
    assert options == type(options).model_validate_json(options.model_dump_json())
    assert space.provider == options.kind
    assert space.codec is None
    assert 0 < limits.max_tokens <= space.max_tokens
    assert limits.max_tokens <= limits.request_tokens

    def embed(texts: list[str], input_type: InputType) -> Vectors:
        return model.embed(texts, input_type).vectors

    input_type: InputType
    for input_type in ("document", "query"):
        vectors = embed(TEXTS, input_type)
        assert vectors.dtype == np.float32
        check_reply(vectors, TEXTS, space)
        assert embed([], input_type).shape == (0, space.dimensions)
        for at in (0, 3, 6, 7):  # each by itself, and the other way round
            assert np.allclose(embed([TEXTS[at]], input_type)[0], vectors[at], atol=1e-4)
        assert np.allclose(embed(TEXTS[::-1], input_type)[::-1], vectors, atol=1e-4)
        norms = np.linalg.norm(vectors, axis=1)
        assert not space.normalized or np.allclose(norms, 1, atol=NORM_TOLERANCE)
        unit = vectors / norms[:, None]
        assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.2
    tokenizer = model.tokenizer
    count = len(tokenizer.encode("A cat sleeps on the warm roof.").ids)
    assert count < len(tokenizer.encode("A cat sleeps on the warm roof, and another one.").ids)
    assert len(tokenizer.encode("word " * 1_000).ids) >= 1_000  # it does not truncate
    assert model.tokenizer_digest
    model.close()
    model.close()
