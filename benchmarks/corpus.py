"""The corpus and what happens to it: four phases, as records and as files on a disk. Nothing is
embedded here.

cold     the corpus in one file
no-op    the same files, untouched
change   1% of the documents edited, 0.5% deleted, 0.5% added, in the same file
copy     texts that are there already, once more, under other ids in a second file
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.errors import BenchmarkError

FOLDER = "corpus"  # below a system's own folder
EDITED, DELETED, ADDED = 0.01, 0.005, 0.005  # of the documents; SciFact's 5,183: 52, 26 and 26
COPIED = 120
COPIED_OF_FEW = 5  # at most one in five, so that a quick look stays quick
SEED = 0


@dataclass(frozen=True)
class Document:
    """A record of the corpus."""

    id: str
    title: str
    body: str

    @property
    def text(self) -> str:
        """What is embedded: title and body joined by a line break, as pipelines join fields."""
        return f"{self.title}\n{self.body}"


@dataclass(frozen=True)
class Phase:
    """A state of the corpus, and what it takes to follow to it."""

    name: str
    summary: str
    files: dict[str, list[Document]]
    to_embed: int  # texts that were never there before
    edited: frozenset[str] = field(default_factory=frozenset)  # ids

    @property
    def texts(self) -> dict[str, str]:
        """What a store has to hold: each document's text by its id."""
        return {
            document.id: document.text
            for documents in self.files.values()
            for document in documents
        }


def read_corpus(path: Path, documents: int | None = None) -> list[Document]:
    """The first `documents` records of a JSON Lines file with `_id`, `title` and `text`; None: all
    of them."""
    try:
        corpus = list(_read(path))[:documents]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise BenchmarkError(
            f"{path}: not a corpus of JSON lines with _id, title and text: {error!r}"
        ) from error
    if len(corpus) < 20:
        raise BenchmarkError(
            f"{path}: {len(corpus)} documents are too few for a change of 1%. Take 20 or more."
        )
    if len({document.text for document in corpus}) < len(corpus) or len(
        {document.id for document in corpus}
    ) < len(corpus):
        raise BenchmarkError(
            f"{path}: an id or a text stands there twice; the counts would mean nothing."
        )
    return corpus


def read_texts(folder: Path) -> dict[str, str]:
    """Each text by its id, from all files of the corpus in a system's folder, as every script here
    reads them."""
    files = sorted((folder / FOLDER).glob("*.jsonl"))
    return {document.id: document.text for file in files for document in _read(file)}


def phases(documents: list[Document], seed: int = SEED) -> list[Phase]:
    """The phases in their order; the same documents and seed give the same phases."""
    chance = random.Random(seed)
    count = len(documents)
    picked = chance.sample(
        range(count), max(1, round(EDITED * count)) + max(1, round(DELETED * count))
    )
    edited = set(picked[: max(1, round(EDITED * count))])
    deleted = set(picked[len(edited) :])
    new_count = max(1, round(ADDED * count))
    heads, tails = chance.sample(documents, new_count), chance.sample(documents, new_count)

    changed = [
        _edit(document, number) if number in edited else document
        for number, document in enumerate(documents)
        if number not in deleted
    ]
    added = [
        _mix(head, tail, number)
        for number, (head, tail) in enumerate(zip(heads, tails, strict=True))
    ]
    after = changed + added
    copied = chance.sample(after, min(COPIED, count // COPIED_OF_FEW))
    copies = [Document(f"copy-{document.id}", document.title, document.body) for document in copied]

    share = f"{len(edited)} edited, {len(deleted)} deleted, {len(added)} added"
    return [
        Phase("cold", f"{count} documents", {"corpus.jsonl": documents}, count),
        Phase("no-op", "nothing changed", {"corpus.jsonl": documents}, 0),
        Phase(
            "change",
            share,
            {"corpus.jsonl": after},
            len(edited) + len(added),
            frozenset(documents[number].id for number in edited),
        ),
        Phase(
            "copy",
            f"{len(copies)} copies under other ids",
            {"corpus.jsonl": after, "copies.jsonl": copies},
            0,
        ),
    ]


def write_phase(phase: Phase, folder: Path) -> None:
    """Bring the corpus in a system's folder to this phase; files that are right already are not
    touched."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for name, documents in phase.files.items():
        content = "".join(
            json.dumps(
                {"_id": document.id, "title": document.title, "text": document.body},
                ensure_ascii=False,
            )
            + "\n"
            for document in documents
        ).encode()
        path = target / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def _read(path: Path) -> Iterable[Document]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield Document(record["_id"], record["title"], record["text"])


def _edit(document: Document, number: int) -> Document:
    """A document rewritten from its beginning on, so that its vector is another one, cut at 256
    tokens or not."""
    words = document.body.split(" ")
    return Document(document.id, f"Correction {number}", " ".join(words[len(words) // 3 :]))


def _mix(head: Document, tail: Document, number: int) -> Document:
    """A new document, about as long as the others: one's first half and another's second half."""
    first, second = head.body.split(" "), tail.body.split(" ")
    body = " ".join(first[: len(first) // 2] + second[len(second) // 2 :])
    return Document(f"new-{number}", f"Addition {number}: {tail.title}", body)
