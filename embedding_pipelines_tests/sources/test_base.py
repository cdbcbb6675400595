import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import SourceError
from embedding_pipelines_tests.contracts_sources import make, read


def _names(home: Path, *path: str) -> list[str]:
    return [file.name for file in make("csv", list(path)).files(home)]


def _fill(home: Path, *names: str) -> None:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("text\nx\n")


def test_files_folders_and_globs_name_each_file_once_and_sorted(tmp_path: Path) -> None:
    _fill(
        tmp_path,
        "b.csv",
        "a/x, y.csv",
        "a/é.tsv.gz",
        "a/deep/z.CSV",
        "a/notes.txt",
        "a/.hidden.csv",
        "a/.git/c.csv",
    )
    assert _names(tmp_path, "a") == ["a/deep/z.CSV", "a/x, y.csv", "a/é.tsv.gz"]
    assert _names(tmp_path, "a/*.csv", "a/x, y.csv", "b.csv", "./a/../b.csv") == [
        "a/x, y.csv",
        "b.csv",
    ]
    assert _names(tmp_path, "**/*.[cC]*") == ["a/deep/z.CSV", "a/x, y.csv", "b.csv"]
    assert _names(tmp_path, "a/**") == ["a/deep/z.CSV", "a/notes.txt", "a/x, y.csv", "a/é.tsv.gz"]
    assert _names(tmp_path, "?/deep/*") == ["a/deep/z.CSV"]
    assert _names(tmp_path, "a/.*.csv") == ["a/.hidden.csv"]
    file = make("csv", "b.csv").files(tmp_path)[0]
    assert (file.path, file.size_bytes) == (tmp_path / "b.csv", 7)
    status = (tmp_path / "b.csv").stat()
    assert file.stamp == (7, status.st_mtime_ns, status.st_ctime_ns)


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    _fill(tmp_path, "a[1].csv", "a1.csv")
    assert _names(tmp_path, "a[1].csv") == ["a[1].csv"]


def test_a_file_outside_of_the_home_folder_has_its_absolute_name(tmp_path: Path) -> None:
    _fill(tmp_path, "out/a.csv", "home/b.csv")
    expected = (tmp_path / "out" / "a.csv").as_posix()
    assert (
        _names(tmp_path / "home", "../out/*.csv")
        == _names(tmp_path / "home", expected)
        == [expected]
    )


def test_a_loop_of_links_is_not_walked(tmp_path: Path) -> None:
    _fill(tmp_path, "a/b/x.csv")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "up2").symlink_to(tmp_path)
    (tmp_path / "a" / "self.csv").symlink_to("self.csv")
    (tmp_path / "a" / "link.csv").symlink_to("b/x.csv")
    assert _names(tmp_path, "a") == _names(tmp_path, "**/*.csv") == ["a/b/x.csv", "a/link.csv"]
    assert _names(tmp_path, "a/b/up/b") == ["a/b/up/b/x.csv"]


def test_what_a_walk_leaves_out_is_told(tmp_path: Path) -> None:
    _fill(tmp_path, "a/x.csv", "a/.hidden", "a/b/1.txt", "a/2.csv.7z", "a/3", "a/4", "out/y.csv")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "out")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "dead.csv").symlink_to("nowhere.csv")
    os.mkfifo(tmp_path / "a" / "pipe.csv")
    source = make("csv", "a")
    assert [file.name for file in source.files(tmp_path)] == ["a/x.csv"]
    order = ("enter; name", "nowhere", "neither", "end with")
    link, dead, pipe, name = sorted(
        source.omissions(tmp_path), key=lambda note: [part not in note for part in order]
    )
    assert link.startswith("passed over: a/b/up, a/linked (is a link to a folder, which a walk")
    assert dead == "passed over: a/dead.csv (is a link that leads nowhere)"
    assert pipe == "passed over: a/pipe.csv (is neither a file nor a folder)"
    assert name.startswith("passed over: a/2.csv.7z, a/3, a/4 and 1 more (does not end with .csv,")
    assert [note for note in make("csv", "a/**/*.csv").omissions(tmp_path) if "link" in note]
    assert make("csv", ["a/x.csv", "a/linked", "out"]).omissions(tmp_path) == []
    assert not any("a/3" in note for note in make("csv", ["a", "a/3"]).omissions(tmp_path))


