"""Embeds texts with a sentence-transformers model on this machine, in batches of similar length.

Its configuration is read at once; the model itself is loaded with the first texts.
"""

import logging
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.files import fill_folder
from embedding_pipelines.inference import openvino as _openvino
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import Array, Backend, OutOfMemory, Precision
from embedding_pipelines.inference.conversion import convert, load_tokenizer, with_prompts
from embedding_pipelines.once import once
from embedding_pipelines.schemas import digest
from embedding_pipelines.vectors import Vectors

log = logging.getLogger(__name__)

# Tokens of one request. Three are computed at a time, which a killed run repeats: 4 s on two AVX2
# cores.
REQUEST_TOKENS, ACCELERATOR_REQUEST_TOKENS = 8_192, 131_072
MOST_PADDING = 0.03  # of a batch, unless it is small
CALIBRATION_TEXTS, MIN_CALIBRATION_TEXTS = 100, 16  # 100 abstracts take 29 s of one core


class Engine:
    """One model, for any number of threads.

    `prompts` by input type ("document", "query") replace the model's own; `defaults` apply if it
    has none. `device` is "auto", "cpu", "mps", "cuda" or one of several, "cuda:1".
    """

    def __init__(
        self,
        folder: Path,
        precision: Precision,
        calibration: Path | None = None,
        prompts: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        device: str = "auto",
    ) -> None:
        self.folder, self.precision, self.device = folder, precision, device
        self.samples = read_samples(calibration) if calibration else []
        self._cache, own = convert(folder)
        if prompts is None:
            prompts = own.prompts or defaults or {}
        self.config = own if prompts == own.prompts else with_prompts(own, prompts, self.tokenizer)
        self._own_prompts = own.prompts
        # Lowered where a device runs out of memory.
        self._max_batch_tokens = self._max_in_flight = sys.maxsize

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
    def _accelerator(self) -> str | None:
        """What torch computes on; None: OpenVINO on the processor. Raises ProviderError if this
        machine does not have the device."""
        if self.device == "cpu":
            return None
        if self.device == "auto":
            return _torch.accelerator()
        if not _torch.is_here(self.device):
            raise ProviderError(
                f"{self.folder.name}: device is {self.device!r}, which this machine does not have; "
                f"its best is {_torch.accelerator() or 'cpu'!r}. Set device to 'auto' or to that."
            )
        return self.device

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
        return min(self.backend.batch_tokens, self._max_batch_tokens)

    @property
    def in_flight(self) -> int:
        """Batches to start before the first is finished."""
        return min(self.backend.in_flight, self._max_in_flight)

    @once
    def backend(self) -> Backend:
        """The model on its device. Raises ProviderError if that cannot compute in `precision`."""
        device = self._accelerator
        if device is not None:
            return _torch.Torch(self.folder, device, self.precision)
        if self.precision == "int8":
            return _openvino.OpenVino(self._quantize(), "int8")
        if self.config.problem:
            words = "%s: torch runs this model, OpenVINO cannot: %s"
            log.warning(words, self.folder.name, self.config.problem)
            return _torch.Torch(self.folder, "cpu", self.precision)
        return _openvino.OpenVino(self._cache / "model.xml", self.precision)

    def _quantize(self) -> Path:
        """The graph in int8, in the cache beside the other."""
        folder = self._cache / f"int8-{self._calibration}"
        if self.config.problem:
            raise ProviderError(
                f"{self.folder.name}: OpenVINO cannot run this model, which int8 needs "
                f"({self.config.problem}). Set precision to 'auto'."
            )
        graph = folder / "model.xml"
        if not graph.exists():
            ids = self._ids(self.samples, "document")
            with fill_folder(folder, graph.name) as draft:
                _openvino.quantize(self._cache / graph.name, ids, draft / graph.name)
        return graph

    def embed(self, texts: Sequence[str], input_type: str) -> Vectors:
        """float32[len(texts), d], each text after its prompt and cut at the model's limit."""
        config = self.config
        vectors = np.empty((len(texts), config.dimensions), np.float32)
        self._compute(self._ids(texts, input_type), vectors, config.unpooled.get(input_type, 0))
        if config.normalized and self.backend.precision != "float32":
            # Half precision is 0.4% off the unit length.
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def _ids(self, texts: Sequence[str], input_type: str) -> list[list[int]]:
        prompt = self.config.prompts.get(input_type, "")
        encodings = self._cutting_tokenizer.encode_batch_fast(
            [prompt + text for text in texts], add_special_tokens=self.config.special_tokens
        )
        return [entry.ids for entry in encodings]

    def _compute(self, ids: list[list[int]], vectors: Vectors, unpooled: int) -> None:
        """Fill `vectors` for token ids, `in_flight` batches at a time.

        A batch without room on the device is repeated alone, then in halves.
        """
        backend = self.backend
        waiting = deque(token_batches([len(entry) for entry in ids], self.batch_tokens))
        running: deque[tuple[Any, list[int]]] = deque()
        while waiting or running:
            try:
                if waiting and len(running) < self.in_flight:
                    rows = waiting.popleft()
                    running.append((backend.start(*self._padded(ids, rows, unpooled)), rows))
                else:
                    handle, rows = running.popleft()
                    vectors[rows] = backend.finish(handle)
            except OutOfMemory as error:
                is_alone = self.in_flight == 1 and not running
                self._max_in_flight = 1
                parts = self._halve(rows, len(ids[rows[0]]), error) if is_alone else [rows]
                waiting.extendleft(parts)

    def _halve(self, rows: list[int], width: int, error: OutOfMemory) -> list[list[int]]:
        """Halve a batch that has no room even alone; later batches are as small from the start."""
        device = self.backend.name
        if len(rows) == 1:
            raise ProviderError(
                f"{self.folder.name}: no memory for a single text of {width} tokens on {device}: "
                f"{error} Free some, or set preprocessing.chunk.max_tokens lower."
            ) from error
        if len(rows) * width <= self.batch_tokens:  # else the limit is already lower
            self._max_batch_tokens = len(rows) * width // 2
            log.warning(
                "%s: out of memory on %s; from now on %d tokens at a time",
                *(self.folder.name, device, self._max_batch_tokens),
            )
        middle = len(rows) // 2
        return [rows[middle:], rows[:middle]]

    def _padded(
        self, ids: list[list[int]], rows: list[int], unpooled: int
    ) -> tuple[Array, Array, Array]:
        width = max(1, len(ids[rows[0]]))
        tokens = np.full((len(rows), width), self.config.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for line, row in enumerate(rows):
            tokens[line, : len(ids[row])] = ids[row]
            mask[line, : len(ids[row])] = 1
        pooled = mask.copy()
        pooled[:, :unpooled] = 0
        return tokens, mask, pooled


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows grouped longest first, each group at most `budget` tokens once padded to its first row.

    A group of a quarter of the budget or more also ends before more than MOST_PADDING of it is
    padding.
    """
    groups: list[list[int]] = []
    real = 0  # tokens of the last group
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padded = (len(groups[-1]) + 1) * lengths[groups[-1][0]] if groups else 0
        fits = padded <= budget and (
            real < budget / 4 or real + lengths[row] >= (1 - MOST_PADDING) * padded
        )
        if not (groups and fits):
            groups.append([])
            real = 0
        groups[-1].append(row)
        real += lengths[row]
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
