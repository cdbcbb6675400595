"""A model that is fine-tuned on the pipeline's own pairs: it is another model, and released only if
it is no worse than its base."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines import migrate
from embedding_pipelines.compare.compare import compare_models
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.plan import plan
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import live_release
from embedding_pipelines.search import search
from embedding_pipelines.serving.bundle import write_bundle
from embedding_pipelines.serving.imports import import_bundle
from embedding_pipelines.spec.load import parse_model
from embedding_pipelines.steps.chain import step_named, steps_of
from embedding_pipelines.steps.checks import current_checks
from embedding_pipelines.steps.garbage import find_garbage
from embedding_pipelines.steps.train import _remove_damaged
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    report,
    run_of,
    run_steps,
    write_pipeline,
)
from embedding_pipelines_tests.tiny import one_thread, write_tiny

pytestmark = pytest.mark.slow  # imports of torch, transformers and datasets, and two trainings
PIPELINE = """\
source: {{kind: jsonl, path: data/corpus.jsonl, id: id, text: [text]}}
model:
  provider: hf
  model: models/tiny
  finetune: {{pairs: data/{pairs}.jsonl, epochs: 4, learning_rate: 0.01, batch_size: 16}}
evaluation: {{queries: data/queries.jsonl, qrels: data/qrels.tsv}}
partitions: 4
"""
ASKED = ["kitten", "loan", "surgeon", "planet", "violin", "glacier", "recipe", "engine"]
SAID = ["cat", "bank", "hospital", "star", "music", "ice", "kitchen", "motor"]
FILLERS = ["one", "two", "three", "four", "five", "six", "red", "green", "blue", "white", "black"]
DOCUMENTS, JUDGED = 160, 40


def lay_out(home: Path) -> None:
    """Documents of one word and some others; queries of another word for it and two of the others."""
    generator = random.Random(1)
    documents, queries = list[dict[str, str]](), list[dict[str, str]]()
    for number in range(DOCUMENTS):
        topic, words = number % len(SAID), generator.sample(FILLERS, 3)
        documents.append({"id": f"d{number}", "text": " ".join([SAID[topic], *words])})
        queries.append({"_id": f"q{number}", "text": " ".join([ASKED[topic], *words[:2]])})
    data = home / "data"
    write_lines(data / "corpus.jsonl", documents)
    write_lines(data / "queries.jsonl", queries)
    rows = [f"q{number}\td{number}\t1\n" for number in range(JUDGED)]
    (data / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    names = [f"d{number}" for number in range(DOCUMENTS)]
    for file in ("pairs", "wrong"):
        pairs = zip(queries, names, strict=True)
        write_lines(
            data / f"{file}.jsonl",
            [{"query": query["text"], "document_id": name} for query, name in pairs],
        )
        generator.shuffle(names)


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("finetune")
    lay_out(home)
    write_tiny(home / "models")
    write_pipeline(home, "p", PIPELINE.format(pairs="pairs"))
    with one_thread():
        run_steps(home, "p")
        yield home


def gate(home: Path, name: str) -> tuple[bool, str]:
    """Whether the check of the base lets the candidate pass, and its sentence."""
    with run_of(home, name) as run:
        record = current_checks(run)
    assert record is not None
    (check,) = [each for each in record.checks if each.name == "not_worse_than_base"]
    return not check.blocks, check.sentence


def test_it_is_trained_once_and_is_a_model_of_its_own(built: Path) -> None:
    passes, sentence = gate(built, "p")
    assert passes, sentence
    with run_of(built, "p") as run:
        release = live_release(run.folder)
        assert release.space.model == "models/tiny fine-tuned"
        assert release.space != run.model.base.space  # type: ignore[attr-defined]
        record = json.loads(run.folder.model.read_text())
        before, after = (record["figures"][side]["judged"] for side in ("base", "trained"))
        assert sum(after.values()) > sum(before.values()) + 5  # of 40 queries
        made = plan(run)
        assert (made.texts_to_embed, made.rows_unchanged) == (0, DOCUMENTS)
        card = (run.folder.model.parent / record["folder"] / "README.md").read_text()
        assert record["data"] in card
        assert "| judged | 40 |" in card
        assert not any(word in card for word in ASKED)
        assert not find_garbage(run)
        assert run.model.tokenizer_digest == release.spec.model.open(built).tokenizer_digest
    again = report(run_steps(built, "p"), "train")
    assert (again.changed, again.statistics["held_out"]) == (False, record["held_out"])
    assert len(search(built, "p", "kitten red", k=5).hits) == 5


def test_a_device_trains_nothing_again_and_other_pairs_do(built: Path, home: Path) -> None:
    copy_home(built, home)
    train = step_named("train")
    text = PIPELINE.format(pairs="pairs")
    write_pipeline(home, "p", text.replace("provider: hf", "provider: hf\n  device: cpu"))
    with run_of(home, "p") as run:
        assert train.current(run) is not None
    write_pipeline(home, "p", text.replace("epochs: 4", "epochs: 5"))
    with run_of(home, "p") as run:
        assert train.current(run) is None
    write_pipeline(home, "p", text)
    pairs = home / "data" / "pairs.jsonl"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:-1]))
    with run_of(home, "p") as run:
        assert train.current(run) is None
        folder = run.folder.model.parent
        (folder / "abandoned").mkdir()
        assert [entry.path for entry in find_garbage(run)] == [folder / "abandoned"]
        trained = folder / json.loads(run.folder.model.read_text())["folder"]
        _remove_damaged(run)
        assert trained.is_dir()
        weights = trained / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        _remove_damaged(run)
        assert not trained.exists()


def test_pairs_that_are_wrong_are_held_back(built: Path, home: Path) -> None:
    copy_home(built, home)
    write_pipeline(home, "wrong", PIPELINE.format(pairs="wrong"))
    with pytest.raises(ReleaseError, match="failed not_worse_than_base; there is no release yet"):
        run_steps(home, "wrong")
    passes, sentence = gate(home, "wrong")
    assert not passes
    assert "Over judged queries it fell by more than evaluation.may_lose (0.02). See" in sentence


def test_it_is_compared_and_goes_along_in_a_bundle(built: Path, home: Path, tmp_path: Path) -> None:
    with run_of(built, "p") as run:
        result = compare_models(run, [parse_model("{provider: hf, model: models/tiny}")])
        own, base = result.models
        assert (own.model, base.model) == ("hf:models/tiny fine-tuned", "hf:models/tiny")
        assert base.differences["ndcg_at_10"].mean < 0
    description = write_bundle(Warehouse(built), "p", tmp_path / "p.tar")
    assert description.model.source == "bundle"
    assert not any("models/tiny" in path for path in description.model.files)  # not its base
    import_bundle(Warehouse(home), tmp_path / "p.tar")
    expected = [hit.document_id for hit in search(built, "p", "surgeon", k=5).hits]
    assert [hit.document_id for hit in search(home, "p", "surgeon", k=5).hits] == expected


def test_what_is_forgotten_is_said_of_the_model(built: Path, home: Path) -> None:
    copy_home(built, home)
    with run_of(home, "p") as run:
        checkpoints = run.folder.model.parent / ".checkpoints-x"
        checkpoints.mkdir()
        receipt = forget(run, {"d50"}, [])
        assert not receipt.left
        assert not checkpoints.exists()
        assert any("may keep something of these. Delete" in note for note in receipt.notes)
    run_steps(home, "p")
    assert search(home, "p", "kitten", k=5).hits


PLAIN = "{provider: hf, model: models/tiny}"


def test_a_migration_from_it_leaves_it_whole(built: Path, home: Path) -> None:
    copy_home(built, home)
    models = Warehouse(home).pipeline("p").models("")
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    migrate.start(home, "p", PLAIN)
    with pytest.raises(ReleaseError, match="not_worse_than_live"):
        run_steps(home, "p")
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before
    migrate.abort(home, "p", Silent())
    assert search(home, "p", "kitten", k=5).release == 1
    run_steps(home, "p")


def test_a_migration_to_it_finishes_with_its_model_in_place(built: Path, home: Path) -> None:
    copy_home(built, home)
    text = PIPELINE.format(pairs="pairs")
    tuned = text[text.index("{pairs:") : text.index("evaluation")].strip()
    own = text[text.index("  finetune") : text.index("evaluation")]
    write_pipeline(home, "q", text.replace(own, ""))
    run_steps(home, "q")
    migrate.start(home, "q", f"{{provider: hf, model: models/tiny, finetune: {tuned}}}")
    corpus = home / "data" / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + json.dumps({"id": "new", "text": "cat purple"}) + "\n")
    run_steps(home, "q")  # of both lines, before the model is trained
    folder = Warehouse(home).pipeline("q")
    with run_of(home, "q") as run:
        assert not find_garbage(run)
        migrate.cut_over(run)
    hits = search(home, "q", "kitten", k=5).hits
    migrate.finish(home, "q", Silent())
    assert not folder.new_line.exists()
    assert search(home, "q", "kitten", k=5).hits == hits  # before any run
    with run_of(home, "q") as run:
        assert all(step.whole(run) is not None for step in steps_of(run.spec))
        assert not find_garbage(run)
