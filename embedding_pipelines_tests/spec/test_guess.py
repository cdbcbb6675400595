"""Pipeline files that are guessed from sources: the guess runs, and names what a person would."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.spec.guess import Guess, guess, name_of, write_guess
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines_tests.chain import live_rows, run_steps
from embedding_pipelines_tests.drawn import write

ROWS = [
    {
        "sku": f"A-{number}",
        "description": f"A comfortable chair for the kitchen, number {number}",
        "title": "Red chair",
        "price": 49.9 + number,
        "stock": number,
        "code": f"0{number}",
        "added": "2024-01-05",
        "seen": "2024-01-05T10:00:00Z",
        "is_new": number % 2 == 0,
    }
    for number in range(9)
]
METADATA = {
    "price": "float",
    "stock": "int",
    "code": "string",
    "added": "date",
    "seen": "timestamp",
    "is_new": "bool",
}


def write_csv(path: Path, delimiter: str) -> None:
    lines = [delimiter.join(ROWS[0])]
    lines += [delimiter.join(str(cell).replace(",", "") for cell in row.values()) for row in ROWS]
    path.write_text("\n".join(lines) + "\n")


def write_source(folder: Path, name: str) -> str:
    path = folder / name
    if name.endswith(".csv"):
        write_csv(path, ";" if name.startswith("semicolon") else ",")
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif name.startswith("nested"):
        path.write_text(json.dumps({"count": 9, "data": {"more": [1], "items": ROWS}}))
    else:
        path.write_text(json.dumps(ROWS))
    return name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("semicolon.csv", {"delimiter": ";"}),
        ("a.parquet", {}),
        ("a.jsonl", {}),
        ("a.json", {}),
        ("nested.json", {"records": "data.items"}),
    ],
)
def test_every_format_gives_the_same_guess_and_it_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, str]
) -> None:
    monkeypatch.chdir(home)
    guessed = guess(home, [write_source(home, name)])
    kind = name.rpartition(".")[2]
    assert guessed == Guess(kind, [name], options, 9, "sku", ["title", "description"], METADATA)
    path = home / "pipelines" / f"{name_of([name])}.yaml"
    write_guess(home, path, guessed, "hashing")
    run_steps(home, path.stem)
    row = live_rows(home, path.stem)["A-1#0"]
    assert (row["stock"], row["code"], row["is_new"]) == (1, "01", False)
    with pytest.raises(ConfigError, match="exists"):
        write_guess(home, path, guessed, "hashing")


def test_the_one_table_of_a_database_is_guessed(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("create table chairs (added text, sku text, words text, price real)")
        rows = [("2024-01-05", f"A{n}", f"A chair of some kind {n}", n / 2) for n in range(9)]
        connection.executemany("insert into chairs values (?, ?, ?, ?)", rows)
        connection.commit()
        found = guess(tmp_path, [str(tmp_path / "shop.db")])
        assert (found.id, found.text) == ("sku", ["words"])
        assert found.metadata == {"added": "date", "price": "float"}
        write_guess(tmp_path, tmp_path / "pipelines" / "shop.yaml", found, "hashing:")
        run_steps(tmp_path, "shop")
        assert len(live_rows(tmp_path, "shop")) == 9
        connection.execute("create table tables (x text)")
        connection.commit()
        with pytest.raises(ConfigError, match="a database with 2 tables: chairs, tables"):
            guess(tmp_path, [str(tmp_path / "shop.db")])
        connection.executescript(
            "drop table tables; delete from chairs; alter table chairs drop sku"
        )
        connection.execute(
            "insert into chairs values ('2024-01-05', 'a b c d', 1), ('2024-01-05', 'a b c d', 1)"
        )
        connection.commit()
        with pytest.raises(ConfigError, match=r"No column of 'chairs' in shop.db looks like an id"):
            guess(tmp_path, [str(tmp_path / "shop.db")])


@pytest.mark.parametrize(
    ("kind", "metadata", "content"),
    [
        ("markdown", {"heading": "string"}, "# Chairs\n## Red\nFor the kitchen.\n## Oak\nFor six."),
        ("html", {"title": "string"}, "<title>Chairs</title><p>For the kitchen.</p>"),
    ],
)
def test_a_folder_of_prose_needs_no_column(
    tmp_path: Path, kind: str, metadata: dict[str, str], content: str
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / f"a.{ {'markdown': 'md'}.get(kind, kind) }").write_text(content)
    found = guess(tmp_path, [str(tmp_path / "texts")])
    assert (found.kind, found.id, found.text, found.metadata) == (kind, None, ["text"], metadata)
    write_guess(tmp_path, tmp_path / "pipelines" / "texts.yaml", found, "hashing:")
    run_steps(tmp_path, "texts")
    assert any("For the kitchen." in row["text"] for row in live_rows(tmp_path, "texts").values())


def test_lists_empty_columns_and_names_that_cannot_be_metadata(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    rows = [
        {
            "body": f"words of a text {n}",
            "tags": ["a", "b"],
            "nothing": None,
            "score": n,
            "o": {"x": 1},
        }
        for n in range(3)
    ]
    (home / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guessed = guess(home, ["a.jsonl"])
    assert (guessed.id, guessed.text) == (None, ["body"])
    assert guessed.metadata == {"tags": "list[string]"}
    assert guessed.notes[1:] == [
        "Left out of metadata: 'nothing' has no value in the sample; 'o' holds no text, number or "
        "time; 'score' is a name that results have already; rename it in the file."
    ]


def test_paths_are_those_of_the_home_whatever_the_current_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (home / "data").mkdir(exist_ok=True)
    write_source(home / "data", "a.csv")
    monkeypatch.chdir(home / "data")
    assert guess(home, ["a.csv"]).path == ["data/a.csv"]
    assert guess(home, ["*.csv"]).path == ["data/*.csv"]
    assert guess(home, [str(home / "data")]).path == ["data"]
    outside = tmp_path_factory.mktemp("outside")
    write_source(outside, "b.csv")
    assert guess(home, [str(outside / "b.csv")]).path == [(outside / "b.csv").as_posix()]


@pytest.mark.parametrize(
    ("file", "name"),
    [("class.csv", "my_class"), ("Ünïcode.csv", "unicode"), ("2024.csv", "pipeline_2024")],
)
def test_any_file_has_a_name_that_a_pipeline_may_have(file: str, name: str) -> None:
    assert name_of([file]) == name


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["nope.csv"], "there is no such file"),
        (["notes.txt"], "no file of a format that is read"),
        (["quotes.csv"], "guess from: .*set source.escape"),
        (["one.jsonl"], "guess from: is a list.*set source.kind to json"),
        (["a.csv", "a.jsonl"], "several formats: csv, jsonl"),
        (
            ["header.csv"],
            "no rows to guess from. Name a file that has some. Or write a file in pipelines/",
        ),
        (["numbers.csv"], "holds text"),
    ],
)
def test_what_cannot_be_guessed_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], words: str
) -> None:
    monkeypatch.chdir(home)
    write_source(home, "a.csv")
    write_source(home, "a.jsonl")
    (home / "header.csv").write_text("id,title\n")
    (home / "notes.txt").write_text("a note\n")
    (home / "quotes.csv").write_text('id,title\n1,"12\\" disc"\n')
    (home / "one.jsonl").write_text('[{"id": 1, "title": "x"}]\n')
    (home / "numbers.csv").write_text("x,y\n1,2\n1,3\n")
    with pytest.raises((ConfigError, SourceError), match=words):
        guess(home, files)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/Products 2024.csv.gz", "products_2024"),
        ("data/*.csv", "data"),
        ("2024.csv", "pipeline_2024"),
        ("été/", "ete"),
        ("x" * 90 + ".csv", "x" * 60),
    ],
)
def test_names_are_made_of_files(file: str, name: str) -> None:
    assert name_of([file]) == name


def guess_csv(home: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Guess:
    monkeypatch.chdir(home)
    (home / "a.csv").write_text("\n".join(lines) + "\n")
    return guess(home, ["a.csv"])


def test_words_for_no_value_do_not_make_numbers_strings(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{n},a chair for the kitchen,{n}.5,{n % 2 == 0},2024-01-05" for n in range(9)]
    guessed = guess_csv(
        home, monkeypatch, "id,title,price,new,added", *lines, "9,a lamp,NA,none,n/a"
    )
    assert guessed.metadata == {"price": "float", "new": "bool", "added": "date"}
    assert guessed.notes == []


def test_a_column_that_is_nearly_all_numbers_is_one_and_the_file_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{n},a chair for the kitchen,{n}.5,{n + 100}" for n in range(50)]
    guessed = guess_csv(
        home, monkeypatch, "id,title,price,zip", *lines, "50,a lamp,on request,01234"
    )
    assert guessed.metadata == {"price": "float", "zip": "string"}  # 01234 is a code
    note, limit = guessed.notes
    assert limit == (
        "A run would stop: it would reject 1 row of the first 51, and source.max_rejected allows 1%. "
        "Mend the rows, or raise it."
    )
    assert note.startswith("'price' is float but for 1 value: 'on request'. Runs reject this row.")
    write_guess(home, home / "pipelines" / "a.yaml", guessed, "hashing")
    assert "# 'price' is float but for 1 value" in (home / "pipelines" / "a.yaml").read_text()
    lines = [f"{n},a chair for the kitchen,{n}.5" for n in range(9)]
    guessed = guess_csv(home, monkeypatch, "id,title,price", *lines, "9,a lamp,on request")
    assert guessed.metadata == {"price": "string"}  # one of ten is not nearly all


@pytest.mark.parametrize(
    ("day", "is_told"),
    [
        ("31.01.2026", True),
        ("1/31/26 9:30", True),
        ("2026/01/31", True),
        ("10.0.2-1", False),
        ("12-34", False),
    ],
)
def test_days_in_another_notation_are_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, day: str, is_told: bool
) -> None:
    lines = [f"{n},a chair for the kitchen,{day}" for n in range(9)]
    guessed = guess_csv(home, monkeypatch, "id,title,opened", *lines)
    assert guessed.metadata == {"opened": "string"}
    told = [note for note in guessed.notes if "in another notation than 2026-01-31" in note]
    assert bool(told) == is_told


def test_an_id_that_stands_twice_or_is_empty_is_still_the_id(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{n},a chair for the kitchen" for n in range(9)]
    guessed = guess_csv(home, monkeypatch, "sku,title", *lines, "7,a lamp to read by", ",a table")
    assert guessed.id == "sku"
    assert guessed.notes[:2] == [
        "The id 'sku' is not unique: '7' stands more than once. Runs reject all but one of such "
        "rows; source.duplicates decides which.",
        "The id 'sku' is empty in 1 row, which runs reject.",
    ]
    assert "it would reject 2 rows of the first 11" in guessed.notes[2]
    lines = [f"X{n},a chair for the kitchen" for n in range(199)]
    guessed = guess_csv(home, monkeypatch, "article,title", *lines, "X7,a lamp to read by")
    assert guessed.id == "article"
    assert "'X7' stands more than once" in guessed.notes[0]


def test_no_id_unreadable_rows_and_names_of_results_are_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{n % 2},a chair for the kitchen,{n}," for n in range(9)]
    guessed = guess_csv(
        home, monkeypatch, "kind,title,score,nothing", *lines, "1,a lamp,3,,too,many"
    )
    assert guessed.id is None
    no_id, unreadable, left_out, limit = guessed.notes
    assert "A run would stop" in limit
    assert "file and row are it (as in 'a.csv:2')" in no_id
    assert "inserting a row changes the ids" in no_id
    assert unreadable.startswith("1 row of the sample cannot be read; runs reject such rows.")
    assert "row 11 of a.csv" in unreadable
    assert "'score' is a name that results have already" in left_out
    assert "'nothing' has no value in the sample" in left_out


def test_a_folder_of_images_is_a_source_with_the_table_that_names_them(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("1.png", "sub/2.jpg", "3.webp"):
        write(photos / name, b"")
    guessed = guess(tmp_path, [str(photos)])
    assert (guessed.kind, guessed.rows, guessed.text, guessed.options) == ("images", 3, [], {})
    (photos / "prices.csv").write_text("id,text\n1,a red chair\n")  # names none
    table = "picture,words,album,width\n1.png,A red chair in a kitchen,home,3\n"
    table += "1.png,One chair and no table,home,3\nsub/2.jpg,Someone asleep on a boat,trip,4\n"
    (photos / "words.csv").write_text(table)
    guessed = guess(tmp_path, [str(photos)])
    assert guessed.options == {
        "captions": {
            "path": "photos/words.csv",
            "file": "picture",
            "text": ["words"],
            "metadata": {"album": "string"},
        }
    }
    path = tmp_path / "pipelines" / "photos.yaml"
    write_guess(tmp_path, path, guessed, None)
    spec = find_pipeline("photos", tmp_path)
    assert (spec.source.kind, spec.model.kind) == ("images", "clip")
    assert "# Guessed from 3 images." in path.read_text()
    assert "no row of 1 of 3 images, such as 'photos/3.webp'" in " ".join(guessed.notes)


def test_a_table_beside_the_folder_of_images_is_seen(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("1.png", "2.png"):
        write(photos / name, b"")
    write(tmp_path / "broken.csv", b'"a,b\n1,2\n')
    write(tmp_path / "other.csv", b"id,text\n1,a red chair\n")
    write(tmp_path / "captions.csv", b"name,caption\n1.png,A red chair.\n2.png,A boat at sea.\n")
    columns = {"file": "name", "text": ["caption"]}
    guessed = guess(tmp_path, [str(photos)])
    assert guessed.options == {"captions": {"path": "captions.csv", **columns}}
    (tmp_path / "captions.csv").rename(photos / "captions.csv")
    guessed = guess(tmp_path, [str(photos / "*.png")])
    assert guessed.options == {"captions": {"path": "photos/captions.csv", **columns}}
    (photos / "captions.csv").unlink()
    assert guess(tmp_path, [str(photos)]).options == {}


def test_pictures_beside_texts_are_left_aside(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.md", b"# Chairs\nOf wood.\n")
    write(tmp_path / "docs" / "a.png", b"")
    assert guess(tmp_path, [str(tmp_path / "docs")]).kind == "markdown"
