"""A bundle becomes a release of another home, and runs go on from it."""

import shutil
from pathlib import Path

import pytest

from embedding_pipelines.doctor.examine import examine
from embedding_pipelines.errors import BundleError
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.inference.weights import local_folder
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.push import Pusher
from embedding_pipelines.releases import read_releases, rollback
from embedding_pipelines.serving.bundle import write_bundle
from embedding_pipelines.serving.imports import import_bundle
from embedding_pipelines.spec.load import read_draft
from embedding_pipelines.storage.forgotten import read_forgotten
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    copy_home,
    live_rows,
    report,
    run_of,
    run_recorded,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED
from embedding_pipelines_tests.decoded import files_with
from embedding_pipelines_tests.drawn import drawing, encoded, write
from embedding_pipelines_tests.seeing import Seeing

QUICK = f"""\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model: {{provider: hashing}}
partitions: 4
{UNMEASURED}"""
ROWS = [(f"id-{n}", f"word{n % 7} text number {n}", "c") for n in range(40)]
IMAGES = f"""\
source: {{kind: images, path: photos}}
model: {{provider: clip, model: seeing}}
partitions: 1
{UNMEASURED}"""
SECRET = "Ada Lovelace lives in the blue house"


def built(home: Path, rows: list[tuple[str, str, str]], pipeline: str = QUICK) -> Path:
    """A home with a release of these rows."""
    write_pipeline(home, "p", pipeline)
    write_csv(home, "a.csv", rows)
    run_steps(home, "p")
    return home


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Another machine's empty home."""
    home = tmp_path / "there"
    home.mkdir()
    return home


@pytest.fixture(scope="module")
def here_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("here"), ROWS)


@pytest.fixture
def here(tmp_path: Path, here_once: Path) -> Path:
    return copy_home(here_once, tmp_path / "here")


def carry(here: Path, there: Path, with_shards: bool = True) -> Path:
    """A bundle of `here`, imported by `there`, which has the same source."""
    number = len(list(here.parent.glob("*.tar")))
    bundle = here.parent / f"{number}.tar"
    write_bundle(Warehouse(here), "p", bundle, with_shards=with_shards)
    import_bundle(Warehouse(there), bundle)
    return bundle


def copy_source(here: Path, there: Path) -> None:
    shutil.copytree(
        here / "data", there / "data", dirs_exist_ok=True, ignore=lambda *_: ["warehouse"]
    )


def test_a_run_elsewhere_embeds_nothing_that_has_not_changed(tmp_path: Path, there: Path) -> None:
    """With all checks: they are on record as well."""
    here = built(tmp_path / "here", ROWS, HASHING)
    carry(here, there)
    assert_same_rows(live_rows(here, "p"), live_rows(there, "p"))
    copy_source(here, there)
    reports, texts = run_recorded(there, "p")
    assert texts == []
    assert {entry.step for entry in reports if entry.changed} == {"documents"}
    assert read_releases(Warehouse(there).pipeline("p")).live == 1
    write_csv(there, "b.csv", [("new", "one more document", "c")])
    reports, texts = run_recorded(there, "p")
    assert texts == ["one more document"]
    assert report(reports, "vector_store").statistics["added"] == 1


def test_nothing_is_lost_where_a_bundle_was_taken_up(tmp_path: Path, there: Path) -> None:
    here = built(tmp_path / "here", ROWS, f"{QUICK}compression: [int8]\n")
    carry(here, there)
    copy_source(here, there)
    draft = read_draft(there / "pipelines" / "p.yaml")
    lost = [entry for entry in examine(draft, Warehouse(there)) if not entry.is_well]
    assert not lost, lost


def test_the_cache_has_its_vectors(here: Path, there: Path) -> None:
    """So that a second pipeline of the same texts costs nothing."""
    carry(here, there)
    assert len(run_of(there, "p").cache) == len(ROWS)


def test_two_homes_take_turns(here: Path, there: Path) -> None:
    carry(here, there)
    copy_source(here, there)
    write_csv(there, "b.csv", [("new", "one more document", "c")])
    run_steps(there, "p")
    carry(there, here)
    assert_same_rows(live_rows(here, "p"), live_rows(there, "p"))
    copy_source(there, here)
    assert run_recorded(here, "p")[1] == []
    releases = read_releases(Warehouse(here).pipeline("p"))
    assert releases.live == 2
    rollback(Warehouse(here).pipeline("p"), None)
    assert "new#0" not in live_rows(here, "p")


