"""Datasets that `datasets` has saved, and datasets of a hub on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import Source
from embedding_pipelines_tests.contracts_sources import check_source, make

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "text": datasets.Value("large_string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
        "answer": {"text": datasets.Value("string")},
    }
)
COMMIT, NEXT = "c" * 40, "d" * 40
READ = """
import json, sys
from pathlib import Path
from embedding_pipelines.sources.huggingface import HuggingFace
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines_tests.contracts_sources import check_source, read
source = HuggingFace(**json.loads(sys.argv[1]))
try:
    files = [(file.name, file.stamp) for file in source.files(Path.cwd())]
    if "--list" in sys.argv:
        print(json.dumps(files))
        sys.exit()
    documents, _, _ = read(source, Path.cwd())
    print(json.dumps({"files": files, "texts": [row["text"] for row in documents]}))
except EmbeddingPipelinesError as error:
    print(json.dumps({"error": str(error)}))
"""


def rows(*numbers: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "id": [f"r{number}" for number in numbers],
            "text": [f"text {number}" for number in numbers],
            "label": [number % 3 - 1 for number in numbers],
            "answer": [{"text": f"answer {number}"} for number in numbers],
        },
        features=FEATURES,
    )


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def source(**options: Any) -> Source:
    return make("huggingface", **{"dataset": "data/reviews", "id": "id", **options})


def test_a_saved_dataset_is_read_with_names_of_its_labels(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": rows(1, 2, 3), "test": rows(9)}).save_to_disk(
        tmp_path / "data" / "reviews"
    )
    metadata = {"label": "string", "answer.text": "string"}
    documents, _ = check_source(source(metadata=metadata), tmp_path, 3)
    assert [document["label"] for document in documents] == ["bad", "good", None]
    assert documents[0] == {
        "document_id": "r1",
        "text": "text 1",
        "source_file": "data/reviews/train/data-00000-of-00001.arrow",
        "source_row": 1,
        "label": "bad",
        "answer_text": "answer 1",
    }
    documents, _ = check_source(source(split="test"), tmp_path, 1)
    assert documents[0]["document_id"] == "r9"


def test_only_files_that_differ_have_another_stamp(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "reviews"
    rows(*range(10)).save_to_disk(folder, num_shards=2)
    first = {file.name: file.stamp for file in source().files(tmp_path)}
    assert len(first) == 2
    assert {file.name: file.stamp for file in source().files(tmp_path)} == first
    rows(*range(11)).save_to_disk(folder, num_shards=2)
    second = {file.name: file.stamp for file in source().files(tmp_path)}
    assert second.keys() == first.keys()
    assert all(second[name] != first[name] for name in first)
    check_source(source(), tmp_path, 11)


def test_what_was_selected_and_sorted_is_read_as_it_was_saved(tmp_path: Path) -> None:
    rows(*range(10)).select([7, 3, 5]).save_to_disk(tmp_path / "data" / "reviews")
    documents, _ = check_source(source(), tmp_path, 3)
    assert [document["document_id"] for document in documents] == ["r7", "r3", "r5"]


def test_no_code_of_a_dataset_runs(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "reviews"
    rows(1).save_to_disk(folder)
    (folder / "reviews.py").write_text("raise SystemExit('it ran')")
    check_source(source(), tmp_path, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "tran"}, "no split 'tran'; there are train. Did you mean 'train'"),
        ({"dataset": "data"}, "has no state.json"),
        ({"dataset": "data/none"}, "does not give|no folder"),
        ({"dataset": "../none/such/place"}, "no folder"),
        ({"text": "txt"}, "column 'txt' is missing"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    datasets.DatasetDict({"train": rows(1)}).save_to_disk(tmp_path / "data" / "reviews")
    with pytest.raises(SourceError, match=words):
        check_source(source(**options), tmp_path, 1)


@pytest.mark.parametrize("state", ["{}", '{"_data_files": [1], "_fingerprint": "x"}'])
def test_a_state_that_names_no_files_is_a_sentence(tmp_path: Path, state: str) -> None:
    rows(1).save_to_disk(tmp_path / "data" / "reviews")
    (tmp_path / "data" / "reviews" / "state.json").write_text(state)
    with pytest.raises(SourceError, match="names no files of a dataset"):
        source().files(tmp_path)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_file_that_is_cut_off_is_a_sentence(tmp_path: Path, share: float) -> None:
    rows(*range(5_000)).save_to_disk(tmp_path / "data" / "reviews")
    (file,) = source().files(tmp_path)
    content = file.path.read_bytes()
    file.path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SourceError, match="not a whole file of a dataset"):
        check_source(source(), tmp_path, 5_000)


class Hub:
    """What the hub answers for one dataset, as far as its client asks here."""

    def __init__(self) -> None:
        self.commit, self.files, self.paths = COMMIT, dict[str, bytes](), list[str]()

    def put(self, path: str, *numbers: int) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(rows(*numbers).data.table, sink)
        self.files[path] = sink.getvalue().to_pybytes()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.paths.append(path)
        base = "/api/datasets/org/reviews"
        if path.startswith(f"{base}/revision/"):
            is_there = path.endswith("refs/convert/parquet")
            about = {"id": "org/reviews", "sha": self.commit, "tags": [], "siblings": []}
            return (200, {}, json.dumps(about).encode()) if is_there else (404, {}, b"{}")
        if path.startswith(f"{base}/tree/{self.commit}"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in self.files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        name = path.removeprefix(f"/datasets/org/reviews/resolve/{self.commit}/")
        if name in self.files:
            data = self.files[name]
            return 200, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": self.commit}, data
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


def _oid(data: bytes) -> str:
    import hashlib

    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = made.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()


def of_hub(folder: Path, *arguments: str, **options: Any) -> Any:
    """What a process of its own reads: the client takes its address from the environment once."""
    values = json.dumps({"dataset": "org/reviews", "id": "id", **options})
    done = subprocess.run(
        [sys.executable, "-c", READ, values, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_dataset_of_the_hub_is_read_at_one_commit_and_fetched_once(
    tmp_path: Path, hub: Hub
) -> None:
    hub.put("default/train/0000.parquet", 1, 2)
    hub.put("default/train/0001.parquet", 3)
    hub.put("default/test/0000.parquet", 9)
    hub.files["reviews.py"] = b"raise SystemExit('it ran')"
    listed = of_hub(tmp_path, "--list")
    assert not any("/resolve/" in path for path in hub.paths)
    first = of_hub(tmp_path)
    assert first["files"] == listed
    assert first["texts"] == ["text 1", "text 2", "text 3"]
    hub.paths.clear()
    assert of_hub(tmp_path) == first
    assert not any("/resolve/" in path for path in hub.paths)
    hub.commit = NEXT
    hub.put("default/train/0001.parquet", 3, 4)
    second = of_hub(tmp_path)
    assert second["texts"] == ["text 1", "text 2", "text 3", "text 4"]
    differing = [name for name, stamp in second["files"] if [name, stamp] not in first["files"]]
    assert differing == ["org/reviews/default/train/0001.parquet"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "dev"}, "there is default/train. Set source.config"),
        ({"revision": "none"}, "does not give its revision 'none'"),
        ({"dataset": "org/none"}, "does not give its revision"),
    ],
)
def test_what_the_hub_lacks_is_a_sentence(
    tmp_path: Path, hub: Hub, options: dict[str, Any], words: str
) -> None:
    hub.put("default/train/0000.parquet", 1)
    assert words in of_hub(tmp_path, **options)["error"]
