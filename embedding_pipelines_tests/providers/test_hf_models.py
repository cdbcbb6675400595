"""`hf` against sentence-transformers: models of many makes, tiny and with random weights, go
through unchanged.

Each case builds a model folder (about 32 dimensions, two layers, a tokenizer trained on the texts
below), then compares what the provider gives for both input types with `encode_document` and
`encode_query` on the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from embedding_pipelines.providers.hf import Hf, HfModel

HIDDEN, HEADS, LAYERS, LIMIT = 32, 4, 2, 48
SPREAD = (
    0.2  # of the random weights: ten times the usual, or all texts would get nearly the same vector
)
COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "initializer_range": SPREAD,
}
TEXTS = [
    "A cat sleeps on the warm roof.",
    "On the warm roof sleeps a cat.",
    "The Court DISMISSED the appeal, and the claimant paid the costs of both sides.",
    "x",
    "",
    " \n\t ",
    "Ünïcødé 😀 漢字 \u200d and a cat",
    "roof",
    "the roof the cat the court the appeal the costs the sides",
    "cat " * 30 + "court",
    "The warm roof of the court, on which a cat sleeps, pays its own costs. "
    * 8,  # beyond the limit
    "claimant: pays; costs? both (sides) - and: \"appeal\" 'dismissed' 1234567890",
]
WORDS = " ".join(TEXTS).split()
ALONE = [0, 3, 10]  # rows that are also embedded by themselves

Modules = list[Any]


def tokenizer(
    kind: str,
    *,
    front: Sequence[str] = (),
    back: Sequence[str] = (),
    pad: str,
    unknown: str,
    **options: Any,
) -> Any:
    """A small tokenizer of one kind, which puts `front` and `back` around a text; as transformers
    wraps it."""
    import transformers

    wrapper: Any = transformers.PreTrainedTokenizerFast
    special = list(
        dict.fromkeys([*options.pop("first", ()), pad, unknown, *front, *back, "[MASK]"])
    )
    common: dict[str, Any] = {"vocab_size": 300, "special_tokens": special, "show_progress": False}
    trainer: Any
    if kind == "wordpiece":
        own = Tokenizer(models.WordPiece(unk_token=unknown))
        own.normalizer = normalizers.BertNormalizer(lowercase=options.pop("lowercase", True))
        own.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        own.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**common)
    elif kind == "bpe":
        own = Tokenizer(models.BPE())
        own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        own.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common | {"vocab_size": 400}
        )
    else:
        own = Tokenizer(models.Unigram())
        own.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
        own.pre_tokenizer = pre_tokenizers.Metaspace()
        own.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unknown, **common | {"vocab_size": 120})
    own.train_from_iterator([*TEXTS, *WORDS], trainer)
    around = [*front, "$A", *back]
    pair = [*around, *[f"{part}:1" for part in (*front, "$B", *back)]]
    own.post_processor = processors.TemplateProcessing(
        single=around,
        pair=pair,
        special_tokens=[(token, own.token_to_id(token)) for token in {*front, *back}],
    )
    return wrapper(
        tokenizer_object=own, pad_token=pad, unk_token=unknown, mask_token="[MASK]", **options
    )


def bert_tokenizer(**options: Any) -> Any:
    names: dict[str, Any] = {
        "front": ["[CLS]"],
        "back": ["[SEP]"],
        "pad": "[PAD]",
        "unknown": "[UNK]",
    }
    return tokenizer("wordpiece", **names, cls_token="[CLS]", sep_token="[SEP]", **options)


def roberta_tokenizer(kind: str, **options: Any) -> Any:
    """Padding is token 1, as these models count positions from it."""
    names: dict[str, Any] = {
        "front": ["<s>"],
        "back": ["</s>"],
        "pad": "<pad>",
        "unknown": "<unk>",
        "first": ["<s>"],
    }
    return tokenizer(kind, **names, bos_token="<s>", eos_token="</s>", **options)


def decoder_tokenizer(**options: Any) -> Any:
    """Ends a text with a token of its own and pads on the left."""
    names: dict[str, Any] = {
        "back": ["<eos>"],
        "pad": "<pad>",
        "unknown": "<unk>",
        "eos_token": "<eos>",
    }
    return tokenizer("bpe", **{"padding_side": "left", **names, **options})


def t5_tokenizer(**options: Any) -> Any:
    return tokenizer(
        "unigram", back=["</s>"], pad="<pad>", unknown="<unk>", eos_token="</s>", **options
    )


def network(name: str, words: Any, **settings: Any) -> Any:
    """A model of one architecture with random weights, the same ones each time."""
    import torch
    import transformers

    config_class, model_class = (
        getattr(transformers, f"{name}Config"),
        getattr(transformers, f"{name}Model"),
    )
    if name == "T5":
        model_class = transformers.T5EncoderModel
    config = config_class(vocab_size=len(words), pad_token_id=words.pad_token_id, **settings)
    torch.manual_seed(7)
    model = model_class(config).eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # biases and gains are 0 and 1 at first: a lost one would not show
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def bert(words: Any, **settings: Any) -> Any:
    return network("Bert", words, **COMMON, **{"max_position_embeddings": LIMIT, **settings})


def decoder(name: str, words: Any, **settings: Any) -> Any:
    size = {"max_position_embeddings": 128, "num_key_value_heads": 2, "head_dim": 8}
    return network(
        name,
        words,
        **COMMON,
        **size,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        **settings,
    )


@dataclass
class Case:
    """What makes a model: its tokenizer, its network and what follows it."""

    words: Callable[[], Any]
    network: Callable[[Any], Any]
    pooling: Any = "mean"
    include_prompt: bool = True
    then: Callable[[int], Modules] = lambda size: []
    limit: int | None = LIMIT  # None: what tokenizer and network say
    transformer: dict[str, Any] = field(default_factory=dict)  # options of the Transformer module
    model: dict[str, Any] = field(default_factory=dict)  # options of the SentenceTransformer
    expected: dict[str, Any] = field(default_factory=dict)  # of the space


def normalize(size: int) -> Modules:
    from sentence_transformers.sentence_transformer.modules import Normalize

    return [Normalize()]


def dense(size: int) -> Modules:
    """A layer with its own activation, which makes the vectors smaller."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(3)
    return [Dense(size, 12, activation_function=torch.nn.Tanh())]


