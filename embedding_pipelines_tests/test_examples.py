"""The example data: what stands in it, and that writing it twice changes nothing; and each shipped
pipeline runs on a part of it. With their own model the README runs them."""

import csv
import json
import os
import sys
import sysconfig
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedding_pipelines import examples
from embedding_pipelines.errors import SourceError
from embedding_pipelines.examples import (
    list_characters,
    list_modules,
    read_docstrings,
    write_examples,
)
from embedding_pipelines.schemas import RESERVED
from embedding_pipelines.search import Searcher
from embedding_pipelines.sources.base import SourceFile
from embedding_pipelines.spec.load import pipeline_files, read_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.runs import run_whole

ROOT = Path(__file__).parent.parent
SHIPPED = pipeline_files(ROOT)
SLICE_LINES = 20  # of each data file, for the quick run
MODEL = "hf:sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def example_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the examples in it."""
    folder = tmp_path_factory.mktemp("home")
    write_examples(folder)
    return folder


@pytest.fixture(scope="module")
def stdlib(example_home: Path) -> dict[str, dict[str, Any]]:
    """Every docstring by name."""
    texts = [
        path.read_text(encoding="utf-8")
        for path in sorted(example_home.glob("data/stdlib/*.jsonl"))
    ]
    documents = [json.loads(line) for text in texts for line in text.splitlines()]
    by_name = {document["name"]: document for document in documents}
    assert len(by_name) == len(documents), "two documents have one name"
    return by_name


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of our own and one character, in place of Python's."""
    folder = tmp_path / "python"
    folder.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.setattr(
        examples, "list_characters", lambda: [("U+002C", ",", "COMMA", "Other", "Po")]
    )
    return folder


def names(source: str, module: str = "shutil") -> list[str]:
    return [document["name"] for document in read_docstrings(source.encode(), module)]


def test_a_document_tells_what_a_function_of_the_standard_library_does(
    stdlib: dict[str, Any],
) -> None:
    document = stdlib["shutil.copy2"]
    assert document["kind"] == "function"
    assert document["module"] == "shutil"
    assert document["line"] > 1
    assert document["summary"].startswith("Copy data and metadata.")
    assert document["details"].startswith("Metadata is copied with copystat()")
    assert document["see"].startswith("copystat: Copy file metadata")


def test_modules_and_classes_are_documents_too(stdlib: dict[str, Any]) -> None:
    assert stdlib["xml.dom.minidom"]["kind"] == "module"
    assert stdlib["xml.dom.minidom"]["line"] == 1
    assert stdlib["argparse.ArgumentParser"]["kind"] == "class"
    assert stdlib["argparse.ArgumentParser"]["module"] == "argparse"
    assert set(Counter(document["kind"] for document in stdlib.values())) == {
        "module",
        "class",
        "function",
    }


def test_the_standard_library_gives_thousands_of_documents_in_a_few_files(
    example_home: Path, stdlib: dict[str, Any]
) -> None:
    assert len(stdlib) > 6_000  # 6,806 on a Debian without tkinter, 7,622 with everything
    files = sorted(path.stem for path in example_home.glob("data/stdlib/*"))
    assert 20 <= len(files) <= 26
    assert all(len(name) == 1 for name in files)


def test_each_document_stands_in_the_file_of_its_modules_first_letter(example_home: Path) -> None:
    for line in (
        (example_home / "data" / "stdlib" / "c.jsonl").read_text(encoding="utf-8").splitlines()
    ):
        assert json.loads(line)["module"].lstrip("_").startswith("c")


def test_tests_and_applications_that_come_with_python_are_left_out(tmp_path: Path) -> None:
    modules = ["shutil.py", "email/__init__.py", "email/mime/text.py", "_pydecimal.py"]
    others = [
        "test/support.py",
        "unittest/test/dummy.py",
        "sqlite3/tests/x.py",
        "idlelib/run.py",
        "lib2to3/main.py",
        "turtledemo/clock.py",
        "pydoc_data/topics.py",
        "site-packages/numpy/core.py",
        "dist-packages/apt.py",
        "config-3.11-linux/python-config.py",
        "sitecustomize.py",
    ]
    for name in modules + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [name for name, _ in list_modules(tmp_path)]
    assert names == ["_pydecimal", "email", "email.mime.text", "shutil"]


def test_definitions_without_a_docstring_are_left_out() -> None:
    assert names('def f():\n    "F."\ndef g():\n    pass\ndef h():\n    "  "') == ["shutil.f"]


