"""`ollama`: a model that an Ollama server on this machine, or a near one, has pulled."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from embedding_pipelines.errors import BadInput, ConfigError, ProviderError, Unreachable
from embedding_pipelines.providers.base import InputType, Limits, Reply
from embedding_pipelines.providers.common.http import Remote
from embedding_pipelines.providers.common.replies import in_order, numbers
from embedding_pipelines.providers.common.served import prompts_by_input_type, room
from embedding_pipelines.space import Space

DEFAULT_CONTEXT = 4_096  # tokens; Ollama's own default, which longer models exceed only if asked to
REQUEST_TEXTS = 64  # the server computes a call's texts one by one: more bring nothing and lose more when one fails
POOLING = {0: "none", 1: "mean", 2: "cls", 3: "last"}  # numbers of GGUF's `pooling_type`
RUNNER_GONE = (
    "eof",
    "connection re",
    "runner",
)  # words of a 400 that blames the text for a crash of the model's process


@dataclass(frozen=True)
class Facts:
    """What the server says of a model."""

    digest: str  # of its manifest: weights, template and parameters
    dimensions: int
    context: int  # tokens that the model was trained to read
    preset_context: int  # num_ctx of its Modelfile, else Ollama's default
    pooling: str
    dtype: str


class Ollama(Remote):
    """One model of an Ollama server. What the server says of the model is read once per process."""

    kind: Literal["ollama"] = "ollama"
    model: str
    base_url: str = "http://localhost:11434"
    concurrent_requests: int = Field(2, ge=1, le=256)
    dimensions: int | None = Field(None, ge=1)
    """Shorter vectors, of a model that was trained to give them."""

    num_ctx: int | None = Field(None, ge=16)
    """Tokens of context to load, and so the longest text. Default: the Modelfile's, else 4,096; the
    model's at most."""

    keep_alive: str | None = None
    """How long the model stays loaded after a request, e.g. "30m". Default: as the server is set, 5
    minutes."""

    prompts: dict[InputType, str] | None = None
    """What stands before a text, by input type ("query", "document"). Default: what the model's
    family asks for."""

    @property
    def space(self) -> Space:
        facts = self._facts
        if self.dimensions is not None and self.dimensions > facts.dimensions:
            raise ConfigError(
                f"ollama: {self.model} gives {facts.dimensions} dimensions, not {self.dimensions}. Lower dimensions."
            )
        return Space(
            provider=self.kind,
            model=self.model,
            revision=facts.digest,
            dimensions=self.dimensions or facts.dimensions,
            pooling=facts.pooling,
            prompts=self._prompts,
            max_tokens=self._context,
            normalized=True,
            dtype=facts.dtype,
        )

    @property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=room(self, self._context, self._prompts),
            request_tokens=REQUEST_TEXTS * self._context,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.concurrent_requests,
        )

    @property
    def price(self) -> float | None:
        return self.usd_per_million_tokens or 0.0

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        if not inputs:
            return Reply(np.empty((0, self.space.dimensions), np.float32))
        prompt = self._prompts.get(input_type, "")
        body: dict[str, Any] = {
            "model": self.model,
            "input": [prompt + text for text in inputs],
            "truncate": False,
            # A pooled text must fit one batch of the runner, which crashes otherwise.
            "options": {"num_ctx": self._context, "num_batch": self._context},
        }
        if self.dimensions is not None:
            body["dimensions"] = self.dimensions
        if self.keep_alive is not None:
            body["keep_alive"] = self.keep_alive
        found = self.request("/api/embed", body, self.bearer)
        said = found if isinstance(found, dict) else {}
        vectors = in_order(self, found, ("embeddings",), len(inputs), numbers)
        tokens = said.get("prompt_eval_count")
        return Reply(vectors, tokens if isinstance(tokens, int) else None)

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
        words = self.quoted(body)
        said = f"{self.kind} at {self.base_url} answered {status}: {words}"
        if status == 404:
            return ProviderError(
                f"{said} Fetch the model with `ollama pull {self.model}`, or check model."
            )
        if "does not support embed" in words:
            return ProviderError(f"{said} Choose an embedding model, e.g. nomic-embed-text.")
        if "context length" in words:  # with 400 or 500, as the version has it
            return BadInput(said)
        if status == 400 and any(sign in words.lower() for sign in RUNNER_GONE):
            return Unreachable(said)
        return super().fault(status, body, headers)

    @property
    def _context(self) -> int:
        facts = self._facts
        return min(self.num_ctx or facts.preset_context, facts.context)

    @property
    def _prompts(self) -> dict[str, str]:
        return prompts_by_input_type(self.model, self.prompts)

    @property
    def _facts(self) -> Facts:
        return _facts(self._asker)

    @property
    def _asker(self) -> Self:
        """The same without what cannot be hashed, to remember by."""
        return self.model_copy(update={"prompts": None})


@functools.lru_cache(maxsize=32)
def _facts(ollama: Ollama) -> Facts:
    digest = _digest(ollama)
    shown = ollama.request("/api/show", {"model": ollama.model}, ollama.bearer)
    try:
        info = shown["model_info"]
        family = info["general.architecture"]
        preset = re.search(r"^num_ctx\s+(\d+)", shown.get("parameters") or "", re.MULTILINE)
        return Facts(
            digest=digest,
            dimensions=int(info[f"{family}.embedding_length"]),
            context=int(info[f"{family}.context_length"]),
            preset_context=int(preset[1]) if preset else DEFAULT_CONTEXT,
            pooling=POOLING.get(info.get(f"{family}.pooling_type"), "as the model's file says"),
            dtype=str((shown.get("details") or {}).get("quantization_level") or "unknown"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreachable(
            f"ollama at {ollama.base_url}: /api/show lacks what it should say of {ollama.model} ({error!r}). "
            "Ollama 0.4 and later say it."
        ) from error


def _digest(ollama: Ollama) -> str:
    """`/api/show` does not tell it: the list of what was pulled does."""
    found = ollama.request("/api/tags", headers=ollama.bearer)
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, list):
        raise Unreachable(f"ollama at {ollama.base_url}: /api/tags lists no models.")
    wanted = ollama.model if ":" in ollama.model.rsplit("/", 1)[-1] else f"{ollama.model}:latest"
    for model in models:
        if str(model.get("name", "")).lower() == wanted.lower() and model.get("digest"):
            return str(model["digest"])
    raise ProviderError(
        f"ollama at {ollama.base_url} has no model {ollama.model!r}. Fetch it with `ollama pull {ollama.model}`."
    )
