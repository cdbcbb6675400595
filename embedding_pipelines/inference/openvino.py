"""Runs a converted graph (transformer, pooling, normalization) on the processor with OpenVINO."""

import contextlib
import io
import logging
import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedding_pipelines.errors import ProviderError, error_lines
from embedding_pipelines.extras import need, need_part, version_of
from embedding_pipelines.inference.backend import (
    Array,
    Backend,
    Precision,
    Rows,
    TokenBatch,
    damage_error,
    translate_errors,
)
from embedding_pipelines.inference.torch import forward
from embedding_pipelines.schemas import digest
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

# Two threads that make the first calls of OpenVINO's binding can deadlock: one holds the guard of a
# static of its C++ and waits for Python, the other the reverse (seen once in some dozen runs).
# These statics belong to the process, and so does the lock.
BINDING_LOCK = threading.Lock()

# Padding included. Measured on two AVX2 cores, MiniLM: 512 to 2,048 within 8% of one another,
# 4,096 up to 20% slower (the activations leave the cache).
BATCH_TOKENS = 1_024
ONE_TOKEN = TokenBatch(np.ones(1, np.int64), np.ones(1, np.int64))


class OpenVino(Backend):
    """One compiled graph. Not with openvino's AsyncInferQueue: its threads call back into Python,
    which aborts a process that ends at that moment (measured: one in two)."""

    def __init__(
        self,
        graph: Path,
        precision: Precision | Literal["float16"],
        first: Rows = ONE_TOKEN,
        batch_size: int = BATCH_TOKENS,
        pads: bool = True,
        cores: int | None = None,
    ) -> None:
        """`first` is computed at once. A graph takes as many of a batch's arrays as it has inputs.
        `cores`: how many it keeps busy, None for all of the machine."""
        self.batch_tokens, self.pads = batch_size, pads
        with BINDING_LOCK:
            self._binding = runtime()
        core = self._binding.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        has_bfloat16 = "BF16" in capabilities
        if precision == "bfloat16" and not has_bfloat16:
            raise ProviderError(
                "This processor does not compute in bfloat16. Set precision to 'auto', which takes "
                "bfloat16 where the processor has it and float32 elsewhere, or to 'float32'."
            )
        if precision == "float16":
            raise ProviderError(
                "This processor does not compute in float16, as the machine does that began. Take "
                "machines of one kind, or set precision to 'float32'."
            )
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16 else "float32"
        self.precision = precision
        hint = "bf16" if self.precision == "bfloat16" else "f32"
        threading_options = threads(usable_cores(), cores)
        self.in_flight = int(threading_options["NUM_STREAMS"]) + 1  # one waits: no stream is idle
        options = {"INFERENCE_PRECISION_HINT": hint, **threading_options}
        if os.access(graph.parent, os.W_OK):
            # What is compiled is kept without its weights, 0.4 MB for MiniLM, by the processor: folders
            # are shared by machines. It takes half the time; what is damaged OpenVINO makes anew.
            # Its name for them leaves the precision out: float32 read as bfloat16 is NaN.
            processor = core.get_property("CPU", "FULL_DEVICE_NAME"), *sorted(capabilities)
            name = f"compiled-{digest(repr((*processor, hint)).encode()).hex()}"
            options |= {"CACHE_DIR": str(graph.parent / name), "CACHE_MODE": "OPTIMIZE_SIZE"}
        try:
            self._compiled = core.compile_model(graph, "CPU", options)
        except RuntimeError as error:
            raise damage_error(graph.parent, error_lines(error)[-1]) from error
        self._idle: deque[Any] = deque()
        self.finish(self.start(first))  # in one thread only: see BINDING_LOCK
        self.name = f"OpenVINO {version_of('openvino')}, CPU"

    def start(self, batch: Rows) -> Any:
        arrays = batch.padded()[: len(self._compiled.inputs)]
        try:
            request = self._idle.popleft()
        except IndexError:
            with BINDING_LOCK:
                request = self._compiled.create_infer_request()
        with translate_errors("OpenVINO", -1), BINDING_LOCK:
            tensors = map(self._binding.Tensor, arrays)
            request.start_async(dict(enumerate(tensors)), None)
        return request

    def finish(self, handle: Any) -> Vectors:
        with translate_errors("OpenVINO", -1):
            handle.wait()
        with BINDING_LOCK:
            vectors = np.array(handle.get_output_tensor(0).data, np.float32)
        self._idle.append(handle)
        return vectors


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def threads(usable: int, cores: int | None) -> dict[str, str]:
    """OpenVINO's options to keep so many of the usable cores busy, None for all.

    Parallel inferences, so that the small layers of one leave no core idle. Measured with two cores;
    a stream for every two of more cores is a guess.
    """
    share = min(cores or usable, usable)
    options = {"NUM_STREAMS": str(min(share, max(2, share // 2)))}
    if share == usable:
        return options
    # Not pinned: each of several processes would pin its threads to the same first cores.
    return options | {"INFERENCE_NUM_THREADS": str(share), "ENABLE_CPU_PINNING": "NO"}


def runtime() -> Any:
    """OpenVINO's compiled module, which computes: the package around it, with its converter and its
    16 sets of operations, takes three times as long to import. Raises ConfigError without it, and
    for one that cannot be loaded."""
    return need_part("openvino", "_pyopenvino", "local")


def load() -> Any:
    """Import OpenVINO, to convert and to quantize, without its telemetry, which would fork this
    process and report each start to Google Analytics."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return need("openvino", "local")


def save_graph(model: "SentenceTransformer", path: Path) -> None:
    """Convert and save a whole model, in float32; RuntimeError and others if OpenVINO cannot."""
    torch = need("torch", "local")

    class Graph(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: "Tensor", mask: "Tensor", pooled: "Tensor") -> "Tensor":
            return forward(self.model, tokens, mask, pooled)

    save_module(Graph().eval(), tuple(torch.ones(2, 8, dtype=torch.long) for _ in range(3)), path)


def save_module(module: Any, example: tuple["Tensor", ...], path: Path) -> None:
    """Convert and save a module of torch that takes what is like `example`, of any size, in
    float32; RuntimeError and others if OpenVINO cannot."""
    torch, openvino = need("torch", "local"), load()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape-dependent branch
        graph = openvino.convert_model(module, example_input=example)
    if len(graph.inputs) != len(example):
        inputs = f"{len(graph.inputs)} inputs instead of {len(example)}"
        raise RuntimeError(f"the converted graph takes {inputs}")
    openvino.save_model(graph, path, compress_to_fp16=False)


def quantize(graph: Path, samples: Sequence[Array], path: Path) -> None:
    """Save the graph in int8, weights and activations, scaled by the activations of samples (token
    ids). Raises ConfigError without NNCF."""
    openvino, nncf = load(), need("nncf", "int8")
    nncf.set_log_level(logging.ERROR)
    rows = [sample[None] for sample in samples]
    data = nncf.Dataset([{0: row, 1: np.ones_like(row), 2: np.ones_like(row)} for row in rows])
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        quantized = nncf.quantize(
            openvino.Core().read_model(graph),
            data,
            subset_size=len(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
        )
    openvino.save_model(quantized, path, compress_to_fp16=False)
