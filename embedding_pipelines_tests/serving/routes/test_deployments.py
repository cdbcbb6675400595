"""The receiving route: parts in any order, sizes, names that lead elsewhere, and who may."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.releases import read_releases
from embedding_pipelines.serving import uploads
from embedding_pipelines.serving.bundle import write_bundle
from embedding_pipelines.serving.permissions import Permissions
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.serving.homes import KEY, client_of

PATH = "/api/deployments"


@pytest.fixture(scope="module")
def bundle(built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "things.tar"
    write_bundle(Warehouse(built_home), "things", path, with_shards=False)
    return path.read_bytes()


@pytest.fixture
def there(tmp_path: Path) -> Path:
    home = tmp_path / "there"
    home.mkdir()
    return home


@pytest.fixture
def client(there: Path) -> Iterator[TestClient]:
    with client_of(there, KEY) as client:
        yield client


def begin(client: TestClient, content: bytes, pipeline: str = "things") -> str:
    digest = hashlib.sha256(content).hexdigest()
    body = {"pipeline": pipeline, "size_bytes": len(content), "sha256": digest}
    reply = client.post(PATH, json=body)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def put(client: TestClient, id: str, offset: int, content: bytes) -> int:
    return int(client.put(f"{PATH}/{id}", params={"offset": offset}, content=content).status_code)


def prove(client: TestClient, id: str) -> dict[str, object]:
    """The test's client waits for what follows a reply."""
    assert client.post(f"{PATH}/{id}/prove").status_code == 202
    result: dict[str, object] = client.get(f"{PATH}/{id}").json()
    return result


def send(client: TestClient, content: bytes, pipeline: str = "things") -> dict[str, object]:
    id = begin(client, content, pipeline)
    for start in range(0, len(content), 1 << 20):
        assert put(client, id, start, content[start : start + (1 << 20)]) == 200
    return prove(client, id)


def test_parts_may_come_twice_and_have_to_follow_each_other(
    client: TestClient, there: Path, bundle: bytes
) -> None:
    id, half = begin(client, bundle), len(bundle) // 2
    assert put(client, id, 0, bundle[:half]) == 200
    assert put(client, id, 0, bundle[:half]) == 200  # its answer was lost
    assert put(client, id, half + 1, bundle[half + 1 :]) == 409
    assert client.post(f"{PATH}/{id}/prove").status_code == 409
    assert put(client, id, half, bundle[half:] + b"x") == 413
    assert put(client, id, half, bundle[half:]) == 200
    result = prove(client, id)
    assert (result["status"], result["release"]) == ("live", 1)
    assert read_releases(Warehouse(there).pipeline("things")).live == 1
    assert put(client, id, len(bundle), b"x") == 409
    assert client.post(f"{PATH}/{id}/prove").status_code == 409
    row = client.get("/api/embedding-pipelines/things").json()
    assert (row["status"], row["states"], row["live_release"]) == ("active", ["active"], 1)
    assert row["source"] == "a bundle that was deployed here"
    # Neither its file nor its shards: nobody runs a pipeline here because it is served here.
    assert not (there / "pipelines").exists()
    removed = client.delete(f"{PATH}/things").json()["removed"]
    assert removed[-1] == "folder and tables of things"
    assert client.delete(f"{PATH}/things").status_code == 404


def test_what_arrives_damaged_or_is_of_another_pipeline(
    client: TestClient, there: Path, bundle: bytes
) -> None:
    result = send(client, bundle, "others")
    assert (result["status"], result["error"]) == (
        "failed",
        "The bundle is of 'things', not of 'others'.",
    )
    id = begin(client, bundle)
    flipped = bundle[:-2000] + bytes([bundle[-2000] ^ 1]) + bundle[-1999:]
    assert put(client, id, 0, flipped) == 200
    assert "did not arrive as it was sent" in str(prove(client, id)["error"])
    assert not read_releases(Warehouse(there).pipeline("things")).releases


