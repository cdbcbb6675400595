"""A sealed release: what is in it, and every way in which another one is refused."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import (
    BundleError,
    BusyError,
    ReleaseError,
    SpaceMismatchError,
)
from embedding_pipelines.files import read_json, seal, write_json
from embedding_pipelines.search import search
from embedding_pipelines.serving import bundle
from embedding_pipelines.serving.archive import DESCRIPTION, entries_below
from embedding_pipelines.serving.bundle import GOLDEN, HOME, SBOM, opened, write_bundle
from embedding_pipelines.serving.imports import import_bundle
from embedding_pipelines.serving.permissions import Permissions
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.stores._manifest import leads_elsewhere
from embedding_pipelines_tests.chain import run_steps, top, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.cross_encoders import write_cross_encoder
from embedding_pipelines_tests.runs import Collected

PIPELINE = f"""\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model: {{provider: hashing}}
partitions: 2
{UNMEASURED}"""
ROWS = [(f"id-{n}", f"word{n % 7} text number {n}", "c") for n in range(20)]
OWN = f"{HOME}/data/warehouse/pipelines/p"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a release; nobody changes it."""
    home = tmp_path_factory.mktemp("here")
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture(scope="module")
def whole(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, as a folder; nobody changes it."""
    folder = tmp_path_factory.mktemp("bundles") / "p"
    write_bundle(Warehouse(here), "p", folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    home = tmp_path / "there"
    home.mkdir()
    return home


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a bundle says of itself."""
    value = json.loads((folder / DESCRIPTION).read_text())
    change(value)
    (folder / DESCRIPTION).write_text(json.dumps(value))


def reseal(folder: Path) -> None:
    """Put the right checksums of all files into the description, as whoever means harm would."""
    files = entries_below(folder)
    del files[DESCRIPTION]
    entries = {name: entry.model_dump() for name, entry in files.items()}
    edit(folder, lambda value: value.update(files=entries))


def refused(there: Path, folder: Path, match: str = "bundle|home folder") -> None:
    """An import that is refused leaves nothing."""
    with pytest.raises(BundleError, match=match):
        import_bundle(Warehouse(there), folder)
    assert not [path for path in there.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_it_says_what_it_is_of(whole: Path) -> None:
    value = json.loads((whole / DESCRIPTION).read_text())
    assert value["pipeline"] == "p"
    assert value["model"]["source"] == "built in"
    assert value["licences"]["embedding-pipelines"] == "Apache-2.0"
    assert value["has_shards"]
    content = (whole / GOLDEN).read_bytes()
    entry = value["files"][GOLDEN]
    assert entry == {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert set(entries_below(whole)) == {*value["files"], DESCRIPTION}


def test_golden_texts_are_canaries_and_rows(whole: Path) -> None:
    rows = pq.read_table(whole / GOLDEN).to_pylist()
    texts = {row["text"] for row in rows if row["input_type"] == "document"}
    assert "42" in texts
    assert texts & {title for _, title, _ in ROWS}
    assert {row["input_type"] for row in rows} == {"document", "query"}


def test_the_bill_of_materials_names_what_the_release_needs(whole: Path) -> None:
    value = json.loads((whole / SBOM).read_text())
    assert (value["bomFormat"], value["specVersion"]) == ("CycloneDX", "1.6")
    components = {part["name"]: part for part in value["components"]}
    assert components["lancedb"]["version"] == version("lancedb")
    assert components["lancedb"]["purl"] == f"pkg:pypi/lancedb@{version('lancedb')}"
    assert components["embedding-pipelines"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert {"numpy", "pyarrow"} <= components.keys()
    assert not {"pytest", "moto"} & components.keys()
    refs = {part["bom-ref"] for part in value["components"]}
    for entry in value["dependencies"]:
        assert set(entry["dependsOn"]) <= refs


def test_an_archive_and_a_folder_are_served_alike(here: Path, whole: Path, tmp_path: Path) -> None:
    archive = tmp_path / "p.tar"
    write_bundle(Warehouse(here), "p", archive, with_shards=False)
    for source in (whole, archive):
        with opened(str(source)) as home:
            assert top(home, "p", "text number 3") == ["id-3"]
        assert not home.exists()


def test_a_cross_encoder_of_the_home_goes_along(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_cross_encoder(home / "models" / "tiny")
    write_pipeline(home, "p", f"{PIPELINE}search: {{rerank: models/tiny}}\n")
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    (home / "models" / "tiny" / "notes.py").write_text("raise SystemExit")
    description = write_bundle(Warehouse(home), "p", tmp_path / "p.tar", with_shards=False)
    assert {*description.model.files} == {
        f"models/tiny/{path.name}"
        for path in (home / "models" / "tiny").iterdir()
        if path.suffix != ".py"
    }
    assert description.model.source == "built in"  # which is the embedding model
    (home / "models").rename(tmp_path / "away")
    with opened(str(tmp_path / "p.tar")) as served:
        result = search(served, "p", "text number 3", k=2)
        assert (result.reranked_by, len(result.hits)) == ("models/tiny", 2)


def test_a_cross_encoder_of_the_hub_is_said_not_to_go_along(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_pipeline(home, "p", f"{PIPELINE}search: {{rerank: some/encoder}}\n")
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    said = Collected()
    bundled = write_bundle(Warehouse(home), "p", tmp_path / "p", with_shards=False, progress=said)
    assert not bundled.model.files
    assert "cross-encoder 'some/encoder' is no folder of this home" in " ".join(said.notes)


def test_it_is_never_written_over_something(here: Path, whole: Path) -> None:
    with pytest.raises(BundleError, match="exists"):
        write_bundle(Warehouse(here), "p", whole)


def test_a_pipeline_at_work_or_without_a_release_has_none(here: Path, tmp_path: Path) -> None:
    with Warehouse(here).pipeline("p").lock("run"), pytest.raises(BusyError):
        write_bundle(Warehouse(here), "p", tmp_path / "x.tar")
    with pytest.raises(ReleaseError, match="no release yet"):
        write_bundle(Warehouse(here), "q", tmp_path / "x.tar")
    assert not list(tmp_path.iterdir())


def test_golden_vectors_have_to_reproduce(
    copy: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = bundle._embed

    def nearly(*given: Any) -> Any:
        vectors = true(*given).copy()
        vectors[0] += 0.01  # a cosine of 0.997
        return vectors

    monkeypatch.setattr(bundle, "_embed", nearly)
    refused(there, copy, "do not reproduce")
    with pytest.raises(BundleError, match="do not reproduce"), opened(str(copy)):
        pass


def test_a_table_of_other_vectors_is_not_sealed(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = bundle._embed
    monkeypatch.setattr(bundle, "_embed", lambda *given: true(*given)[:, ::-1].copy())
    with pytest.raises(SpaceMismatchError, match="--re-embed"):
        write_bundle(Warehouse(here), "p", tmp_path / "x.tar")


def test_every_file_is_compared(copy: Path, there: Path) -> None:
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        before = path.read_bytes()
        if not before or path.name == DESCRIPTION:
            continue
        flipped = bytearray(before)
        flipped[len(before) // 2] ^= 1
        path.write_bytes(flipped)
        refused(there, copy, "checksum")
        path.write_bytes(before)
    import_bundle(Warehouse(there), copy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 2),
        ("format", "1"),
        ("pipeline", "../p"),
        ("pipeline", 7),
        ("table", "../../p-x"),
        ("table", "q-123"),
        ("codec", "../x.npz"),
        ("release", "1"),
        ("release", 2),
        ("rows", -1),
        ("rows", 1.5),
        ("space_id", "0" * 32),
        ("has_shards", "yes"),
        ("files", []),
        ("files", {}),
        ("files", {"../../x": {"size_bytes": 1, "sha256": "0" * 64}}),
        ("files", {GOLDEN: {"size_bytes": -1, "sha256": "0" * 64}}),
        ("files", {GOLDEN: {"size_bytes": 10**30, "sha256": "0" * 64}}),
        ("files", {GOLDEN: {"size_bytes": 1, "sha256": "zz"}}),
        ("model", None),
        ("model", {}),
        ("made_at", "yesterday"),
        ("unknown", 1),
    ],
)
def test_wrong_types_and_names_in_the_description(
    copy: Path, there: Path, name: str, value: Any
) -> None:
    edit(copy, lambda description: description.update({name: value}))
    refused(there, copy)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"a": NaN}', "\0"])
def test_a_description_that_is_none(copy: Path, there: Path, text: str) -> None:
    (copy / DESCRIPTION).write_text(text)
    refused(there, copy)


def test_a_folder_that_is_no_bundle(there: Path, tmp_path: Path) -> None:
    refused(there, tmp_path / "none", "There is no bundle")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(there, empty, "is no bundle")


@pytest.mark.parametrize(
    "path", ["data/warehouse/pipelines/q/releases.json", "evil.py", "data/x.csv", "warehouse.yaml"]
)
def test_files_of_other_things_are_refused(copy: Path, there: Path, path: str) -> None:
    target = copy / HOME / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("x")
    reseal(copy)
    refused(there, copy, "names a file")


def release(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the release of a bundle, with right checksums all over."""
    for name in ("releases.json", "releases.copy.json"):
        value = read_json(folder / OWN / name)
        assert value is not None
        change(value["releases"][0])
        write_json(folder / OWN / name, value)
    reseal(folder)


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "custom", "cls": "evil:Model"},
        {"kind": "custom", "cls": "evil:Model", "trusted": True},
        {"kind": "word2vec", "vectors": "v.kv", "trusted": True},
        {"kind": "word2vec", "vectors": "/etc/passwd"},
        {"kind": "word2vec", "vectors": "../x.txt"},
        {"kind": "hf", "model": "../../models/x"},
        {"kind": "tensorflow", "model": "/opt/x"},
        {"kind": "unknown"},
        {"kind": 3},
        [],
    ],
)
def test_a_model_that_would_run_code_or_read_elsewhere(copy: Path, there: Path, model: Any) -> None:
    """It is refused before it is opened."""
    release(copy, lambda value: value["spec"].update(model=model))
    refused(there, copy)


@pytest.mark.parametrize(
    ("section", "value", "match"),
    [
        ("model", {"kind": "cohere", "model": "embed-v4.0", "api_key_env": "HOME"}, "send HOME to"),
        ("name", "${USER_S_SECRET}", r"\$\{USER_S_SECRET\} is no variable"),
    ],
)
def test_a_bundle_that_was_sent_names_no_variable_of_the_server(
    copy: Path, there: Path, section: str, value: Any, match: str
) -> None:
    release(copy, lambda entry: entry["spec"].update({section: value}))
    with pytest.raises(BundleError, match=match):
        import_bundle(Warehouse(there), copy, permissions=Permissions())
    assert not list(there.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("table", "../x"), ("table", 3), ("codec", "../../x"), ("version", "x")),
        *(("rows", None), ("spec", "x"), ("space", {}), ("number", 99), ("cleaning", "other")),
    ],
)
def test_a_release_of_other_things(copy: Path, there: Path, name: str, value: Any) -> None:
    release(copy, lambda entry: entry.update({name: value}))
    refused(there, copy)


@pytest.mark.parametrize("name", ["vector_store.json", "checks.json", "chunks/b00.json"])
@pytest.mark.parametrize(
    "change", [{"table": "../x", "shard": "../x"}, {"rows": "x", "version": []}]
)
def test_records_of_wrong_types_or_other_places(
    copy: Path, there: Path, name: str, change: dict[str, Any]
) -> None:
    value = read_json(copy / OWN / name)
    assert value is not None
    write_json(
        copy / OWN / name, value | {key: change[key] for key in change.keys() & value.keys()}
    )
    reseal(copy)
    refused(there, copy)


@pytest.mark.parametrize("name", ["/etc/model", "../../model"])
def test_a_reranker_outside_of_the_home_folder(copy: Path, there: Path, name: str) -> None:
    release(copy, lambda value: value["spec"]["search"].update(rerank=name))
    refused(there, copy, "search.rerank lies outside")


def test_a_table_that_names_files_elsewhere(copy: Path, there: Path) -> None:
    """A base path, which Lance would follow."""
    (manifest,) = (copy / HOME / "data/warehouse/tables").rglob("*.manifest")
    content = manifest.read_bytes()
    assert not leads_elsewhere(manifest)
    (begin,) = struct.unpack("<Q", content[-16:-8])
    (size,) = struct.unpack("<I", content[begin : begin + 4])
    path = b"\x22" + bytes([len(b"/etc")]) + b"/etc"  # BasePath.path
    message = content[begin + 4 : begin + 4 + size] + b"\x92\x01" + bytes([len(path)]) + path
    head = content[:begin] + struct.pack("<I", len(message)) + message
    manifest.write_bytes(head + content[-16:])
    assert leads_elsewhere(manifest)
    reseal(copy)
    refused(there, copy, "names files outside of it")


def test_json_that_is_nested_too_deep(copy: Path, there: Path) -> None:
    for name in ("releases.json", "releases.copy.json"):
        (copy / OWN / name).write_bytes(seal('{"live": ' + "[" * 200_000 + "]" * 200_000 + "}"))
    reseal(copy)
    refused(there, copy)


def test_a_pickle_is_no_model_s_file(copy: Path, there: Path) -> None:
    (copy / HOME / "m").mkdir()
    (copy / HOME / "m" / "weights.pkl").write_bytes(b"\x80\x04.")

    def name_it(value: dict[str, Any]) -> None:
        value["model"]["files"] = {"m/weights.pkl": "0" * 64}

    reseal(copy)
    edit(copy, name_it)
    refused(there, copy, "names a file")


@pytest.mark.parametrize(
    "path",
    [
        "pipelines/evil.json",
        "Pipelines/evil.json",
        "data/warehouse/keys.json",
        ".vscode/tasks.json",
    ],
)
def test_a_model_s_file_lies_in_no_place_that_a_home_obeys(
    copy: Path, there: Path, path: str
) -> None:
    target = copy / HOME / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{}")
    reseal(copy)
    edit(copy, lambda value: value["model"].update(files={path: "0" * 64}))
    refused(there, copy, "names a file")


def test_a_codec_with_a_pickle_in_it_is_never_loaded(copy: Path, there: Path) -> None:
    import numpy as np

    (path,) = (copy / OWN / "codec").glob("*.npz")
    np.savez(path, parts=np.array([{"a": 1}], object), allow_pickle=True)
    reseal(copy)
    refused(there, copy)


def test_golden_texts_that_are_none(copy: Path, there: Path) -> None:
    for content in (b"x", pq.read_table(copy / GOLDEN).slice(0, 0)):
        if isinstance(content, bytes):
            (copy / GOLDEN).write_bytes(content)
        else:
            pq.write_table(content, copy / GOLDEN)
        reseal(copy)
        refused(there, copy, "golden")
