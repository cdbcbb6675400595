"""Runs a model with torch: on CUDA and MPS, and on a processor if OpenVINO cannot convert it."""

import contextlib
import functools
import importlib.util
import platform
import runpy
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.inference import packed
from embedding_pipelines.inference.backend import (
    Backend,
    OutOfMemory,
    Precision,
    TokenBatch,
    translate_errors,
)
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

Device = Literal["cuda", "mps", "cpu"]

# Accelerators need large batches; the engine halves one that does not fit. 131,072 tokens of MiniLM
# take about 1.2 GB of activations in half precision, of BERT-large 3.5 GB.
BATCH_TOKENS: dict[Device, int] = {"cuda": 32_768, "mps": 8_192, "cpu": 2_048}
PACKED_BATCH_TOKENS = 131_072
WIDTH_MULTIPLE = 8  # of padded batches on CUDA, as its kernels of attention want masks
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, Windows' under Linux


class TorchBackend(Backend):
    """What all models on torch have in common: arrays go to the device, vectors come back."""

    in_flight = 2  # an accelerator queues the next batch while it computes one

    def __init__(self, device: str, cores: int | None = None) -> None:
        """`device` is a Device, or one of several, such as "cuda:1". `cores`: how many this process
        keeps busy on a processor, None for all."""
        torch = need("torch", "local")
        self._device = device
        self._kind: Any = device.partition(":")[0]
        if self._kind == "cpu" and cores is not None:
            torch.set_num_threads(min(cores, torch.get_num_threads()))
        self.name = f"torch {torch.__version__}, {device}"
        # On a processor one batch takes all cores. Elsewhere, threads that launch at the same time
        # take Python from one another at each of some hundred operations.
        self._slot = threading.Lock()

    @abstractmethod
    def arrays(self, batch: Any) -> tuple[NDArray[Any], ...]:
        """What the model takes of a batch."""

    @abstractmethod
    def forward(self, tensors: Sequence["Tensor"], batch: Any) -> "Tensor":
        """The vectors [n, d] of these arrays, on the device."""

    def start(self, batch: Any) -> Any:
        torch, arrays = need("torch", "local"), self.arrays(batch)
        with self._slot, _translate_errors(), torch.inference_mode():
            vectors = self.forward([self._to_device(array) for array in arrays], batch)
            if self._kind != "cuda":
                return vectors, None
            copy = torch.empty(vectors.shape, pin_memory=True)
            copy.copy_(vectors, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(vectors.device))
            return copy, copied

    def finish(self, handle: Any) -> Vectors:
        copy, copied = handle
        with _translate_errors():
            if copied is not None:
                copied.synchronize()
            vectors: Vectors = copy.float().cpu().numpy()
        return vectors

    def _to_device(self, array: NDArray[Any]) -> "Tensor":
        tensor: Tensor = need("torch", "local").from_numpy(array)
        if self._kind == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


class Torch(TorchBackend):
    """The sentence-transformers modules themselves, fed with token ids. The transformer computes in
    `precision`, what comes behind it in float32."""

    def __init__(
        self,
        folder: Path,
        device: str,
        precision: Precision | Literal["float16"],
        cores: int | None = None,
    ) -> None:
        torch = need("torch", "local")
        if precision == "int8":
            raise ProviderError(
                f"precision 'int8' is for processors, and this model runs on {device}. Set it to "
                "'auto'."
            )
        super().__init__(device, cores)
        kind = self._kind
        model: Any = load(folder).float().to(device).eval()
        if precision == "auto":
            precision = "float32"
            if kind == "cuda":
                # As fast as bfloat16, and 300 times nearer to float32, but some models overflow.
                is_known = packed.can_pack(model) or not torch.cuda.is_bf16_supported()
                precision = "float16" if is_known else "bfloat16"
        self.precision = precision
        model[0].to(getattr(torch, self.precision))
        self.pads = not (has_packed_attention(device, self.precision) and packed.can_pack(model))
        self.batch_tokens = BATCH_TOKENS[kind] if self.pads else PACKED_BATCH_TOKENS
        if not self.pads:
            packed.use_packed_attention(model)
        elif kind == "cuda":
            # On Hopper it plans each new shape for 6 ms, and nearly every batch has one.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._model = model

    def arrays(self, batch: TokenBatch) -> tuple[NDArray[Any], ...]:
        if self.pads:
            return batch.padded(WIDTH_MULTIPLE if self._kind == "cuda" else 1)
        return batch.ids, batch.positions, batch.starts.astype(np.int32)

    def forward(self, tensors: Sequence["Tensor"], batch: TokenBatch) -> "Tensor":
        one, two, three = tensors
        if self.pads:
            return forward(self._model, one, two, three)
        return packed.forward(self._model, one, two, three, batch.longest, batch.unpooled)


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


def has_packed_attention(device: str, precision: str) -> bool:
    """Whether torch has attention over packed texts on a device."""
    torch = need("torch", "local")
    return (
        device.startswith("cuda")
        and torch.version.hip is None
        and precision in ("float16", "bfloat16")
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def wider(folder: Path, device: str) -> Torch:
    """The model in a precision that overflows where float32 does."""
    return Torch(folder, device, wider_precision())


def wider_precision() -> Literal["bfloat16", "float32"]:
    """The faster one of a GPU that overflows where float32 does."""
    has_bfloat16 = need("torch", "local").cuda.is_bf16_supported()
    return "bfloat16" if has_bfloat16 else "float32"


def is_here(device: str) -> bool:
    """Whether this machine has a device, such as "cuda" or "cuda:1"."""
    kind, _, number = device.partition(":")
    if kind != accelerator():
        return kind == "cpu"
    return not number or int(number) < need("torch", "local").cuda.device_count()


def choose_device(device: str, name: str) -> str | None:
    """What torch computes the model `name` on, "auto" being the machine's best; None: OpenVINO on
    the processor. Raises ProviderError if this machine does not have the device."""
    if device == "cpu":
        return None
    if device == "auto":
        return accelerator()
    if not is_here(device):
        raise ProviderError(
            f"{name}: device is {device!r}, which this machine does not have; its best is "
            f"{accelerator() or 'cpu'!r}. Set device to 'auto' or to that."
        )
    return device


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
        # What comes behind a transformer in half precision gains by float32, and costs little.
        for name in ("token_embeddings", "sentence_embedding"):
            if name in features:
                features[name] = features[name].float()
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