def test_a_malicious_archive_is_refused(client: TestClient, there: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("../../../pipelines/evil.yaml")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    result = send(client, file.getvalue())
    assert result["status"] == "failed"
    assert "is no bundle" in str(result["error"])
    assert not (there / "pipelines").exists()


@pytest.mark.parametrize(
    "body",
    [
        {"pipeline": "../x", "size_bytes": 1, "sha256": "0" * 64},
        {"pipeline": "things", "size_bytes": 0, "sha256": "0" * 64},
        {"pipeline": "things", "size_bytes": -1, "sha256": "0" * 64},
        {"pipeline": "things", "size_bytes": 1 << 60, "sha256": "0" * 64},
        {"pipeline": "things", "size_bytes": "x", "sha256": "0" * 64},
        {"pipeline": "things", "size_bytes": 1, "sha256": "../x"},
        {"pipeline": "things", "size_bytes": 1, "sha256": "0" * 64, "path": "/etc"},
        {},
        [],
    ],
)
def test_wrong_announcements(client: TestClient, there: Path, body: object) -> None:
    reply = client.post(PATH, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]
    assert not list((there / "data").rglob("*.tar"))


def test_more_than_the_disk_holds(client: TestClient) -> None:
    body = {"pipeline": "things", "size_bytes": 1 << 40, "sha256": "0" * 64}
    assert client.post(PATH, json=body).status_code == 413


@pytest.mark.parametrize("id", ["..", "x", "0" * 31, "0" * 33, "%2e%2e", "..%2f..%2fx", "0" * 32])
def test_ids_that_are_none(client: TestClient, id: str) -> None:
    for reply in (
        client.get(f"{PATH}/{id}"),
        client.put(f"{PATH}/{id}", params={"offset": 0}, content=b"x"),
        client.post(f"{PATH}/{id}/prove"),
        client.delete(f"{PATH}/{id}"),
    ):
        assert reply.status_code in (400, 404, 405)
        assert "error" in reply.json()


def test_a_part_that_is_too_large_is_not_read_to_its_end(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = begin(client, b"x" * (9 << 20))
    assert put(client, id, 0, b"x" * ((8 << 20) + 1)) == 413


def test_only_so_many_at_once(client: TestClient) -> None:
    for _ in range(uploads.MAX_OPEN):
        begin(client, b"x")
    body = {"pipeline": "things", "size_bytes": 1, "sha256": "0" * 64}
    assert client.post(PATH, json=body).status_code == 409


def test_how_an_upload_has_ended_can_be_asked_when_another_one_begins(client: TestClient) -> None:
    for _ in range(uploads.MAX_OPEN + 1):
        id = begin(client, b"x")
        assert put(client, id, 0, b"x") == 200
        assert prove(client, id)["status"] == "failed"
    assert "The archive ends" in client.get(f"{PATH}/{id}").json()["error"]
    begin(client, b"x")
    assert "The archive ends" in client.get(f"{PATH}/{id}").json()["error"]


def test_old_uploads_make_room(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(uploads.MAX_OPEN):
        begin(client, b"x")
    monkeypatch.setattr(uploads, "KEPT_SECONDS", -1.0)
    begin(client, b"x")


def test_a_server_that_was_restarted_says_so(there: Path) -> None:
    receiving = uploads.Uploads(Warehouse(there), Permissions())
    upload = receiving.begin("things", 1, "0" * 64)
    receiving.append(upload.id, 0, b"x")
    receiving.begin_proof(upload.id)
    restarted = uploads.Uploads(Warehouse(there), Permissions()).find(upload.id)
    assert (restarted.status, "restarted" in restarted.error) == ("failed", True)


@pytest.mark.parametrize("key", [None, "wrong"])
def test_nobody_deploys_without_a_key(there: Path, key: str | None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with client_of(there, KEY) as client:
        client.headers.pop("Authorization")
        body = {"pipeline": "things", "size_bytes": 1, "sha256": "0" * 64}
        assert client.post(PATH, json=body, headers=headers).status_code == 401
        assert client.delete(f"{PATH}/things", headers=headers).status_code == 401
