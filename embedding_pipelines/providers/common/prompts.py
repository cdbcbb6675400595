"""The prompts that families of asymmetric models need before a query and before a document.

Without them quality falls and no error says so: E5's MRR from 0.850 to 0.764, nomic's hit@1 from
88% to 84%.
"""

import re
from collections.abc import Mapping, Sequence

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.providers.common.http import ServiceModel, ServiceOptions

SENTENCE = "Represent this sentence for searching relevant passages: "
SPECIAL_TOKENS = 2  # most models put one before and one after a text; the estimate counts none
TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"

# By a pattern in the model's name; the first that matches counts. Source: the models' own cards,
# which name no prompt for all-MiniLM, bge-m3, gte-base and the like.
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
    r"qwen3-embedding": {"query": f"{TASK}Query:"},  # no space at the end
    r"embeddinggemma": {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
    },
}


def prompts_of(
    model: str, own: Mapping[InputType, str] | Mapping[str, str] | None = None
) -> dict[str, str]:
    """The prompt by input type: the user's `own`, else the family's, else none.

    Only the last part of the model's name counts, not its organisation or folder.
    """
    if own is not None:
        return dict(own.items())
    name = model.lower().rstrip("/").rsplit("/", 1)[-1]
    for family, prompts in PROMPTS.items():
        if re.search(rf"(?<![a-z0-9])({family})", name):
            return dict(prompts)
    return {}


class PromptOptions(ServiceOptions):
    """Options of a service that embeds texts as they are, so that prompts are written here."""

    prompts: dict[InputType, str] | None = None
    """The text before each input, by input type; none for one that is left out. Default: what the
    model's family needs."""


class PromptModel(ServiceModel):
    options: PromptOptions

    @property
    def prompts(self) -> dict[str, str]:
        return prompts_of(getattr(self.options, "model", ""), self.options.prompts)

    def add_prompt(self, inputs: Sequence[str], input_type: InputType) -> list[str]:
        prompt = self.prompts.get(input_type, "")
        return [prompt + text for text in inputs]

    def text_tokens(self, max_tokens: int) -> int:
        """How many of `max_tokens` the prompt and special tokens leave for a document.

        Raises ConfigError if they leave none.
        """
        prompt, size = self.prompts.get("document", ""), 0
        if prompt:
            size = len(self.tokenizer.encode(prompt, add_special_tokens=False).ids)
        left = max_tokens - SPECIAL_TOKENS - size
        if left < 1:
            raise ConfigError(
                f"{self.options.kind}: the prompt of documents takes {size} of the {max_tokens} "
                "tokens that the model reads and leaves none for a text. Set a shorter one in "
                "prompts."
            )
        return left
