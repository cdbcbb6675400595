"""Folders of images and the tables of their captions: names, columns, options, and broken files."""

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from embedding_pipelines import images
from embedding_pipelines.errors import SourceError
from embedding_pipelines.overlay import PLACE
from embedding_pipelines.sources.base import ReadLog, Source, fetched
from embedding_pipelines.sources.images import AHEAD
from embedding_pipelines.sources.push import Push
from embedding_pipelines_tests.buckets import TestBucket
from embedding_pipelines_tests.contracts_sources import check_source, make
from embedding_pipelines_tests.drawn import die, drawing, encoded, write


def ids(home: Path, *paths: str, **options: Any) -> list[str]:
    """The ids of all images, without decoding them."""
    return [file.below for file in make("images", paths, **options).files(home)]


@pytest.mark.usefixtures("decoded_here")
def test_it_keeps_the_contract_of_sources(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded(drawing(1)))
    write(tmp_path / "b.jpg", encoded(drawing(2), "JPEG"))
    write(tmp_path / "c.jpg", b"no image")
    documents, rejections = check_source(make("images", "*"), tmp_path, 2, 1)
    assert [(row["source_file"], row["source_row"]) for row in documents] == [
        ("a.png", 1),
        ("b.jpg", 1),
    ]
    assert rejections[0].file == "c.jpg"
    assert "no image of a format that is read" in rejections[0].reason


def test_an_id_is_the_path_below_the_folder_that_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write(home / "photos" / "x" / "1.png", b"")
    write(tmp_path / "others" / "x" / "2.png", b"")
    assert ids(home, "photos") == ["x/1.png"]
    assert ids(home, "photos/") == ["x/1.png"]
    assert ids(home, str(home / "photos")) == ["x/1.png"]
    assert ids(home, "photos/**/*.png") == ["x/1.png"]
    assert ids(home, "photos/x/*") == ["1.png"]
    assert ids(home, "photos/x/1.png") == ["1.png"]
    assert ids(home, "../others") == ["x/2.png"]


