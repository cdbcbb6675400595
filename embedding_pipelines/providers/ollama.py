"""`ollama`: a model that an Ollama server, on this machine or near it, has pulled."""

import functools
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from embedding_pipelines.errors import BadInput, ConfigError, ProviderError, Unreachable
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.http import Meaning, RemoteModel, RemoteOptions
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
ERRORS = range(400, 600)


class OllamaModel(RemoteModel, PromptModel):
    options: "Ollama"
    start_hint = " Is Ollama running there? Start it with `ollama serve`."
    meanings = (
        Meaning(
            [404], ProviderError, "Fetch the model with `ollama pull {model}`, or check model."
        ),
        Meaning(
            ERRORS,
            ProviderError,
            "Choose an embedding model, e.g. nomic-embed-text.",
            "does not support embed",
        ),
        Meaning(ERRORS, BadInput, words="context length"),  # 400 or 500, as the version has it
        # The text is blamed for a crash of the model's process.
        Meaning([400], Unreachable, words=r"\beof\b|connection (refused|reset)|runner"),
    )

    @functools.cached_property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=self.text_tokens(self.space.max_tokens),
            request_tokens=REQUEST_TEXTS * self.space.max_tokens,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.options.concurrent_requests,
        )

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        options = self.options
        body = {
            "model": options.model,
            "input": self.add_prompt(inputs, input_type),
            "truncate": False,
            # The runner crashes if a pooled text does not fit one batch.
            "options": {"num_ctx": self.space.max_tokens, "num_batch": self.space.max_tokens},
            "dimensions": options.dimensions,
            "keep_alive": options.keep_alive,
        }
        reply = self.request("/api/embed", body)
        vectors = vectors_at(self, reply, ("embeddings",), len(inputs), read_numbers)
        return Response(vectors, count_at(reply, "prompt_eval_count"))

    @once
    def space(self) -> Space:
        options, digest = self.options, self._read_digest()
        reply = self.request("/api/show", {"model": options.model})
        try:
            info = reply["model_info"]
            family = info["general.architecture"]
            preset = re.search(r"^num_ctx\s+(\d+)", reply.get("parameters") or "", re.MULTILINE)
            context = options.num_ctx or (int(preset[1]) if preset else DEFAULT_CONTEXT)
            size = int(info[f"{family}.embedding_length"])
            space = Space(
                provider=options.kind,
                model=options.model,
                revision=digest,  # of the manifest: weights, template and parameters
                dimensions=options.dimensions or size,
                pooling=POOLING.get(info.get(f"{family}.pooling_type"), "the model's own"),
                prompts=self.prompts,
                max_tokens=min(context, int(info[f"{family}.context_length"])),
                normalized=True,
                dtype=str((reply.get("details") or {}).get("quantization_level") or "unknown"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreachable(
                f"{self.where}: /api/show does not describe {options.model} ({error!r}). Update "
                "the server to Ollama 0.4 or later."
            ) from error
        if space.dimensions > size:
            raise ConfigError(
                f"ollama: {options.model} gives {size} dimensions, not {space.dimensions}. Lower "
                "dimensions."
            )
        return space

    def _read_digest(self) -> str:
        """From the list of models: `/api/show` does not hold it."""
        models = value_at(self.request("/api/tags"), "models")
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
    default_price = 0.0

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
