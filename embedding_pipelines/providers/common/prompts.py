"""What asymmetric models want before a query and before a document, by family, where the model's
own files do not say.

Leaving it out costs quality unseen: E5's MRR 0.764 instead of 0.850, nomic's hit@1 84% instead of
88%.
"""

import re
from collections.abc import Mapping

from embedding_pipelines.providers.base import InputType

SENTENCE = "Represent this sentence for searching relevant passages: "
TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"

# A family is known by a pattern in its name, the first that fits; sources are the models' own
# cards. Not here, since their cards want nothing: all-MiniLM, bge-m3, gte-base and the like.
PROMPTS: dict[str, dict[str, str]] = {
    r"e5-(small|base|large|mistral-7b)-instruct": {"query": f"{TASK}Query: "},
    r"e5-(small|base|large)": {"query": "query: ", "document": "passage: "},
    r"bge-(small|base|large)(-en|:|$)": {"query": SENTENCE},
    r"bge-(small|base|large)-zh": {"query": "为这个句子生成表示以用于检索相关文章："},
    r"nomic-embed-text": {"query": "search_query: ", "document": "search_document: "},
    r"gte-qwen(1\.5|2)": {"query": f"{TASK}Query: "},
    r"mxbai-embed-large": {"query": SENTENCE},
    r"arctic-embed(2|-[ml]-v2)": {"query": "query: "},
    r"arctic-embed": {"query": SENTENCE},
    r"qwen3-embedding": {"query": f"{TASK}Query:"},  # without the space that the others have
    r"embeddinggemma": {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
    },
}


def prompts_of(
    model: str, own: Mapping[InputType, str] | Mapping[str, str] | None = None
) -> dict[str, str]:
    """The text before "query" and "document": the user's `own`, else the family's; empty without
    either.

    Only the last part of a name counts, so that neither an organisation nor a folder is taken for a
    family.
    """
    if own is not None:
        return dict(own.items())
    name = model.lower().rstrip("/").rsplit("/", 1)[-1]
    for family, prompts in PROMPTS.items():
        if re.search(rf"(?<![a-z0-9])({family})", name):
            return dict(prompts)
    return {}
