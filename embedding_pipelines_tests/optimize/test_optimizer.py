"""A compression is measured on the pipeline's own vectors; what is found is what searches really
find."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.float16 import Float16
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.errors import BusyError, CompressionError, ConfigError
from embedding_pipelines.metrics.neighbours import recall
from embedding_pipelines.optimize import optimizer as tune_step
from embedding_pipelines.optimize.candidates import Compression
from embedding_pipelines.optimize.compare import settings
from embedding_pipelines.optimize.optimizer import Tuned, Wish, refit, tune
from embedding_pipelines.optimize.trial import Asked, Corpus, Trials, by_codes
from embedding_pipelines.run import Run
from embedding_pipelines.search import nearest
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines_tests.chain import run_of, run_steps, steps, write_csv, write_pipeline

DOCUMENTS, DIMENSIONS = 700, 64
PIPELINE = """\
# things
source: {kind: csv, path: 'data/*.csv', id: id, text: [title]}
model: {provider: hashing}
partitions: 4
"""


def write_things(home: Path, text: str = PIPELINE) -> None:
    """A pipeline `p` of texts about a few dozen subjects, whose words they share."""
    generator = np.random.default_rng(3)
    rows = []
    for number in range(DOCUMENTS):
        words = [f"w{subject}" for subject in number % 25 * 8 + generator.integers(0, 12, 6)]
        words += [f"x{word}" for word in generator.integers(0, 400, 6)]
        rows.append((number, " ".join(generator.permutation(words)), "c"))
    write_csv(home, "a.csv", rows)
    write_pipeline(home, "p", text)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose pipeline `p` was embedded; nothing here changes it."""
    home = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDDING_PIPELINES_HOME", str(home))
        write_things(home)
        run_to_embeddings(home)
    return home


def run_to_embeddings(home: Path) -> None:
    context = run_of(home, "p")
    for step, _ in steps(context):
        if step == "codec":
            return