TABLE = [
    {"name": "1.png", "words": "one", "album": "x", "year": 1999},
    {"name": "./sub/2.png", "words": "two", "album": "y", "year": None},
    {"name": "1.png", "words": "uno", "album": "z", "year": 2000},
    {"name": "9.png", "words": "nine", "album": "z", "year": 2000},
]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_captions_of_every_kind_are_joined_by_path_or_name(tmp_path: Path, kind: str) -> None:
    for name in ("1.png", "sub/2.png", "deep/in/3.png"):
        write(tmp_path / "photos" / name, b"")
    table = tmp_path / f"captions.{kind}"
    if kind == "csv":
        lines = [
            ",".join("" if cell is None else str(cell) for cell in row.values()) for row in TABLE
        ]
        table.write_text("\n".join([",".join(TABLE[0]), *lines]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(TABLE), table)
    elif kind == "json":
        table.write_text(json.dumps(TABLE))
    else:
        table.write_text("\n".join(map(json.dumps, TABLE)))
    captions = {
        "path": table.name,
        "file": "name",
        "text": "words",
        "metadata": {"album": "string", "year": "int"},
    }
    source = make("images", "photos", captions=captions)
    captioned = {file.below: file.joined for file in source.files(tmp_path)}
    assert {name: row and (row.text, row.metadata) for name, row in captioned.items()} == {
        "1.png": ("one\nuno", {"album": "x", "year": 1999}),
        "sub/2.png": ("two", {"album": "y", "year": None}),
        "deep/in/3.png": None,
    }
    assert source.omissions(tmp_path) == [
        f"captions.{kind}: 1 name of no image, such as '9.png'",
        f"captions.{kind}: no row of 1 of 3 images, such as 'photos/deep/in/3.png'",
    ]


def test_rows_of_captions_that_cannot_be_read_are_told_and_too_many_end_the_run(
    tmp_path: Path,
) -> None:
    write(tmp_path / "photos" / "1.png", encoded(drawing(1)))
    good = "".join(f"{number}.png,a\n" for number in range(1, 200))
    (tmp_path / "captions.csv").write_text(f"file,text\n{good}odd,a,b\n")
    source = make("images", "photos", captions={"path": "captions.csv", "text": "text"})
    assert any(
        "1 row cannot be read; the first is line 201" in note for note in source.omissions(tmp_path)
    )
    (tmp_path / "captions.csv").write_text("file,text\n1.png,a\nodd,a,b\n")
    with pytest.raises(SourceError, match=r"captions\.csv:3: expected 2 columns, got 3.*Correct"):
        source.files(tmp_path)
    (tmp_path / "captions.csv").write_text("image,text\n1.png,a\n")
    with pytest.raises(SourceError, match=r"'file' is missing.*Set source\.captions\.file to one"):
        source.files(tmp_path)


@pytest.mark.parametrize("option", ["text", "metadata"])
def test_a_column_that_no_captions_have_is_told_with_the_option_that_names_it(
    tmp_path: Path, option: str
) -> None:
    write(tmp_path / "photos" / "1.png", b"")
    (tmp_path / "captions.csv").write_text("file,words,album\n1.png,a,x\n")
    captions = {"path": "captions.csv", option: ["albm"]}
    with pytest.raises(
        SourceError, match=rf"Did you mean 'album'\? Set source\.captions\.{option} "
    ):
        make("images", "photos", captions=captions).files(tmp_path)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,text\n1.png,a\n", r"column 'file' is missing.*Set source\.captions\.file to one"),
        ("file,words\n1.png,a\n", r"'text' is missing.*Set source\.captions\.text to one"),
        (
            "file,text,year\n1.png,a,soon\n",
            r"add it to source\.missing.*have no such option: correct",
        ),
        (None, r"source\.captions\.path 'captions\.csv' matches no file"),
    ],
)
def test_errors_of_a_table_of_captions_name_the_options_that_it_has(
    tmp_path: Path, table: str | None, words: str
) -> None:
    write(tmp_path / "photos" / "1.png", encoded(drawing(1)))
    if table is not None:
        (tmp_path / "captions.csv").write_text(table)
    years = {"metadata": {"year": "int"}} if table and "year" in table else {}
    captions = {"path": "captions.csv", "text": "text", **years}
    with pytest.raises(SourceError, match=words):
        make("images", "photos", captions=captions).files(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": "name"}, "source.captions"),
        ({"text": "caption"}, "source.captions"),
        ({"metadata": ["album"]}, "source.captions.metadata"),
        ({"captions": {"path": "a.txt"}}, "the kind of 'a.txt' is not clear"),
        ({"captions": {"path": "a.csv", "metadata": ["width"]}}, "a column that every image has"),
        ({"captions": {"path": "a.csv", "metadata": {"a": "number"}}}, "declare it as one of"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_to_do(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        make("images", "photos", **options)


def test_what_is_pushed_beside_images_is_a_text_without_a_picture() -> None:
    source = make("images", "photos", captions={"path": "a.csv", "metadata": ["album"]})
    push, log = Push.of(source), ReadLog(lambda _: None)
    assert push.schema == source.schema
    record = {"id": "a", "text": "words", "album": "x", "image": "0" * 32, "uri": "/etc/passwd"}
    (batch,) = push.documents([(1, json.dumps(record).encode())], PLACE, log)
    (row,) = batch.to_pylist()
    assert {name: value for name, value in row.items() if value is not None} == {
        "document_id": "a",
        "text": "words",
        "source_file": "pushed",
        "source_row": 1,
        "album": "x",
    }
    assert push.fields == {"id", "text", "album"}  # whoever pushes is told of the rest


def test_an_image_that_kills_its_decoder_is_one_rejection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2 * AHEAD):
        write(tmp_path / f"{number:03}.png", b"die" if number == 40 else b"%d" % number)
    monkeypatch.setattr(images, "look", die)
    documents, rejections = read_ahead(make("images", "*.png"), tmp_path)
    assert [rejection.file for rejection in rejections] == ["040.png"]
    assert "died" in rejections[0].reason
    assert [row["image"] for row in documents] == [str(n) for n in range(2 * AHEAD) if n != 40]


def test_a_system_that_starts_no_process_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png", encoded(drawing(1)))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(SourceError, match=r"decode a\.png: Too many open files\. Free what"):
        read_ahead(make("images", "*.png"), tmp_path)


def read_ahead(source: Source, home: Path) -> tuple[list[Any], list[Any]]:
    """As a run reads: all files by one pool."""
    documents: list[Any] = []
    rejections: list[Any] = []
    with fetched(source.files(home)) as files, source.reading(files) as readings:
        for _, reads in readings:
            for batch in reads(ReadLog(rejections.append)):
                documents += batch.to_pylist()
    return documents, rejections


@pytest.mark.usefixtures("decoded_here")
def test_a_bucket_s_images_are_read_as_a_folder_s(tmp_path: Path, bucket: TestBucket) -> None:
    data = {"x/1.png": encoded(drawing(1)), "2.webp": encoded(drawing(2), "WEBP", lossless=True)}
    for name, content in data.items():
        write(tmp_path / "photos" / name, content)
        bucket.put(f"photos/{name}", content)
    table = "file,text,album\nx/1.png,a house,trip\n"
    write(tmp_path / "photos" / "captions.csv", table.encode())
    bucket.put("photos/captions.csv", table)
    documents = []
    for place in ("photos", f"{bucket.uri}/photos"):
        captions = {"path": f"{place}/captions.csv", "text": "text", "metadata": ["album"]}
        source = make("images", place, captions=captions)
        assert source.omissions(tmp_path) == [
            f"{place}/captions.csv: no row of 1 of 2 images, such as '{place}/2.webp'"
        ]
        rows, rejections = read_ahead(source, tmp_path)
        assert rejections == []
        assert [row["uri"] for row in rows] == [f"{place}/2.webp", f"{place}/x/1.png"]
        documents.append([{**row, "uri": "", "source_file": ""} for row in rows])
    assert documents[0] == documents[1]
    assert [row["text"] for row in documents[0]] == ["", "a house"]
    before = {each.name: each.stamp for each in source.files(tmp_path)}
    bucket.put("photos/captions.csv", table.replace("house", "home"))
    after = {each.name: each.stamp for each in source.files(tmp_path)}
    assert [name for name in after if before[name] != after[name]] == [
        f"{bucket.uri}/photos/x/1.png"
    ]
