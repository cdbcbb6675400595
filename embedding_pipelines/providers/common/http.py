"""What providers behind a network share: their options, one HTTP request, and what an answer means.

A provider makes one request and raises what it meant. Waiting, retrying and splitting are decided
in one place for all of them, `embedding/asking.py` and `embedding/embed.py`; the SDKs' own retries
are switched off.
"""

from __future__ import annotations

import functools
import json
import os
import re
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.providers.base import InputType, Provider, Reply, Vectors
from embedding_pipelines.providers.common.prices import published_price
from embedding_pipelines.providers.common.tokenizers import load_tokenizer, tokenizer_digest
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from httpx2 import Client
    from tokenizers import Tokenizer

MAX_PRICE = 5.0  # USD per million tokens; the dearest embedding model known costs 0.20. Above it a price is a typo.
WORDS = 300  # characters of a service's own words that an error quotes
SPENT = (
    "insufficient_quota",
    "billing_hard_limit",
    "exceeded your current quota",
)  # a 429 that waiting does not mend
TOO_LARGE = (  # in the words of a 400; the last is what FastAPI's validation says
    "max_tokens_per_request", "tokens per request", "too many inputs", "batch size", "list should have at most",
)  # fmt: skip

_MAKING = threading.Lock()

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

SECRETS: dict[str, str] = {}
"""Keys that a program was given otherwise than by its environment, by the name that `api_key_env`
then holds."""


