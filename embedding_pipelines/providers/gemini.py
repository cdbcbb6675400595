"""`gemini`: Google's embedding models through the Gemini API.
https://ai.google.dev/gemini-api/docs/embeddings

gemini-embedding-001 reads the task of a text in `taskType`; gemini-embedding-2 ignores that and
reads it in front of the text. 001 does not normalize vectors shorter than the model's own, so all
are normalized here. Each text is a request of its own inside the batch: gemini-embedding-2 would
merge the parts of one content.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from embedding_pipelines.errors import Busy, ProviderError
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.hosted import HostedModel, HostedOptions
from embedding_pipelines.providers.common.http import retry_after
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
TASK_TYPES: dict[InputType, str] = {"document": "RETRIEVAL_DOCUMENT", "query": "RETRIEVAL_QUERY"}
PROMPTS: dict[InputType, str] = {
    "document": "title: none | text: ",
    "query": "task: search result | query: ",
}


class GeminiModel(HostedModel):
    options: Gemini

    @functools.cached_property
    def space(self) -> Space:
        prompts = PROMPTS if self.options.uses_prompts else TASK_TYPES
        return self.make_space(
            revision="v1beta",  # of the interface; the names of Google's models hold their versions
            prompts={"document": prompts["document"], "query": prompts["query"]},
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
        headers = {} if self.api_key is None else {"x-goog-api-key": self.api_key}
        body = {"requests": [self._request_of(text, input_type) for text in inputs]}
        reply = self.request(f"/models/{self.options.model}:batchEmbedContents", body, headers)
        vectors = vectors_at(self, reply, ("embeddings",), len(inputs), _values)
        return Response(unit(vectors), count_at(reply, "usageMetadata", "promptTokenCount"))

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """As for all, but a wrong key and a forbidden country are a 400 here, and every 429 names a
        quota."""
        problem = f"{self.where} answered {status}: {self.quote(body)}"
        if status == 400 and "API_KEY_INVALID" in body:
            return ProviderError(f"{problem} Check {self.key_name}.")
        if status == 400 and "FAILED_PRECONDITION" in body:
            return ProviderError(f"{problem} Correct that: until then every request fails.")
        if status != 429:
            return super().fault(status, body, headers)
        if any("PerDay" in quota for quota in _quotas(body)):
            return ProviderError(
                f"{problem} Today's quota is exhausted: run again tomorrow or raise it; nothing is "
                "lost."
            )
        seconds = _retry_delay(body)
        return Busy(problem, retry_after(headers) if seconds is None else seconds)

    def _request_of(self, text: str, input_type: InputType) -> dict[str, Any]:
        options = self.options
        prompt = PROMPTS[input_type] if options.uses_prompts else ""
        request: dict[str, Any] = {
            "model": f"models/{options.model}",
            "content": {"parts": [{"text": prompt + text}]},
        }
        if not options.uses_prompts:
            request["taskType"] = TASK_TYPES[input_type]
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


def _details(body: str) -> Iterator[Any]:
    """The `details` of an error: google.rpc.QuotaFailure, google.rpc.RetryInfo and the like."""
    try:
        details = value_at(json.loads(body), "error", "details")
    except ValueError:
        return
    yield from details if isinstance(details, list) else ()


def _quotas(body: str) -> Iterator[str]:
    """The names of the quotas that a 429 reports as exceeded, e.g.
    `…RequestsPerDayPerProjectPerModel-FreeTier`."""
    for detail in _details(body):
        violations = value_at(detail, "violations")
        if isinstance(violations, list):
            yield from (str(value_at(each, "quotaId")) for each in violations)


def _retry_delay(body: str) -> float | None:
    """Seconds of google.rpc.RetryInfo, a protobuf duration such as "45.837906927s"."""
    for detail in _details(body):
        delay = str(value_at(detail, "retryDelay") or "")
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None
