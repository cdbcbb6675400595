"""Groups of images that are the same or alike: none is missed, and what is even says nothing."""

import io
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedding_pipelines.images import decode, digest, perceptual
from embedding_pipelines.progress import Silent
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.report.page import write_report
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.steps.duplicates import (
    ALIKE_BITS,
    PLAIN_BITS,
    Groups,
    find,
    read_duplicates,
)
from embedding_pipelines_tests.chain import run_of, run_steps, write_pipeline
from embedding_pipelines_tests.drawn import drawing, encoded, write
from embedding_pipelines_tests.seeing import Seeing, draw


def groups_of(files: dict[str, bytes]) -> Groups:
    pixels = [decode(data) for data in files.values()]
    names = list(files)
    return find(names, names, list(map(digest, pixels)), list(map(perceptual, pixels)))


def smaller(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.resize((image.width // 2, image.height // 2)).save(file, "JPEG", quality=60)
    return file.getvalue()


def test_the_same_pixels_and_like_pictures_are_groups() -> None:
    files = {
        "a.png": encoded(drawing(1)),
        "a.bmp": encoded(drawing(1), "BMP"),
        "small.jpg": smaller(drawing(1)),
        "b.png": encoded(drawing(2)),
        "white.png": encoded(np.full((9, 9, 3), 255, np.uint8)),
        "grey.png": encoded(np.full((9, 9, 3), 99, np.uint8)),
        "white.bmp": encoded(np.full((9, 9, 3), 255, np.uint8), "BMP"),
    }
    groups = groups_of(files)
    assert groups.groups("same") == [["a.png", "a.bmp"], ["white.png", "white.bmp"]]
    assert groups.groups("alike") == [["a.png", "a.bmp", "small.jpg"]]
    assert groups.sentence == (
        "4 images in 2 groups with the same pixels; 3 images in 1 group with nearly the same picture"
    )
    assert groups_of({"a.png": files["a.png"], "b.png": files["b.png"]}).sentence == ""


def test_every_pair_within_the_distance_is_there_and_no_other() -> None:
    """As comparing all with all says, for hashes of which each has near ones and far ones."""
    generator = np.random.default_rng(5)
    centres = generator.integers(0, 2**64, 40, dtype=np.uint64)
    hashes = []
    for centre in centres.tolist():
        for flips in (0, 3, 7, 8, 12):
            bits = generator.choice(64, flips, replace=False).tolist()
            hashes.append(centre ^ sum(1 << bit for bit in bits))
    names = [str(at) for at in range(len(hashes))]
    groups = find(names, names, names, [f"{value:016x}" for value in hashes])
    parents = dict(enumerate(range(len(hashes))))

    def root(at: int) -> int:
        return at if parents[at] == at else root(parents[at])

    rich = [PLAIN_BITS <= value.bit_count() <= 64 - PLAIN_BITS for value in hashes]
    for left, right in combinations(range(len(hashes)), 2):
        is_near = (hashes[left] ^ hashes[right]).bit_count() <= ALIKE_BITS
        if is_near and rich[left] and rich[right]:
            parents[root(right)] = root(left)
    expected: dict[int, set[str]] = {}
    for at in range(len(hashes)):
        expected.setdefault(root(at), set()).add(str(at))
    found = {frozenset(group) for group in groups.groups("alike")}
    assert found == {frozenset(group) for group in expected.values() if len(group) > 1}
    assert len(found) >= 40


def test_twenty_thousand_images_take_no_all_with_all() -> None:
    hashes = np.random.default_rng(6).integers(0, 2**64, 20_000, dtype=np.uint64)
    names = [str(at) for at in range(len(hashes))]
    start = time.process_time()
    find(names, names, names, [f"{value:016x}" for value in hashes.tolist()])
    assert time.process_time() - start < 3  # 200 million pairs would take longer


@pytest.mark.usefixtures("decoded_here")
def test_a_run_and_status_say_so_and_nothing_is_left_out(home: Path) -> None:
    text = "source: {kind: images, path: photos}\nmodel: {provider: clip}\npartitions: 2\n"
    write_pipeline(home, "p", text)
    for name, data in (
        ("a.png", encoded(drawing(1))),
        ("b.bmp", encoded(drawing(1), "BMP")),
        ("c.png", encoded(drawing(2))),
    ):
        write(home / "photos" / name, data)
    run = run_of(home, "p")
    notes: list[str] = []
    run.progress.note = notes.append  # type: ignore[method-assign]
    assert write_documents(run).statistics["documents"] == 3
    assert len(notes) == 1
    assert notes[0].startswith("2 images in 1 group with the same pixels; all are kept")
    report = write_documents(run_of(home, "p"))
    assert (report.changed, report.statistics["same_images"]) == (False, 2)
    status = pipeline_status(run.spec, run.warehouse)["duplicates"]
    assert status == f"2 images in 1 group with the same pixels: {run.folder.duplicates}"
    run.folder.duplicates.write_bytes(b"PAR1 damaged")
    assert "is damaged" in str(pipeline_status(run.spec, run.warehouse)["duplicates"])
    assert not write_documents(run_of(home, "p")).changed
    assert next(iter(step_named("documents").work(run_of(home, "p"), []))).changed
    assert len(read_duplicates(run.folder.duplicates).table) == 2
    (home / "photos" / "b.bmp").unlink()
    assert write_documents(run_of(home, "p")).statistics["same_images"] == 0
    assert read_duplicates(run.folder.duplicates).sentence == ""


SEEN = """\
source: {kind: images, path: photos}
model: {provider: clip, model: seeing}
evaluation: {known_items: 0, may_shrink: 1}
partitions: 2
"""


def test_images_of_near_vectors_are_groups_once_the_model_has_seen_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clip, "model_class", Seeing)
    write_pipeline(home, "p", SEEN)
    photos = home / "photos"
    for name, colour, stripes in (
        ("a.png", "red", 0),
        ("b.png", "red", 3),
        ("c.bmp", "red", 0),
        ("d.png", "green", 0),
        ("e.png", "blue", 0),
        ("f.bmp", "blue", 0),
    ):
        draw(photos / name, colour, "white", stripes=stripes)
    run = run_of(home, "p")
    path, words = run.folder.duplicates, "nearly the same vector (cosine 0.98 or more)"

    def near() -> list[list[str]]:
        return read_duplicates(path).groups("near")

    run_steps(home, "p")
    assert near() == [["a.png", "b.png", "c.bmp"]]  # e and f are no more than the same
    said = str(pipeline_status(run.spec, run.warehouse)["duplicates"])
    assert said.startswith("4 images in 2 groups with the same pixels; ")
    assert said.endswith(f"3 images in 1 group with {words}: {path}")
    page = write_report(run.warehouse, "p", Silent()).path.read_text()
    assert "3 images in 1 group with nearly the same vector" in page

    path.write_bytes(b"PAR1 damaged")
    run_steps(home, "p")
    assert near() == [["a.png", "b.png", "c.bmp"]]
    (photos / "a.png").unlink()
    write_documents(run_of(home, "p"))
    assert near() == [["b.png", "c.bmp"]]  # whose vectors are looked at again by a run's checks
    (photos / "c.bmp").unlink()
    draw(photos / "g.png", "green", "white", stripes=2)
    run_steps(home, "p")
    assert near() == [["d.png", "g.png"]]