class Busy(ProviderError):
    """Flow control (429, 503): nothing is wrong with the request, it came too early."""

    def __init__(self, text: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class Unreachable(ProviderError):
    """A fault on the way or in the service (timeout, reset, 500): the same request may well succeed
    later."""


class Garbled(Unreachable):
    """A reply that makes no sense, though it says 200: probably billed, and worth nothing."""


class BadInput(ProviderError):
    """The service refuses a text of this request, for ever (400, 422)."""


class TooLarge(ProviderError):
    """The request holds too much, though each text may be right (413)."""


class Service(Provider):
    """Options of every provider behind a network. Names of environment variables, never a
    secret."""

    api_key_env: str | None = None
    """The environment variable that holds the key; None: the service asks for none."""

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        """What is none may be the key itself, so the error does not repeat it."""
        if name is not None and not VARIABLE.fullmatch(name):
            raise ValueError(
                "is no name of an environment variable. Write one, such as MY_API_KEY, and set it to the key; the key "
                "itself does not belong in this file, and is not shown here"
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
    @abstractmethod
    def address(self) -> str:
        """Where the service is, for errors and for counting requests."""

    @property
    def flow_key(self) -> str:
        """Whose requests are counted together: everybody's with this key at this address. Tells
        nothing of the key."""
        return digest(self.address.encode(), (self.api_key or "").encode()).hex()

    @property
    def api_key(self) -> str | None:
        """The secret. Raises ConfigError if the variable that should hold it is not set."""
        if self.api_key_env is None:
            return None
        key = secret(self.api_key_env)
        if not key:
            raise ConfigError(
                f"{self.kind}: the environment variable {self.api_key_env} is not set; it should hold the API key. "
                "Set it, or name another one with api_key_env."
            )
        if not (
            key.isascii() and key.isprintable()
        ):  # no header can hold it, and the error about that would show it
            raise ConfigError(
                f"{self.kind}: the environment variable {self.api_key_env} holds line breaks or characters that no API "
                "key has. Set it again."
            )
        return key

    @property
    def bearer(self) -> dict[str, str]:
        """The key as most services want it, in the header `authorization`; empty without a key.
        Raises as `api_key`."""
        key = self.api_key
        return {} if key is None else {"authorization": f"Bearer {key}"}

    @property
    def price(self) -> float | None:
        """USD per million tokens: the user's, else the published one; None if nobody knows."""
        own = self.usd_per_million_tokens
        return published_price(self.kind, getattr(self, "model", "")) if own is None else own

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_of)

    @property
    def tokenizer_digest(self) -> str:
        return tokenizer_digest(self.tokenizer_of)

    @abstractmethod
    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        """One request. Raises Busy, Unreachable, BadInput or TooLarge; ProviderError for what ends
        the run."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        return self.ask(inputs, input_type).vectors

    def json_of(self, content: bytes) -> Any:
        """What a reply that says 200 holds. Raises Unreachable if it is no JSON, such as a
        gateway's own page."""
        try:
            return json.loads(content)
        except ValueError as error:
            words = self.redacted(content.decode(errors="replace"))[:WORDS]
            raise Unreachable(
                f"{self.kind} at {self.address} answered 200 without JSON: {words!r}"
            ) from error

    def quoted(self, body: str) -> str:
        """The sentence in an error's body, without the key: before it is cut, and once JSON is
        read."""
        return self.redacted(spoken(self.redacted(body)))

    def redacted(self, words: str) -> str:
        """Without the key, should the service repeat it."""
        key = secret(self.api_key_env or "")
        return words.replace(key, "***") if key else words


class Remote(Service):
    """A provider behind HTTP."""

    base_url: str

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        """An error shows nothing of the address: a key may stand in it, or in its place."""
        parts = urlsplit(url)
        if "@" in url or parts.query or parts.fragment:
            raise ValueError(
                "an address holds no password, query or key: name an environment variable with api_key_env"
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

    @property
    def address(self) -> str:
        return self.base_url

    def request(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """POST `body` as JSON (GET without one) and return the reply's JSON; raises as `ask`."""
        import httpx2

        url = self.base_url + path
        try:
            reply = _client().request(
                "GET" if body is None else "POST",
                url,
                json=body,
                headers=headers,
                timeout=self.timeout_seconds,
            )
        except httpx2.HTTPError as error:
            words = f"{type(error).__name__} {error}".rstrip(" .")
            raise Unreachable(f"{url} cannot be reached: {words}.") from error
        if not reply.is_success:
            raise self.fault(reply.status_code, reply.text, reply.headers)
        return self.json_of(reply.content)

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """What an HTTP error means, in the service's own words and without the key."""
        words = self.quoted(body)
        said = f"{self.kind} at {self.base_url} answered {status}: {words}"
        if status == 429 and any(sign in body for sign in SPENT):
            return ProviderError(
                f"{said} The account's quota is used up: top it up, then run again; nothing is lost."
            )
        if status in (429, 503, 529):
            return Busy(said, retry_after(headers))
        if status == 413 or (
            status in (400, 422) and any(sign in body.lower() for sign in TOO_LARGE)
        ):
            return TooLarge(said)
        if status in (400, 422):
            return BadInput(said)
        if status in (401, 403):
            where = (
                f"the key in {self.api_key_env}"
                if self.api_key_env
                else "api_key_env, which is not set"
            )
            return ProviderError(f"{said} Check {where}, and that its account may use this model.")
        if status in (402, 404, 405, 410):
            return ProviderError(f"{said} Check model and base_url.")
        return Unreachable(said)


def secret(name: str) -> str:
    """What SECRETS or the environment hold under a name; empty without either."""
    return (SECRETS.get(name) or os.environ.get(name, "")).strip()


def spoken(body: str) -> str:
    """The sentence in an error's body, whichever of the usual shapes it has."""
    try:
        found = json.loads(body)
    except ValueError:
        found = body
    while isinstance(found, dict | list):
        if isinstance(found, list):
            found = found[0] if found else ""
        else:
            keys = [key for key in ("error", "message", "detail", "msg") if found.get(key)]
            found = found[keys[0]] if keys else json.dumps(found)
    words = " ".join(str(found).split())[:WORDS]
    return words if words.endswith((".", "!", "?")) else f"{words}."


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as `retry-after-ms` or `retry-after` (seconds or a date) say; None without
    either."""
    from datetime import UTC, datetime

    found = {name.lower(): value for name, value in headers.items()}
    try:
        if "retry-after-ms" in found:
            return max(0.0, float(found["retry-after-ms"]) / 1000)
        value = found.get("retry-after")
        if value is None:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _client() -> Client:
    """One for the process: its connections are kept open, and it may be used by several threads."""
    with _MAKING:  # else threads that begin together would each make one
        return _made_client()


@functools.cache
def _made_client() -> Client:
    import httpx2

    return httpx2.Client(limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64))
