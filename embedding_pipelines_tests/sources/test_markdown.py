"""Markdown files: sections, their headings and front matter."""

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.markdown import sections
from embedding_pipelines_tests.contracts_sources import Document, check_source, make, read

GUIDE = """\
---
title: The guide
tags: [a, 1.50]
date: 2024-01-31
draft: no
authors: {first: Ann}
---
What this is.

# Install *it* with `pip` [here](http://x)
## Linux
Run make.

```sh
# no heading
```
    # nor this

macOS
-----

> # quoted

- # in a list

## Linux ##
Again.
"""


def documents_of(home: Path, content: str, **options: Any) -> list[Document]:
    (home / "a.md").write_text(content, encoding="utf-8", newline="")
    documents, rejections, _ = read(make("markdown", "a.md", **options), home)
    assert not rejections
    return documents


def test_a_section_is_a_document_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(GUIDE)
    kinds = {
        "heading": "string", "title": "string", "tags": "list[string]", "date": "date",
        "draft": "bool", "authors.first": "string",
    }  # fmt: skip
    documents, _ = check_source(make("markdown", "a.md", metadata=kinds), tmp_path, 4)
    install = "Install it with pip here"
    assert [(row["document_id"], row["source_row"]) for row in documents] == [
        ("a.md", 8),
        (f"a.md#{install} > Linux", 11),
        (f"a.md#{install} > macOS", 19),
        (f"a.md#{install} > Linux (2)", 26),
    ]
    assert documents[0]["text"] == "What this is."
    assert documents[0]["heading"] is None
    assert documents[1]["text"] == (
        f"{install} > Linux\n\nRun make.\n\n```sh\n# no heading\n```\n    # nor this"
    )
    assert documents[2]["text"].endswith("> # quoted\n\n- # in a list")
    for row in documents:
        assert (row["title"], row["tags"]) == ("The guide", ["a", "1.5"])
        assert (row["date"], row["draft"]) == (datetime.date(2024, 1, 31), False)
        assert row["authors_first"] == "Ann"


def test_headings_that_look_like_numbered_ones_have_ids_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Notes\n\na\n\n# Notes\n\nb\n\n# Notes (2)\n\nc\n")
    documents, _ = check_source(make("markdown", "a.md"), tmp_path, 3)
    names = ["a.md#Notes", "a.md#Notes (2)", "a.md#Notes (2) (2)"]
    assert [row["document_id"] for row in documents] == names


def test_a_file_without_headings_is_one_document(tmp_path: Path) -> None:
    (document,) = documents_of(tmp_path, "\n\nJust words.\n\n---\nand more")
    assert (document["document_id"], document["source_row"]) == ("a.md", 3)
    assert document["text"] == "Just words.\n\n---\nand more"
    assert documents_of(tmp_path, " \n\n") == []
    assert documents_of(tmp_path, "") == []


def test_a_heading_alone_is_no_document_unless_nothing_is_below_it(tmp_path: Path) -> None:
    content = "# One\n## Two\n### Three\n# Four\n\n# Five\nwords"
    documents = documents_of(tmp_path, content, metadata=["title"])
    assert [row["text"] for row in documents] == ["One > Two > Three", "Four", "Five\n\nwords"]
    assert {row["title"] for row in documents} == {"Four"}


def test_an_inserted_section_changes_no_other(tmp_path: Path) -> None:
    def keyed(content: str) -> dict[str, str]:
        return {row["document_id"]: row["text"] for row in documents_of(tmp_path, content)}

    before = keyed(GUIDE)
    after = keyed(GUIDE.replace("## Linux\nRun", "## Windows\nHm.\n\n## Linux\nRun"))
    assert before.items() < after.items()


def test_line_ends_and_bad_bytes(tmp_path: Path) -> None:
    assert documents_of(tmp_path, GUIDE.replace("\n", "\r\n")) == documents_of(tmp_path, GUIDE)
    (tmp_path / "b.md").write_bytes(b"# caf\xff")
    source = make("markdown", "b.md", encoding="utf-8")
    _, (rejection,) = check_source(source, tmp_path, 0, 1)
    assert rejection.reason == "is not valid utf-8"


@pytest.mark.parametrize(
    ("front", "problem"),
    [
        ("a: [1", "while parsing"),
        ("- a\n- b", "is not a list of names and values"),
        ("a: &x [1]\nb: *x", "holds an alias"),
        ("a: 2024-13-45", "month must be"),
        ("a: !!python/object:x {}", "could not determine"),
        ("a: !!set {x}", "is set, not text"),
        (f"a: {'[' * 3000}", ""),
    ],
)
def test_front_matter_that_cannot_be_read_is_text(front: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"---\n{front}\n---\n\n# Title\nwords")
    documents, rejections, (log,) = read(make("markdown", "a.md"), tmp_path)
    assert not rejections
    assert " ".join(front.split()) in " ".join(" ".join(row["text"] for row in documents).split())
    assert any(row["text"] == "Title\n\nwords" for row in documents)
    (note,) = log.notes
    assert "a.md: its front matter is read as text, for it " in note
    assert problem in note


def test_a_field_that_no_file_has_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="column 'body' is missing; found 'title', 'id', 'heading'"
    ):
        documents_of(tmp_path, "# a\nb", text="body")


LINES = st.sampled_from(
    ["# A", "## B *c*", "A\n===", "words", "", "```", "~~~~", "    # x", "> # q", "- # l", "#",
     "<!--", "-->", "---", "#no", "\t", "[a]: b 'c", "| a |\n|---|"]
)  # fmt: skip


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES | st.text(max_size=12), max_size=12))
def test_no_word_is_lost_and_no_id_stands_twice(tmp_path: Path, lines: list[str]) -> None:
    content = re.sub("\r\n|\r", "\n", "\n".join(["words", *lines]))
    parts = sections(content.split("\n"))
    together = "\n".join("\n".join((*part.path, part.body)) for part in parts)
    for word in re.findall(r"words|no", content):
        assert word in together
    assert together.count("words") >= content.count("words")
    numbers = [part.line for part in parts]
    assert numbers == sorted(set(numbers))
    (tmp_path / "a.md").write_bytes(content.encode("utf-8", "replace"))
    source = make("markdown", "a.md", encoding="utf-8")
    documents, _, _ = read(source, tmp_path)
    ids = [row["document_id"] for row in documents]
    assert len(ids) == len(set(ids))
