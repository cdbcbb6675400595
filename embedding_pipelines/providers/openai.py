"""`openai`: OpenAI's models, and all servers with the same interface: Azure, vLLM, Infinity, LM
Studio, llama.cpp …

https://platform.openai.com/docs/api-reference/embeddings, through the official SDK with its retries
off. OpenAI's own models are in the table of published models. For others the options name the
length of vectors and of texts, and the server's replies must agree.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from tokenizers import Tokenizer

from embedding_pipelines.errors import ConfigError, Unreachable
from embedding_pipelines.extras import need
from embedding_pipelines.once import once
from embedding_pipelines.providers import _tiktoken
from embedding_pipelines.providers._openai_batch import OpenaiBatches
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.bounds import HEADERS, Bounds
from embedding_pipelines.providers.common.hosted import HostedModel, HostedOptions
from embedding_pipelines.providers.common.prompts import PromptModel, PromptOptions
from embedding_pipelines.providers.common.replies import (
    count_at,
    list_at,
    order_by_index,
    read_base64,
    read_numbers,
    stack,
)
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from openai import OpenAI

BASE_URL, KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"

# Texts and tokens are those of the SDK's docstring of `embeddings.create`. The service estimates
# the tokens of a request at a quarter of its bytes before it counts them.
REQUEST_TEXTS, REQUEST_TOKENS, REQUEST_BYTES = 2_048, 300_000, 1_200_000

BATCH_TEXTS = 50_000  # from the guide to the Batch interface

# Of other servers: what a processor embeds in seconds, so that a request ends before
# `timeout_seconds`.
OTHER_REQUEST_TEXTS, OTHER_REQUEST_TOKENS, OTHER_MAX_TOKENS = 256, 16_384, 512


class OpenaiModel(HostedModel, PromptModel):
    options: "Openai"
    resources = ("sdk",)

    @once
    def sdk(self) -> "OpenAI":
        """The client of the SDK. Raises ConfigError without the SDK."""
        # Without a key the SDK looks for one of its own; `request_headers` replaces this one.
        openai = need("openai", "openai")
        http = openai.DefaultHttpxClient(headers=HEADERS, event_hooks=Bounds().hooks)
        client: OpenAI = openai.OpenAI(
            api_key="none", base_url=self.address, max_retries=0, http_client=http
        )
        weakref.finalize(client, http.close)  # as the SDK does with a client of its own
        return client

    @property
    def request_headers(self) -> dict[str, Any]:
        """The model's own key, if any, and nothing that the SDK takes from the environment and
        would send to another server."""
        names = ["authorization"]
        if not _is_openai(self.address):
            names += ["openai-organization", "openai-project"]
        return {**dict.fromkeys(names, need("openai", "openai").omit), **self.bearer}

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise the SDK's errors as `embed` does, without the key.

        They get no cause: the service may repeat the key, and a traceback would show it.
        """
        import httpx2

        openai = need("openai", "openai")
        try:
            yield
        except openai.APIStatusError as error:
            reply = error.response
            raise self.fault(error.status_code, reply.text, reply.headers) from None
        # In mid-stream the SDK does not translate those of HTTP.
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            words = self.redact(f"{type(cause).__name__} {cause}".rstrip(" ."))
            raise Unreachable(f"{self.address} cannot be reached: {words}.") from None

    @functools.cached_property
    def batch_service(self) -> OpenaiBatches:  # type: ignore[override]
        return OpenaiBatches(self)

    @functools.cached_property
    def space(self) -> Space:
        """With the address of a model that is not OpenAI's own: two servers may give different
        models one name."""
        is_published = self.options.published_model is not None
        # The names of OpenAI's own models hold their versions, behind Azure too; "v1" is the
        # interface's.
        revision = "v1" if is_published else urlsplit(self.address).netloc
        return self.make_space(
            revision=self.options.revision or revision,
            prompts=self.prompts,
            normalized=is_published,  # other servers depend on how they were started
        )

    @functools.cached_property
    def limits(self) -> Limits:
        options = self.options
        most, threads = self.text_tokens(options.model_tokens), options.concurrent_requests
        if options.published_model is None:
            return Limits(most, max(OTHER_REQUEST_TOKENS, most), OTHER_REQUEST_TEXTS, threads)
        return Limits(most, REQUEST_TOKENS, REQUEST_TEXTS, threads, request_bytes=REQUEST_BYTES)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        if not self._counts_as_openai:
            return super().tokenizer
        try:
            return _tiktoken.cl100k()
        except ConfigError:
            self.api_key  # noqa: B018 - who has no key yet is told that first
            raise

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        return _tiktoken.cl100k_digest() if self._counts_as_openai else super().tokenizer_digest

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        create = self.sdk.embeddings.with_raw_response.create
        return self.read(self.call(create, **self.body(inputs, input_type)), len(inputs))

    def call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """The JSON of the reply to a method of `sdk`. Raises as `embed`."""
        arguments = {"timeout": self.options.timeout_seconds, **arguments}
        with self.translate_errors():
            reply = method(**arguments, extra_headers=self.request_headers)
        return self.parse_json(reply.content)

    def body(self, inputs: Sequence[str], input_type: InputType) -> dict[str, Any]:
        """A request for the vectors of `inputs`."""
        options = self.options
        body: dict[str, Any] = {
            "model": options.model,
            "input": self.add_prompt(inputs, input_type),
            "encoding_format": "base64",
        }
        size = options.requested_size
        if size is not None and (options.published_model is not None or options.send_dimensions):
            body["dimensions"] = size
        return body

    def read(self, reply: Any, count: int) -> Response:
        """The vectors and tokens in a reply's JSON for `count` texts. Raises as `embed`."""
        entries = order_by_index(self, list_at(self, reply, "data"), count)
        # Servers that do not count tokens say 0.
        totals = (count_at(reply, "usage", name) for name in ("total_tokens", "prompt_tokens"))
        return Response(stack(self, entries, _read), next(filter(None, totals), None))

    @property
    def _counts_as_openai(self) -> bool:
        return self.options.tokenizer_of is None and self.options.published_model is not None


