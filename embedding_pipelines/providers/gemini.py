"""`gemini`: Google's embedding models through the Gemini API.
https://ai.google.dev/gemini-api/docs/embeddings

gemini-embedding-001 is told by `taskType` what a text is; gemini-embedding-2 passes over it and
reads the task in front of the text. Vectors shorter than the model's own come back unnormalized
from 001, so all are normalized here. Each text is a request of its own inside the batch: as parts
of one content, gemini-embedding-2 would merge them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from embedding_pipelines.errors import Busy, ProviderError
from embedding_pipelines.providers.base import InputType, Limits, Reply
from embedding_pipelines.providers.common.http import Remote, retry_after
from embedding_pipelines.providers.common.prices import chosen_dimensions, facts_of
from embedding_pipelines.providers.common.replies import count_within, in_order, numbers, within
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit

REQUEST_TEXTS = 100  # "at most 100 requests can be in one batch", the service's own words
REQUEST_TOKENS = 20_000  # what Vertex AI states for the same models; the Gemini API states nothing
MAX_TOKENS = 2_048  # of a model that is not listed: the least of those listed
PROMPT_TOKENS = 16  # kept free for PROMPTS
TASK_TYPES: dict[InputType, str] = {"document": "RETRIEVAL_DOCUMENT", "query": "RETRIEVAL_QUERY"}
PROMPTS: dict[InputType, str] = {
    "document": "title: none | text: ",
    "query": "task: search result | query: ",
}


class Gemini(Remote):
    """One model. The service cuts over-long texts unseen; `limits` keeps them from it."""

    kind: Literal["gemini"] = "gemini"
    base_url: str = "https://generativelanguage.googleapis.com/v1beta"
    api_key_env: str | None = "GEMINI_API_KEY"
    model: str
    dimensions: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        chosen_dimensions(self.kind, self.model, self.dimensions)
        return self

    @property
    def space(self) -> Space:
        facts = facts_of(self.kind, self.model)
        told = PROMPTS if self._is_prompted else TASK_TYPES
        return Space(
            provider=self.kind,
            model=self.model,
            revision="v1beta",  # of the interface; Google's models carry theirs in their names
            dimensions=chosen_dimensions(self.kind, self.model, self.dimensions),
            pooling="service",
            prompts={"document": told["document"], "query": told["query"]},
            max_tokens=facts.max_tokens if facts else MAX_TOKENS,
            normalized=True,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        facts = facts_of(self.kind, self.model)
        most = facts.max_tokens if facts else MAX_TOKENS
        free = most - PROMPT_TOKENS if self._is_prompted else most
        return Limits(free, REQUEST_TOKENS, REQUEST_TEXTS, self.concurrent_requests)

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        if not inputs:
            return Reply(np.empty((0, self.space.dimensions), np.float32))
        headers = {} if self.api_key is None else {"x-goog-api-key": self.api_key}
        body = {"requests": [self._request_of(text, input_type) for text in inputs]}
        reply = self.request(f"/models/{self.model}:batchEmbedContents", body, headers)
        found = in_order(self, reply, ("embeddings",), len(inputs), _values)
        return Reply(unit(found), count_within(reply, "usageMetadata", "promptTokenCount"))

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """As for all, but a wrong key and a forbidden country are a 400 here, and any 429 speaks of
        a quota."""
        said = f"{self.kind} at {self.address} answered {status}: {self.quoted(body)}"
        if status == 400 and "API_KEY_INVALID" in body:
            return ProviderError(f"{said} Check the key: api_key_env is {self.api_key_env!r}.")
        if status == 400 and "FAILED_PRECONDITION" in body:
            return ProviderError(f"{said} No text will be taken until that is mended.")
        if status != 429:
            return super().fault(status, body, headers)
        if any("PerDay" in quota for quota in _quotas(body)):
            return ProviderError(
                f"{said} Today's quota is used up: run again tomorrow or raise it; nothing is lost."
            )
        seconds = _retry_delay(body)
        return Busy(said, retry_after(headers) if seconds is None else seconds)

    @property
    def _is_prompted(self) -> bool:
        return self.model.startswith("gemini-embedding-2")

    def _request_of(self, text: str, input_type: InputType) -> dict[str, Any]:
        prompted = self._is_prompted
        request: dict[str, Any] = {
            "model": f"models/{self.model}",
            "content": {"parts": [{"text": PROMPTS[input_type] + text if prompted else text}]},
        }
        if not prompted:
            request["taskType"] = TASK_TYPES[input_type]
        if self.dimensions is not None:
            request["outputDimensionality"] = self.dimensions
        return request


def _values(entry: Any) -> Vectors:
    return numbers(within(entry, "values"))


def _details(body: str) -> Iterator[Any]:
    """The `details` of an error, google.rpc.QuotaFailure, google.rpc.RetryInfo and the like."""
    try:
        found = within(json.loads(body), "error", "details")
    except ValueError:
        return
    yield from found if isinstance(found, list) else ()


def _quotas(body: str) -> Iterator[str]:
    """The names of the quotas that a 429 says were exceeded, e.g.
    `…RequestsPerDayPerProjectPerModel-FreeTier`."""
    for detail in _details(body):
        violations = within(detail, "violations")
        yield from (
            str(within(each, "quotaId"))
            for each in (violations if isinstance(violations, list) else ())
        )


def _retry_delay(body: str) -> float | None:
    """Seconds of google.rpc.RetryInfo, a protobuf duration such as "45.837906927s"; None without
    one."""
    for detail in _details(body):
        delay = str(within(detail, "retryDelay") or "")
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None