def dense_as_t5(size: int) -> Modules:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(3)
    return [Dense(size, 24, bias=False, activation_function=torch.nn.Identity()), *normalize(24)]


def dense_twice(size: int) -> Modules:
    return [*dense(size), *dense_as_t5(12)]


PROMPTS = {"query": "Represent this question: ", "document": "passage: "}
T5 = {
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_max_distance": 20,
}
DISTILBERT = {
    "dim": HIDDEN,
    "hidden_dim": 64,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "max_position_embeddings": LIMIT,
    "initializer_range": SPREAD,
}

CASES = {
    "bert-cls-normalized": Case(
        bert_tokenizer, bert, "cls", then=normalize, expected={"pooling": "cls", "normalized": True}
    ),
    "bert-mean": Case(
        bert_tokenizer,
        bert,
        expected={"pooling": "mean", "normalized": False, "dimensions": HIDDEN},
    ),
    "bert-max-dot-similarity": Case(
        bert_tokenizer, bert, "max", model={"similarity_fn_name": "dot"}
    ),
    "bert-weightedmean": Case(bert_tokenizer, bert, "weightedmean"),
    "bert-sqrt-length": Case(bert_tokenizer, bert, "mean_sqrt_len_tokens"),
    "bert-two-poolings": Case(
        bert_tokenizer,
        bert,
        ("cls", "mean"),
        expected={"pooling": "cls+mean", "dimensions": 2 * HIDDEN},
    ),
    "bert-dense": Case(
        bert_tokenizer, bert, then=dense, expected={"dimensions": 12, "normalized": False}
    ),
    "bert-dense-after-normalize": Case(
        bert_tokenizer,
        bert,
        then=lambda size: [*normalize(size), *dense(size)],
        expected={"normalized": False},
    ),
    "bert-lowercase-by-the-module": Case(
        lambda: bert_tokenizer(lowercase=False), bert, transformer={"do_lower_case": True}
    ),
    "bert-limit-of-its-own": Case(
        bert_tokenizer,
        lambda words: bert(words, max_position_embeddings=40),
        limit=None,
        expected={"max_tokens": 40},
    ),
    "bert-limit-of-its-tokenizer": Case(
        lambda: bert_tokenizer(model_max_length=20), bert, limit=None, expected={"max_tokens": 20}
    ),
    "bert-cut-on-the-left": Case(lambda: bert_tokenizer(truncation_side="left"), bert),
    "bert-prompts-not-pooled": Case(
        bert_tokenizer, bert, include_prompt=False, then=normalize, model={"prompts": PROMPTS}
    ),
    "bert-prompts-not-pooled-cls": Case(
        bert_tokenizer, bert, "cls", include_prompt=False, model={"prompts": PROMPTS}
    ),
    "bert-passage-prompt": Case(
        bert_tokenizer, bert, model={"prompts": {"query": "question: ", "passage": "passage: "}}
    ),
    "bert-default-prompt": Case(
        bert_tokenizer,
        bert,
        model={"prompts": {"any": "text to embed: "}, "default_prompt_name": "any"},
    ),
    "distilbert": Case(bert_tokenizer, lambda words: network("DistilBert", words, **DISTILBERT)),
    "roberta": Case(
        lambda: roberta_tokenizer("bpe"),
        lambda words: network("Roberta", words, **COMMON, max_position_embeddings=LIMIT + 2),
    ),
    "xlm-roberta-e5": Case(
        lambda: roberta_tokenizer("unigram"),
        lambda words: network("XLMRoberta", words, **COMMON, max_position_embeddings=LIMIT + 2),
        then=normalize,
        model={"prompts": {"query": "query: ", "document": "passage: "}},
        expected={
            "prompts": {"query": "query: ", "document": "passage: "},
            "normalized": True,
            "max_tokens": LIMIT,
        },
    ),
    "mpnet": Case(
        lambda: roberta_tokenizer("wordpiece"),
        lambda words: network("MPNet", words, **COMMON, max_position_embeddings=LIMIT + 2),
        then=normalize,
    ),
    "albert": Case(
        bert_tokenizer,
        lambda words: network(
            "Albert", words, **COMMON, embedding_size=16, max_position_embeddings=LIMIT
        ),
    ),
    "modernbert": Case(  # local attention narrower than the texts
        bert_tokenizer,
        lambda words: network(
            "ModernBert",
            words,
            **COMMON,
            max_position_embeddings=LIMIT,
            local_attention=8,
            global_attn_every_n_layers=2,
            cls_token_id=words.cls_token_id,
            sep_token_id=words.sep_token_id,
            bos_token_id=words.cls_token_id,
            eos_token_id=words.sep_token_id,
        ),
        "cls",
        then=normalize,
    ),
    "nomic": Case(
        bert_tokenizer,
        lambda words: network("NomicBert", words, **COMMON, max_position_embeddings=128),
        then=normalize,
        model={"prompts": {"query": "search_query: ", "document": "search_document: "}},
    ),
    "gte": Case(
        bert_tokenizer,
        lambda words: network("Gte", words, **COMMON, max_position_embeddings=128),
        "cls",
    ),
    "eurobert": Case(
        bert_tokenizer,
        lambda words: network(
            "EuroBert", words, **COMMON, max_position_embeddings=128, num_key_value_heads=HEADS
        ),
    ),
    "qwen3-last-token-left-padding": Case(
        decoder_tokenizer,
        lambda words: decoder("Qwen3", words),
        "lasttoken",
        then=normalize,
        model={"prompts": {"query": "Instruct: find it\nQuery:", "document": ""}},
    ),
    "qwen3-last-token-right-padding": Case(
        lambda: decoder_tokenizer(padding_side="right"),
        lambda words: decoder("Qwen3", words),
        "lasttoken",
    ),
    "mistral-mean-left-padding": Case(
        decoder_tokenizer, lambda words: decoder("Mistral", words), "mean"
    ),
    "gemma3-both-directions": Case(  # EmbeddingGemma's make; its window is narrower than the texts
        decoder_tokenizer,
        lambda words: decoder(
            "Gemma3Text",
            words,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            use_bidirectional_attention=True,
        ),
        then=dense_twice,
    ),
    "t5-dense": Case(
        t5_tokenizer,
        lambda words: network("T5", words, **T5),
        then=dense_as_t5,
        expected={"dimensions": 24},
    ),
    "t5-without-a-limit": Case(t5_tokenizer, lambda words: network("T5", words, **T5), limit=None),
}


