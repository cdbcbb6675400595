"""Which names belong to which family, and what that family's card wants; and which names belong to
none."""

import pytest

from embedding_pipelines.providers.common.prompts import PROMPTS, SENTENCE, TASK, prompts_of

E5 = {"query": "query: ", "document": "passage: "}
BGE_ZH = {"query": "为这个句子生成表示以用于检索相关文章："}
NOMIC = {"query": "search_query: ", "document": "search_document: "}
GEMMA = {"query": "task: search result | query: ", "document": "title: none | text: "}


@pytest.mark.parametrize(
    ("model", "prompts"),
    [
        ("intfloat/e5-base-v2", E5),
        ("intfloat/e5-small", E5),
        ("intfloat/multilingual-e5-large", E5),
        ("intfloat/multilingual-e5-large-instruct", {"query": f"{TASK}Query: "}),
        ("intfloat/e5-mistral-7b-instruct", {"query": f"{TASK}Query: "}),
        ("jeffh/intfloat-multilingual-e5-large-instruct:q8_0", {"query": f"{TASK}Query: "}),
        ("BAAI/bge-small-en-v1.5", {"query": SENTENCE}),
        ("BAAI/bge-large-en", {"query": SENTENCE}),
        ("bge-large:335m", {"query": SENTENCE}),
        ("bge-large", {"query": SENTENCE}),
        ("BAAI/bge-base-zh-v1.5", BGE_ZH),
        ("nomic-ai/nomic-embed-text-v1.5", NOMIC),
        ("nomic-embed-text:latest", NOMIC),
        ("text-embedding-nomic-embed-text-v1.5", NOMIC),
        ("hf.co/nomic-ai/nomic-embed-text-v2-moe-GGUF:Q4_K_M", NOMIC),
        ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", {"query": f"{TASK}Query: "}),
        ("mixedbread-ai/mxbai-embed-large-v1", {"query": SENTENCE}),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", {"query": SENTENCE}),
        ("snowflake-arctic-embed:335m", {"query": SENTENCE}),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", {"query": "query: "}),
        ("snowflake-arctic-embed2", {"query": "query: "}),
        ("Qwen/Qwen3-Embedding-0.6B", {"query": f"{TASK}Query:"}),
        ("qwen3-embedding:8b", {"query": f"{TASK}Query:"}),
        ("google/embeddinggemma-300m", GEMMA),
        ("models/e5-base-v2/", E5),
    ],
)
def test_a_name_has_its_family_s_prompts(model: str, prompts: dict[str, str]) -> None:
    assert prompts_of(model) == prompts


@pytest.mark.parametrize(
    "model",
    [
        "BAAI/bge-m3",
        "bge-m3:567m",
        "BAAI/bge-multilingual-gemma2",
        "BAAI/bge-reranker-base",
        "thenlper/gte-base",
        "Alibaba-NLP/gte-large-en-v1.5",
        "Alibaba-NLP/gte-multilingual-base",
        "sentence-transformers/all-MiniLM-L6-v2",
        "google-bert/bert-base-uncased",
        "somebody/probe5-base",  # its letters alone are not E5
        "models/e5-base-v2/other",  # a folder is not a family
        "text-embedding-3-small",
        "",
    ],
)
def test_other_names_have_none(model: str) -> None:
    assert prompts_of(model) == {}


def test_what_the_user_says_wins() -> None:
    assert prompts_of("intfloat/e5-base-v2", {"query": "ask: "}) == {"query": "ask: "}
    assert prompts_of("intfloat/e5-base-v2", {}) == {}


def test_what_is_given_out_is_nobody_else_s() -> None:
    prompts_of("nomic-embed-text")["query"] = "changed"
    assert prompts_of("nomic-embed-text") == NOMIC


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_prompts_are_for_input_types_that_exist(prompts: dict[str, str]) -> None:
    assert prompts.keys() <= {"query", "document"}
    assert prompts["query"].endswith((" ", ":", "："))