def test_only_the_live_rows_travel(here: Path, there: Path) -> None:
    write_csv(here, "a.csv", [*ROWS, ("ada", SECRET, "c")])
    run_steps(here, "p")
    write_csv(here, "a.csv", ROWS)
    run_steps(here, "p")
    assert files_with(here / "data" / "warehouse", SECRET)  # in old versions, for a rollback
    bundle = here.parent / "folder"
    write_bundle(Warehouse(here), "p", bundle)
    assert files_with(bundle, SECRET) == []
    import_bundle(Warehouse(there), bundle)
    assert len(live_rows(there, "p")) == len(ROWS)


@pytest.mark.slow
def test_what_a_home_has_forgotten_stays_out_of_it(here: Path, there: Path) -> None:
    """Of a bundle that was made before, too; and no later run brings it back."""
    write_csv(here, "a.csv", [*ROWS, ("ada", SECRET, "c")])
    run_steps(here, "p")
    for number, with_shards in enumerate((True, False)):
        old = here.parent / f"old-{number}.tar"
        write_bundle(Warehouse(here), "p", old, with_shards=with_shards)
    carry(here, there)
    copy_source(here, there)
    with run_of(there, "p") as run:
        forget(run, ["ada"], [])
    for number in range(2):
        imported = import_bundle(Warehouse(there), here.parent / f"old-{number}.tar")
        assert imported.forgotten == 1
        assert "ada#0" not in live_rows(there, "p")
        assert len(live_rows(there, "p")) == len(ROWS)
        assert files_with(there / "data" / "warehouse", SECRET) == []
    run_steps(there, "p")
    assert files_with(there / "data" / "warehouse", SECRET) == []


def test_no_word_on_what_is_forgotten_here_comes_with_a_bundle(here: Path, there: Path) -> None:
    write_csv(there, "a.csv", [*ROWS, ("ada", SECRET, "c")])
    write_pipeline(there, "p", QUICK)
    run_steps(there, "p")
    with run_of(there, "p") as run:
        forget(run, ["ada"], [])
    with Pusher(run_of(here, "p").spec, Warehouse(here)) as pusher:
        pusher.put([{"id": "ada", "title": SECRET}])
        pusher.delete(["ada"])
    run_steps(here, "p")
    carry(here, there)
    assert pushed_log(Warehouse(there), "p").words() == {}


def test_what_was_forgotten_elsewhere_stays_out_here(here: Path, there: Path) -> None:
    """Two lists of different salts are one from then on."""
    write_csv(here, "a.csv", [*ROWS, ("ada", SECRET, "c")])
    write_csv(there, "a.csv", [*ROWS, ("ada", SECRET, "c")])
    write_pipeline(there, "p", QUICK)
    for home, document in ((here, "ada"), (there, "id-1")):
        run_steps(home, "p")
        with run_of(home, "p") as run:
            forget(run, [document], [])
    run_steps(here, "p")
    carry(here, there)
    run_steps(there, "p")
    rows = live_rows(there, "p")
    assert "ada#0" not in rows
    assert "id-1#0" not in rows
    assert len(rows) == len(ROWS) - 1
    forgotten = read_forgotten(Warehouse(there).forgotten / "p.json")
    assert forgotten.has("id", "ada")
    assert forgotten.has("id", "id-1")
    assert not forgotten.without(["ada"], []).has("id", "ada")


def test_without_ids_a_bundle_to_serve_cannot_tell_what_is_forgotten(
    tmp_path: Path, there: Path
) -> None:
    pipeline = QUICK.replace(" id: id,", "")
    here = built(tmp_path / "here", [*ROWS, ("ada", SECRET, "c")], pipeline)
    bundle = carry(here, there)
    copy_source(here, there)
    run_steps(there, "p")
    with run_of(there, "p") as run:
        forget(run, [], ["data/a.csv"])
    bare = tmp_path / "bare.tar"
    write_bundle(Warehouse(here), "p", bare, with_shards=False)
    with pytest.raises(BundleError, match=r"neither source\.id nor shards"):
        import_bundle(Warehouse(there), bare)
    assert import_bundle(Warehouse(there), bundle).forgotten == len(ROWS) + 1


def test_a_rolled_back_release_is_served_and_no_run_goes_on_from_it(
    here: Path, there: Path
) -> None:
    write_csv(here, "b.csv", [("new", "one more document", "c")])
    run_steps(here, "p")
    rollback(Warehouse(here).pipeline("p"), None)
    bundle = here.parent / "b.tar"
    assert not write_bundle(Warehouse(here), "p", bundle).has_shards
    assert not import_bundle(Warehouse(there), bundle).goes_on
    assert top(there, "p", "text number 3") == ["id-3"]
    copy_source(here, there)
    assert len(run_recorded(there, "p")[1]) == len(ROWS) + 1


