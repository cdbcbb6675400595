"""Runs a sentence-transformers model on this machine: OpenVINO on a CPU, torch where conversion fails.

The whole graph (transformer, pooling, normalization) is converted once and kept in the user's cache
folder under the digest of its files, so the next process neither converts nor imports torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers._weights import folder_sha256, revision_sha256, weights_sha256
from embedding_pipelines.providers.base import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

CACHE_LAYOUT = "3"  # raise it when what is cached changes
# Tokens of one inference, padding included. Measured on two AVX2 cores, MiniLM: 512 to 2,048 within
# 8% of one another, 4,096 up to 20% slower (the activations leave the cache).
INFERENCE_TOKENS = 1_024
PROMPT_NAMES = {"document": ("document", "passage", "corpus"), "query": ("query",)}  # as models call them
STREAMS = 2  # parallel inferences, so that one stream's small layers do not leave a core idle
IN_FLIGHT = STREAMS + 1  # requests, so that a stream that ends finds the next one waiting


@dataclass(frozen=True)
class Facts:
    """What a model's own files say about its vectors."""

    revision: str
    dimensions: int
    max_tokens: int
    pooling: str
    normalized: bool
    prompts: dict[str, str]
    pad_id: int


class Engine:
    """One loaded model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        weights_sha256(folder)  # a folder without weights is refused before anything is loaded
        cache = _cache_folder(folder_sha256(folder))
        if not (cache / "facts.json").exists():
            _convert(folder, cache)
        self.facts = Facts(**json.loads((cache / "facts.json").read_text(encoding="utf-8")))
        self.tokenizer = _tokenizer(cache / "tokenizer.json")
        self._cutting_tokenizer = _tokenizer(cache / "tokenizer.json")
        self._cutting_tokenizer.enable_truncation(self.facts.max_tokens)
        self._compiled = _compile(cache / "model.xml") if (cache / "model.xml").exists() else None
        self._torch = None if self._compiled else _load_torch(folder)

    @property
    def max_text_tokens(self) -> int:
        """What is left for a document's text, special tokens included, once its prompt stands in front of it."""
        prompt = self.facts.prompts.get("document", "")
        return self.facts.max_tokens - len(self.tokenizer.encode(prompt, add_special_tokens=False).ids)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32[len(texts), d]; texts beyond the model's limit are cut there."""
        if self._torch is not None:
            return np.asarray(self._torch.encode(list(texts), prompt="", show_progress_bar=False), np.float32)
        ids = [entry.ids for entry in self._cutting_tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(texts), self.facts.dimensions), np.float32)
        self._infer(ids, vectors)
        return vectors

    def _infer(self, ids: list[list[int]], vectors: Vectors) -> None:
        """Fill `vectors` for token ids, texts of like length together so that little is padding.

        STREAMS requests run side by side and are waited for here. Not by openvino's AsyncInferQueue: its
        threads call back into Python, and a process that ends just then is aborted (measured: one in two).
        """
        compiled: Any = self._compiled
        running: deque[tuple[Any, list[int]]] = deque()

        def finish() -> Any:
            request, rows = running.popleft()
            request.wait()
            vectors[rows] = request.get_output_tensor(0).data
            return request

        try:
            for rows in _batches([len(entry) for entry in ids]):
                width = len(ids[rows[0]])
                tokens = np.full((len(rows), width), self.facts.pad_id, np.int64)
                mask = np.zeros((len(rows), width), np.int64)
                for line, row in enumerate(rows):
                    tokens[line, : len(ids[row])] = ids[row]
                    mask[line, : len(ids[row])] = 1
                request = finish() if len(running) == IN_FLIGHT else compiled.create_infer_request()
                request.start_async({0: tokens, 1: mask})
                running.append((request, rows))
            while running:
                finish()
        except RuntimeError as error:
            raise ProviderError(f"{self.folder.name}: inference failed: {error}") from error


def _batches(lengths: list[int]) -> list[list[int]]:
    """Rows grouped longest first, each group at most INFERENCE_TOKENS once padded."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= INFERENCE_TOKENS:
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


def _openvino() -> Any:
    """OpenVINO without its telemetry: importing it would fork this process and tell Google Analytics of each start."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO then does without
    import openvino

    return openvino


def _compile(path: Path) -> Any:
    # float32 on every machine: the space says so. The hint keeps processors with bfloat16 from using it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": str(STREAMS)}
    return _openvino().Core().compile_model(path, "CPU", options)


def _convert(folder: Path, cache: Path) -> None:
    """Fill the cache folder for a model; concurrent processes do it side by side and the first one wins."""
    model = _load_torch(folder)
    cache.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{cache.name}-", dir=cache.parent))
    try:
        model.tokenizer.backend_tokenizer.save(str(draft / "tokenizer.json"))
        try:
            _save_graph(model, draft / "model.xml")
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            log.warning("%s: OpenVINO cannot convert this model, torch runs it instead: %s", folder.name, error)
            for half in draft.glob("model.*"):
                half.unlink()
        facts = asdict(_facts(model, folder))
        (draft / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first; its folder is as good
            os.rename(draft, cache)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _load_torch(folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    quiet: Any = transformers_logging
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    try:
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ProviderError(f"{folder}: not a model that sentence-transformers can load: {error}") from error


def _save_graph(model: SentenceTransformer, path: Path) -> None:
    import torch

    openvino = _openvino()

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            vectors: torch.Tensor = self.model(features)["sentence_embedding"]
            return vectors

    example = {name: torch.ones(2, 8, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape-dependent branch
        graph = openvino.convert_model(Graph().eval(), example_input=example)
    openvino.save_model(graph, path, compress_to_fp16=False)


def _facts(model: SentenceTransformer, folder: Path) -> Facts:
    names = [type(module).__name__ for module in model]
    pooling: Any = next((module for module in model if type(module).__name__ == "Pooling"), None)
    prompts = {role: _prompt(model, names) for role, names in PROMPT_NAMES.items()}
    dimensions = model.get_embedding_dimension()
    if dimensions is None:
        raise ProviderError(f"{folder}: the model does not say how many dimensions its vectors have.")
    return Facts(
        revision=revision_sha256(folder),
        dimensions=dimensions,
        max_tokens=int(model.max_seq_length or 512),
        pooling=_pooling(pooling.pooling_mode) if pooling is not None else "none",
        normalized="Normalize" in names,
        prompts={role: prompt for role, prompt in prompts.items() if prompt},
        pad_id=int(model.tokenizer.pad_token_id or 0),
    )


def _prompt(model: SentenceTransformer, names: Sequence[str]) -> str:
    """The prompt of a role, chosen as sentence-transformers' `encode_document` and `encode_query` do."""
    prompts = model.prompts or {}
    name = next((name for name in names if name in prompts), model.default_prompt_name)
    return str(prompts.get(name) or "") if name else ""


def _pooling(mode: str | Sequence[str]) -> str:
    return mode if isinstance(mode, str) else "+".join(mode)
