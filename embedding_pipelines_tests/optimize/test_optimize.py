"""A compression is measured on the pipeline's own vectors, with the figures of real searches."""

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
from embedding_pipelines.files import read_json
from embedding_pipelines.metrics.neighbours import recall
from embedding_pipelines.optimize import optimize
from embedding_pipelines.optimize.candidates import Compression
from embedding_pipelines.optimize.optimize import Goal, OptimizeResult, optimize_pipeline, refit
from embedding_pipelines.optimize.search import list_candidates
from embedding_pipelines.optimize.tables import CandidateTables, Corpus, QuerySet, search_codes
from embedding_pipelines.ranking import nearest
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.stores.base import IndexChoice, Store
from embedding_pipelines.stores.lancedb import Lancedb
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
    for step, _ in steps(run_of(home, "p")):
        if step == "codec":
            return


@pytest.fixture
def run(built: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("EMBEDDING_PIPELINES_HOME", str(built))
    return run_of(built, "p")


def with_store(run: Run, **options: Any) -> Run:
    spec = run.spec
    store = type(spec.store)(**{"kind": "lancedb", **options})
    return Run(spec.model_copy(update={"store": store}), run.warehouse)


def evidence_of(run: Run) -> dict[str, Any]:
    evidence: dict[str, Any] = read_json(run.folder.optimization) or {}
    return evidence


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


def corpus_and_queries(run: Run) -> tuple[Corpus, QuerySet]:
    """The vectors, and 40 of them with a little noise as queries."""
    corpus = Corpus(run)
    vectors = np.concatenate(list(corpus.blocks()))
    noise = np.random.default_rng(5).standard_normal((40, DIMENSIONS), dtype=np.float32)
    return corpus, corpus.query_set(vectors[::17][:40] + noise / 20)


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


def test_the_exact_neighbours_are_those_of_all_vectors(run: Run) -> None:
    corpus, query_set = corpus_and_queries(run)
    vectors = np.concatenate(list(corpus.blocks()))
    assert len(vectors) == corpus.rows == DOCUMENTS
    cosines = query_set.vectors @ vectors.T / np.linalg.norm(query_set.vectors, axis=1)[:, None]
    nearest_rows = cosines.argmax(axis=1).tolist()
    assert [ids[0] for ids in query_set.exact.ids] == nearest_rows
    assert [ids[0] for ids in query_set.part(7, 3).exact.ids] == nearest_rows[3:7]


def test_what_the_codes_find_is_what_searches_of_a_table_find(run: Run) -> None:
    corpus, query_set = corpus_and_queries(run)
    chains = {
        compression: CodecChain.fit(compression, corpus.blocks, DIMENSIONS)
        for compression in CHAINS
    }
    results = search_codes(corpus, chains, query_set)
    with CandidateTables(corpus) as tables:
        for number, (compression, chain) in enumerate(chains.items()):
            table = tables.build(run.spec.store, chain, f"t{number}")
            assert table.is_exact
            version = table.table.version
            assert version is not None
            rows = [
                nearest(table.table, chain, vector, 10, None, version)["row"].to_pylist()
                for vector in query_set.vectors
            ]
            of_table = recall(rows, query_set.exact)
            of_codes = recall(results[compression], query_set.exact)
            np.testing.assert_allclose(of_table, of_codes, atol=0.11)  # a tie at the tenth place
            tolerance = 0.03 if chain.metric == "hamming" else 0.01
            assert abs(of_table.mean() - of_codes.mean()) < tolerance
            measured = table.measure(query_set).recall_at_10
            assert measured == pytest.approx(of_codes.mean(), abs=1e-6)


def test_a_table_with_an_index_is_searched_itself(run: Run) -> None:
    corpus, query_set = corpus_and_queries(with_store(run, index="rq", index_rows=256))
    chain = CodecChain.fit((Float16(),), corpus.blocks, DIMENSIONS)
    with CandidateTables(corpus) as tables:
        store = corpus.run.spec.store
        table = tables.build(store, chain, "t")
        assert not table.is_exact
        rough = tables.reopen(table, store.model_copy(update={"refine": 1})).measure(query_set)
        fine = tables.reopen(table, store.model_copy(update={"refine": 50})).measure(query_set)
        assert rough.recall_at_10 < fine.recall_at_10
        assert 0 < fine.p50_ms <= fine.p95_ms
        assert fine.lower_bound < fine.recall_at_10


def test_bytes_are_those_on_disk_index_included(run: Run) -> None:
    corpus = Corpus(with_store(run, index="none"))

    def fit(choice: Compression) -> CodecChain:
        return CodecChain.fit(choice, corpus.blocks, DIMENSIONS)

    with CandidateTables(corpus) as tables:
        plain = corpus.run.spec.store
        sizes = [
            tables.build(plain, fit(choice), f"t{number}").bytes_per_vector
            for number, choice in enumerate([(), (Float16(),), (Int8(),), (Binary(),)])
        ]
        numbers = [4 * DIMENSIONS, 2 * DIMENSIONS, DIMENSIONS, DIMENSIONS + DIMENSIONS / 8]
        overheads = [size - number for size, number in zip(sizes, numbers, strict=True)]
        # Of 700 rows; the row numbers' own table keeps a version more, which is taken off.
        assert all(-1 < overhead < 8 for overhead in overheads), overheads
        indexed = with_store(run, index="sq", index_rows=256).spec.store
        assert tables.build(indexed, fit(()), "sq").bytes_per_vector > sizes[0] + DIMENSIONS


def test_candidate_tables_are_gone_whatever_happens(run: Run) -> None:
    corpus = Corpus(run)
    folder = run.folder.folder / "candidates"
    (folder / "left.lance").mkdir(parents=True)  # by a process that was killed
    tables = CandidateTables(corpus)
    tables.__enter__()
    assert not folder.exists()
    tables.build(run.spec.store, CodecChain([], DIMENSIONS), "t")
    assert folder.exists()
    assert not tables.__exit__(KeyboardInterrupt)
    assert not folder.exists()


def test_without_an_index_int8_is_one_byte_and_with_one_it_is_not_worth_trying(
    run: Run,
) -> None:
    corpus = Corpus(run)
    chains = {choice: CodecChain.fit(choice, corpus.blocks, DIMENSIONS) for choice in CHAINS[:6]}

    def sizes(run: Run, choice: Compression) -> list[tuple[str, float]]:
        candidates = list_candidates(Corpus(run), choice, chains[choice])
        return [(candidate.index.name, candidate.bytes_per_vector) for candidate in candidates]

    assert sizes(run, (Int8(),)) == [("none", 64)]
    assert sizes(run, (Float16(),)) == [("sq", 128)]  # too few rows for any index
    assert sizes(run, (Binary(),)) == [("sq", 72)]
    many = with_store(run, index_rows=256)
    assert sizes(many, (Int8(),)) == [("none", 64)]
    assert sizes(many, (Float16(),)) == [("none", 128), ("rq", 136), ("sq", 192)]
    assert sizes(many, (Binary(),)) == [("none", 72), ("sq", 80)]


def test_a_store_without_indices_is_measured_as_it_is(run: Run) -> None:
    class Plain(Lancedb):
        def index_choices(self, rows: int) -> list[IndexChoice]:
            return Store.index_choices(self, rows)

    spec = run.spec.model_copy(update={"store": Plain(index="none")})
    corpus = Corpus(Run(spec, run.warehouse))
    chain = CodecChain.fit((Float16(),), corpus.blocks, DIMENSIONS)
    (candidate,) = list_candidates(corpus, (Float16(),), chain)
    assert candidate.index == IndexChoice(spec.store)
    assert candidate.bytes_per_vector == 2 * DIMENSIONS


# --- one compression


def test_what_the_user_has_chosen_is_measured_and_written_down(run: Run, built: Path) -> None:
    before = all_files(built)
    result = optimize_pipeline(run, Goal(("pca", "quantization"), 32))
    assert not result.problem
    assert result.spec.compression == (Pca(dimensions=32), Int8())
    optimized = result.spec.optimized
    assert optimized is not None
    assert (optimized.method, optimized.floor) == ("pca quantization 32", None)
    assert optimized.queries is not None
    assert optimized.queries > 500
    assert optimized.recall_at_10 is not None
    assert optimized.lower_bound is not None
    assert 0.2 < optimized.lower_bound < optimized.recall_at_10 < 1
    assert optimized.bytes_per_vector is not None
    assert result.options == {
        ("compression",): [{"kind": "pca", "dimensions": 32}, {"kind": "int8"}],
        ("optimized",): optimized.model_dump(exclude_none=True),
    }
    assert evidence_of(run) == json.loads(json.dumps(result.evidence))
    assert evidence_of(run)["queries"] == {
        "selection": optimized.queries,
        "held_out": 0,
        "from": {"corpus": optimized.queries},
    }
    assert all_files(built) == before


def test_a_choice_below_the_floor_is_refused_with_its_figures(run: Run) -> None:
    result = optimize_pipeline(run, Goal(("pca",), 8, floor=0.9))
    assert (
        "pca 8 is not proven to keep a recall of 0.9. The best is pca 8 with index sq: recall@10 0."
        in result.problem
    )
    assert "Nothing was changed." in result.problem
    assert (result.spec, result.options) == (run.spec, {})
    (point,) = evidence_of(run)["points"]
    assert not point["chosen"]
    assert not optimize_pipeline(run, Goal(("float16",), floor=0.9)).problem


def test_pca_without_dimensions_says_how_many_keep_how_much(run: Run) -> None:
    with pytest.raises(
        ConfigError, match=r"strongest (\d+) keep 90%, (\d+) keep 95%, (\d+) keep 99%"
    ) as error:
        optimize_pipeline(run, Goal(("pca",)))
    corpus = Corpus(run)
    codec = CodecChain.fit((Pca(dimensions=64),), corpus.blocks, DIMENSIONS).codecs[0]
    kept = np.cumsum(codec.arrays()["spectrum"])
    for share in (0.9, 0.95, 0.99):
        assert f"{int(np.argmax(kept >= share)) + 1} keep {share:.0%}" in str(error.value)


@pytest.mark.parametrize(
    ("goal", "said"),
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
def test_a_goal_that_makes_no_sense_is_refused_before_anything_is_read(
    goal: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Goal(**goal)


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(("pca",), 65), "65 dimensions cannot be made of 64"),
        (Goal(("int8", "pca"), 32), "Use this order: pca, int8"),
        (Goal(("auto",), 65, 0.9), "The vectors have 64 dimensions, not 65"),
    ],
)
def test_an_impossible_goal_says_what_is_possible(run: Run, goal: Goal, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        optimize_pipeline(run, goal)


def test_output_dim_holds_for_what_is_chosen(run: Run) -> None:
    spec = parse_pipeline(PIPELINE + "output_dim: 64\n", "p", "p.yaml")
    bound = Run(spec, run.warehouse)
    with pytest.raises(ConfigError, match=r"output_dim is 64, but .* gives 32"):
        optimize_pipeline(bound, Goal(("pca",), 32))
    points = optimize_pipeline(bound, Goal(("auto",), floor=0.5)).points
    assert points
    assert not any(isinstance(choice, Pca) for point in points for choice in point.compression)


# --- a search for the best


def find_best(run: Run, floor: float, **options: Any) -> OptimizeResult:
    return optimize_pipeline(run, Goal(("auto",), floor=floor, **options))


@pytest.mark.slow
def test_the_cheapest_that_keeps_the_floor_is_found_and_certified(run: Run, built: Path) -> None:
    before = all_files(built)
    result = find_best(run, 0.9)
    assert not result.problem
    (chosen,) = [point for point in result.points if point.chosen]
    optimized, evidence = result.spec.optimized, evidence_of(run)
    assert optimized is not None
    assert optimized.times_smaller is not None
    assert optimized.times_smaller > 2
    assert chosen.certified
    assert chosen.held_out_lower_bound is not None
    assert chosen.held_out_lower_bound >= 0.9
    assert (optimized.recall_at_10, optimized.lower_bound) == (
        chosen.held_out_recall,
        chosen.held_out_lower_bound,
    )
    for point in result.points:  # nothing that is cheaper does
        assert (
            point.bytes_per_vector >= chosen.bytes_per_vector
            or (point.lower_bound or 0) < 0.9
            or not point.certified
        )
    half = optimized.queries
    assert evidence["queries"] == {
        "selection": half,
        "held_out": half,
        "from": {"corpus": evidence["queries"]["from"]["corpus"]},
    }
    assert half is not None
    assert evidence["queries"]["from"]["corpus"] in (2 * half, 2 * half + 1)
    assert len(evidence["points"]) > 15
    assert result.spec.store.index == "none"  # type: ignore[attr-defined]
    assert result.options[("store", "index")] == "none"
    assert all_files(built) == before


@pytest.mark.slow
def test_with_an_index_it_is_found_too(run: Run) -> None:
    result = optimize_pipeline(
        with_store(run, index_rows=256, index="pq", refine=7), Goal(("auto",), 64, 0.97)
    )
    assert not result.problem
    assert {point.index for point in result.points} <= {"none", "rq", "sq"}
    assert sum(point.p50_ms is not None for point in result.points) < 30


def test_a_floor_that_nothing_reaches_is_refused_and_the_best_is_named(
    run: Run, built: Path
) -> None:
    before = all_files(built)
    result = optimize_pipeline(run, Goal(("auto",), 8, 0.9))
    assert (
        "no compression is proven to keep a recall of 0.9 in 500 ms a search. The best is pca 8, "
        in result.problem
    )
    assert (result.spec, result.options) == (run.spec, {})
    assert not any(point["chosen"] for point in evidence_of(run)["points"])
    assert all_files(built) == before


def test_searches_that_take_too_long_are_not_chosen(run: Run) -> None:
    result = find_best(run, 0.9, most_ms=0.0)
    assert "in 0 ms a search. The best is " in result.problem
    assert "raise --max-ms" in result.problem
    assert any((point.lower_bound or 0) >= 0.9 for point in result.points)


def test_a_floor_that_so_few_queries_cannot_prove_is_refused_at_once(run: Run, built: Path) -> None:
    before = all_files(built)
    with pytest.raises(
        CompressionError,
        match=r"\d+ queries cannot prove a recall of 0.9999; .* would prove 0.98\d\d",
    ):
        find_best(run, 0.9999)
    assert all_files(built) == before


@pytest.mark.slow
def test_a_point_that_held_out_queries_do_not_confirm_is_not_chosen(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No table finds what the held-out queries look for."""
    embed_queries = optimize._embed_queries

    def spoiled(*arguments: Any) -> tuple[QuerySet, dict[str, int]]:
        query_set, origins = embed_queries(*arguments)
        half = len(query_set) // 2
        for ids in query_set.exact.ids[half:]:
            ids[:] = [-1] * len(ids)
        return query_set, origins

    monkeypatch.setattr(optimize, "_embed_queries", spoiled)
    result = find_best(run, 0.9)
    assert "which the held-out queries did not confirm" in result.problem
    tried = [point for point in result.points if point.certified is False]
    assert len(tried) > 1
    assert all(point.held_out_recall == 0 for point in tried)


def test_queries_of_people_come_before_those_from_the_corpus(run: Run) -> None:
    home = run.warehouse.home
    lines = [
        json.dumps({"_id": f"q{number}", "text": f"w{number} w{number + 1} x{number}"})
        for number in range(30)
    ]
    (home / "queries.jsonl").write_text("\n".join(lines))
    (home / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\t{n}\t1\n" for n in range(30))
    )
    text = PIPELINE + "evaluation: {queries: queries.jsonl, qrels: qrels.tsv}\n"
    given = Run(parse_pipeline(text, "p", "p.yaml"), run.warehouse)
    queries = optimize_pipeline(given, Goal(("int8",))).evidence["queries"]
    assert queries["from"]["given"] == 30
    assert queries["from"]["corpus"] == queries["selection"] - 30


# --- the pipeline around it


def test_a_pipeline_that_was_never_run_is_asked_to_run_first(home: Path) -> None:
    write_things(home)
    with pytest.raises(ConfigError, match=r"has no vectors of .* Run `embedding-pipelines run p`"):
        optimize_pipeline(run_of(home, "p"), Goal(("int8",)))


def test_a_pipeline_that_is_being_run_is_left_alone(run: Run) -> None:
    with run.folder.lock("run"), pytest.raises(BusyError, match="is being run"):
        optimize_pipeline(run, Goal(("int8",)))


def test_a_few_short_texts_are_compressed_without_a_figure(home: Path) -> None:
    write_csv(home, "a.csv", [(1, "red", "c"), (2, "blue", "c")])
    write_pipeline(home, "p", PIPELINE)
    run_to_embeddings(home)
    result = optimize_pipeline(run_of(home, "p"), Goal(("int8",)))
    assert result.spec.optimized is not None
    assert (result.spec.optimized.recall_at_10, result.spec.optimized.queries) == (None, None)
    with pytest.raises(CompressionError, match="0 queries cannot prove"):
        optimize_pipeline(run_of(home, "p"), Goal(("int8",), floor=0.5))
    with pytest.raises(CompressionError, match="0 queries cannot prove"):
        optimize_pipeline(run_of(home, "p"), Goal(("auto",), floor=0.5))


def test_fitting_anew_is_a_new_line_beside_the_old_one(home: Path) -> None:
    write_things(home, PIPELINE + "compression: [{kind: pca, dimensions: 16}]\n")
    run_steps(home, "p")
    run = run_of(home, "p")
    old, path = load_codec(run), codec_path(run)
    write_csv(
        home, "b.csv", [(f"new-{number}", f"other words {number}", "c") for number in range(300)]
    )
    run_to_embeddings(home)
    refit(run)
    assert load_codec(run).id != old.id
    assert path is not None
    assert path.exists()
