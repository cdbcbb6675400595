"""A sentence-transformers model that takes a second to make: one layer, random weights, MiniLM's
vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedding_pipelines_tests.corpora import minilm


def write_tiny(folder: Path, dimensions: int = 32) -> None:
    """Its files; it reads 64 tokens."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        Pooling,
        Transformer,
    )
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(str(minilm()))
    tokenizer.model_max_length = 64
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=dimensions,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # else all texts would get nearly the same vector
    )
    raw = folder / "raw"
    BertModel(config).save_pretrained(str(raw))
    tokenizer.save_pretrained(str(raw))
    modules = [Transformer(str(raw)), Pooling(dimensions), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "tiny"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: those of a tiny model spend their time waiting for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
