"""Images from folder to release and report, with a tiny CLIP: what costs nothing, what goes, and
what is said."""

import shutil
from pathlib import Path

import pytest

from embedding_pipelines.progress import Silent
from embedding_pipelines.report.page import write_report
from embedding_pipelines.status import pipeline_status
from embedding_pipelines_tests.chain import live_rows, run_of, run_steps, write_pipeline
from embedding_pipelines_tests.clips import tiny_clip
from embedding_pipelines_tests.drawn import drawing, encoded, write

PIPELINE = """\
source:
  kind: images
  path: photos
  captions: {path: words.csv, text: words, metadata: [album]}
  max_rejected: 20%
model: {provider: clip, model: tiny}
evaluation: {known_items: 0, may_shrink: 1}
partitions: 2
"""


def embedded(home: Path) -> int:
    """How many images the model was asked for by a run."""
    reports = [report for report in run_steps(home, "p") if report.step == "embeddings"]
    return sum(report.statistics["embedded"] for report in reports if report.changed)


@pytest.mark.slow
def test_what_is_renamed_encoded_anew_or_there_twice_is_not_embedded_again(home: Path) -> None:
    tiny_clip(home / "tiny")
    write_pipeline(home, "p", PIPELINE)
    photos = home / "photos"
    for seed in range(12):
        write(photos / f"{seed}.png", encoded(drawing(seed)))
    write(photos / "twice.bmp", encoded(drawing(3), "BMP"))
    write(photos / "broken.jpg", b"\xff\xd8\xff\xe0 no more")
    write(home / "words.csv", b"file,words,album\n0.png,a red house,trip\n")
    assert embedded(home) == 12
    before = live_rows(home, "p")
    assert len(before) == 13
    assert before["0.png#0"]["text"] == "a red house"
    assert before["3.png#0"]["vector"] == before["twice.bmp#0"]["vector"]

    shutil.move(photos / "5.png", photos / "renamed.png")
    write(photos / "6.png", encoded(drawing(6), "WEBP", lossless=True))
    (photos / "7.png").unlink()
    assert embedded(home) == 0
    after = live_rows(home, "p")
    assert after.keys() == before.keys() - {"5.png#0", "7.png#0"} | {"renamed.png#0"}
    assert after["6.png#0"]["format"] == "webp"
    assert after["renamed.png#0"]["vector"] == before["5.png#0"]["vector"]

    run = run_of(home, "p")
    said = pipeline_status(run.spec, run.warehouse)
    assert said["duplicates"].startswith("2 images in 1 group with the same pixels")
    assert (said["documents"], said["rejected"], said["up_to_date"]) == (12, 1, True)
    page = write_report(run.warehouse, "p", Silent()).path.read_text()
    assert "3.png, twice.bmp" in page
    assert "photos/broken.jpg" in page
