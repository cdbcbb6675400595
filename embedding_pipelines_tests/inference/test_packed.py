"""Texts without padding give the vectors that padded ones give. Attention, for which a processor has
no kernel, goes text by text here."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from embedding_pipelines.inference import packed
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import TokenBatch
from embedding_pipelines.inference.torch import Torch

SIZES = {"vocab_size": 50, "max_position_embeddings": 40, "pad_token_id": 1}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
MODELS = {
    "bert": transformers.BertConfig(**SIZES, **BERT),
    "distilbert": transformers.DistilBertConfig(**SIZES, **DISTILBERT),
    "roberta": transformers.RobertaConfig(**SIZES, **BERT),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZES, **BERT),
    "camembert": transformers.CamembertConfig(**SIZES, **BERT),
    "mpnet": transformers.MPNetConfig(**SIZES, **BERT),
}


def attend(
    query: Any, key: Any, value: Any, starts: Any, longest: int, scale: float
) -> torch.Tensor:
    parts = []
    for start, stop in itertools.pairwise(starts):
        rows = (part[start:stop].transpose(0, 1)[None] for part in (query, key, value))
        result = torch.nn.functional.scaled_dot_product_attention(*rows, scale=scale)
        parts.append(result[0].transpose(0, 1))
        assert stop - start <= longest
    return torch.cat(parts)


def model_of(kind: str, folder: Path, pooling: str = "mean") -> SentenceTransformer:
    """A small model with random weights, as it lies on a disk."""
    torch.manual_seed(0)
    transformers.AutoModel.from_config(MODELS[kind]).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(
        vocab={word: at for at, word in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"])}
    )
    tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(16, pooling_mode=pooling), Dense(16, 8)]
    return SentenceTransformer(modules=[*modules, Normalize()])


@pytest.fixture
def batch() -> TokenBatch:
    random = np.random.default_rng(0)
    lengths = np.array([3, 30, 4, 17, 5, 9])
    return TokenBatch(random.integers(5, 50, lengths.sum()), lengths, unpooled=2, pad_id=1)


@pytest.mark.parametrize("pooling", packed.POOLING)
@pytest.mark.parametrize("kind", packed.OFFSET_POSITIONS)
def test_vectors_are_those_of_padded_texts(
    kind: str, pooling: str, batch: TokenBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "attend", attend)
    model = model_of(kind, tmp_path, pooling)
    monkeypatch.setattr(_torch, "load", lambda folder: model)
    expected, found = [], []
    for vectors, packs in ((expected, False), (found, True)):
        monkeypatch.setattr(_torch, "has_packed_attention", lambda *_, packs=packs: packs)
        backend = Torch(tmp_path, "cpu", "float32")
        assert backend.pads is not packs
        vectors.append(backend.finish(backend.start(batch)))
        vectors.append(backend.finish(backend.start(batch.take(np.array([4, 0])))))
    for left, right in zip(expected, found, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    np.testing.assert_allclose(found[0][[4, 0]], found[1], atol=1e-5)


def test_models_of_other_kinds_are_padded(tmp_path: Path) -> None:
    assert packed.can_pack(model_of("bert", tmp_path / "bert"))
    assert not packed.can_pack(model_of("bert", tmp_path / "max", "max"))
    assert not packed.can_pack(model_of("mpnet", tmp_path / "mpnet"))
