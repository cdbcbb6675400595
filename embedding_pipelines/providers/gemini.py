"""`gemini`: Google's embedding models through the Gemini API.
https://ai.google.dev/gemini-api/docs/embeddings

gemini-embedding-001 reads the task of a text in `taskType`; gemini-embedding-2 ignores that and
reads it in front of the text. 001 does not normalize vectors shorter than the model's own, so all
are normalized here. Each text is a request of its own inside the batch: gemini-embedding-2 would
merge the parts of one content.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from embedding_pipelines.errors import Busy, ProviderError
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.hosted import HostedModel, HostedOptions
from embedding_pipelines.providers.common.http import Meaning
from embedding_pipelines.providers.common.replies import (
    count_at,
    read_numbers,
    value_at,
    vectors_at,
)
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit

REQUEST_TEXTS = 100  # "at most 100 requests can be in one batch", the service's own words
REQUEST_TOKENS = 20_000  # of Vertex AI for the same models; the Gemini API names no number
MAX_TOKENS = 2_048  # of a model that is not published: the least of those published
PROMPT_TOKENS = 16  # left free for PROMPTS
TASK_TYPES = {"document": "RETRIEVAL_DOCUMENT", "query": "RETRIEVAL_QUERY"}
# In the details of a 429: google.rpc.RetryInfo, a protobuf duration such as "45.837906927s".
RETRY_DELAY = re.compile(r'"retryDelay":\s*"(\d+(\.\d+)?)s"')
PROMPTS = {
    "document": "title: none | text: ",
    "query": "task: search result | query: ",
}


class GeminiModel(HostedModel):
    options: "Gemini"
    # A wrong key and a forbidden country are a 400 here, and every 429 names a quota.
    meanings = (
        Meaning([400], ProviderError, "Check {key}.", "API_KEY_INVALID"),
        Meaning(
            [400],
            ProviderError,
            "Correct that: until then every request fails.",
            "FAILED_PRECONDITION",
        ),
        Meaning(
            [429],
            ProviderError,
            "Today's quota is exhausted: run again tomorrow or raise it; nothing is lost.",
            "PerDay",  # in a `quotaId`, e.g. `…RequestsPerDayPerProjectPerModel-FreeTier`
        ),
        Meaning([429], Busy),
    )

    @property
    def bearer(self) -> dict[str, str]:
        key = self.api_key
        return {} if key is None else {"x-goog-api-key": key}

    @functools.cached_property
    def space(self) -> Space:
        return self.make_space(
            revision="v1beta",  # of the interface; the names of Google's models hold their versions
            prompts=PROMPTS if self.options.uses_prompts else TASK_TYPES,
        )

    @functools.cached_property
    def limits(self) -> Limits:
        return Limits(
            self.options.model_tokens - (PROMPT_TOKENS if self.options.uses_prompts else 0),
            REQUEST_TOKENS,
            REQUEST_TEXTS,
            self.options.concurrent_requests,
        )

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        body = {"requests": [self._request_of(text, input_type) for text in inputs]}
        reply = self.request(f"/models/{self.options.model}:batchEmbedContents", body)
        vectors = vectors_at(self, reply, ("embeddings",), len(inputs), _values)
        return Response(unit(vectors), count_at(reply, "usageMetadata", "promptTokenCount"))

    def retry_after(self, body: str, headers: Mapping[str, str]) -> float | None:
        delay = RETRY_DELAY.search(body)
        return float(delay[1]) if delay else super().retry_after(body, headers)

    def _request_of(self, text: str, input_type: InputType) -> dict[str, Any]:
        options = self.options
        request: dict[str, Any] = {"model": f"models/{options.model}"}
        if options.uses_prompts:
            text = PROMPTS[input_type] + text
        else:
            request["taskType"] = TASK_TYPES[input_type]
        request["content"] = {"parts": [{"text": text}]}
        if options.dimensions is not None:
            request["outputDimensionality"] = options.dimensions
        return request


class Gemini(HostedOptions):
    """One model. The service cuts long texts without an error; `limits` prevents it."""

    model_class = GeminiModel
    default_max_tokens = MAX_TOKENS

    kind: Literal["gemini"] = "gemini"
    base_url: str = "https://generativelanguage.googleapis.com/v1beta"
    api_key_env: str | None = "GEMINI_API_KEY"

    @property
    def uses_prompts(self) -> bool:
        """Whether the model reads the task in front of the text, and not in `taskType`."""
        return self.model.startswith("gemini-embedding-2")


def _values(entry: Any) -> Vectors:
    return read_numbers(value_at(entry, "values"))
