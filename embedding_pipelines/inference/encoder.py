"""Embeds texts with a sentence-transformers model on this machine, in batches of similar length.

Its configuration is read at once; the model itself is loaded with the first texts.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.files import fill_folder
from embedding_pipelines.inference import openvino as _openvino
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import (
    Array,
    Backend,
    Precision,
    TokenBatch,
)
from embedding_pipelines.inference.batching import Batching
from embedding_pipelines.inference.conversion import (
    Conversion,
    convert,
    describe,
    load_tokenizer,
    with_prompts,
)
from embedding_pipelines.once import once
from embedding_pipelines.schemas import digest
from embedding_pipelines.vectors import Vectors

log = logging.getLogger(__name__)

# Tokens of one request. Three are computed at a time, which a killed run repeats: 4 s on two AVX2
# cores.
REQUEST_TOKENS, ACCELERATOR_REQUEST_TOKENS = 8_192, 131_072
# On a processor one request computes while another tokenizes. An accelerator waits for none of what
# its requests do before and after: tokenize, launch, commit.
CONCURRENT_REQUESTS, ACCELERATOR_CONCURRENT_REQUESTS = 2, 3
MOST_PADDING = 0.03  # of a batch, unless it is small
CALIBRATION_TEXTS, MIN_CALIBRATION_TEXTS = 100, 16  # 100 abstracts take 29 s of one core


class Engine:
    """One model, for any number of threads.

    `prompts` by input type ("document", "query") replace the model's own; `defaults` apply if it
    has none. `device` is "auto", "cpu", "mps", "cuda" or one of several, "cuda:1". `computation`
    is what precision `auto` has to compute in; by default what suits the machine. `cores`: of the
    processor, how many it keeps busy; None: all.
    """

    def __init__(
        self,
        folder: Path,
        precision: Precision,
        calibration: Path | None = None,
        prompts: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        device: str = "auto",
        computation: str | None = None,
        cores: int | None = None,
    ) -> None:
        self.folder, self.precision, self.device, self._cores = folder, precision, device, cores
        self._computation: Any = computation if precision == "auto" and computation else precision
        self.samples = read_samples(calibration) if calibration else []
        self._cache, own = describe(folder)
        if prompts is None:
            prompts = own.prompts or defaults or {}
        self.config = own if prompts == own.prompts else with_prompts(own, prompts, self.tokenizer)
        self._own_prompts = own.prompts
        self._batching = Batching(folder.name, "tokens", _single_text)
        self._replacing = threading.Lock()

    @property
    def dtype(self) -> str:
        """The precision; int8 with a digest of its calibration texts, which decide the vectors."""
        return f"int8-{self._calibration}" if self.precision == "int8" else self.precision

    @property
    def _calibration(self) -> str:
        prompt = self.config.prompts.get("document", "")
        foreign = [prompt] if prompt != self._own_prompts.get("document", "") else []
        return digest(*(text.encode() for text in self.samples + foreign)).hex()

    @property
    def request_tokens(self) -> int:
        return ACCELERATOR_REQUEST_TOKENS if self._accelerator else REQUEST_TOKENS

    @property
    def concurrent_requests(self) -> int:
        return ACCELERATOR_CONCURRENT_REQUESTS if self._accelerator else CONCURRENT_REQUESTS

    @property
    def _accelerator(self) -> str | None:
        return _torch.choose_device(self.device, self.folder.name)

    @once
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._cache)

    @once
    def _cutting_tokenizer(self) -> Tokenizer:
        tokenizer = load_tokenizer(self._cache)
        tokenizer.enable_truncation(self.config.max_tokens, direction=self.config.cut)
        return tokenizer

    @property
    def batch_tokens(self) -> int:
        """Per batch, padding included: the backend's number, or less if its memory is too small."""
        return self._batching.batch_size(self.backend)

    @property
    def busy_tokens(self) -> int:
        """As `Batching.busy_size`."""
        return self._batching.busy_size(self.backend)

    @once
    def backend(self) -> Backend:
        """The model on its device. Raises ProviderError if that cannot compute in `precision`."""
        device = self._accelerator
        if device is not None:
            return _torch.Torch(self.folder, device, self._computation)
        conversion = convert(self.folder, self._cache)
        if self.precision == "int8":
            return _openvino.OpenVino(self._quantize(conversion), "int8", cores=self._cores)
        if conversion.problem:
            words = "%s: torch runs this model, OpenVINO cannot: %s"
            log.warning(words, self.folder.name, conversion.problem)
            return _torch.Torch(self.folder, "cpu", self._computation, self._cores)
        return _openvino.OpenVino(conversion.graph, self._computation, cores=self._cores)

    def _quantize(self, conversion: Conversion) -> Path:
        """The graph in int8, in the cache beside the other."""
        if conversion.problem:
            raise ProviderError(
                f"{self.folder.name}: OpenVINO cannot run this model, which int8 needs "
                f"({conversion.problem}). Set precision to 'auto'."
            )
        folder = conversion.graph.parent / f"int8-{self._calibration}"
        graph = folder / conversion.graph.name
        if not graph.exists():
            tokens = self._tokens(self.samples, "document")
            ids = np.split(tokens.ids, tokens.starts[1:-1])
            with fill_folder(folder, graph.name) as draft:
                _openvino.quantize(conversion.graph, ids, draft / graph.name)
        return graph

    def embed(self, texts: Sequence[str], input_type: str) -> Vectors:
        """float32[len(texts), d], each text after its prompt and cut at the model's limit."""
        config, backend = self.config, self.backend
        tokens = self._tokens(texts, input_type)
        vectors = np.empty((len(texts), config.dimensions), np.float32)
        self._compute(tokens, vectors, backend)
        if backend.precision == "float16" and not np.isfinite(vectors).all():
            backend = self._replace(backend)
            self._compute(tokens, vectors, backend)
        if config.normalized and backend.precision != "float32":
            # Half precision is 0.4% off the unit length.
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _replace(self, backend: Backend) -> Backend:
        """A backend in place of one in float16 whose numbers grow too large; once for all
        threads."""
        with self._replacing:
            if self.backend is backend:
                words = "%s: its numbers are too large for float16; from now on in %s"
                vars(self)["backend"] = _torch.wider(self.folder, str(self._accelerator))
                log.warning(words, self.folder.name, self.backend.precision)
            return self.backend

    def _tokens(self, texts: Sequence[str], input_type: str) -> TokenBatch:
        prompt = self.config.prompts.get(input_type, "")
        if prompt:
            texts = [prompt + text for text in texts]
        ids = [encoding.ids for encoding in self._encode(texts)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        return TokenBatch(
            flat, lengths, self.config.unpooled.get(input_type, 0), self.config.pad_id
        )

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Cut at the limit. The tokenizer that cuts takes 40 ms to load, which short texts, such as a
        query, do without."""
        limit, special = self.config.max_tokens, self.config.special_tokens
        if all(len(text) < limit for text in texts):
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=special)
            if all(len(encoding) <= limit for encoding in encodings):
                return encodings
        return self._cutting_tokenizer.encode_batch_fast(texts, add_special_tokens=special)

    def _compute(self, texts: TokenBatch, vectors: Vectors, backend: Backend) -> None:
        group = token_batches if backend.pads else packed_batches
        self._batching.compute(texts, vectors, backend, group)


def _single_text(tokens: int) -> tuple[str, str]:
    remedy = "Free some, or set preprocessing.chunk.max_tokens lower."
    return f"a single text of {tokens} tokens", remedy


def token_batches(lengths: Sequence[int] | Array, budget: int) -> list[Array]:
    """Rows grouped longest first, each group at most `budget` tokens once padded to its first row.

    A group of a quarter of the budget or more also ends before more than MOST_PADDING of it is
    padding.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    groups, start = [], 0
    real = widest = 0  # of the group so far: tokens, and those of its first row
    for row, length in enumerate(np.asarray(lengths)[order].tolist()):
        padded = (row - start + 1) * widest
        fits = padded <= budget and (
            real < budget / 4 or real + length >= (1 - MOST_PADDING) * padded
        )
        if row == start or fits:
            widest = widest if row > start else length
        else:
            groups.append(order[start:row])
            start, real, widest = row, 0, length
        real += length
    return [*groups, order[start:]] if len(order) else []


def packed_batches(lengths: Array, budget: int) -> list[Array]:
    """Rows in order, in groups of about as many tokens each, at most `budget` unless one row has
    more."""
    ends, start, groups = np.cumsum(lengths), 0, []
    total = int(ends[-1]) if len(ends) else 0
    while start < len(ends):
        done = int(ends[start - 1]) if start else 0
        even = -(-(total - done) // -(-(total - done) // budget)) if total > done else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + even, side="right")))
        groups.append(np.arange(start, stop))
        start = stop
    return groups


def read_samples(path: Path) -> list[str]:
    """Up to CALIBRATION_TEXTS lines of a file, evenly spread. Raises ProviderError for too few."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProviderError(
            f"{path}: the calibration texts of precision 'int8' are not readable: {error}"
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < MIN_CALIBRATION_TEXTS:
        raise ProviderError(
            f"{path}: holds {len(lines)} texts, and int8 needs {MIN_CALIBRATION_TEXTS} or more. "
            "Write some hundred of your own, one a line."
        )
    count = min(len(lines), CALIBRATION_TEXTS)
    return [lines[at] for at in np.linspace(0, len(lines) - 1, count).round().astype(int)]
