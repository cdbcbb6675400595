"""What providers behind a network share: their options, one HTTP request, and what a reply means.

A model makes one request and raises what the reply means. Waiting, retrying and splitting are
decided in one place for all of them, `embedding/request.py` and `embedding/embed.py`; the SDKs' own
retries are switched off.
"""

from __future__ import annotations

import functools
import json
import os
import re
from abc import abstractmethod
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
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
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import (
    NO_SECRETS,
    EmbeddingModel,
    ProviderOptions,
    RateLimit,
    Response,
)
from embedding_pipelines.providers.common.prices import published_price
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from httpx2 import Client
    from tokenizers import Tokenizer

# USD per million tokens; the dearest published embedding model costs 0.20. Above it a price is a
# typo.
MAX_PRICE = 5.0
WORDS = 300  # characters of a service's own words that an error quotes
# In the words of a 429 that waiting does not mend.
QUOTA_EXHAUSTED = ("insufficient_quota", "billing_hard_limit", "exceeded your current quota")
TOO_LARGE = (  # in the words of a 400; the last is what FastAPI's validation says
    "max_tokens_per_request",
    "tokens per request",
    "too many inputs",
    "batch size",
    "list should have at most",
)
SPECIAL_TOKENS = 2  # most models put one before and one after a text; the estimate counts none
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ServiceOptions(ProviderOptions):
    """Options of every provider behind a network. Names of environment variables, never a secret."""

    api_key_env: str | None = None
    """The environment variable that holds the key; None: the service asks for none."""

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """What is no name may be the key itself, so the error does not repeat it."""
        if name is not None and not VARIABLE.fullmatch(name):
            raise ValueError(
                "is not the name of an environment variable. Write one, such as MY_API_KEY, and "
                "set it to the key; the key itself does not belong in this file, and is not shown"
            )
        return name

    timeout_seconds: float = Field(60.0, gt=0)
    concurrent_requests: int = Field(8, ge=1, le=256)
    requests_per_minute: float | None = Field(None, gt=0)
    """What the account allows, if known; shared by all runs of this machine. Else 429s alone slow
    requests down."""

    tokens_per_minute: float | None = Field(None, gt=0)
    usd_per_million_tokens: float | None = Field(None, ge=0, le=MAX_PRICE)
    """Overrides the published price."""

    tokenizer_of: str | None = None
    """Whose tokenizer counts: a model of the Hugging Face hub, a `tokenizer.json` below the home
    folder, or "estimate", from above. Default: the service's own where it is known, else the
    estimate."""

    @property
    def price(self) -> float | None:
        """USD per million tokens: the user's, else the published one; None if unknown."""
        own = self.usd_per_million_tokens
        return published_price(self.kind, getattr(self, "model", "")) if own is None else own


class ServiceModel(EmbeddingModel):
    """A model behind a network. One request at a time is made here; `embedding/request.py` waits,
    retries and splits."""

    options: ServiceOptions

    def __init__(
        self, options: ServiceOptions, home: Path, secrets: Mapping[str, str] = NO_SECRETS
    ) -> None:
        super().__init__(options)
        self._home, self._secrets = home, secrets

    @property
    @abstractmethod
    def address(self) -> str:
        """Where the service is, for errors and for counting requests."""

    @property
    def where(self) -> str:
        """How errors begin: the provider and its address."""
        return f"{self.options.kind} at {self.address}"

    @property
    def rate_limit(self) -> RateLimit:  # type: ignore[override]
        """Everybody's requests with this key at this address share one pace."""
        key = digest(self.address.encode(), (self.api_key or "").encode()).hex()
        return RateLimit(key, self.options.requests_per_minute, self.options.tokens_per_minute)

    @property
    def api_key(self) -> str | None:
        """The secret. Raises ConfigError if the variable that should hold it is not set."""
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
        """The key in the header `authorization`; empty without a key. Raises as `api_key`."""
        key = self.api_key
        return {} if key is None else {"authorization": f"Bearer {key}"}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.options.tokenizer_of, self._home)

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        return digest(self.tokenizer.to_str().encode()).hex()

    def room(self, max_tokens: int, prompts: Mapping[str, str]) -> int:
        """How many tokens of a document fit beside its prompt and the special tokens.

        Raises ConfigError if none do.
        """
        prompt, size = prompts.get("document", ""), 0
        if prompt:
            size = len(self.tokenizer.encode(prompt, add_special_tokens=False).ids)
        left = max_tokens - SPECIAL_TOKENS - size
        if left < 1:
            raise ConfigError(
                f"{self.options.kind}: the prompt of documents takes {size} of the {max_tokens} "
                "tokens that the model reads, which leaves none for a text. Shorten it with prompts."
            )
        return left

    def empty_response(self) -> Response:
        """What a request without texts returns; nobody is called."""
        return Response(np.empty((0, self.space.dimensions), np.float32))

    def json_of(self, content: bytes) -> Any:
        """The JSON of a reply with status 200. Raises Unreachable if it holds none, such as a
        gateway's own page."""
        try:
            return json.loads(content)
        except ValueError as error:
            words = self.redact(content.decode(errors="replace"))[:WORDS]
            raise Unreachable(f"{self.where} answered 200 without JSON: {words!r}") from error

    def quote(self, body: str) -> str:
        """The sentence in an error's body, without the key: before it is cut, and once JSON is
        read."""
        return self.redact(error_sentence(self.redact(body)))

    def redact(self, words: str) -> str:
        """Without the key, should the service repeat it."""
        key = self._secret(self.options.api_key_env or "")
        return words.replace(key, "***") if key else words

    def _secret(self, name: str) -> str:
        return (self._secrets.get(name) or os.environ.get(name, "")).strip()


class RemoteOptions(ServiceOptions):
    """Options of a provider behind HTTP."""

    base_url: str

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        """An error shows nothing of the address: a key may stand in it, or in its place."""
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
                "Port could not be cast to a number; write e.g. http://localhost:8080"
            ) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("is no address of a service; write e.g. http://localhost:8080")
        return url.rstrip("/")


class RemoteModel(ServiceModel):
    """A model behind HTTP. Its connections stay open until it is closed."""

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
        client = self.__dict__.pop("_client", None)
        if client is not None:
            client.close()

    def request(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """POST `body` as JSON (GET without one) and return the reply's JSON; raises as `embed`."""
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
        return self.json_of(reply.content)

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """What an HTTP error means, in the service's own words and without the key."""
        problem = f"{self.where} answered {status}: {self.quote(body)}"
        if status == 429 and any(sign in body for sign in QUOTA_EXHAUSTED):
            return ProviderError(
                f"{problem} The account's quota is used up: top it up, then run again; nothing is "
                "lost."
            )
        if status in (429, 503, 529):
            return Busy(problem, retry_after(headers))
        if status == 413 or (
            status in (400, 422) and any(sign in body.lower() for sign in TOO_LARGE)
        ):
            return TooLarge(problem)
        if status in (400, 422):
            return BadInput(problem)
        if status in (401, 403):
            where = (
                f"the key in {self.options.api_key_env}"
                if self.options.api_key_env
                else "api_key_env, which is not set"
            )
            return ProviderError(
                f"{problem} Check {where}, and that its account may use this model."
            )
        if status in (402, 404, 405, 410):
            return ProviderError(f"{problem} Check model and base_url.")
        return Unreachable(problem)


def error_sentence(body: str) -> str:
    """The sentence in an error's body, whichever of the usual shapes it has."""
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