def test_a_second_definition_of_a_name_gets_a_suffix() -> None:
    source = 'class A:\n    def f(self): "one"\n    def f(self): "two"\n    def f(self): "three"'
    assert names(source) == ["shutil.A.f", "shutil.A.f~2", "shutil.A.f~3"]


def test_both_branches_of_a_condition_are_read() -> None:
    source = 'if x:\n    def f(): "one"\nelse:\n    try:\n        pass\n'
    source += '    except E as e:\n        def f(): "two"'
    assert names(source) == ["shutil.f", "shutil.f~2"]


def test_functions_within_functions_are_left_out() -> None:
    assert names('def f():\n    "F."\n    def g():\n        "G."') == ["shutil.f"]


def test_an_async_method_is_a_function() -> None:
    (document,) = read_docstrings(b'class A:\n    async def f(self): "Wait."', "asyncio")
    assert (document["name"], document["kind"], document["line"]) == ("asyncio.A.f", "function", 2)


def test_a_docstring_loses_its_indentation() -> None:
    (document,) = read_docstrings(
        b'def f():\n    """Copy.\n\n      Twice.\n    Thrice.\n    """\n', "shutil"
    )
    assert (document["summary"], document["details"]) == ("Copy.", "Twice.\nThrice.")


def test_an_old_escape_in_the_source_is_no_error() -> None:
    assert names('def f():\n    "A \\d digit."') == ["shutil.f"]


def test_a_source_file_that_cannot_be_parsed_is_skipped_and_named(
    tiny: Path, tmp_path: Path
) -> None:
    (tiny / "shutil.py").write_text('"Files."')
    (tiny / "socket.py").write_text("print 'old'")
    (tiny / "ssl.py").write_bytes(b"\0")
    files = {file.path.name: file for file in write_examples(tmp_path / "home")}
    assert files["s.jsonl"].rows == 1
    assert files["s.jsonl"].skipped == (str(tiny / "socket.py"), str(tiny / "ssl.py"))


