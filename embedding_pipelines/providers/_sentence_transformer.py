"""A sentence-transformers model on this machine: its tokenizer, its facts, and the backend that computes.

What the backend needs is prepared once and kept in the user's cache folder under the digest of the model's
files, so the next process neither converts nor imports torch. A model is loaded when it is first to embed:
what it is (`facts`) is known without.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers import _openvino, _torch
from embedding_pipelines.providers._backend import Array, Backend, OutOfMemory, Precision
from embedding_pipelines.providers._weights import folder_sha256, revision_sha256, weights_sha256
from embedding_pipelines.providers.base import Role, Vectors
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

CACHE_LAYOUT = "5"  # raise it when what is cached changes
# Tokens of one provider call. Two are out at a time, and a killed run repeats them: 3 s on two AVX2 cores.
CALL_TOKENS, ACCELERATOR_CALL_TOKENS = 8_192, 131_072
PROMPT_NAMES = {"document": ("document", "passage", "corpus"), "query": ("query",)}  # as models call them


@dataclass(frozen=True)
class Facts:
    """What a model's own files say about its vectors."""

    revision: str
    dimensions: int
    max_tokens: int
    max_document_tokens: int  # what a document's prompt leaves of max_tokens
    pooling: str
    normalized: bool
    prompts: dict[str, str]
    pad_id: int
    unpooled: dict[str, int]  # by role: tokens of the prompt that pooling leaves out, [CLS] included
    cut: str  # the side at which texts that are too long lose their end
    special_tokens: bool
    tokenizer: str  # digest of its definition
    problem: str  # why OpenVINO cannot run it; empty if it can