@pytest.fixture
def context(built: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("EMBEDDING_PIPELINES_HOME", str(built))
    return run_of(built, "p")


def with_store(context: Run, **options: Any) -> Run:
    spec = context.spec
    store = type(spec.store)(**{"kind": "lancedb", **options})
    return Run(spec.model_copy(update={"store": store}), context.warehouse)


def evidence_of(context: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(context.folder.optimization.read_text())
    return found


def all_files(home: Path) -> dict[str, bytes]:
    """Everything that a pipeline is made of, but for what may be written: queries' vectors and
    evidence."""
    written = {
        "optimization.json",
        "cache.sqlite",
        "cache.sqlite-wal",
        "cache.sqlite-shm",
        "run.lock",
        "step.lock",
    }
    return {
        str(path): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.name not in written
    }


def told_apart(context: Run) -> tuple[Corpus, Asked]:
    """The vectors, and 40 of them with a little noise as queries."""
    corpus = Corpus(context)
    vectors = np.concatenate(list(corpus.blocks()))
    noise = np.random.default_rng(5).standard_normal((40, DIMENSIONS), dtype=np.float32)
    return corpus, corpus.asked(vectors[::17][:40] + noise / 20)


# --- measuring

CHAINS: list[Compression] = [
    (),
    (Float16(),),
    (Int8(),),
    (Pca(dimensions=24), Int8()),
    (Binary(),),
    (Pca(dimensions=32), Binary(oversample=2)),
    (Binary(rescore="none"),),
]


def test_the_exact_neighbours_are_those_of_all_vectors(context: Run) -> None:
    corpus, asked = told_apart(context)
    vectors = np.concatenate(list(corpus.blocks()))
    assert len(vectors) == corpus.rows == DOCUMENTS
    cosines = asked.vectors @ vectors.T / np.linalg.norm(asked.vectors, axis=1)[:, None]
    assert [ids[0] for ids in asked.exact.ids] == cosines.argmax(axis=1).tolist()
    assert [ids[0] for ids in asked.part(7, 3).exact.ids] == cosines.argmax(axis=1).tolist()[3:7]


def test_what_the_codes_find_is_what_searches_of_a_table_find(context: Run) -> None:
    corpus, asked = told_apart(context)
    chains = {
        compression: CodecChain.fit(compression, corpus.blocks, DIMENSIONS)
        for compression in CHAINS
    }
    found = by_codes(corpus, chains, asked)
    with Trials(corpus) as trials:
        for number, (compression, chain) in enumerate(chains.items()):
            trial = trials.make(context.spec.store, chain, f"t{number}")
            assert trial.is_exact
            version = trial.table.version
            assert version is not None
            rows = [
                nearest(trial.table, chain, vector, 10, None, version)["row"].to_pylist()
                for vector in asked.vectors
            ]
            by_table, by_all = recall(rows, asked.exact), recall(found[compression], asked.exact)
            np.testing.assert_allclose(by_table, by_all, atol=0.11)  # a tie at the tenth place
            assert abs(by_table.mean() - by_all.mean()) < (
                0.03 if chain.metric == "hamming" else 0.01
            )
            assert trial.searched(asked).recall_at_10 == pytest.approx(by_all.mean(), abs=1e-6)


def test_a_table_with_an_index_is_asked_itself(context: Run) -> None:
    corpus, asked = told_apart(with_store(context, index="rq", index_rows=256))
    chain = CodecChain.fit((Float16(),), corpus.blocks, DIMENSIONS)
    with Trials(corpus) as trials:
        store = corpus.context.spec.store
        trial = trials.make(store, chain, "t")
        assert not trial.is_exact
        rough = trials.reopened(trial, store.model_copy(update={"refine": 1})).searched(asked)
        fine = trials.reopened(trial, store.model_copy(update={"refine": 50})).searched(asked)
        assert rough.recall_at_10 < fine.recall_at_10
        assert 0 < fine.p50_ms <= fine.p95_ms
        assert fine.lower_bound < fine.recall_at_10


def test_bytes_are_those_on_disk_index_included(context: Run) -> None:
    corpus = Corpus(with_store(context, index="none"))

    def fit(choice: Compression) -> CodecChain:
        return CodecChain.fit(choice, corpus.blocks, DIMENSIONS)

    with Trials(corpus) as trials:
        plain = corpus.context.spec.store
        sizes = [
            trials.make(plain, fit(choice), f"t{number}").bytes_per_vector
            for number, choice in enumerate([(), (Float16(),), (Int8(),), (Binary(),)])
        ]
        numbers = [4 * DIMENSIONS, 2 * DIMENSIONS, DIMENSIONS, DIMENSIONS + DIMENSIONS / 8]
        overheads = [size - number for size, number in zip(sizes, numbers, strict=True)]
        assert all(0 < overhead < 8 for overhead in overheads), overheads  # of 700 rows
        indexed = with_store(context, index="sq", index_rows=256).spec.store
        assert trials.make(indexed, fit(()), "sq").bytes_per_vector > sizes[0] + DIMENSIONS


def test_trial_tables_are_gone_whatever_happens(context: Run) -> None:
    corpus = Corpus(context)
    folder = context.folder.folder / "trial"
    (folder / "left.lance").mkdir(parents=True)  # by a process that was killed
    trials = Trials(corpus)
    trials.__enter__()
    assert not folder.exists()
    trials.make(context.spec.store, CodecChain([], DIMENSIONS), "t")
    assert folder.exists()
    assert not trials.__exit__(KeyboardInterrupt)
    assert not folder.exists()


def test_without_an_index_int8_is_one_byte_and_with_one_it_is_not_worth_trying(
    context: Run,
) -> None:
    corpus = Corpus(context)
    chains = {choice: CodecChain.fit(choice, corpus.blocks, DIMENSIONS) for choice in CHAINS[:6]}

    def tried(given: Run, choice: Compression) -> list[tuple[str, float]]:
        found = settings(Corpus(given), choice, chains[choice])
        return [(setting.store.index, setting.bytes_per_vector) for setting in found]  # type: ignore[attr-defined]

    assert tried(context, (Int8(),)) == [("none", 64)]
    assert tried(context, (Float16(),)) == [("sq", 128)]  # too few rows for any index
    assert tried(context, (Binary(),)) == [("sq", 72)]
    many = with_store(context, index_rows=256)
    assert tried(many, (Int8(),)) == [("none", 64)]
    assert tried(many, (Float16(),)) == [("none", 128), ("rq", 136), ("sq", 192)]
    assert tried(many, (Binary(),)) == [("none", 72), ("sq", 80)]


# --- a compression that the user has chosen


def test_what_the_user_has_chosen_is_measured_and_written_down(context: Run, built: Path) -> None:
    before = all_files(built)
    tuned = tune(context, Wish(("pca", "quantization"), 32))
    assert not tuned.problem
    assert tuned.spec.compression == (Pca(dimensions=32), Int8())
    found = tuned.spec.optimized
    assert found is not None
    assert (found.method, found.floor) == ("pca quantization 32", None)
    assert found.queries is not None
    assert found.queries > 500
    assert found.recall_at_10 is not None
    assert found.lower_bound is not None
    assert 0.2 < found.lower_bound < found.recall_at_10 < 1
    assert found.bytes_per_vector is not None
    assert tuned.options == {
        ("compression",): [{"kind": "pca", "dimensions": 32}, {"kind": "int8"}],
        ("optimized",): found.model_dump(exclude_none=True),
    }
    assert evidence_of(context) == json.loads(json.dumps(tuned.evidence))
    assert evidence_of(context)["queries"] == {
        "tuning": found.queries,
        "held_out": 0,
        "from": {"corpus": found.queries},
    }
    assert all_files(built) == before


def test_a_choice_below_the_floor_is_refused_with_its_figures(context: Run) -> None:
    tuned = tune(context, Wish(("pca",), 8, floor=0.9))
    assert (
        "pca 8 is not proven to keep a recall of 0.9. The best is pca 8 with index sq: recall@10 0."
        in tuned.problem
    )
    assert "Nothing was changed." in tuned.problem
    assert (tuned.spec, tuned.options) == (context.spec, {})
    (point,) = evidence_of(context)["points"]
    assert not point["chosen"]
    assert not tune(context, Wish(("float16",), floor=0.9)).problem


def test_pca_without_dimensions_says_how_many_keep_how_much(context: Run) -> None:
    with pytest.raises(
        ConfigError, match=r"strongest (\d+) keep 90%, (\d+) keep 95%, (\d+) keep 99%"
    ) as error:
        tune(context, Wish(("pca",)))
    corpus = Corpus(context)
    codec = CodecChain.fit((Pca(dimensions=64),), corpus.blocks, DIMENSIONS).codecs[0]
    kept = np.cumsum(codec.arrays()["spectrum"])
    for share in (0.9, 0.95, 0.99):
        assert f"{int(np.argmax(kept >= share)) + 1} keep {share:.0%}" in str(error.value)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (
            {"methods": ("int8",), "dimensions": 32},
            "--dimensions is 32, but int8 keeps all of them",
        ),
        ({"methods": ("auto", "int8"), "floor": 0.9}, "'auto' stands alone"),
        ({"methods": ("auto",)}, "needs a --floor"),
        ({"methods": ("auto",), "floor": 0.0}, "--floor is 0: write a share above 0"),
        (
            {"methods": ("zip",)},
            "--method is 'zip': write one of binary, float16, int8, pca, truncate, quantization, a",
        ),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_before_anything_is_read(
    wish: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Wish(**wish)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(("pca",), 65), "65 dimensions cannot be made of 64"),
        (Wish(("int8", "pca"), 32), "Use this order: pca, int8"),
        (Wish(("auto",), 65, 0.9), "65 dimensions cannot be made of 64"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_says_what_can(context: Run, wish: Wish, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tune(context, wish)


def test_output_dim_holds_for_what_is_chosen(context: Run) -> None:
    spec = parse_pipeline(PIPELINE + "output_dim: 64\n", "p", "p.yaml")
    bound = Run(spec, context.warehouse)
    with pytest.raises(ConfigError, match=r"output_dim is 64, but .* gives 32"):
        tune(bound, Wish(("pca",), 32))
    points = tune(bound, Wish(("auto",), floor=0.5)).points
    assert points
    assert not any(isinstance(choice, Pca) for point in points for choice in point.compression)


# --- a search for the best


def swept(context: Run, floor: float, **options: Any) -> Tuned:
    return tune(context, Wish(("auto",), floor=floor, **options))


def test_the_cheapest_that_keeps_the_floor_is_found_and_certified(
    context: Run, built: Path
) -> None:
    before = all_files(built)
    tuned = swept(context, 0.9)
    assert not tuned.problem
    (chosen,) = [point for point in tuned.points if point.chosen]
    found, evidence = tuned.spec.optimized, evidence_of(context)
    assert found is not None
    assert found.times_smaller is not None
    assert found.times_smaller > 2
    assert chosen.certified
    assert chosen.held_out_lower_bound is not None
    assert chosen.held_out_lower_bound >= 0.9
    assert (found.recall_at_10, found.lower_bound) == (
        chosen.held_out_recall,
        chosen.held_out_lower_bound,
    )
    for point in tuned.points:  # nothing that is cheaper does
        assert (
            point.bytes_per_vector >= chosen.bytes_per_vector
            or (point.lower_bound or 0) < 0.9
            or not point.certified
        )
    half = found.queries
    assert evidence["queries"] == {
        "tuning": half,
        "held_out": half,
        "from": {"corpus": evidence["queries"]["from"]["corpus"]},
    }
    assert half is not None
    assert evidence["queries"]["from"]["corpus"] in (2 * half, 2 * half + 1)
    assert len(evidence["points"]) > 15
    assert tuned.spec.store.index == "none"  # type: ignore[attr-defined]
    assert tuned.options[("store", "index")] == "none"
    assert all_files(built) == before


def test_with_an_index_it_is_found_too(context: Run) -> None:
    tuned = tune(
        with_store(context, index_rows=256, index="pq", refine=7), Wish(("auto",), 64, 0.97)
    )
    assert not tuned.problem
    assert {point.index for point in tuned.points} <= {"none", "rq", "sq"}
    assert sum(point.p50_ms is not None for point in tuned.points) < 30


def test_a_floor_that_nothing_reaches_is_refused_and_the_best_is_named(
    context: Run, built: Path
) -> None:
    before = all_files(built)
    tuned = tune(context, Wish(("auto",), 8, 0.9))
    assert (
        "no compression is proven to keep a recall of 0.9 in 500 ms a search. The best is pca 8, "
        in tuned.problem
    )
    assert (tuned.spec, tuned.options) == (context.spec, {})
    assert not any(point["chosen"] for point in evidence_of(context)["points"])
    assert all_files(built) == before


def test_searches_that_take_too_long_are_not_chosen(context: Run) -> None:
    tuned = swept(context, 0.9, most_ms=0.0)
    assert "in 0 ms a search. The best is " in tuned.problem
    assert "raise --max-ms" in tuned.problem
    assert any((point.lower_bound or 0) >= 0.9 for point in tuned.points)


def test_a_floor_that_so_few_queries_cannot_prove_is_refused_at_once(
    context: Run, built: Path
) -> None:
    before = all_files(built)
    with pytest.raises(
        CompressionError,
        match=r"\d+ queries cannot prove a recall of 0.9999, .* would prove 0.98\d\d",
    ):
        swept(context, 0.9999)
    assert all_files(built) == before


def test_a_point_that_other_queries_do_not_confirm_is_passed_over(
    context: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out queries are made unanswerable for the first table that is certified."""
    asked = tune_step._asked

    def spoiled(*arguments: Any) -> tuple[Asked, dict[str, int]]:
        found, origin = asked(*arguments)
        half = len(found) // 2
        for ids in found.exact.ids[half:]:
            ids[:] = [-1] * len(ids)
        return found, origin

    monkeypatch.setattr(tune_step, "_asked", spoiled)
    tuned = swept(context, 0.9)
    assert "which other queries did not confirm" in tuned.problem
    tried = [point for point in tuned.points if point.certified is False]
    assert len(tried) > 1
    assert all(point.held_out_recall == 0 for point in tried)


def test_queries_of_people_come_before_those_from_the_corpus(context: Run) -> None:
    home = context.warehouse.home
    lines = [
        json.dumps({"_id": f"q{number}", "text": f"w{number} w{number + 1} x{number}"})
        for number in range(30)
    ]
    (home / "queries.jsonl").write_text("\n".join(lines))
    (home / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\t{n}\t1\n" for n in range(30))
    )
    text = PIPELINE + "evaluation: {queries: queries.jsonl, qrels: qrels.tsv}\n"
    given = Run(parse_pipeline(text, "p", "p.yaml"), context.warehouse)
    found = tune(given, Wish(("int8",))).evidence["queries"]
    assert found["from"]["given"] == 30
    assert found["from"]["corpus"] == found["tuning"] - 30


# --- the pipeline around it


def test_a_pipeline_that_was_never_run_is_asked_to_run_first(home: Path) -> None:
    write_things(home)
    with pytest.raises(ConfigError, match=r"has no vectors of .* Run `embedding-pipelines run p`"):
        tune(run_of(home, "p"), Wish(("int8",)))


def test_a_pipeline_that_is_being_run_is_left_alone(context: Run) -> None:
    with context.folder.lock("run"), pytest.raises(BusyError, match="is being run"):
        tune(context, Wish(("int8",)))


def test_a_few_short_texts_are_compressed_without_a_figure(home: Path) -> None:
    write_csv(home, "a.csv", [(1, "red", "c"), (2, "blue", "c")])
    write_pipeline(home, "p", PIPELINE)
    run_to_embeddings(home)
    tuned = tune(run_of(home, "p"), Wish(("int8",)))
    assert tuned.spec.optimized is not None
    assert (tuned.spec.optimized.recall_at_10, tuned.spec.optimized.queries) == (None, None)
    with pytest.raises(CompressionError, match="0 queries cannot prove"):
        tune(run_of(home, "p"), Wish(("int8",), floor=0.5))
    with pytest.raises(CompressionError, match="0 queries cannot prove"):
        tune(run_of(home, "p"), Wish(("auto",), floor=0.5))


def test_fitting_anew_is_a_new_line_beside_the_old_one(home: Path) -> None:
    write_things(home, PIPELINE + "compression: [{kind: pca, dimensions: 16}]\n")
    run_steps(home, "p")
    context = run_of(home, "p")
    old, path = load_codec(context), codec_path(context)
    write_csv(
        home, "b.csv", [(f"new-{number}", f"other words {number}", "c") for number in range(300)]
    )
    run_to_embeddings(home)
    assert load_codec(context).id == old.id
    refit(context)
    assert load_codec(context).id != old.id
    assert path is not None
    assert path.exists()
