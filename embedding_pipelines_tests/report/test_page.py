"""The report: what stands in the page, where points of the map go, and texts that would like to be
markup."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from embedding_pipelines.compare.compare import compare_models, write_comparison
from embedding_pipelines.diff.diff import metric_changes
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import read_releases, rollback
from embedding_pipelines.report import map as report_map
from embedding_pipelines.report.charts import COST, DRIFT, MODELS, RECALL, SIZE, VARIANCE
from embedding_pipelines.report.map import KINDS, _column
from embedding_pipelines.report.page import Report, _measure, write_report
from embedding_pipelines.report.searches import TEXT_CHARACTERS
from embedding_pipelines.spec.load import parse_model
from embedding_pipelines.steps.release import release
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, run_steps, write_csv, write_pipeline

HOSTILE = "</script><img src=x onerror=alert(1)><b>bold</b> & 'quoted' \" fox"
PIPELINE = """\
description: "Animals <i>and</i> others"
source: {kind: csv, path: 'data/*.csv', id: id, text: [text], metadata: {kind: string, year: int, seen: date}}
preprocessing: {html: false}
model: {provider: hashing, dimensions: 64}
compression: [{kind: pca, dimensions: 8}, int8]
evaluation: {require: {known_item_mrr: 0.0}}
partitions: 2
"""
HEADER = "id,text,kind,year,seen"


def rows(count: int) -> list[tuple[object, ...]]:
    """Documents of three kinds; the first one is hostile in text, id and kind."""
    kinds = ("fox", "whale", "tea")
    made = [
        (
            f"d{n}",
            f"{kinds[n % 3]} {n} {kinds[n % 3]} again{n % 5}. It ends here {n}",
            kinds[n % 3],
            1990 + n,
            "2024-05-01",
        )
        for n in range(1, count)
    ]
    return [("<script>d0", HOSTILE, "<svg onload=alert(2)>", "", ""), *made]


class Page(HTMLParser):
    """Elements, their text by id, and the attributes of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.values: dict[str, Any] = {}  # JSON, by the id of its element
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        attributes = self.tags[-1][1]
        if self._in == "script" and attributes.get("type") == "application/json":
            self.values[str(attributes["id"])] = json.loads(self.scripts.pop())
        self._in = None

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def map(self) -> dict[str, Any]:
        value: dict[str, Any] = self.values["map"]
        return value

    @property
    def charts(self) -> list[str]:
        """The titles of the places where a chart is drawn."""
        return [
            str(values["aria-label"]) for _, values in self.tags if values.get("class") == "chart"
        ]


class Notes(Silent):
    """A progress that keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def write_page(home: Path, name: str = "p") -> tuple[Report, Page, list[str]]:
    notes = Notes()
    report = write_report(Warehouse(home), name, notes)
    assert report.size_bytes == report.path.stat().st_size
    return report, Page(report.path.read_text(encoding="utf-8")), notes.notes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose pipeline `p` was released twice, and tuned."""
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "p", PIPELINE)
    for count in (24, 30):
        write_csv(home, "a.csv", rows(count), HEADER)
        run_steps(home, "p")
    point = {
        "compression": [{"kind": "pca", "dimensions": 8}],
        "index": "sq",
        "refine": 2,
        "bytes_per_vector": 32,
    }
    figures = {
        "recall_at_10": 0.995,
        "lower_bound": 0.991,
        "p50_ms": 4.0,
        "p95_ms": 7.0,
        "on_front": True,
        "chosen": True,
    }
    optimization = {
        "made_at": "2026-01-02T00:00:00+00:00",
        "method": "auto",
        "floor": 0.99,
        "confidence": 0.95,
        "queries": {"selection": 500, "held_out": 400, "from": "corpus"},
    }
    write_json(
        run_of(home, "p").folder.optimization, {**optimization, "points": [{**point, **figures}]}
    )
    return home


@pytest.fixture(scope="module")
def page(built: Path) -> Page:
    return write_page(built)[1]


def test_the_page_says_what_is_live_and_what_was_measured(page: Page) -> None:
    for words in (
        "Released Release 2 of",
        "Live release 2, of",
        "kept: 1, 2",
        "hashing:words",
        "pca 8, int8: 8 bytes a vector, 32 times smaller",
    ):
        assert words in page.text
    assert "known_item_mrr" in page.text
    assert "≥ 0 met" in page.text
    assert "✓ passed counts_add_up" in page.text
    assert "Not measured: knn_accuracy" in page.text
    assert ", ndcg_at_10," in page.text