class Engine:
    """One model, for any number of threads."""

    def __init__(self, folder: Path, precision: Precision) -> None:
        self.folder, self.precision = folder, precision
        weights_sha256(folder)  # a folder without weights is refused before anything is loaded
        self._cache = _cache_folder(folder_sha256(folder))
        if not (self._cache / "facts.json").exists():
            _convert(folder, self._cache)
        self.facts = Facts(**json.loads((self._cache / "facts.json").read_text(encoding="utf-8")))
        self._loading = threading.Lock()

    @property
    def call_tokens(self) -> int:
        return ACCELERATOR_CALL_TOKENS if _torch.accelerator() else CALL_TOKENS

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return _tokenizer(self._cache / "tokenizer.json")

    @functools.cached_property
    def _cutting_tokenizer(self) -> Tokenizer:
        tokenizer = _tokenizer(self._cache / "tokenizer.json")
        tokenizer.enable_truncation(self.facts.max_tokens, direction=self.facts.cut)
        return tokenizer

    @property
    def backend(self) -> Backend:
        """Loaded at first use. Raises ProviderError if this machine cannot compute in the wanted precision."""
        with self._loading:
            return self._backend

    @functools.cached_property
    def _backend(self) -> Backend:
        device = _torch.accelerator()
        if device is not None:
            return _torch.Torch(self.folder, device, self.precision)
        if self.facts.problem:
            log.warning("%s: torch runs this model, OpenVINO cannot: %s", self.folder.name, self.facts.problem)
            return _torch.Torch(self.folder, "cpu", self.precision)
        return _openvino.OpenVino(self._cache / "model.xml", self.precision)

    def embed(self, texts: Sequence[str], role: Role) -> Vectors:
        """float32[len(texts), d], each text after its role's prompt; what is too long is cut at the model's limit."""
        prompt = self.facts.prompts.get(role, "")
        vectors = np.empty((len(texts), self.facts.dimensions), np.float32)
        encodings = self._cutting_tokenizer.encode_batch_fast(
            [prompt + text for text in texts], add_special_tokens=self.facts.special_tokens
        )
        self._compute([entry.ids for entry in encodings], vectors, self.facts.unpooled.get(role, 0))
        if self.facts.normalized and self.backend.precision != "float32":
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # half precision is 0.4% off the unit length
        return vectors

    def _compute(self, ids: list[list[int]], vectors: Vectors, unpooled: int) -> None:
        """Fill `vectors` for token ids, `in_flight` batches at a time; a batch without room is halved."""
        backend = self.backend
        waiting = deque(token_batches([len(entry) for entry in ids], backend.batch_tokens))
        running: deque[tuple[Any, list[int]]] = deque()
        while waiting or running:
            if waiting and len(running) < backend.in_flight:
                rows = waiting.popleft()
                try:
                    running.append((backend.start(*self._padded(ids, rows, unpooled)), rows))
                except OutOfMemory as error:
                    waiting.extendleft(self._halves(rows, error))
            else:
                handle, rows = running.popleft()
                try:
                    vectors[rows] = backend.finish(handle)
                except OutOfMemory as error:
                    waiting.extendleft(self._halves(rows, error))

    def _halves(self, rows: list[int], error: OutOfMemory) -> list[list[int]]:
        if len(rows) == 1:
            raise ProviderError(
                f"{self.folder.name}: there is no memory for a single text on {self.backend.name}: {error} "
                "Free some, or set preprocessing.chunk.max_tokens lower."
            ) from error
        self.backend.batch_tokens = max(1, self.backend.batch_tokens // 2)
        log.warning(
            "%s: out of memory on %s; from now on %d tokens at a time",
            *(self.folder.name, self.backend.name, self.backend.batch_tokens),
        )
        middle = len(rows) // 2
        return [rows[middle:], rows[:middle]]

    def _padded(self, ids: list[list[int]], rows: list[int], unpooled: int) -> tuple[Array, Array, Array]:
        width = max(1, len(ids[rows[0]]))
        tokens = np.full((len(rows), width), self.facts.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for line, row in enumerate(rows):
            tokens[line, : len(ids[row])] = ids[row]
            mask[line, : len(ids[row])] = 1
        pooled = mask.copy()
        pooled[:, :unpooled] = 0
        return tokens, mask, pooled


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows grouped longest first, each group at most `budget` tokens once padded to its first row."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _cache_folder(content: str) -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("embedding-pipelines") / (f"{content[:32]}-openvino-{version('openvino')}-{CACHE_LAYOUT}")


def _tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _convert(folder: Path, cache: Path) -> None:
    """Fill the cache folder for a model; concurrent processes do it side by side and the first one wins."""
    model = _torch.load(folder)
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{cache.name}-", dir=cache.parent))
    try:
        getattr(model.tokenizer, "backend_tokenizer", model.tokenizer).save(str(draft / "tokenizer.json"))
        problem = ""
        try:
            _openvino.save_graph(model, draft / "model.xml")
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            problem = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            for half in draft.glob("model.*"):
                half.unlink()
        facts = asdict(_facts(model, folder, draft / "tokenizer.json", problem))
        (draft / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first; its folder is as good
            os.rename(draft, cache)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _facts(model: SentenceTransformer, folder: Path, tokenizer_file: Path, problem: str) -> Facts:
    names = [type(module).__name__ for module in model]
    pooling: Any = next((module for module in model if type(module).__name__ == "Pooling"), None)
    prompts = {role: found for role, known in PROMPT_NAMES.items() if (found := _prompt(model, known))}
    dimensions = model.get_embedding_dimension()
    if dimensions is None:
        raise ProviderError(f"{folder}: the model does not say how many dimensions its vectors have.")
    tokenizer = _tokenizer(tokenizer_file)
    max_tokens = int(min(model.max_seq_length or 512, CALL_TOKENS))  # some say infinity
    prompt = tokenizer.encode(prompts.get("document", ""), add_special_tokens=False)
    counted = pooling is None or pooling.include_prompt
    first: Any = model[0]
    return Facts(
        revision=revision_sha256(folder),
        dimensions=dimensions,
        max_tokens=max_tokens,
        max_document_tokens=max_tokens - len(prompt.ids),
        pooling=_pooling(pooling.pooling_mode) if pooling is not None else "none",
        normalized=names[-1] == "Normalize",
        prompts=prompts,
        pad_id=int(getattr(model.tokenizer, "pad_token_id", None) or 0),
        unpooled={} if counted else {role: first._get_prompt_length(text) for role, text in prompts.items()},
        cut=getattr(model.tokenizer, "truncation_side", "right"),
        special_tokens="StaticEmbedding" not in names,
        tokenizer=digest(tokenizer.to_str().encode()).hex(),
        problem=problem,
    )


def _prompt(model: SentenceTransformer, names: Sequence[str]) -> str:
    """The prompt of a role, chosen as sentence-transformers' `encode_document` and `encode_query` do."""
    prompts = model.prompts or {}
    name = next((name for name in names if name in prompts), model.default_prompt_name)
    return str(prompts.get(name) or "") if name else ""


def _pooling(mode: str | Sequence[str]) -> str:
    return mode if isinstance(mode, str) else "+".join(mode)
