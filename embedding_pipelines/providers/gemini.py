"""`gemini`: Google's embedding models through the Gemini API.
https://ai.google.dev/gemini-api/docs/embeddings

gemini-embedding-001 reads in `taskType` what a text is; gemini-embedding-2 passes over it and
reads the task in front of the text. Vectors shorter than the model's own come back unnormalized
from 001, so all are normalized here. Each text is a request of its own inside the batch: as parts
of one content, gemini-embedding-2 would merge them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from embedding_pipelines.errors import Busy, ProviderError
from embedding_pipelines.providers.base import NO_SECRETS, InputType, Limits, Response
from embedding_pipelines.providers.common.http import RemoteModel, RemoteOptions, retry_after
from embedding_pipelines.providers.common.prices import choose_dimensions, published
from embedding_pipelines.providers.common.replies import (
    count_at,
    read_numbers,
    value_at,
    vectors_at,
)
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


class Gemini(RemoteOptions):
    """One model. The service cuts over-long texts unseen; `limits` keeps them from it."""

    kind: Literal["gemini"] = "gemini"
    base_url: str = "https://generativelanguage.googleapis.com/v1beta"
    api_key_env: str | None = "GEMINI_API_KEY"
    model: str
    dimensions: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        choose_dimensions(self.kind, self.model, self.dimensions)
        return self

    @property
    def uses_prompts(self) -> bool:
        """Whether the model reads the task in front of the text, and not in `taskType`."""
        return self.model.startswith("gemini-embedding-2")

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> GeminiModel:
        return GeminiModel(self, home, secrets)


class GeminiModel(RemoteModel):
    options: Gemini

    @functools.cached_property
    def space(self) -> Space:
        options, entry = self.options, published(self.options.kind, self.options.model)
        prompts = PROMPTS if options.uses_prompts else TASK_TYPES
        return Space(
            provider=options.kind,
            model=options.model,
            revision="v1beta",  # of the interface; Google's models carry theirs in their names
            dimensions=choose_dimensions(options.kind, options.model, options.dimensions),
            pooling="service",
            prompts={"document": prompts["document"], "query": prompts["query"]},
            max_tokens=entry.max_tokens if entry else MAX_TOKENS,
            normalized=True,
            dtype="float32",
        )

    @functools.cached_property
    def limits(self) -> Limits:
        entry = published(self.options.kind, self.options.model)
        most = entry.max_tokens if entry else MAX_TOKENS
        return Limits(
            most - PROMPT_TOKENS if self.options.uses_prompts else most,
            REQUEST_TOKENS,
            REQUEST_TEXTS,
            self.options.concurrent_requests,
        )

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if not inputs:
            return self.empty_response()
        headers = {} if self.api_key is None else {"x-goog-api-key": self.api_key}
        body = {"requests": [self._request_of(text, input_type) for text in inputs]}
        reply = self.request(f"/models/{self.options.model}:batchEmbedContents", body, headers)
        vectors = vectors_at(self, reply, ("embeddings",), len(inputs), _values)
        return Response(unit(vectors), count_at(reply, "usageMetadata", "promptTokenCount"))

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """As for all, but a wrong key and a forbidden country are a 400 here, and any 429 speaks of
        a quota."""
        problem = f"{self.where} answered {status}: {self.quote(body)}"
        if status == 400 and "API_KEY_INVALID" in body:
            key = self.options.api_key_env
            return ProviderError(f"{problem} Check the key: api_key_env is {key!r}.")
        if status == 400 and "FAILED_PRECONDITION" in body:
            return ProviderError(f"{problem} Mend that first: until then no text is embedded.")
        if status != 429:
            return super().fault(status, body, headers)
        if any("PerDay" in quota for quota in _quotas(body)):
            return ProviderError(
                f"{problem} Today's quota is used up: run again tomorrow or raise it; nothing is "
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


def _values(entry: Any) -> Vectors:
    return read_numbers(value_at(entry, "values"))


def _details(body: str) -> Iterator[Any]:
    """The `details` of an error, google.rpc.QuotaFailure, google.rpc.RetryInfo and the like."""
    try:
        details = value_at(json.loads(body), "error", "details")
    except ValueError:
        return
    yield from details if isinstance(details, list) else ()


def _quotas(body: str) -> Iterator[str]:
    """The names of the quotas that a 429 says were exceeded, e.g.
    `…RequestsPerDayPerProjectPerModel-FreeTier`."""
    for detail in _details(body):
        violations = value_at(detail, "violations")
        yield from (
            str(value_at(each, "quotaId"))
            for each in (violations if isinstance(violations, list) else ())
        )


def _retry_delay(body: str) -> float | None:
    """Seconds of google.rpc.RetryInfo, a protobuf duration such as "45.837906927s"; None without
    one."""
    for detail in _details(body):
        delay = str(value_at(detail, "retryDelay") or "")
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None