class Openai(HostedOptions, PromptOptions):
    """One model at one address. OpenAI rejects texts that are too long; some servers cut them."""

    model_class = OpenaiModel
    default_max_tokens = OTHER_MAX_TOKENS

    kind: Literal["openai"] = "openai"
    base_url: str = BASE_URL
    """With the final /v1. Azure: https://<resource>.openai.azure.com/openai/v1, and the deployment
    as `model`."""

    api_key_env: str | None = None
    """Default: OPENAI_API_KEY at api.openai.com, none elsewhere, so that the key to one service
    never reaches another."""

    mode: Literal["direct", "batch"] = "direct"
    """batch: documents go through the Batch interface, which answers within a day for half the
    price. Queries never do."""

    batch_texts: int = Field(BATCH_TEXTS, ge=1, le=BATCH_TEXTS)
    """Per batch job at most. Set fewer if the account limits the tokens in the queue."""

    revision: str | None = None
    """Identifies the weights of a model that is not OpenAI's own. Default: the server's address;
    set one name for several servers with the same weights, or for a server that moves."""

    send_dimensions: bool = False
    """Send `dimensions` to the server of a model that is not published."""

    max_tokens: int | None = Field(None, ge=8)
    """How much of a text the model reads. Default: 8,191 for OpenAI's own; 512 for others, a low
    estimate."""

    @model_validator(mode="before")
    @classmethod
    def _default_key(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "api_key_env" in values:
            return values
        is_own = _is_openai(str(values.get("base_url", BASE_URL)))
        return {**values, "api_key_env": KEY if is_own else None}

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        entry = self.published_model
        if entry is not None and self.send_dimensions:
            raise ValueError(
                "send_dimensions is for models that are not published; leave it out with "
                f"{self.model!r}"
            )
        if entry is not None and self.model_tokens > entry.max_tokens:
            raise ValueError(
                f"{self.model!r} reads {entry.max_tokens} tokens of a text; max_tokens cannot be "
                "more"
            )
        return self

    @property
    def model_tokens(self) -> int:
        return super().model_tokens if self.max_tokens is None else self.max_tokens

    @property
    def sells_published_models(self) -> bool:
        return _is_openai(self.base_url)

    @property
    def batch_price(self) -> float | None:
        if self.usd_per_million_tokens is not None or self.published_model is None:
            return self.usd_per_million_tokens
        return self.published_model.usd_batch

    @property
    def uses_batch_jobs(self) -> bool:
        return self.mode == "batch"


def _is_openai(base_url: str) -> bool:
    return urlsplit(base_url).hostname == urlsplit(BASE_URL).hostname


def _read(vector: Any) -> Vectors:
    """float32[d] of base64, or of the list of numbers that some servers send instead."""
    return read_base64(vector) if isinstance(vector, str) else read_numbers(vector)
