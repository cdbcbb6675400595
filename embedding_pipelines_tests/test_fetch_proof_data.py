"""The script that fetches public data for the proofs, against a server on loopback."""

import gzip
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedding_pipelines_tests.corpora import PLACES, judged_corpus, public
from scripts import fetch_proof_data
from scripts.fetch_proof_data import (
    DATA_SETS,
    DataSet,
    fetch,
    pairs_of_test_split,
    sha256,
    sha256_of_words,
    unzipped,
)

FILES = {"toy/corpus.jsonl": b'{"_id": "a"}\n', "toy/qrels/test.tsv": b"query-id\r\n"}
STSB = """\
split\tgenre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2
train\tmain\tMSRvid\t2012\t1\t5.00\tA plane takes off.\tAn air plane takes off.
test\tmain\tMSRvid\t2012\t2\t2.500\tA girl styles her hair.\t"A girl brushes her hair."
"""
PAIRS = "dataset\tscore\tsentence1\tsentence2\nMSRvid\t2.500\tA girl styles her hair.\t"


class Home(ThreadingHTTPServer):
    """A data set's home, which keeps what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Home

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def home() -> Iterator[Home]:
    with Home() as server:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in FILES.items():
                file.writestr(name, content)
        server.files = {
            "/toy.zip": archive.getvalue(),
            "/stsb.tsv.gz": gzip.compress(STSB.encode()),
        }
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def toy(home: Home) -> DataSet:
    digests = {name: sha256(content) for name, content in FILES.items()}
    return DataSet(home.address("/toy.zip"), unzipped, sha256, digests)


def test_files_are_written_as_they_are_and_loaded_once(
    home: Home, toy: DataSet, tmp_path: Path
) -> None:
    assert fetch(toy, tmp_path) == [tmp_path / name for name in FILES]
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == FILES
    assert fetch(toy, tmp_path) == []
    assert home.requests == ["/toy.zip"]


def test_a_file_that_was_changed_here_is_written_again(toy: DataSet, tmp_path: Path) -> None:
    fetch(toy, tmp_path)
    (tmp_path / "toy" / "corpus.jsonl").write_bytes(b"half of i")
    assert fetch(toy, tmp_path) == [tmp_path / "toy" / "corpus.jsonl"]
    assert (tmp_path / "toy" / "corpus.jsonl").read_bytes() == FILES["toy/corpus.jsonl"]


@pytest.mark.parametrize("name", ["toy/qrels/test.tsv", "toy/gone.tsv"])
def test_other_contents_are_refused_before_anything_is_written(
    toy: DataSet, tmp_path: Path, name: str
) -> None:
    other = toy._replace(digests={**toy.digests, name: sha256(b"other")})
    with pytest.raises(ValueError, match=f"{name} in http.* is not what the proofs are of"):
        fetch(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_pairs_are_those_of_the_test_split(home: Home, tmp_path: Path) -> None:
    expected = f"{PAIRS}A girl brushes her hair .\n".encode()
    stsb = DataSet(
        home.address("/stsb.tsv.gz"),
        pairs_of_test_split,
        sha256_of_words,
        {"stsb/test.tsv": sha256_of_words(expected)},
    )
    (path,) = fetch(stsb, tmp_path)
    assert path.read_text() == f'{PAIRS}"A girl brushes her hair."\n'
    for other in ("A girl brushes his hair.\n", "A girl brushes her hair.\nMSRvid\t1\ta\tb\n"):
        assert sha256_of_words(f"{PAIRS}{other}".encode()) != stsb.digests["stsb/test.tsv"]


def test_a_home_that_is_away_is_told_and_the_others_are_fetched(
    home: Home,
    toy: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = toy._replace(address=home.address("/gone.zip"))
    monkeypatch.setattr(fetch_proof_data, "DATA_SETS", (gone, toy))
    monkeypatch.setattr(fetch_proof_data, "FOLDER", tmp_path)
    assert fetch_proof_data.main() == 1
    out, err = capsys.readouterr()
    assert "/gone.zip: HTTP Error 404" in err
    assert "The proofs do without it." in err
    assert "/toy.zip: 2 files written below" in out


def test_what_is_fetched_is_what_the_proofs_look_for() -> None:
    assert fetch_proof_data.FOLDER in PLACES
    names = {name: each for each in DATA_SETS for name in each.digests}
    assert names.keys() == {
        "scifact/corpus.jsonl",
        "scifact/queries.jsonl",
        "scifact/qrels/test.tsv",
        "stsb/test.tsv",
    }
    for name, data_set in names.items():
        if path := public(name):
            assert data_set.digest(path.read_bytes()) == data_set.digests[name]


def test_a_corpus_in_the_layout_of_beir_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d", "title": "T", "text": "x"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "y"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    monkeypatch.setattr("embedding_pipelines_tests.corpora.PLACES", (tmp_path,))
    judged = judged_corpus("toy")
    assert judged.entries == [{"_id": "d", "title": "T", "text": "x"}]
    assert judged.queries == {"q": "y"}
    assert judged.qrels == {"q": {"d": 1.0}}
