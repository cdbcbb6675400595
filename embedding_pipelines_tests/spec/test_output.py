"""Which places can hold an output."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.spec.output import output_problem

FILE = "source: {{kind: csv, path: {path}, id: id, text: t}}\nmodel: {{provider: hashing}}\noutput: {output}\n"


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("in", "in/out"),
        ("in", "in"),
        ("in/", "./in/../in/x/"),
        ("in/**/*.csv", "in/out"),
        ("'in/*/*'", "in/out"),
        ("[a.csv, in]", "in/out"),
        ("s3://b/in/", "s3://b/in/out/"),
        ("s3://b", "s3://b/out"),
        ("/in", "/in/out"),
    ],
)
def test_an_output_inside_the_source_is_refused(path: str, output: str) -> None:
    with pytest.raises(ConfigError, match="is inside the source"):
        parse_pipeline(FILE.format(path=path, output=output), "p", "p.yaml")


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("in", "out"),
        ("in", "input"),
        ("'data/*.csv'", "data/out"),
        ("data/a.csv", "data/out"),
        ("s3://b/in/", "s3://b/inside"),
        ("s3://b/in/", "s3://c/in/"),
        ("s3://b/in/", "gs://b/in/"),
        ("s3://b/in/x", "s3://b/in"),
    ],
)
def test_an_output_beside_it_is_taken(path: str, output: str) -> None:
    spec = parse_pipeline(FILE.format(path=path, output=output), "p", "p.yaml")
    assert spec.output == output


@pytest.mark.parametrize("output", ["http://x/y", "s3://", "s3://b/*", "s3://k:s@b/x", "''"])
def test_what_is_no_place_is_refused(output: str) -> None:
    with pytest.raises(ConfigError, match=r"output: '.*' is no (place|prefix)"):
        parse_pipeline(FILE.format(path="in", output=output), "p", "p.yaml")


@pytest.mark.parametrize("output", ["pipelines", "pipelines/x", ".", ".."])
def test_where_pipeline_files_are_is_refused(output: str) -> None:
    with pytest.raises(ConfigError, match="is where pipeline files are"):
        parse_pipeline(FILE.format(path="in", output=output), "p", "p.yaml")


def test_a_link_into_the_source_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "in")
    spec = parse_pipeline(FILE.format(path=tmp_path / "in", output="out"), "p", "p.yaml")
    assert "is inside the source" in output_problem("out", spec.source, tmp_path)


def test_columns_of_the_files_cannot_be_metadata(tmp_path: Path) -> None:
    text = FILE.format(path="in", output="out").replace(
        "text: t", "text: t, metadata: [source_uri]"
    )
    with pytest.raises(ConfigError, match="columns 'source_uri' of their own"):
        parse_pipeline(text, "p", "p.yaml")
