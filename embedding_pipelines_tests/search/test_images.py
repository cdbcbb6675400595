"""A pipeline of images from folder to search: by a text, by an image, with labels; what a new name
costs, and what its checks say."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedding_pipelines.cache_use import cache_use
from embedding_pipelines.compare.compare import compare_models
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.explore.table import load_table
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.plan import plan
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.run import Run
from embedding_pipelines.search import Searcher, search
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    live_rows,
    report,
    run_of,
    run_steps,
    steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.seeing import COLOURS, Seeing, draw, seeing

pytestmark = pytest.mark.usefixtures("decoded_here")

NAMES = list(COLOURS)
PIPELINE = """\
source:
  {kind: images, path: photos/, captions: {path: captions.csv, file: name, text: words}}
model: {provider: clip, model: seeing%s}
compression: [int8]
partitions: 4
evaluation: {known_items: 20, may_shrink: 1}
"""
LABELS = f", labels: {{names: [{', '.join(NAMES)}], template: '{{label}} thing', top: 2}}"


@pytest.fixture(autouse=True)
def _sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clip, "model_class", Seeing)


@pytest.fixture(scope="module")
def home_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("images")
    lines = ["name,words"]
    for number, name in enumerate(NAMES):
        draw(home / "photos" / f"{name}.png", name)
        other = NAMES[(number + 1) % len(NAMES)]
        draw(home / "photos" / "two" / f"{name}.png", name, other)
        lines.append(f"{name}.png,a field of the colour {name} and no other")
    (home / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    write_pipeline(home, "p", PIPELINE % LABELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clip, "model_class", Seeing)
        with run_of(home, "p") as run:
            results = list(steps(run))
    (outcomes,) = [result for step, result in results if step == "checks"]
    said = {each.name: [each.passed, each.sentence] for each in outcomes}
    (home / "said.json").write_text(json.dumps(said), encoding="utf-8")
    return home


@pytest.fixture
def built(home: Path, home_once: Path) -> Path:
    return copy_home(home_once, home)


def embedded(reports: Sequence[StepReport]) -> int:
    """The images that reached the model, those of the checks apart."""
    return sum(each.statistics.get("embedded_images", 0) for each in reports)


def best(home: Path, **what: object) -> list[str]:
    return [hit.document_id for hit in search(home, "p", k=2, **what).hits]  # type: ignore[call-overload]


def test_texts_and_images_find_images(built: Path, tmp_path: Path) -> None:
    assert best(built, query="something red")[0] == "red.png"
    photo = draw(tmp_path / "query.png", "blue", stripes=3)
    for image in (photo, str(photo), photo.read_bytes(), Image.open(photo)):
        assert best(built, image=image)[0] == "blue.png"
    cmyk = Image.new("CMYK", (9, 9), (255, 255, 0, 0))
    assert best(built, image=cmyk)[0] == "blue.png"
    result = search(built, "p", image=photo, k=1, filter="file != 'blue.png'")
    assert (result.query, result.mode) == (str(photo), "vector")
    (hit,) = result.hits
    assert hit.document_id != "blue.png"
    assert hit.metadata["uri"] == f"photos/{hit.document_id}"
    with Searcher(built, "p") as searcher:
        again = searcher.search_image(photo, 1)
        assert again.hits[0].score == pytest.approx(best_score(built, photo))


def best_score(home: Path, photo: Path) -> float:
    return search(home, "p", image=photo, k=1).hits[0].score


def test_what_is_no_image_is_a_sentence(built: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    for image, words in (
        (tmp_path / "text.png", "cannot be searched for: the content is no image"),
        (tmp_path / "missing.png", r"image '.*missing\.png' cannot be searched for: No such file"),
        (Image.new("F", (2, 3)), "an image of 2 x 3 pixels in mode F is not read; give one"),
        (Image.new("RGB", (0, 0)), "an image of 0 x 0 pixels in mode RGB is not read"),
        (5, "cannot be searched for: An image is a path, bytes, or an image of Pillow, not 5"),
    ):
        with pytest.raises(ConfigError, match=words):
            search(built, "p", image=image)  # type: ignore[arg-type]
    for arguments, words in (
        ({}, "Give one of: a query, image="),
        ({"query": "red", "image": b""}, "Give one of: a query, image="),
        ({"image": b"", "mode": "hybrid"}, "compared by vectors alone"),
    ):
        with pytest.raises(ConfigError, match=words):
            search(built, "p", **arguments)  # type: ignore[call-overload]


def test_a_model_of_texts_alone_is_not_shown_images(home: Path) -> None:
    write_pipeline(home, "t", HASHING)
    write_csv(home, "a.csv", [("1", "a cat", "x")])
    run_steps(home, "t")
    with pytest.raises(ConfigError, match=r"takes texts alone\. Search it with a text"):
        search(home, "t", image=draw(home / "red.png", "red"))
    write_pipeline(home, "u", PIPELINE.replace("clip, model: seeing%s", "hashing"))
    with pytest.raises(ConfigError, match="the provider hashing takes texts alone"):
        run_of(home, "u")
    write_pipeline(home, "v", PIPELINE % "")
    spec = find_pipeline("v", home)
    with pytest.raises(ConfigError, match="is of images, and the provider hashing takes texts"):
        Run(spec, Warehouse(home), options=Hashing())
    with (
        pytest.raises(ConfigError, match="is of images, and models are compared by texts"),
        run_of(home, "v") as run,
    ):
        compare_models(run, [])


def test_labels_are_columns_that_filters_read(built: Path) -> None:
    hit = search(built, "p", image=built / "photos" / "green.png", k=1).hits[0]
    names, scores = hit.metadata["labels"], hit.metadata["label_scores"]
    assert names[0] == "green"
    assert len(names) == len(scores) == 2
    assert scores[0] > scores[1]
    texts = seeing().embed(["green thing"], "document").vectors
    pixels = np.full((1, 16, 16, 3), COLOURS["green"], np.uint8)
    assert scores[0] == pytest.approx(
        float((seeing().embed_images(pixels) @ texts.T)[0, 0]), abs=1e-5
    )
    found = search(built, "p", "anything", 20, "'green' IN labels").hits
    assert "green.png" in {each.document_id for each in found}
    assert len(found) < len(NAMES) * 2
    frame = load_table(built, "p")
    assert frame["labels"].map(len).eq(2).all()
    assert search(built, "p", "red", 1).to_pandas()["label_scores"][0][0] <= 1


def test_other_labels_cost_the_model_no_image(built: Path) -> None:
    write_pipeline(built, "p", PIPELINE % ", labels: {names: [red, blue], top: 5}")
    model = seeing()
    reports = run_steps(built, "p", model)
    assert embedded(reports) == 0
    assert report(reports, "vector_store").statistics["added"] == len(NAMES) * 2
    rows = live_rows(built, "p").values()
    assert {name for row in rows for name in row["labels"]} == {"red", "blue"}
    write_pipeline(built, "p", PIPELINE % "")
    run_steps(built, "p", model)
    assert "labels" not in next(iter(live_rows(built, "p").values()))


def test_a_new_name_costs_nothing_and_another_picture_itself(built: Path) -> None:
    photos = built / "photos"
    shutil.move(photos / "red.png", photos / "renamed.png")
    Image.open(photos / "blue.png").save(photos / "two" / "blue.webp", lossless=True)
    made = plan(run_of(built, "p", seeing()))
    assert (made.texts_to_embed, made.images_to_embed) == (0, 0)
    assert embedded(run_steps(built, "p")) == 0
    assert best(built, query="red")[0] == "renamed.png"
    draw(photos / "new.png", "white", "red")
    made = plan(run_of(built, "p", seeing()))
    assert (made.texts_to_embed, made.images_to_embed) == (0, 1)
    assert embedded(run_steps(built, "p")) == 1
    use = cache_use(built)
    assert use.vectors - sum(use.used_by.values()) == 0  # all of them are somebody's


def test_a_forgotten_image_has_no_vector_left(built: Path) -> None:
    cache = EmbeddingCache(Warehouse(built).cache)
    # Another document of the same pixels, which goes with the one that is named.
    shutil.copy(built / "photos" / "red.png", built / "photos" / "same.png")
    run_steps(built, "p")
    digests = {row["document_id"]: row["image"] for row in live_rows(built, "p").values()}
    assert digests["red.png"] == digests["same.png"]

    def is_there(name: str) -> bool:
        key = cache.key(seeing().space.id, "image", digests[name])
        return bool(cache.get_many([key], None))

    (built / "photos" / "blue.png").unlink()
    (built / "photos" / "red.png").unlink()
    assert is_there("blue.png")
    with run_of(built, "p") as run:
        forget(run, ["blue.png", "red.png"], [])
    assert not is_there("blue.png")
    assert not is_there("red.png")


def test_a_bundle_of_images_is_proved_by_texts_and_images(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, archive = Command(monkeypatch, capsys), tmp_path / "p.tar"
    (tmp_path / "there").mkdir()
    assert command("bundle", "p", "--to", str(archive)).code == 0
    with monkeypatch.context() as patch:
        true = Seeing.embed_images
        patch.setattr(Seeing, "embed_images", lambda model, pixels: true(model, pixels // 2))
        said = command("import", str(archive), "--home", str(tmp_path / "there"))
        assert (said.code, "golden vectors do not reproduce" in said.err) == (1, True)
    said = command("import", str(archive), "--home", str(tmp_path / "there"))
    assert said.code == 0, said.err
    assert best(tmp_path / "there", query="red")[0] == "red.png"


def test_checks_apply_to_images(home_once: Path) -> None:
    said = json.loads((home_once / "said.json").read_text(encoding="utf-8"))
    assert all(passed for passed, _ in said.values()), said
    assert "stored vectors are those" in said["vectors_belong_to_their_texts"][1]
    assert "canaries" in said["provider_is_unchanged"][1]


def test_the_command_line_searches_by_image(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(monkeypatch, capsys)
    image = str(built / "photos" / "cyan.png")
    said = command("search", "p", "--image", image, "-k", "1", "--json")
    assert said.code == 0, said.err
    assert said.results[0]["hits"][0]["document_id"] == "cyan.png"
    for extra in (["red"], ["--like", "cyan.png"], ["--mode", "text"]):
        assert command("search", "p", "--image", "x.png", *extra).code == 2
