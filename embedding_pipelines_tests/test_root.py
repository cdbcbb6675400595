"""The names that programs import from the package itself, and what they take."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import embedding_pipelines
from embedding_pipelines import service as service_module
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines_tests.chain import hashing, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING

ROWS = [("a", "red fox", "x", 3), ("b", "green tea", "y", 5), ("c", "red tea", "x", 7)]


@pytest.fixture
def released(home: Path) -> str:
    """A home as people write it."""
    write_pipeline(home, "p", HASHING.replace("[cat]", "{cat: string, price: int}"))
    write_csv(home, "a.csv", ROWS, "id,title,cat,price")
    run_steps(home, "p")
    return str(home)


def test_every_name_is_there_and_the_package_loads_none_of_them() -> None:
    assert all(getattr(embedding_pipelines, name) for name in embedding_pipelines.__all__)
    assert set(embedding_pipelines.__all__) <= set(dir(embedding_pipelines))
    with pytest.raises(AttributeError, match="no attribute 'searches'"):
        embedding_pipelines.searches  # noqa: B018
    code = "import sys, embedding_pipelines; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "pyarrow", "pydantic", "dagster"} & set(loaded)
    code = "from embedding_pipelines import search, Searcher; assert search.Searcher is Searcher"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_query_or_many_in_a_list_a_column_or_a_frame(released: str) -> None:
    search = embedding_pipelines.search
    one = search(released, "p", "red fox", k=2)
    assert [hit.document_id for hit in one.hits] == ["a", "c"]
    frame = pd.DataFrame({"query": ["green tea", "red fox"], "n": [1, 2]}, index=["g", "r"])
    for queries in (["green tea", "red fox"], frame["query"], frame, iter(frame["query"])):
        results = search(released, "p", queries, 1)
        assert [result.hits[0].document_id for result in results] == ["b", "a"]
    assert search(released, "p", frame, 1).to_pandas().index.tolist() == ["g", "r"]
    assert search(released, "p", [], 1) == []
    later = embedding_pipelines.search_async(released, "p", "red fox", 1)
    assert asyncio.run(later).hits == one.hits[:1]


def test_a_filter_is_a_condition_or_a_mapping(released: str) -> None:
    for filter in ("cat = 'x' AND price > 3", {"cat": "x", "price": {">": 3}}):
        result = embedding_pipelines.search(released, "p", "red", filter=filter)
        assert [hit.document_id for hit in result.hits] == ["c"]
    with pytest.raises(StoreError, match="has 'over'"):
        embedding_pipelines.search(released, "p", "red", filter={"price": {"over": 3}})


def test_vectors_are_one_array_in_the_order_of_the_table(released: str) -> None:
    table = embedding_pipelines.load_table(released, "p")
    vectors = embedding_pipelines.load_vectors(released, "p")
    assert (vectors.shape, vectors.dtype) == ((3, 64), np.float32)
    assert np.array_equal(np.stack(table["vector"]), vectors)
    expected = embed_all(table["text"].tolist(), hashing(), None).vectors
    assert np.allclose(vectors, expected, atol=1e-6)


def test_a_service_needs_no_more_than_a_model_and_leaves_the_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with embedding_pipelines.EmbeddingService("hashing") as service:
        vector = service.embed("a fox")
        assert np.array_equal(asyncio.run(service.embed_async("a fox")), vector)
        column = pd.Series(["a fox", "tea"])
        assert np.array_equal(asyncio.run(service.embed_batch_async(column))[0], vector)
    assert list(here.iterdir()) == []
    assert (tmp_path / "cache/embedding-pipelines/cache.sqlite").is_file()
    with embedding_pipelines.EmbeddingService("hashing:", home=str(here)) as service:
        service.embed("a fox")
    assert (here / "data/warehouse/cache.sqlite").is_file()
    with pytest.raises(ConfigError, match=r"no known alias.* Did you mean 'minilm'"):
        embedding_pipelines.EmbeddingService("minilmm")
    config = embedding_pipelines.EmbeddingConfig(
        provider="hashing", options={"max_tokens": 4}, too_long="cut", cache_enabled=False
    )
    caplog.set_level(logging.WARNING)
    with embedding_pipelines.EmbeddingService(config) as service:
        assert np.array_equal(service.embed("a b c d e"), service.embed("a b c d"))
    assert ["it was cut there" in message for message in caplog.messages] == [True]


def test_a_long_list_draws_a_bar_where_somebody_sees_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service_module, "PROGRESS_TEXTS", 3)
    texts = [f"text {number}" for number in range(4)]
    with embedding_pipelines.EmbeddingService("hashing") as service:
        service.embed_batch(texts)
        assert capsys.readouterr() == ("", "")  # no terminal
        monkeypatch.setenv("FORCE_COLOR", "1")
        service.embed_batch(texts[:3])
        assert capsys.readouterr() == ("", "")
        service.embed_batch(texts)
        assert "embedding 4 texts" in capsys.readouterr().err
        service.show_progress = False
        service.embed_batch(texts)
        assert capsys.readouterr() == ("", "")


def test_a_program_runs_a_pipeline_by_its_name(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(number, f"fox {number}", "x") for number in range(5)])
    assert embedding_pipelines.run_pipeline(str(home), "p") == 1
    write_pipeline(home, "p", HASHING.replace("*.csv", "none.csv"))
    with pytest.raises(embedding_pipelines.EmbeddingPipelinesError, match=r"p: .*none\.csv"):
        embedding_pipelines.run_pipeline(home, "p")
