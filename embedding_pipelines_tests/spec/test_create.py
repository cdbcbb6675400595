"""New pipeline files: their names, what is refused, and what they say."""

from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ConfigError, ExistsError
from embedding_pipelines.spec.create import create_from, paths_that_leave
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec

CONFIG = {"model": "hashing", "data_path": "data/Red Foxes.csv"}


def allow(spec: PipelineSpec) -> None:
    pass


@pytest.mark.parametrize(
    ("config", "like", "name"),
    [
        (CONFIG, "", "red_foxes"),
        (CONFIG, "pipeline", "pipeline"),
        ({**CONFIG, "name": "own"}, "pipeline", "own"),
        ({"model": "hashing", "source": {"kind": "csv", "path": ["a/b.csv", "c.csv"]}}, "", "b"),
        ({"model": "hashing", "source": {"kind": "csv", "path": "s3://b/docs/"}}, "", "docs"),
        ({"model": "hashing", "data_path": "data/class.csv"}, "", "my_class"),
    ],
)
def test_a_name_is_made_of_what_there_is(
    tmp_path: Path, config: dict[str, Any], like: str, name: str
) -> None:
    created = create_from(tmp_path, config, allow, like)
    assert created.is_new
    assert created.path == tmp_path / "pipelines" / f"{name}.yaml"
    assert find_pipeline(name, tmp_path) == created.spec


def test_the_same_again_is_the_same_and_another_has_the_next_number(tmp_path: Path) -> None:
    first = create_from(tmp_path, CONFIG, allow, "p")
    assert not create_from(tmp_path, CONFIG, allow, "p").is_new
    second = create_from(tmp_path, {**CONFIG, "partitions": 4}, allow, "p")
    assert second.spec.name == "p_2"
    assert not create_from(tmp_path, {**CONFIG, "partitions": 4}, allow, "p").is_new
    with pytest.raises(ExistsError, match="another pipeline 'p'"):
        create_from(tmp_path, {**CONFIG, "name": "p", "seed": 3}, allow)
    assert find_pipeline("p", tmp_path) == first.spec


def test_a_broken_file_of_the_name_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pipelines" / "p.yml"
    path.parent.mkdir()
    path.write_text("source: {")
    with pytest.raises(ExistsError):
        create_from(tmp_path, {**CONFIG, "name": "p"}, allow)
    assert path.read_text() == "source: {"


def test_the_text_is_kept_with_its_comments(tmp_path: Path) -> None:
    text = "# ours\nmodel: hashing   # free\ndata_path: a.csv\n"
    config = {"model": "hashing", "data_path": "a.csv"}
    assert create_from(tmp_path, config, allow, "p", text).path.read_text() == text


def test_what_a_check_refuses_is_not_written(tmp_path: Path) -> None:
    def refuse(spec: PipelineSpec) -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        create_from(tmp_path, CONFIG, refuse)
    assert not (tmp_path / "pipelines").exists()


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "~/x.csv", "~root/x", "../x.csv", "a/../../x.csv", "..", "a/.."),
        *("file:///etc/passwd", "sqlite:////etc/x.db", "sqlite:///../x.db", "..\\x", "C:\\x"),
        *("\\\\host\\share", "${HOME}/.ssh/id", "sqlite:///${HOME}/x", "sqlite+pysqlite:////x.db"),
    ],
)
def test_a_path_that_leaves_the_home_is_seen(path: str) -> None:
    (seen,) = paths_that_leave({"source": {"path": ["data/a.csv", path]}})
    assert seen.startswith("source.path.1: ")


@pytest.mark.parametrize(
    "value",
    [
        *("data/a.csv", "data/**/*.jsonl", "s3://bucket/a.csv", "sqlite:///data/x.db", "/"),
        *("hf:org/model", "a..b", "postgresql://r:${P}@db/shop", "select a / b from c", "N/A"),
    ],
)
def test_what_is_below_the_home_is_not(value: str) -> None:
    assert not list(paths_that_leave({"source": {"url": "${DATABASE_URL}"}}))
    assert not list(paths_that_leave({"source": {"path": value}, "description": "/etc/passwd"}))
