"""Fetches public data sets for the proofs: SciFact and STS-B, 3 MB to load, 9 MB on disk.

    python scripts/fetch_proof_data.py

Without them the proofs run on texts that come with Python; with them also on these, against the
figures that are published of MiniLM. They are written below data/proofs, which git ignores, and
only if their contents are those that the figures are of. What is there already is not fetched.
Their licences: https://github.com/allenai/scifact and https://ixa2.si.ehu.eus/stswiki. Only Python
itself is needed.
"""

import csv
import gzip
import hashlib
import io
import re
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "data" / "proofs"
SECONDS = 60  # without a byte
WORDS = re.compile(r"[a-z0-9]+")


class DataSet(NamedTuple):
    """Where a data set is, how its files come out of what is loaded, and what they have to be."""

    address: str
    unpack: Callable[[bytes], dict[str, bytes]]
    digest: Callable[[bytes], str]
    digests: dict[str, str]  # by file


def unzipped(content: bytes) -> dict[str, bytes]:
    """The files of an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pairs_of_test_split(content: bytes) -> dict[str, bytes]:
    """The pairs of STS-B's test split: data set, score and the two sentences."""
    lines = gzip.decompress(content).decode().splitlines()
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = ("dataset", "score", "sentence1", "sentence2")
    table = [[row[name] for name in columns] for row in rows if row["split"] == "test"]
    text = "\n".join("\t".join(cells) for cells in [columns, *table])
    return {"stsb/test.tsv": f"{text}\n".encode()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_of_words(content: bytes) -> str:
    """Of scores and words alone: copies of STS-B differ in quotes, spaces and the order of rows."""
    lines = content.decode().splitlines()
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    pairs = [
        (float(row["score"]), *WORDS.findall(f"{row['sentence1']} {row['sentence2']}".lower()))
        for row in rows
    ]
    return sha256(repr(sorted(pairs, key=repr)).encode())


DATA_SETS = (
    DataSet(
        "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/scifact.zip",
        unzipped,
        sha256,
        {
            "scifact/corpus.jsonl": (
                "dec31c8182f3d744c7d2c09423756fd1d17cbef75808db13ba01cc0aab4d1ac6"
            ),
            "scifact/queries.jsonl": (
                "8ff84a7c903f722981cd8d595c022660140c51867b27608a6d4910db86080313"
            ),
            "scifact/qrels/test.tsv": (
                "0864bb985e0ca2367ba217977e72004d549054b2b06666ed9d4825ac7c21284c"
            ),
        },
    ),
    DataSet(
        "https://sbert.net/datasets/stsbenchmark.tsv.gz",
        pairs_of_test_split,
        sha256_of_words,
        {"stsb/test.tsv": ("9a4930a955b30b746f655938d1ae34774d4b942fcd9308eff9211fc0c35de260")},
    ),
)


def fetch(data_set: DataSet, folder: Path) -> list[Path]:
    """Load and write the files of a data set that are not as they have to be; their paths.

    Raises OSError if its home cannot be reached, and ValueError, before anything is written, if a
    file is another than the proofs know.
    """
    absent = [
        name
        for name, digest in data_set.digests.items()
        if not (folder / name).is_file() or data_set.digest((folder / name).read_bytes()) != digest
    ]
    if not absent:
        return []
    with urllib.request.urlopen(data_set.address, timeout=SECONDS) as reply:
        files = data_set.unpack(reply.read())
    for name, digest in data_set.digests.items():
        if name not in files or data_set.digest(files[name]) != digest:
            raise ValueError(f"{name} in {data_set.address} is not what the proofs are of")
    for name in absent:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{name}.part"
        draft.write_bytes(files[name])
        draft.replace(folder / name)
    return [folder / name for name in absent]


def main() -> int:
    failures = 0
    for data_set in DATA_SETS:
        try:
            written = fetch(data_set, FOLDER)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{data_set.address}: {error}. The proofs do without it.", file=sys.stderr)
            failures += 1
        else:
            print(f"{data_set.address}: {len(written)} files written below {FOLDER}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
