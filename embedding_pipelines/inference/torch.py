"""Runs a model with torch: on CUDA and MPS, and on a processor if OpenVINO cannot convert it."""

import contextlib
import functools
import importlib.util
import platform
import runpy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.inference.backend import (
    Array,
    Backend,
    OutOfMemory,
    Precision,
    translate_errors,
)
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

Device = Literal["cuda", "mps", "cpu"]

# Accelerators need large batches: 32,768 tokens of MiniLM take about 0.6 GB of activations in half
# precision. The engine halves a batch that does not fit.
BATCH_TOKENS: dict[Device, int] = {"cuda": 32_768, "mps": 8_192, "cpu": 2_048}
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, Windows' under Linux


class Torch(Backend):
    """The sentence-transformers modules themselves, fed with token ids."""

    in_flight = 2  # an accelerator queues the next batch while it computes one

    def __init__(self, folder: Path, device: str, precision: Precision) -> None:
        """`device` is a Device, or one of several, such as "cuda:1"."""
        torch = need("torch", "local")
        if precision == "int8":
            raise ProviderError(
                f"precision 'int8' is for processors, and this model runs on {device}. Set it to "
                "'auto'."
            )
        kind: Any = device.partition(":")[0]
        self._device, self._kind = device, kind
        self.precision = precision
        if precision == "auto":
            self.precision = "float32"
            if kind == "cuda":  # bfloat16 where possible: some models overflow in float16
                self.precision = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        self.batch_tokens = BATCH_TOKENS[kind]
        self.name = f"torch {torch.__version__}, {device}"
        model: Any = load(folder).to(device)
        self._model = model.to(getattr(torch, self.precision)).eval()
        # On a processor one batch takes all cores.
        self._slot: Any = threading.Lock() if kind == "cpu" else contextlib.nullcontext()

    def start(self, tokens: Array, mask: Array, pooled: Array) -> Any:
        torch = need("torch", "local")
        with self._slot, _translate_errors(), torch.inference_mode():
            tensors = [torch.from_numpy(part) for part in (tokens, mask, pooled)]
            if self._kind == "cuda":
                tensors = [tensor.pin_memory() for tensor in tensors]
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
            return forward(self._model, *tensors)

    def finish(self, handle: Any) -> Vectors:
        with _translate_errors():
            vectors: Vectors = handle.float().cpu().numpy()
        return vectors


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        with translate_errors("torch", 0):
            yield
    except OutOfMemory:
        torch = need("torch", "local")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise


@functools.cache
def accelerator() -> Device | None:
    """`cuda` or `mps` if torch can use one here; imports torch only where that is possible."""
    if platform.system() == "Darwin":
        may_have = platform.machine() == "arm64"
    else:
        spec = importlib.util.find_spec("torch")
        places = spec.submodule_search_locations if spec else None
        version = runpy.run_path(str(Path(places[0]) / "version.py")) if places else {}
        may_have = bool(version.get("cuda") or version.get("hip")) and (
            platform.system() != "Linux" or any(Path(device).exists() for device in GPU_DEVICES)
        )
    if not may_have:
        return None
    torch = need("torch", "local")
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def is_here(device: str) -> bool:
    """Whether this machine has a device, such as "cuda" or "cuda:1"."""
    kind, _, number = device.partition(":")
    if kind != accelerator():
        return kind == "cpu"
    return not number or int(number) < need("torch", "local").cuda.device_count()


def forward(model: Any, tokens: "Tensor", mask: "Tensor", pooled: "Tensor") -> "Tensor":
    """The vectors of padded token ids; `pooled` is the mask of the tokens that pooling counts.

    Applies the modules one by one; a static model's words by a mask, since it takes one long row
    otherwise.
    """
    torch = need("torch", "local")
    first, *others = model
    features: dict[str, Tensor]
    bag = getattr(first, "embedding", None)
    if isinstance(bag, torch.nn.EmbeddingBag):
        weights = mask.unsqueeze(-1).to(bag.weight.dtype)
        total = (torch.nn.functional.embedding(tokens, bag.weight) * weights).sum(1)
        features = {"sentence_embedding": total / weights.sum(1).clamp(min=1)}
    else:
        features = first({"input_ids": tokens, "attention_mask": mask})
        features["attention_mask"] = pooled
    for module in others:
        features = module(features)
    return features["sentence_embedding"]


def load(folder: Path) -> "SentenceTransformer":
    """The model in float32 on the processor. Raises ProviderError for files of no model."""
    library = need("sentence_transformers", "local")
    quiet = need("transformers.utils.logging", "local")
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    try:
        model: SentenceTransformer = library.SentenceTransformer(
            str(folder), device="cpu", local_files_only=True
        )
        return model
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ProviderError(
            f"{folder}: sentence-transformers cannot load this model: {error}"
        ) from error
