"""What providers behind a network share: their options, one HTTP request, and its errors.

A model makes one request and raises what the reply means. `embedding/request.py` and
`embedding/embed.py` wait, retry and split for all of them; the SDKs' own retries are off.
"""

from __future__ import annotations

import functools
import json
import os
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, field_validator

from embedding_pipelines.errors import (
    BadInput,
    Busy,
    ConfigError,
    ProviderError,
    TooLarge,
    Unreachable,
)
from embedding_pipelines.once import forget, once
from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    ProviderOptions,
    RateLimit,
    Response,
)
from embedding_pipelines.providers.common.prices import find_published
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from httpx2 import Client
    from tokenizers import Tokenizer

# USD per million tokens; a higher price is a typo: the dearest published model costs 0.20.
MAX_PRICE = 5.0
WORDS = 300  # characters of a service's own words that an error quotes
# In the words of a 429 that waiting does not help.
QUOTA_EXHAUSTED = ("insufficient_quota", "billing_hard_limit", "exceeded your current quota")
TOO_LARGE = (  # in the words of a 400; the last is FastAPI's validation
    "max_tokens_per_request",
    "tokens per request",
    "too many inputs",
    "batch size",
    "list should have at most",
)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ServiceOptions(ProviderOptions):
    """Options of every provider behind a network. They name secrets and never hold one."""

    api_key_env: str | None = None
    """The environment variable that holds the key; None: the service needs none."""

    @field_validator("api_key_env")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        """The error does not repeat a wrong name: it may be the key itself."""
        if name is not None and not VARIABLE.fullmatch(name):
            raise ValueError(
                "is not the name of an environment variable. Write one, such as MY_API_KEY, and "
                "set it to the key; the key itself does not belong in this file, and is not shown"
            )
        return name

    timeout_seconds: float = Field(60.0, gt=0)
    concurrent_requests: int = Field(8, ge=1, le=256)
    requests_per_minute: float | None = Field(None, gt=0)
    """What the account allows, over all runs on this machine. Default: only 429s slow requests
    down."""

    tokens_per_minute: float | None = Field(None, gt=0)
    usd_per_million_tokens: float | None = Field(None, ge=0, le=MAX_PRICE)
    """Overrides the published price."""

    tokenizer_of: str | None = None
    """The tokenizer that counts: that of a model of the Hugging Face hub, a `tokenizer.json` below
    the home folder, or "estimate", an upper bound. Default: the service's own, else the
    estimate."""

    @property
    def price(self) -> float | None:
        """USD per million tokens: the user's, else the published one; None if unknown."""
        own = self.usd_per_million_tokens
        if own is not None:
            return own
        entry = find_published(self.kind, getattr(self, "model", ""))
        return entry.usd_per_million if entry else None


class ServiceModel(EmbeddingModel):
    """A model behind a network."""

    options: ServiceOptions

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if not inputs:
            return Response(np.empty((0, self.space.dimensions), np.float32))
        return self.send(inputs, input_type)

    @abstractmethod
    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        """As `embed`, for one text or more."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Where the service is, for errors and for counting requests."""

    @property
    def where(self) -> str:
        """The beginning of errors: the provider and its address."""
        return f"{self.options.kind} at {self.address}"

    @property
    def rate_limit(self) -> RateLimit:  # type: ignore[override]
        """All requests with this key at this address share one pace."""
        key = digest(self.address.encode(), (self.api_key or "").encode()).hex()
        return RateLimit(key, self.options.requests_per_minute, self.options.tokens_per_minute)

    @property
    def api_key(self) -> str | None:
        """The secret. Raises ConfigError if its variable is not set, or holds no key."""
        name = self.options.api_key_env
        if name is None:
            return None
        key = self._secret(name)
        kind = self.options.kind
        if not key:
            raise ConfigError(
                f"{kind}: the environment variable {name} is not set; it should hold the API key. "
                "Set it, or name another one with api_key_env."
            )
        if not (key.isascii() and key.isprintable()):  # no header can hold it
            raise ConfigError(
                f"{kind}: the environment variable {name} holds line breaks or characters that no "
                "API key has. Set it again."
            )
        return key

    @property
    def bearer(self) -> dict[str, str]:
        """The key as a header; empty without a key. Raises as `api_key`."""
        key = self.api_key
        return {} if key is None else {"authorization": f"Bearer {key}"}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.options.tokenizer_of, self.home)

    def parse_json(self, content: bytes) -> Any:
        """The JSON of a reply with status 200. Raises Unreachable for anything else, such as a
        gateway's own page."""
        try:
            return json.loads(content)
        except ValueError as error:
            words = self.redact(content.decode(errors="replace"))[:WORDS]
            raise Unreachable(f"{self.where} answered 200 without JSON: {words!r}") from error

    @property
    def key_name(self) -> str:
        """What to check when a service denies access."""
        name = self.options.api_key_env
        return f"the key in {name}" if name else "api_key_env, which is not set"

    def quote(self, body: str) -> str:
        """The sentence in an error's body, without the key, escaped in JSON or not."""
        return self.redact(error_sentence(self.redact(body)))

    def redact(self, words: str) -> str:
        """The words without the key, should the service repeat it."""
        key = self._secret(self.options.api_key_env or "")
        return words.replace(key, "***") if key else words

    def _secret(self, name: str) -> str:
        return (self._secrets.get(name) or os.environ.get(name, "")).strip()