def test_the_pipeline_file_that_is_there_stays(here: Path, there: Path) -> None:
    path = write_pipeline(
        there, "p", QUICK.replace("partitions: 4", "partitions: 4\nschedule: '0 2 * * *'")
    )
    before = path.read_bytes()
    bundle = here.parent / "b.tar"
    write_bundle(Warehouse(here), "p", bundle)
    imported = import_bundle(Warehouse(there), bundle)
    assert path.read_bytes() == before
    assert "stays as it is" in imported.notes[0]


def test_words_are_found_where_a_bundle_is_taken_up(tmp_path: Path, there: Path) -> None:
    here = built(tmp_path / "here", ROWS, f"{QUICK}search: {{mode: hybrid}}\n")
    carry(here, there)
    assert top(there, "p", "number 3") == ["id-3"]
    copy_source(here, there)
    assert run_recorded(there, "p")[1] == []


def test_a_model_that_was_trained_goes_along(tmp_path: Path, there: Path) -> None:
    pipeline = QUICK.replace("provider: hashing", "provider: word2vec, train: {min_count: 1}")
    here = built(tmp_path / "here", ROWS, pipeline)
    carry(here, there)
    copy_source(here, there)
    reports, texts = run_recorded(there, "p")
    assert texts == []
    assert not report(reports, "train").changed


@pytest.mark.slow
def test_weights_below_the_home_go_along(tmp_path: Path, there: Path) -> None:
    """And are left alone where others are in their place."""
    weights = local_folder("sentence-transformers/all-MiniLM-L6-v2", None, tmp_path)
    assert weights is not None
    shutil.copytree(weights, tmp_path / "here" / "models" / "mini")
    pipeline = QUICK.replace("provider: hashing", "provider: hf, model: models/mini")
    bundle = carry(built(tmp_path / "here", ROWS, pipeline), there)
    assert top(there, "p", "text number 3") == ["id-3"]
    path = there / "models" / "mini" / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(BundleError, match="another file than the model's"):
        import_bundle(Warehouse(there), bundle)


def test_what_was_pushed_travels_and_gives_way_to_what_was_pushed_here(
    here: Path, there: Path
) -> None:
    with Pusher(run_of(here, "p").spec, Warehouse(here)) as pusher:
        pusher.put([{"id": "id-1", "title": SECRET}, {"id": "new", "title": "a new text"}])
        pusher.put([{"id": "id-1", "title": "replaced"}])
        pusher.delete(["id-2"])
    run_steps(here, "p")
    before = live_rows(here, "p")
    carry(here, there)
    assert files_with(there / "data" / "warehouse", SECRET) == []  # an older word
    assert_same_rows(live_rows(there, "p"), before)
    copy_source(here, there)
    _, texts = run_recorded(there, "p")
    assert texts == []
    assert_same_rows(live_rows(there, "p"), before)
    with Pusher(run_of(there, "p").spec, Warehouse(there)) as pusher:
        pusher.put([{"id": "new", "title": "mine"}])
    carry(here, there)
    assert top(there, "p", "mine") == ["new"]
    run_steps(there, "p")
    rows = {row["document_id"]: row["text"] for row in live_rows(there, "p").values()}
    assert (rows["new"], rows["id-1"], "id-2" in rows) == ("mine", "replaced", False)


@pytest.mark.usefixtures("decoded_here")
@pytest.mark.parametrize("with_shards", [True, False])
def test_an_image_that_is_forgotten_here_stays_out_under_the_name_that_it_has_there(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch, with_shards: bool
) -> None:
    monkeypatch.setattr(Clip, "model_class", Seeing)
    here = tmp_path / "here"
    for home, name in ((here, "a.png"), (there, "b.bmp")):
        write_pipeline(home, "p", IMAGES)
        write(home / "photos" / name, encoded(drawing(1), name[-3:].upper()))
        write(home / "photos" / "0.png", encoded(drawing(0)))
        run_steps(home, "p")
    with run_of(there, "p") as run:
        forget(run, ["b.bmp"], [])
    bundle = here.parent / "images.tar"
    write_bundle(Warehouse(here), "p", bundle, with_shards=with_shards)
    assert import_bundle(Warehouse(there), bundle).forgotten == 1
    assert live_rows(there, "p").keys() == {"0.png#0"}