def save(case: Case, folder: Path, draft: Path) -> None:
    """Write the model folder as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = case.words()
    words.save_pretrained(draft)
    case.network(words).save_pretrained(draft)
    limit = {} if case.limit is None else {"max_seq_length": case.limit}
    transformer = Transformer(str(draft), **limit, **case.transformer)
    pooling = Pooling(
        transformer.get_embedding_dimension(), case.pooling, include_prompt=case.include_prompt
    )
    modules = [transformer, pooling, *case.then(pooling.get_embedding_dimension())]
    SentenceTransformer(modules=modules, device="cpu", **case.model).save(
        str(folder), create_model_card=False
    )


@pytest.fixture
def apart(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder whose conversions are kept nowhere else."""
    import torch.jit._trace

    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    # A trace is compared with a second one, a fifth of all here, and its vectors with others below.
    monkeypatch.setattr(torch.jit._trace, "_check_trace", lambda *_, **__: None)
    return home


def check(folder: Path, texts: Sequence[str] = TEXTS) -> HfModel:
    """The provider's vectors are those of sentence-transformers, in any order and company."""
    from sentence_transformers import SentenceTransformer

    own = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    options = Hf(model=f"models/{folder.name}", precision="float32")
    model = options.open(folder.parent.parent)
    encode = {"document": own.encode_document, "query": own.encode_query}
    for input_type in ("document", "query"):
        expected: Any = np.asarray(
            encode[input_type](list(texts), show_progress_bar=False), np.float32
        )
        assert np.isfinite(expected).all()
        assert expected.shape == (len(texts), model.space.dimensions)
        norms = np.linalg.norm(expected, axis=1, keepdims=True)
        assert not model.space.normalized or np.allclose(norms, 1, atol=1e-4)
        # A text without tokens is a zero vector for some models.
        length = np.where(norms == 0, 1, norms)
        vectors = model.embed(texts, input_type).vectors / length
        expected = expected / length
        np.testing.assert_allclose(vectors, expected, atol=1e-4)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        cosines = (vectors * expected).sum(axis=1) / lengths
        assert cosines[norms[:, 0] > 0].min() >= 0.9999
        backwards = model.embed(texts[::-1], input_type).vectors
        np.testing.assert_allclose(backwards[::-1] / length, expected, atol=1e-4)
        alone = np.concatenate([model.embed([texts[row]], input_type).vectors for row in ALONE])
        np.testing.assert_allclose(alone / length[ALONE], expected[ALONE], atol=1e-4)
        assert np.median(expected @ expected.T) < 0.99, (
            "the case shows nothing: all texts have the same vector"
        )
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_model_goes_through_unchanged(name: str, apart: Path) -> None:
    case = CASES[name]
    save(case, apart / "models" / name, apart / "draft")
    space = check(apart / "models" / name).space
    assert {key: getattr(space, key) for key in case.expected} == case.expected


def test_a_static_model_goes_through_unchanged(apart: Path) -> None:
    """No network at all: the mean of its tokens' vectors, without special tokens and without a
    limit."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(7)
    words = bert_tokenizer()
    module = StaticEmbedding(words, embedding_dim=HIDDEN)
    SentenceTransformer(modules=[module], device="cpu").save(
        str(apart / "models" / "static"), create_model_card=False
    )
    check(apart / "models" / "static")