class RemoteOptions(ServiceOptions):
    """Options of a provider behind HTTP."""

    base_url: str

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, url: str) -> str:
        """Errors show nothing of the address: it may hold a key, or be one."""
        parts = urlsplit(url)
        if "@" in url or parts.query or parts.fragment:
            raise ValueError(
                "an address holds no password, query or key: name an environment variable with "
                "api_key_env"
            )
        try:
            port = parts.port
        except ValueError:
            raise ValueError(
                "the port of the address is not a number; write e.g. http://localhost:8080"
            ) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("is not the address of a service; write e.g. http://localhost:8080")
        return url.rstrip("/")


class RemoteModel(ServiceModel):
    """A model behind HTTP. Its connections stay open until `close`."""

    options: RemoteOptions

    @property
    def address(self) -> str:
        return self.options.base_url

    @once
    def _client(self) -> Client:
        import httpx2

        limits = httpx2.Limits(max_connections=256, max_keepalive_connections=64)
        return httpx2.Client(limits=limits, timeout=self.options.timeout_seconds)

    def close(self) -> None:
        forget(self, "_client")

    def request(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """POST `body` as JSON, or GET without one; returns the reply's JSON, raises as `embed`."""
        import httpx2

        url = self.address + path
        method = "GET" if body is None else "POST"
        try:
            reply = self._client.request(method, url, json=body, headers=headers)
        except httpx2.HTTPError as error:
            words = f"{type(error).__name__} {error}".rstrip(" .")
            raise Unreachable(f"{url} cannot be reached: {words}.") from error
        if not reply.is_success:
            raise self.fault(reply.status_code, reply.text, reply.headers)
        return self.parse_json(reply.content)

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """The meaning of an HTTP error, in the service's own words and without the key."""
        problem = f"{self.where} answered {status}: {self.quote(body)}"
        if status == 429 and any(sign in body for sign in QUOTA_EXHAUSTED):
            return ProviderError(
                f"{problem} The account's quota is exhausted: raise it, then run again; nothing is "
                "lost."
            )
        if status in (429, 503, 529):
            return Busy(problem, retry_after(headers))
        if status in (400, 413, 422):
            too_large = status == 413 or any(sign in body.lower() for sign in TOO_LARGE)
            return TooLarge(problem) if too_large else BadInput(problem)
        if status in (401, 403):
            return ProviderError(
                f"{problem} Check {self.key_name}, and that its account may use this model."
            )
        if status in (402, 404, 405, 410):
            return ProviderError(f"{problem} Check model and base_url.")
        return Unreachable(problem)


def error_sentence(body: str) -> str:
    """The sentence in an error's body, in any of the usual shapes."""
    try:
        value = json.loads(body)
    except ValueError:
        value = body
    while isinstance(value, dict | list):
        if isinstance(value, list):
            value = value[0] if value else ""
        else:
            keys = [key for key in ("error", "message", "detail", "msg") if value.get(key)]
            value = value[keys[0]] if keys else json.dumps(value)
    words = " ".join(str(value).split())[:WORDS]
    return words if words.endswith((".", "!", "?")) else f"{words}."


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as `retry-after-ms` or `retry-after` (seconds or a date) say; None without
    either."""
    from datetime import UTC, datetime

    lower = {name.lower(): value for name, value in headers.items()}
    try:
        if "retry-after-ms" in lower:
            return max(0.0, float(lower["retry-after-ms"]) / 1000)
        value = lower.get("retry-after")
        if value is None:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