@pytest.mark.parametrize(
    "path",
    ["data/warehouse", "data/warehouse/p/*.parquet", "data/warehouse/../warehouse/a.csv", "link"],
)
def test_the_warehouse_is_no_source(tmp_path: Path, path: str) -> None:
    _fill(tmp_path, "data/warehouse/a.csv", "data/b.csv")
    (tmp_path / "link").symlink_to(tmp_path / "data" / "warehouse")
    with pytest.raises(SourceError, match="where pipelines keep what they make"):
        _names(tmp_path, path)
    assert _names(tmp_path, "data") == _names(tmp_path, "data/**/*.csv") == ["data/b.csv"]


def test_a_tilde_is_the_user_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path, "me/a.csv")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert _names(tmp_path / "home", "~/a.csv") == [(tmp_path / "me" / "a.csv").as_posix()]


def test_a_path_that_matches_nothing_says_where_it_looked_and_what_is_near(tmp_path: Path) -> None:
    _fill(tmp_path, "data/products.csv", "data/readme.txt")
    with pytest.raises(SourceError) as caught:
        _names(tmp_path, "data/prodcuts.csv")
    assert str(caught.value) == (
        f"source.path 'data/prodcuts.csv' matches no file; looked in '{tmp_path}/data'. "
        "Did you mean 'products.csv'? Correct the path."
    )
    with pytest.raises(
        SourceError, match=r"'dta/\*\.csv' matches no file; looked in .* Did you mean 'data'\?"
    ):
        _names(tmp_path, "data/*.csv", "dta/*.csv")
    with pytest.raises(
        SourceError, match=r"'data': no file in .* ends with \.jsonl.*Name the files, or choose"
    ):
        make("jsonl", "data").files(tmp_path)


def test_a_file_that_vanished_or_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    _fill(tmp_path, "a.csv")
    source = make("csv", "a.csv")
    file = source.files(tmp_path)[0]
    file.path.chmod(0)
    if os.geteuid():  # root reads everything
        with pytest.raises(SourceError, match=r"a\.csv: permission denied"):
            read(source, tmp_path)
    file.path.unlink()
    from embedding_pipelines.sources.base import ReadLog

    with pytest.raises(SourceError, match=r"a\.csv: the file is gone"):
        list(source.read(file, ReadLog(lambda rejection: None)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": ["text"]}, "'text' is a column that the pipeline makes itself; leave it out"),
        ({"metadata": ["a.b", "a_b"]}, "'a.b' and 'a_b' would both be column 'a_b'"),
        ({"metadata": ["a", "a"]}, "names a column twice"),
        (
            {"metadata": {"n": "integer"}},
            "'n' is declared as 'integer'; declare it as one of string, int",
        ),
        ({"text": []}, "must name at least one"),
        ({"path": ""}, "must name at least one"),
        ({"path": "data/**.csv"}, "must stand alone"),
        ({"id": ""}, "leave it out to number the rows"),
        ({"encoding": "utf-9"}, "is no text encoding"),
        ({"encoding": "base64"}, "is no text encoding"),
        ({"max_rejected": "many"}, "is no limit"),
        ({"max_rejected": 1.5}, "at most 1.0"),
        ({"max_rejected": "150%"}, "at most 1.0"),
        ({"max_rejected": -1}, "is no limit"),
        ({"max_rejected": True}, "is no limit"),
        ({"columns": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_refused_without_looking_at_files(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message.replace("[", r"\[")):
        make("csv", **{"path": "nowhere.csv", **options})


@pytest.mark.parametrize(
    ("limit", "rejected", "total", "allowed"),
    [
        ("1%", 1, 100, True),
        ("1%", 2, 100, False),
        ("1%", 1, 99, False),
        (0.5, 5, 10, True),
        (3, 3, 3, True),
        ("3", 4, 1_000_000, False),
        (0, 0, 0, True),
        (1.0, 7, 7, True),
        (1, 2, 7, False),
    ],
)
def test_rejections_are_allowed_by_share_or_by_number(
    limit: object, rejected: int, total: int, allowed: bool
) -> None:
    assert make("csv", "a.csv", max_rejected=limit).allows(rejected, total) is allowed


def test_one_percent_is_the_default() -> None:
    assert make("csv", "a.csv").allows(1, 100)
    assert not make("csv", "a.csv").allows(2, 100)