def test_a_python_without_its_source_is_an_error_that_says_so(tiny: Path, tmp_path: Path) -> None:
    (tiny / "shutil.py").write_text("x = 1")
    with pytest.raises(SourceError, match="no documented Python source"):
        write_examples(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_the_characters_read_back_as_they_were_written(example_home: Path) -> None:
    path = example_home / "data" / "unicode" / "characters.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["code_point", "character", "name", "category", "category_code"]
    assert [tuple(row) for row in rows[1:]] == list(list_characters())
    by_code = {row[0]: row[1:] for row in rows[1:]}
    assert by_code["U+1F63A"] == ["😺", "SMILING CAT FACE WITH OPEN MOUTH", "Symbol, other", "So"]
    assert by_code["U+002C"] == [",", "COMMA", "Punctuation, other", "Po"]
    assert by_code["U+0022"][0] == '"'
    assert by_code["U+2028"] == ["\u2028", "LINE SEPARATOR", "Separator, line", "Zl"]


def test_every_character_has_one_row_and_a_name_of_its_own() -> None:
    rows = list(list_characters())
    assert len(rows) >= 30_000
    assert len({code for code, *_ in rows}) == len({name for _, _, name, *_ in rows}) == len(rows)
    assert all(chr(int(code[2:], 16)) == character for code, character, *_ in rows)
    by_rule = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH-", "HANGUL SYLLABLE", "TANGUT")
    by_rule += ("NUSHU CHAR", "KHITAN SMALL SCRIPT CH")
    others = {name for _, _, name, *_ in rows if name.startswith(by_rule)}
    assert others <= {"TANGUT ITERATION MARK"}


def test_a_second_run_leaves_every_file_untouched(tiny: Path, tmp_path: Path) -> None:
    (tiny / "shutil.py").write_text('"Files."')
    (tiny / "email.py").write_text('"Letters."')

    def times() -> dict[Path, int]:
        files = (path for path in tmp_path.rglob("*") if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files}

    assert all(file.changed for file in write_examples(tmp_path))
    before = times()
    assert not any(file.changed for file in write_examples(tmp_path))
    assert times() == before


def test_only_a_file_whose_documents_changed_is_written_again(tiny: Path, tmp_path: Path) -> None:
    (tiny / "shutil.py").write_text('"Files."')
    (tiny / "email.py").write_text('"Letters."')
    write_examples(tmp_path)
    (tiny / "email.py").write_text('"Mail."')
    names = [file.path.name for file in write_examples(tmp_path) if file.changed]
    assert names == ["e.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_no_draft(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny / "shutil.py").write_text('"Files."')
    write_examples(tmp_path)
    (tiny / "shutil.py").write_text('"Other files."')

    def full(draft: Path, target: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_examples(tmp_path)
    folder = tmp_path / "data" / "stdlib"
    assert [path.name for path in folder.iterdir()] == ["s.jsonl"]
    assert json.loads((folder / "s.jsonl").read_text())["summary"] == "Files."


def test_the_pipelines_are_copied_where_they_are_missing(tiny: Path, tmp_path: Path) -> None:
    (tiny / "shutil.py").write_text('"Files."')
    mine = tmp_path / "pipelines" / "stdlib.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    files = write_examples(tmp_path)
    assert mine.read_text() == "mine"
    assert [file.path.name for file in files if file.rows == 0] == ["unicode.yaml"]
    original = Path(examples.__file__).parent.parent / "pipelines" / "unicode.yaml"
    assert (tmp_path / "pipelines" / "unicode.yaml").read_bytes() == original.read_bytes()


def test_the_pipelines_come_from_inside_an_installed_package(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny / "shutil.py").write_text('"Files."')
    package = tmp_path / "site-packages" / "embedding_pipelines"
    (package / "_pipelines").mkdir(parents=True)
    for name in ("stdlib.yaml", "unicode.yaml"):
        (package / "_pipelines" / name).write_text("installed")
    monkeypatch.setattr(examples, "__file__", str(package / "examples.py"))
    write_examples(tmp_path / "home")
    assert (tmp_path / "home" / "pipelines" / "stdlib.yaml").read_text() == "installed"


@pytest.mark.parametrize("name", ["stdlib", "unicode"])
def test_a_pipeline_names_columns_that_its_example_file_has(example_home: Path, name: str) -> None:
    text = (example_home / "pipelines" / f"{name}.yaml").read_text(encoding="utf-8")
    source = yaml.safe_load(text)["source"]
    path = next(example_home.glob(source["path"]))
    with path.open(encoding="utf-8", newline="") as file:
        is_jsonl = source["kind"] == "jsonl"
        columns = json.loads(file.readline()) if is_jsonl else next(csv.reader(file))
    assert {source["id"], *source["text"], *source["metadata"]} <= set(columns)
    assert not RESERVED & set(source["metadata"])


def test_writing_examples_imports_none_of_what_it_reads() -> None:
    before = set(sys.modules)
    list(read_docstrings(b'"A module."\nimport antigravity', "this"))
    assert not {"antigravity", "this"} & (set(sys.modules) - before)


def test_a_docstring_tells_what_the_functions_do_that_it_refers_to() -> None:
    source = (
        'def copy():\n "Copy it.\\n\\nSee move() and the missing function, and copy()."\n'
        'def move():\n "Move it.\\n\\nAcross disks, too.\\n\\nSlowly."\n'
    )
    copy, move = read_docstrings(source.encode(), "shutil")
    assert copy["see"] == "move: Move it. Across disks, too."
    assert move["see"] == ""


@pytest.fixture
def own_home(home: Path, own_instance: Path) -> Path:
    return home


def test_two_pipelines_are_shipped() -> None:
    assert [path.name for path in SHIPPED] == ["stdlib.yaml", "unicode.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pipeline_loads_strictly(path: Path) -> None:
    spec = read_pipeline(path)
    assert spec.name == path.stem
    assert spec.source.id is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pipeline_runs_from_files_to_search(
    path: Path, example_home: Path, own_home: Path
) -> None:
    for file in read_pipeline(path).source.files(example_home):
        _copy_slice(file, example_home, own_home)
    text = path.read_text(encoding="utf-8")
    assert MODEL in text
    write_pipeline(own_home, path.stem, text.replace(MODEL, "{provider: hashing}"))
    reports = run_whole(own_home, path.stem).reports
    assert reports["documents"].statistics["rejected"] == 0
    assert reports["release"].statistics["rows"] >= SLICE_LINES - 1
    searcher = Searcher(Warehouse(own_home), path.stem)
    first = searcher.search("python", 1).hits[0]
    assert searcher.search(first.text, 3).hits[0].score > 0.99


def _copy_slice(file: SourceFile, source: Path, target: Path) -> None:
    copy = target / file.path.relative_to(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with file.path.open(encoding="utf-8") as lines:
        copy.write_text("".join(islice(lines, SLICE_LINES)), encoding="utf-8")
