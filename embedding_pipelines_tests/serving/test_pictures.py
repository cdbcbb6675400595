"""Images in requests, and thumbnails: what is sent is decoded, and nothing is ever fetched."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from embedding_pipelines import EmbeddingPipelines
from embedding_pipelines.push import Pusher
from embedding_pipelines.search import Searcher
from embedding_pipelines.serving import pictures
from embedding_pipelines.serving.models import ServedModel
from embedding_pipelines.serving.wire import BadRequest, SearchAnswer, TooManyRequests
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_pipeline
from embedding_pipelines_tests.clips import tiny_clip
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.serving.homes import KEY, client_of
from embedding_pipelines_tests.serving.live import live, wait_until

PHOTOS = """\
source: {kind: images, path: photos/}
model: {provider: clip, model: tiny}
partitions: 2
evaluation: {known_items: 0, may_shrink: 1}
"""
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (20, 40, 210)}


def drawn(colour: tuple[int, int, int], kind: str = "PNG", side: int = 40) -> bytes:
    image, file = Image.new("RGB", (600, 400), (240, 240, 230)), io.BytesIO()
    image.paste(colour, (side, side, 300 + side, 200 + side))
    image.save(file, kind)
    return file.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("photos")
    (home / "photos").mkdir()
    for name, colour in COLOURS.items():
        (home / "photos" / f"{name}.png").write_bytes(drawn(colour))
    (home / "secret.png").write_bytes(drawn((0, 0, 0)))
    tiny_clip(home / "tiny")
    write_pipeline(home, "photos", PHOTOS)
    run_steps(home, "photos")
    return home


@pytest.fixture(scope="module")
def viewer(photos: Path) -> Iterator[TestClient]:
    with client_of(photos, KEY) as client:
        yield client


def refused(client: TestClient, path: str, **body: Any) -> str:
    reply = client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    return str(reply.json()["error"])


@pytest.mark.slow
def test_an_image_finds_what_is_like_it(viewer: TestClient, photos: Path) -> None:
    jpeg = drawn(COLOURS["blue"], "JPEG")
    reply = viewer.post("/search", json={"image": data_url(jpeg, "jpeg"), "k": 2})
    answer = reply.json()
    assert (reply.status_code, answer["mode"], answer["receipt_id"]) == (200, "vector", None)
    assert answer["hits"][0]["document_id"] == "blue.png"
    assert answer["hits"][0]["metadata"]["uri"] == "photos/blue.png"
    with Searcher(Warehouse(photos), "photos") as searcher:
        own = searcher.search_image(jpeg, k=2).hits
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(
        [hit.score for hit in own], abs=1e-3
    )
    assert viewer.post("/search", json={"query": "a red thing"}).status_code == 200


@pytest.mark.slow
def test_the_client_and_the_command_send_an_image(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jpeg, path = drawn(COLOURS["green"], "JPEG"), tmp_path / "what I saw.jpg"
    path.write_bytes(jpeg)
    own = "key-of-the-tests"
    monkeypatch.setenv("EMBEDDING_API_KEY", own)
    with live(photos, own) as (address, _, _):
        with EmbeddingPipelines(server=address) as client:
            for image in (jpeg, path):
                answer = client.search("photos", image=image, k=1)
                assert isinstance(answer, SearchAnswer)
                assert [hit.document_id for hit in answer.hits] == ["green.png"]
            with pytest.raises(BadRequest, match="image: the image is broken"):
                client.search("photos", image=jpeg[:500])
        command = Command(monkeypatch, capsys)
        said = command("search", "1", "--image", str(path), "--server", address, "--json")
        assert said.results[0]["hits"][0]["document_id"] == "green.png"


@pytest.mark.slow
def test_images_and_thumbnails_are_of_what_may_be_seen(viewer: TestClient, photos: Path) -> None:
    section = "permissions: {kind: csv, path: acl.csv, id: document}\n"
    write_pipeline(photos, "photos", PHOTOS + section)
    (photos / "acl.csv").write_text("document,principals\nred.png,ann\n")
    headers, path = {"X-Principals": "ann"}, "/page/thumbnail?pipeline=photos&document="
    try:
        body = {"image": data_url(drawn(COLOURS["blue"])), "k": 3}
        hits = viewer.post("/search", json=body, headers=headers).json()["hits"]
        assert [hit["document_id"] for hit in hits] == ["red.png"]
        assert viewer.post("/search", json=body).status_code == 403
        for name, status in (("red.png", 200), ("blue.png", 404)):
            assert viewer.get(f"{path}{name}", headers=headers).status_code == status
        assert viewer.get(f"{path}red.png").status_code == 403
    finally:
        write_pipeline(photos, "photos", PHOTOS)
    # A file that may be half written takes no permissions away.
    wait_until(lambda: viewer.get(f"{path}red.png").status_code == 200)


@pytest.mark.slow
def test_images_are_embedded_beside_texts(viewer: TestClient) -> None:
    red = data_url(drawn(COLOURS["red"]))
    reply = viewer.post("/v2/embed", json={"images": [red, red], "input_type": "image"})
    alone = np.array(reply.json()["embeddings"]["float"])
    assert reply.json()["meta"]["billed_units"] == {"input_tokens": 0, "images": 2}
    np.testing.assert_allclose(alone[0], alone[1], atol=1e-6)
    parts = [
        {"type": "text", "text": "a red thing"},
        {"type": "image_url", "image_url": {"url": red}},
        {"type": "text", "text": "another"},
    ]
    reply = viewer.post("/v2/embed", json={"inputs": [{"content": [part]} for part in parts]})
    mixed = np.array(reply.json()["embeddings"]["float"])
    texts = viewer.post("/v2/embed", json={"texts": ["a red thing", "another"]}).json()
    np.testing.assert_allclose(mixed[1], alone[0], atol=1e-6)
    np.testing.assert_allclose(mixed[[0, 2]], texts["embeddings"]["float"], atol=1e-6)
    assert reply.json()["texts"] == ["a red thing", "another"]


@pytest.mark.slow
def test_what_is_no_image_is_said_and_nothing_is_fetched(
    viewer: TestClient, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "s3://bucket/a.png"):
        assert "addresses are not fetched" in refused(viewer, "/search", image=address)
        assert "addresses are not fetched" in refused(viewer, "/v2/embed", images=[address])
    assert "this is no data URL" in refused(viewer, "/search", image="abc")
    assert "no base64" in refused(viewer, "/search", image="data:image/png;base64,%%%")
    broken = data_url(drawn(COLOURS["red"])[:500])
    assert "image: the image is broken" in refused(viewer, "/search", image=broken)
    red = data_url(drawn(COLOURS["red"]))
    error = refused(viewer, "/v2/embed", images=[red, data_url(b"GIF89a")])
    assert error.startswith("images[1]: ")
    assert "send one of query, image and like" in refused(viewer, "/search", query="x", image=red)
    assert "send one of query, image and like" in refused(viewer, "/search", pipeline="photos")
    assert "by vectors alone" in refused(viewer, "/search", image=red, mode="text")
    assert "not read in part" in refused(viewer, "/search", image=red, truncate=True)
    assert "takes texts alone" in refused(client, "/search", image=red)
    assert "takes texts alone" in refused(client, "/v2/embed", images=[red])
    both = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": red}}]
    assert "inputs[0]: send one image" in refused(viewer, "/v2/embed", inputs=[{"content": both}])
    monkeypatch.setattr(pictures, "MAX_IMAGE_BYTES", 1_000)
    assert "larger than" in refused(viewer, "/search", image=red)


@pytest.mark.slow
def test_who_would_wait_for_too_long_is_told_before_an_image_is_decoded(
    viewer: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str | None]()

    def admit(model: ServedModel, lane: str | None, *given: Any) -> None:
        asked.append(lane)
        raise TooManyRequests("later", retry_after_seconds=12.0)

    monkeypatch.setattr(ServedModel, "admit", admit)
    broken = data_url(b"GIF89a")
    for path, body in (
        ("/search", {"image": broken}),
        ("/v2/embed", {"images": [broken]}),
        ("/v2/embed", {"images": [broken, broken]}),
    ):
        reply = viewer.post(path, json=body)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "12")
    assert asked == ["interactive", "interactive", "bulk"]


@pytest.mark.slow
def test_a_thumbnail_is_of_a_document_of_the_live_release_alone(
    viewer: TestClient, photos: Path, client: TestClient
) -> None:
    place = "/page/thumbnail?pipeline=photos&document="
    reply = viewer.get(f"{place}red.png")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/jpeg")
    assert reply.headers["x-content-type-options"] == "nosniff"
    image = Image.open(io.BytesIO(reply.content))
    assert (image.format, image.size) == ("JPEG", (256, 171))
    assert reply.headers["cache-control"] == "private, no-cache"
    for known, status in ((f'"other", W/{reply.headers["etag"]}', 304), ('"other"', 200)):
        again = viewer.get(f"{place}red.png", headers={"If-None-Match": known})
        assert (again.status_code, bool(again.content)) == (status, status == 200)
    blue = viewer.get(f"{place}blue.png").headers["etag"]
    for name in (
        "secret.png",
        "../secret.png",
        "%2e%2e/secret.png",
        "/etc/passwd",
        "photos/red.png",
    ):
        assert viewer.get(f"{place}{name}").status_code == 404, name
    assert viewer.get(f"{place}red.png", headers={"Authorization": ""}).status_code == 401
    write_pipeline(photos, "photos", PHOTOS.replace("photos/", "elsewhere/*.png"))
    wait_until(lambda: viewer.get(f"{place}red.png").status_code == 404)  # as of a bundle's table
    write_pipeline(photos, "photos", PHOTOS)
    wait_until(lambda: viewer.get(f"{place}red.png").status_code == 200)
    (photos / "photos" / "green.png").write_bytes((photos / "secret.png").read_bytes())
    reply = viewer.get(f"{place}green.png")
    assert (reply.status_code, "is gone, or has changed" in reply.text) == (404, True)
    with Pusher(find_pipeline("photos", photos), Warehouse(photos)) as pusher:
        pusher.delete(["blue.png"])
    for headers in ({}, {"If-None-Match": blue}):  # though the browser has it
        assert viewer.get(f"{place}blue.png", headers=headers).status_code == 404
    things = "/page/thumbnail?pipeline=things&document=1"
    assert client.get(things).status_code == 404


def test_only_so_many_images_wait(tmp_path: Path) -> None:
    import asyncio

    from embedding_pipelines.images import Resize
    from embedding_pipelines.serving.wire import TooManyRequests

    many = pictures.Pictures(tmp_path)
    many._waiting = pictures.MAX_WAITING
    with pytest.raises(TooManyRequests, match="256 images wait"):
        asyncio.run(many.squares([b"x"], Resize(8, False, "box"), "image"))
    many._waiting, many._waiting_bytes = 13, pictures.MAX_WAITING_BYTES
    with pytest.raises(TooManyRequests, match="13 images wait, of 256 MB"):
        asyncio.run(many.squares([b"x"], Resize(8, False, "box"), "image"))
    many.close()
