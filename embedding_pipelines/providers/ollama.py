"""`ollama`: a model that an Ollama server, on this machine or near it, has pulled."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from embedding_pipelines.errors import BadInput, ConfigError, ProviderError, Unreachable
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.http import RemoteModel, RemoteOptions
from embedding_pipelines.providers.common.prompts import PromptModel, PromptOptions
from embedding_pipelines.providers.common.replies import (
    count_at,
    read_numbers,
    value_at,
    vectors_at,
)
from embedding_pipelines.space import Space

DEFAULT_CONTEXT = 4_096  # tokens; Ollama's own default, even of models that can read more
# The server embeds a request's texts one by one: more gain nothing and lose more when one fails.
REQUEST_TEXTS = 64
POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last"}  # numbers of GGUF's `pooling_type`
# In the words of a 400 that blames the text for a crash of the model's process.
RUNNER_GONE = ("eof", "connection re", "runner")


@dataclass(frozen=True)
class Description:
    """The server's description of a model."""

    digest: str  # of its manifest: weights, template and parameters
    dimensions: int
    context: int  # tokens that the model can read
    preset_context: int  # num_ctx of its Modelfile, else Ollama's default
    pooling: str
    dtype: str


class OllamaModel(RemoteModel, PromptModel):
    options: Ollama

    @functools.cached_property
    def space(self) -> Space:
        options, description = self.options, self._description
        if options.dimensions is not None and options.dimensions > description.dimensions:
            raise ConfigError(
                f"ollama: {options.model} gives {description.dimensions} dimensions, not "
                f"{options.dimensions}. Lower dimensions."
            )
        return Space(
            provider=options.kind,
            model=options.model,
            revision=description.digest,
            dimensions=options.dimensions or description.dimensions,
            pooling=description.pooling,
            prompts=self.prompts,
            max_tokens=self._context,
            normalized=True,
            dtype=description.dtype,
        )

    @functools.cached_property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=self.text_tokens(self._context),
            request_tokens=REQUEST_TEXTS * self._context,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.options.concurrent_requests,
        )

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        options = self.options
        body: dict[str, Any] = {
            "model": options.model,
            "input": self.add_prompt(inputs, input_type),
            "truncate": False,
            # The runner crashes if a pooled text does not fit one batch.
            "options": {"num_ctx": self._context, "num_batch": self._context},
        }
        if options.dimensions is not None:
            body["dimensions"] = options.dimensions
        if options.keep_alive is not None:
            body["keep_alive"] = options.keep_alive
        reply = self.request("/api/embed", body, self.bearer)
        vectors = vectors_at(self, reply, ("embeddings",), len(inputs), read_numbers)
        return Response(vectors, count_at(reply, "prompt_eval_count"))

    def request(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        import httpx2

        try:
            return super().request(path, body, headers)
        except Unreachable as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise Unreachable(
                    f"{error}. Is Ollama running there? Start it with `ollama serve`."
                ) from error
            raise

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        words = self.quote(body)
        problem = f"{self.where} answered {status}: {words}"
        if status == 404:
            return ProviderError(
                f"{problem} Fetch the model with `ollama pull {self.options.model}`, or check "
                "model."
            )
        if "does not support embed" in words:
            return ProviderError(f"{problem} Choose an embedding model, e.g. nomic-embed-text.")
        if "context length" in words:  # with 400 or 500, as the version has it
            return BadInput(problem)
        if status == 400 and any(sign in words.lower() for sign in RUNNER_GONE):
            return Unreachable(problem)
        return super().fault(status, body, headers)

    @property
    def _context(self) -> int:
        description = self._description
        return min(self.options.num_ctx or description.preset_context, description.context)

    @once
    def _description(self) -> Description:
        model = self.options.model
        digest = self._read_digest()
        reply = self.request("/api/show", {"model": model}, self.bearer)
        try:
            info = reply["model_info"]
            family = info["general.architecture"]
            preset = re.search(r"^num_ctx\s+(\d+)", reply.get("parameters") or "", re.MULTILINE)
            return Description(
                digest=digest,
                dimensions=int(info[f"{family}.embedding_length"]),
                context=int(info[f"{family}.context_length"]),
                preset_context=int(preset[1]) if preset else DEFAULT_CONTEXT,
                pooling=POOLING.get(info.get(f"{family}.pooling_type"), "the model's own"),
                dtype=str((reply.get("details") or {}).get("quantization_level") or "unknown"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreachable(
                f"{self.where}: /api/show does not describe {model} ({error!r}). Update the server "
                "to Ollama 0.4 or later."
            ) from error

    def _read_digest(self) -> str:
        """From the list of models: `/api/show` does not hold it."""
        models = value_at(self.request("/api/tags", headers=self.bearer), "models")
        if not isinstance(models, list):
            raise Unreachable(f"{self.where}: /api/tags lists no models.")
        model = self.options.model
        name = model if ":" in model.rsplit("/", 1)[-1] else f"{model}:latest"
        for entry in models:
            if str(entry.get("name", "")).lower() == name.lower() and entry.get("digest"):
                return str(entry["digest"])
        raise ProviderError(
            f"{self.where} has no model {model!r}. Fetch it with `ollama pull {model}`."
        )


class Ollama(RemoteOptions, PromptOptions):
    """One model of an Ollama server."""

    model_class = OllamaModel

    kind: Literal["ollama"] = "ollama"
    model: str
    base_url: str = "http://localhost:11434"
    concurrent_requests: int = Field(2, ge=1, le=256)
    dimensions: int | None = Field(None, ge=1)
    """Shorter vectors, of a model that was trained for it."""

    num_ctx: int | None = Field(None, ge=16)
    """Tokens of context to load, and so the longest text; the model's own at most. Default: the
    Modelfile's, else 4,096."""

    keep_alive: str | None = None
    """How long the model stays loaded after a request, e.g. "30m". Default: the server's, usually 5
    minutes."""

    @property
    def price(self) -> float | None:
        return self.usd_per_million_tokens or 0.0
