"""Clusters of a live table: the topics that its documents were written about."""

from pathlib import Path

import pandas as pd
import pytest

from embedding_pipelines.errors import ConfigError, ReleaseError
from embedding_pipelines.explore import clusters as explore
from embedding_pipelines.explore.clusters import FILE, find_clusters
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.explore.topics import (
    COMPRESSED,
    HEADER,
    ODD,
    PIPELINE,
    TOPICS,
    write_topics,
)


@pytest.mark.parametrize("pipeline", [PIPELINE, COMPRESSED])
def test_topics_are_found_and_named_by_their_words(home: Path, pipeline: str) -> None:
    write_topics(home, pipeline=pipeline)
    result = find_clusters(home, "p", 3)
    assert (result.pipeline, result.release, result.rows) == ("p", 1, 120 + len(ODD))
    rows = result.to_pandas()
    assert rows.dtypes.astype(str).to_dict() == {
        "chunk_id": "str",
        "document_id": "str",
        "cluster": "int32",
        "cosine": "float32",
    }
    assert rows["cluster"].value_counts().to_dict() == {
        cluster.number: cluster.rows for cluster in result.clusters
    }
    kinds = rows["document_id"].str.split("-").str[0]
    for topic, words in TOPICS.items():
        (number,) = set(rows["cluster"][kinds == topic])
        cluster = result.clusters[number]
        assert set(cluster.keywords) <= set(words.split()) | set(" ".join(ODD).split())
        assert len(set(cluster.keywords) & set(words.split())) >= 4
        assert cluster.label.startswith(f"{number}: {cluster.keywords[0]}, ")
        assert {name.split("-")[0] for name in cluster.examples} == {topic}
        assert cluster.share == cluster.rows / result.rows
        own = rows["cosine"][rows["cluster"] == number]
        assert cluster.cosine == pytest.approx(own.mean(), abs=1e-5)


def test_their_number_is_found_too(home: Path) -> None:
    write_topics(home)
    result = find_clusters(home, "p")
    assert result.silhouette is not None
    assert 3 <= len(result.clusters) <= 6  # the odd ones may stand alone
    assert sorted(cluster.rows for cluster in result.clusters)[-3:] >= [40, 40, 40]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_all_rows_are_written_with_text_and_cluster(home: Path, ending: str) -> None:
    write_topics(home)
    path = home / "out" / f"rows.{ending}"
    result = find_clusters(home, "p", 3, path)
    frame = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert list(frame) == FILE.names
    rows = result.to_pandas()
    for name in ("chunk_id", "cluster"):
        assert frame[name].tolist() == rows[name].tolist()
    assert frame["label"].tolist() == [result.clusters[n].label for n in rows["cluster"]]
    assert frame.set_index("document_id").loc["odd-0", "text"] == ODD[0]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_rows_beyond_the_sample_are_in_clusters_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "FIT_ROWS", 40)
    write_topics(home)
    rows = find_clusters(home, "p", 3).to_pandas()
    kinds = rows["document_id"].str.split("-").str[0]
    usual = kinds != "odd"
    assert len(rows) == 123
    assert rows[usual].groupby(kinds[usual])["cluster"].nunique().tolist() == [1, 1, 1]


def test_what_cannot_be_is_a_readable_error(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    with pytest.raises(ReleaseError, match="no release yet"):
        find_clusters(home, "p")
    write_csv(home, "a.csv", [(1, "one text", "", "", "")] * 1, HEADER)
    run_steps(home, "p")
    assert [cluster.rows for cluster in find_clusters(home, "p").clusters] == [1]
    with pytest.raises(ConfigError, match="p: k is 2; it must lie between 1 and 1"):
        find_clusters(home, "p", 2)
    with pytest.raises(ConfigError, match=r"Name a file that ends in .* not .*rows\.txt"):
        find_clusters(home, "p", to=home / "rows.txt")