def test_the_page_shows_which_models_were_compared_last(built: Path) -> None:
    with run_of(built, "p") as run:
        comparison = compare_models(run, [parse_model("{provider: hashing, dimensions: 8}")])
        write_comparison(run.warehouse, comparison)
    try:
        page = write_page(built)[1]
    finally:
        Warehouse(built).comparison("p").unlink()
    assert MODELS in page.charts
    (items,) = page.values["charts"][MODELS]["data"]
    assert items["x"] == [row.figures["known_item_mrr"].mean for row in comparison.models]
    assert "compare on 30 of 30 documents" in page.text


def test_every_chart_is_a_figure_or_a_sentence(page: Page) -> None:
    assert {VARIANCE, SIZE, RECALL} <= set(page.charts)
    assert page.values["charts"].keys() == set(page.charts)
    assert all(figure.keys() == {"data", "layout"} for figure in page.values["charts"].values())
    assert f"{COST} There are no costs" in page.text
    assert f"{DRIFT} Drift is measured from the second release on" in page.text
    assert (
        "optimize --method auto , floor 0.99: 1 candidates on 500 queries; 400 others "
        "are held out" in page.text
    )
    assert "pca 8 sq ×2 32 0.995 0.991 – – 4 7 chosen" in page.text


@pytest.mark.parametrize(
    ("name", "now", "verdict"),
    [
        ("known_item_mrr", 0.9, "better"),
        ("known_item_mrr", 0.7, "worse"),
        ("search_p50_ms", 0.9, ""),  # what else the machine did
        ("mean_norm", 0.9, ""),  # neither more nor less is better
        ("known_item_mrr", 0.8001, ""),
    ],
)
def test_a_change_is_better_or_worse_where_one_of_them_is(
    name: str, now: float, verdict: str
) -> None:
    (change,) = metric_changes({name: 0.8}, {name: now}, {}, {})
    assert _measure(change, None)["verdict"] == verdict


def test_a_change_that_queries_do_not_bear_out_is_chance() -> None:
    before = {f"q{n}": n % 2 for n in range(40)}
    after = before | {"q1": 0, "q3": 0, "q5": 0}
    means = [sum(figures.values()) / 40 for figures in (before, after)]
    figures = [{"known_item_mrr": figures} for figures in (before, after)]
    (change,) = metric_changes(*({"known_item_mrr": mean} for mean in means), *figures)
    row = _measure(change, 0.9)
    assert (row["verdict"], row["is_chance"], row["met"]) == ("", True, False)


def test_what_is_missing_is_said_after_one_release(home: Path) -> None:
    write_pipeline(
        home, "p", PIPELINE.replace("compression: [{kind: pca, dimensions: 8}, int8]\n", "")
    )
    write_csv(home, "a.csv", rows(6), HEADER)
    run_steps(home, "p")
    run_of(home, "p").folder.queries.unlink()
    report, page, _ = write_page(home)
    assert (report.charts, report.queries, report.release, report.points) == ([], 0, 1, 6)
    for words in (
        "No candidates were measured",
        "`pca`",
        "needs two",
        "No queries: there are none",
        "The checks had no queries",
        "This is the first release",
        "Rejected Nothing:",
        "none: 256 bytes a vector",
    ):
        assert words.replace("`", "") in page.text.replace("`", "").replace("  ", " ")


def test_texts_never_become_elements(page: Page) -> None:
    assert {tag for tag, _ in page.tags} & {
        "svg", "b", "i", "img", "iframe", "object", "link",
    } == set()  # fmt: skip
    assert not [name for _, values in page.tags for name in values if name.startswith("on")]
    assert len(page.scripts) == 5  # the theme's, plotly's, the charts', the map's, the first paint
    assert HOSTILE in page.map["texts"]
    assert "<script>d0" in page.map["documents"]
    assert "Animals <i>and</i> others" in page.text
    assert page.text.count("Details Live release") == 1


