"""What providers behind a network share: their options, one HTTP request, and its errors.

A model makes one request and raises what the reply means. `embedding/request.py` and
`embedding/embed.py` wait, retry and split for all of them; the SDKs' own retries are off.
"""

import functools
import json
import os
import re
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
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
    EmbeddingModel,
    InputType,
    ProviderOptions,
    RateLimit,
    Response,
)
from embedding_pipelines.providers.common.bounds import HEADERS, Bounds
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from httpx2 import Client
    from tokenizers import Tokenizer

# USD per million tokens; a higher price is a typo: the dearest published model costs 0.20.
MAX_PRICE = 5.0
WORDS = 300  # characters of a service's own words that an error quotes


class Meaning(NamedTuple):
    """What an error says, by its status and by words in its body."""

    statuses: Collection[int | str]
    error: type[ProviderError]
    remedy: str = ""  # with {key}, what to check, and {model}
    words: str = ""  # a regular expression, without regard to case; the empty one fits every body


# Of all services, the first that fits; other statuses are faults of network or service.
MEANINGS = (
    Meaning(
        [429],
        ProviderError,
        "The account's quota is exhausted: raise it, then run again; nothing is lost.",
        "insufficient_quota|billing_hard_limit|exceeded your current quota",
    ),
    Meaning([429, 503, 529], Busy),
    Meaning([413], TooLarge),
    Meaning(
        [400, 422],
        TooLarge,
        # The last is FastAPI's validation.
        words="max_tokens_per_request|tokens per request|too many inputs|batch size"
        "|list should have at most",
    ),
    Meaning([400, 422], BadInput),
    Meaning([401, 403], ProviderError, "Check {key}, and that its account may use this model."),
    Meaning([402], ProviderError, "The account has to be paid up; nothing is lost."),
    Meaning([404, 405, 410], ProviderError, "Check model and base_url."),
)


class ServiceOptions(ProviderOptions):
    """Options of every provider behind a network. They name secrets and never hold one."""

    default_price: ClassVar[float | None] = None  # None: unknown

    api_key_env: str | None = None
    """The environment variable that holds the key; None: the service needs none."""

    @field_validator("api_key_env")
    @classmethod
    def _check_name(cls, name: str | None) -> str | None:
        """The error does not repeat a wrong name: it may be the key itself."""
        if name is not None and not (name.isascii() and name.isidentifier()):
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
        own = self.usd_per_million_tokens
        return self.default_price if own is None else own

    def missing_keys(self) -> Iterator[str]:
        name = self.api_key_env
        if name and not os.environ.get(name):
            yield (
                f"the environment variable {name} is not set, and {self.kind} needs a key. Set it, "
                "or name another one with api_key_env."
            )


class ServiceModel(EmbeddingModel):
    options: ServiceOptions
    meanings: ClassVar[tuple[Meaning, ...]] = ()  # of this service alone; they come first

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
        key, kind = self._secret(name), self.options.kind
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
    def tokenizer(self) -> "Tokenizer":
        from embedding_pipelines.providers.common.tokenizers import load_tokenizer

        return load_tokenizer(self.options.tokenizer_of, self.home)

    def parse_json(self, content: bytes) -> Any:
        """The JSON of a reply. Raises Unreachable for anything else, such as a gateway's page."""
        try:
            return json.loads(content)
        except ValueError as error:
            words = self.redact(content.decode(errors="replace"))[:WORDS]
            raise Unreachable(
                f"{self.where} answered 200 without JSON: {words!r}. Check its address."
            ) from error

    def quote(self, body: str) -> str:
        """The sentence in an error's body, without the key, escaped in JSON or not."""
        return self.redact(error_sentence(self.redact(body)))

    def redact(self, words: str) -> str:
        """The words without the key, should the service repeat it."""
        key = self._secret(self.options.api_key_env or "")
        return words.replace(key, "***") if key else words

    def _secret(self, name: str) -> str:
        return (self._secrets.get(name) or os.environ.get(name, "")).strip()

    def fault(self, status: int | str, body: str, headers: Mapping[str, str]) -> ProviderError:
        """The meaning of an error, in the service's own words and without the key."""
        problem = f"{self.where} answered {status}: {self.quote(body)}"
        model, name = getattr(self.options, "model", ""), self.options.api_key_env
        key = f"the key in {name}" if name else "api_key_env, which is not set"
        for statuses, error, remedy, words in (*self.meanings, *MEANINGS):
            if status not in statuses or not re.search(words, body, re.IGNORECASE):
                continue
            if error is Busy:
                return Busy(problem, self.retry_after(body, headers))
            return error(f"{problem} {remedy.format(key=key, model=model)}".rstrip())
        return Unreachable(problem)

    def retry_after(self, body: str, headers: Mapping[str, str]) -> float | None:
        """Seconds to wait: `retry-after-ms` or `retry-after` (seconds or a date), or None."""
        milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after", "")
        try:
            if milliseconds is not None:
                return max(0.0, float(milliseconds) / 1000)
            if value.replace(".", "", 1).isdigit():
                return float(value)
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return None


class RemoteOptions(ServiceOptions):
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
    resources = ("_client",)
    start_hint: ClassVar[str] = ""  # if nothing listens at the address

    @property
    def address(self) -> str:
        return self.options.base_url

    @once
    def _client(self) -> "Client":
        import httpx2

        return httpx2.Client(
            limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64),
            timeout=self.options.timeout_seconds,
            headers=HEADERS,
            event_hooks=Bounds().hooks,
        )

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """POST `body` as JSON without its Nones, else GET: the reply's JSON. Raises as `embed`."""
        import httpx2

        url, method = self.address + path, "GET"
        if body is not None:
            body = {name: value for name, value in body.items() if value is not None}
            method = "POST"
        try:
            reply = self._client.request(method, url, json=body, headers=self.bearer)
        except httpx2.HTTPError as error:
            words = f"{type(error).__name__} {error}".rstrip(" .")
            hint = self.start_hint if isinstance(error, httpx2.ConnectError) else ""
            raise Unreachable(f"{url} cannot be reached: {words}.{hint}") from error
        if not reply.is_success:
            raise self.fault(reply.status_code, reply.text, reply.headers)
        return self.parse_json(reply.content)


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
            parts = (value.get(key) for key in ("error", "message", "detail", "msg"))
            value = next(filter(None, parts), json.dumps(value))
    words = " ".join(str(value).split())[:WORDS]
    return words if words.endswith((".", "!", "?")) else f"{words}."
