"""A cross-encoder that takes a second to make: one layer, random weights, MiniLM's vocabulary."""

from pathlib import Path

from embedding_pipelines_tests.corpora import minilm


def write_cross_encoder(folder: Path, labels: int = 1) -> None:
    """Its files; it reads 64 tokens of a pair."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(str(minilm()))
    tokenizer.model_max_length = 64
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