def test_the_page_asks_no_network(page: Page) -> None:
    (policy,) = [
        values["content"]
        for tag, values in page.tags
        if values.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert not [
        values
        for tag, values in page.tags
        if tag == "link" or str(values.get("src", "")).startswith("http")
    ]
    assert page.scripts[1].strip() == get_plotlyjs().strip()  # escaped, it would draw nothing
    assert "showSendToCloud: false" in page.scripts[3]  # else a button offers to publish the map


def test_the_map_has_a_place_a_text_and_colours_for_every_chunk(page: Page) -> None:
    shown = page.map
    assert shown["rows"] == 30
    assert {len(shown[name]) for name in ("x", "y", "texts", "documents")} == {30}
    columns = {column["name"]: column for column in shown["columns"]}
    assert list(columns) == ["cluster", "kind", "year", "seen", "length of the text"]
    at = shown["documents"].index("d4")
    assert columns["kind"]["names"][columns["kind"]["codes"][at]] == "whale"
    assert columns["year"]["values"][at] == 1994
    assert columns["seen"]["values"][at] == 19844  # days since 1970
    first = shown["documents"].index("<script>d0")
    assert columns["year"]["values"][first] is None
    clusters = columns["cluster"]
    assert any("whale" in name for name in clusters["names"])
    assert "whale" in clusters["names"][clusters["codes"][at]]
    assert sum(cluster["rows"] for cluster in shown["clusters"]) == 30
    assert "whale" in " ".join(word for cluster in shown["clusters"] for word in cluster["words"])


def test_queries_stand_beside_what_they_were_taken_from(built: Path, page: Page) -> None:
    queries = json.loads(run_of(built, "p").folder.queries.read_text())["queries"]
    assert page.map["queries"]["texts"] == list(dict.fromkeys(query["text"] for query in queries))
    places = np.array([page.map["x"], page.map["y"]]).T
    origin = places[page.map["documents"].index(queries[0]["from"])]
    query = np.array([page.map["queries"]["x"][0], page.map["queries"]["y"][0]])
    assert np.linalg.norm(query - origin) < np.median(np.linalg.norm(places - query, axis=1))
    answers = [page.map["documents"][row] for row in page.map["queries"]["answers"]]
    assert answers == [query["from"] for query in queries]
    assert all(page.map["queries"]["right"])


def test_searches_show_what_was_found_and_the_worst_queries_what_was_not(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", rows(24), HEADER)
    run_steps(home, "p")
    run = run_of(home, "p")
    (live,) = read_releases(run.folder).releases
    path = run.folder.quality / f"{live.table}-{live.version}.json"
    figures = (read_json(path) or {})["per_query"]
    queries = (read_json(run.folder.queries) or {})["queries"]
    missed, seventh = queries[:2]
    figures["known_item_mrr"] |= {missed["id"]: 0.0, seventh["id"]: 1 / 7}
    write_json(path, {"per_query": figures})
    page = write_page(home)[1]
    worst = page.text.partition("The worst queries")[2].partition("Metrics Metric")[0]
    places = [
        worst.index(words)
        for words in (
            f"{missed['text']} · its document was not found",
            f"{seventh['text']} · its document stands at 7",
        )
    ]
    assert places == sorted(places)
    samples = page.text.partition("Sample searches")[2].partition("The worst queries")[0]
    assert samples.count("its document stands first") > 2
    assert samples.count("✓ right") > 2
    assert page.map["queries"]["found"] == [query != missed for query in queries]


def test_queries_of_people_are_joined_to_the_documents_that_they_judged(home: Path) -> None:
    text = PIPELINE.replace(
        "{require: {known_item_mrr: 0.0}}",
        "{queries: data/q.jsonl, qrels: data/r.tsv, known_items: 0}",
    )
    write_pipeline(home, "p", text)
    write_csv(home, "a.csv", rows(24), HEADER)
    (home / "data" / "q.jsonl").write_text('{"_id": "q", "text": "whale 4"}\n')
    grades = ["query-id\tcorpus-id\tscore", "q\td7\t1", "q\td4\t2", "q\td5\t0", ""]
    (home / "data" / "r.tsv").write_text("\n".join(grades))
    run_steps(home, "p")
    page = write_page(home)[1]
    assert [page.map["documents"][row] for row in page.map["queries"]["answers"]] == ["d4"]
    assert "whale 4 · nDCG@10 " in page.text
    assert "✓ right" in page.text


def test_queries_that_the_cache_does_not_know_are_left_out(built: Path) -> None:
    folder = run_of(built, "p").folder
    stored = json.loads(folder.queries.read_text())
    write_json(
        folder.queries,
        {"queries": [*stored["queries"][:2], {"id": "x", "text": "never embedded", "from": ""}]},
    )
    try:
        assert write_page(built)[0].queries == 2
    finally:
        write_json(folder.queries, stored)


def test_known_points_stay_where_they_were_and_nothing_is_laid_out_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", rows(20), HEADER)
    run_steps(home, "p")
    _, before, notes = write_page(home)
    assert ["Laying out the map" in note for note in notes] == [True]
    changed = [
        *rows(20)[:-1],
        ("d19", "another text. It is about whale and fox", "tea", 2000, "2024-05-01"),
        *rows(23)[20:],
    ]
    write_csv(home, "a.csv", changed, HEADER)
    run_steps(home, "p")
    _, after, notes = write_page(home)
    assert notes == []
    old = {
        name: place
        for name, *place in zip(
            before.map["documents"], before.map["x"], before.map["y"], strict=True
        )
    }
    new = {
        name: place
        for name, *place in zip(after.map["documents"], after.map["x"], after.map["y"], strict=True)
    }
    assert {name for name in old if new[name] == old[name]} == old.keys() - {"d19"}
    for damage in (b"no parquet", b""):
        (path,) = (run_of(home, "p").folder.folder / "maps").glob("*.parquet")
        path.write_bytes(damage)
        assert len(write_page(home)[2]) == 1  # made anew


def test_a_large_table_is_shown_by_the_same_sample_in_every_release(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_map, "MAX_POINTS", 10)
    first, page, _ = write_page(built)
    assert (first.points, first.rows) == (10, 30)
    assert "10 of 30 chunks" in page.text
    monkeypatch.setattr(report_map, "MAX_POINTS", 20)
    assert set(page.map["documents"]) < set(write_page(built)[1].map["documents"])


@pytest.mark.parametrize(
    "chain", ["[float16]", "[binary]", "[{kind: truncate, dimensions: 16}]", "[]"]
)
def test_every_codec_s_vectors_can_be_shown(home: Path, chain: str) -> None:
    write_pipeline(home, "p", PIPELINE.replace("[{kind: pca, dimensions: 8}, int8]", chain))
    write_csv(home, "a.csv", rows(12), HEADER)
    run_steps(home, "p")
    report, page, _ = write_page(home)
    assert report.points == 12
    assert np.isfinite(page.map["x"]).all()


def test_long_texts_are_cut(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", [*rows(10), ("long", "word " * 100, "x", 1, "2024-01-01")], HEADER)
    run_steps(home, "p")
    texts = write_page(home)[1].map["texts"]
    assert max(map(len, texts)) == TEXT_CHARACTERS + 1
    assert [text[-1] for text in texts if len(text) > TEXT_CHARACTERS] == ["…"]


def test_kinds_beyond_twenty_are_others_and_a_column_of_ids_has_no_colours() -> None:
    values = [f"k{n % 40:02d}" for n in range(400)] + ["k00"] * 5
    column = _column("c", "string", values)
    assert column is not None
    assert len(column["names"]) == KINDS + 1
    assert (column["names"][0], column["names"][-1]) == ("k00", "other")
    assert column["codes"][:2] == [0, 1]
    assert column["codes"][39] == KINDS
    assert _column("c", "string", [f"id-{n}" for n in range(1_000)]) is None
    assert _column("c", "bool", [True, None]) == {
        "name": "c",
        "kind": "kinds",
        "names": ["(none)", "True"],
        "codes": [1, 0],
    }
    listed = _column("c", "list[string]", [["a", "b"], []])
    assert listed is not None
    assert listed["names"] == ["(none)", "a, b"]
    floats = _column("c", "float", [1.23456789, float("nan"), None])
    assert floats is not None
    assert floats["values"] == [1.2346, None, None]


def test_a_pipeline_that_was_never_released_is_refused(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    with pytest.raises(ReleaseError, match=r"has no release yet\. Run `embedding-pipelines run p`"):
        write_report(Warehouse(home), "p", Silent())


def test_what_is_damaged_is_named_and_left_out(built: Path) -> None:
    folder = run_of(built, "p").folder
    (codec,) = folder.codecs.glob("*.npz")
    half = '{"release": 1}'  # JSON, and no line of a history
    damages = {
        folder.history: f"\0\0\0\n[1]\n{half}\n{folder.history.read_text()}{{half\n",
        folder.queries: "{",
        folder.optimization: "",
        folder.checks: "[]",
        folder.table_state: "}",
        folder.rejected: "no parquet",
        codec: "",
        # Those of the release before are read first, and end the comparison.
        **dict.fromkeys(sorted(folder.quality.glob("*-*.json"), reverse=True), "{"),
    }
    whole = {path: path.read_bytes() if path.exists() else None for path in damages}
    try:
        for path, content in damages.items():
            path.write_text(content)
            _, page, notes = write_page(built)
            assert str(path) in " ".join(notes)
            assert str(path) in page.text
            if path == folder.history:
                assert f"p: 4 damaged lines of {path} are left out." in notes
        assert "There is no map, since what it shows could not be read" in page.text
        assert "known_item_mrr" in page.text
    finally:
        for path, before in whole.items():
            path.unlink() if before is None else path.write_bytes(before)


def test_what_was_rejected_stands_in_the_page(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE.replace("id: id,", "id: id, max_rejected: 10%,"))
    path = write_csv(home, "a.csv", rows(24), HEADER)
    with path.open("a") as file:
        file.write("bad,<img src=x> fox,kind,no-year,2024-05-01\n")
    run_steps(home, "p")
    page = write_page(home)[1]
    assert "1 rejected" in page.text
    rejected = page.text.partition("Rejected Where")[2]
    assert "a.csv:26" in rejected
    assert "<img src=x> fox" in rejected
    assert "embedding-pipelines rejected p" in rejected


def test_a_candidate_that_is_held_back_is_said_on_top_with_what_holds_it(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", rows(24), HEADER)
    run_steps(home, "p")
    write_csv(home, "a.csv", rows(4), HEADER)
    with pytest.raises(ReleaseError):
        run_steps(home, "p")
    page = write_page(home)[1]
    assert "Held back What the last run wrote, 4 rows, is held back. Release 1 of" in page.text
    assert "not_worse_than_live :" in page.text
    assert page.map["rows"] == 24
    with run_of(home, "p") as run:
        release(run, force_reason="they are gone")
    page = write_page(home)[1]
    assert "Released by force Release 2 of" in page.text
    assert "The reason to release: they are gone" in page.text
    rollback(run_of(home, "p").folder, None)
    assert "Rolled back Release 1 of" in write_page(home)[1].text


def test_before_the_first_release_the_page_shows_the_candidate_that_is_held_back(
    home: Path,
) -> None:
    text = PIPELINE.replace("known_item_mrr: 0.0", "known_item_mrr: 1.0").replace(
        "id: id,", "id: id, max_rejected: 10%,"
    )
    write_pipeline(home, "p", text)
    with write_csv(home, "a.csv", rows(24), HEADER).open("a") as file:
        file.write("bad,fox again,kind,no-year,2024-05-01\n")
    with pytest.raises(ReleaseError):
        run_steps(home, "p")
    report, page, notes = write_page(home)
    assert (report.release, report.rows, report.points) == (None, 24, 24)
    assert not [note for note in notes if "missing" in note]
    for words in (
        "Held back What the last run wrote, 24 rows, is held back. There is no release yet",
        "required_metrics_hold : ",
        "This page shows what the last run wrote.",
        "1 rejected",
        "a.csv:26",
        "≥ 1 missed",
        "✗ failed required_metrics_hold",
        "Live release none",
    ):
        assert words in page.text
    assert page.map["rows"] == 24
    assert "Worse" not in page.text
    assert "A grey change" not in page.text  # there is nothing to compare with


def test_the_candidate_of_another_configuration_is_not_shown(home: Path) -> None:
    text = PIPELINE.replace("known_item_mrr: 0.0", "known_item_mrr: 1.0")
    write_pipeline(home, "p", text)
    write_csv(home, "a.csv", rows(24), HEADER)
    with pytest.raises(ReleaseError):
        run_steps(home, "p")
    write_pipeline(home, "p", text.replace("dimensions: 64", "dimensions: 32"))
    with pytest.raises(ReleaseError, match="has no release yet"):
        write_report(Warehouse(home), "p", Silent())


def test_values_of_variables_stay_out_of_the_page(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORDS", "secret words of a variable")
    text = PIPELINE.replace('"Animals <i>and</i> others"', "${WORDS}")
    write_pipeline(home, "p", text)
    write_csv(home, "a.csv", rows(6), HEADER)
    run_steps(home, "p")
    report, page, _ = write_page(home)
    assert "${WORDS}" in page.text
    assert "secret words" not in report.path.read_text()
