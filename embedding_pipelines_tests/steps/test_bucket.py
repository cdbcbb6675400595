"""A pipeline over a bucket does what one over files does, whatever happens to bucket and line."""

from pathlib import Path

import pytest

from embedding_pipelines import objects
from embedding_pipelines.doctor.examine import examine
from embedding_pipelines.errors import ReleaseError, SourceError
from embedding_pipelines.plan import plan
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import REJECTED
from embedding_pipelines.spec.guess import guess
from embedding_pipelines.spec.load import read_draft
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.pending import Pending, pending
from embedding_pipelines.storage.warehouse import Warehouse, read_table
from embedding_pipelines.validate import check_file
from embedding_pipelines_tests.buckets import Exchange, Proxy, TestBucket
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    live_rows,
    report,
    run_of,
    run_recorded,
    run_steps,
    top,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING


def csv(first: int, last: int, word: str = "text") -> str:
    rows = [
        f'id-{n},"{word} number {n} about subject{n % 17}",c{n % 3}' for n in range(first, last)
    ]
    return "\n".join(["id,title,cat", *rows, ""])


def pipeline(path: str, more: str = "") -> str:
    return HASHING.replace("data/*.csv", path) + more


@pytest.fixture
def built(home: Path, bucket: TestBucket) -> Path:
    """A home with a released pipeline `p` over two objects of 30 and 10 rows."""
    write_pipeline(home, "p", pipeline(f"{bucket.uri}/in/*.csv"))
    bucket.put("in/a.csv", csv(0, 30))
    bucket.put("in/b.csv", csv(30, 40))
    run_steps(home, "p")
    return home


def read_shard(run: Run, partition: str) -> list[dict[str, object]]:
    return [row for batch in run.folder.documents.read(partition) for row in batch.to_pylist()]


def waiting(home: Path) -> Pending:
    with run_of(home, "p") as run:
        return pending(run, run.spec.source.files(home))


def assert_as_anew(home: Path, elsewhere: Path) -> None:
    """The table is that of a home that never saw the bucket before."""
    assert waiting(home).is_empty
    write_pipeline(elsewhere, "p", (home / "pipelines" / "p.yaml").read_text())
    run_steps(elsewhere, "p")
    assert_same_rows(live_rows(home, "p"), live_rows(elsewhere, "p"))


def test_only_what_changed_is_read_and_embedded(
    built: Path, bucket: TestBucket, proxy: Proxy, tmp_path: Path
) -> None:
    uri = f"{bucket.uri}/in"

    def reads() -> list[str]:
        read = [path for path in proxy.paths if path.startswith("GET") and "list-type" not in path]
        proxy.paths.clear()
        return [path.rpartition("/")[2] for path in read]

    assert run_recorded(built, "p")[1] == reads() == []
    bucket.put("in/b.csv", csv(30, 39))  # within the same second, as all here
    bucket.put("in/c.csv", csv(50, 53))
    assert waiting(built) == Pending(new=(f"{uri}/c.csv",), changed=(f"{uri}/b.csv",))
    _, texts = run_recorded(built, "p")
    assert (len(texts), sorted(reads())) == (3, ["b.csv", "c.csv"])
    bucket.copy("in/a.csv", "in/renamed.csv")
    bucket.delete("in/a.csv")
    assert waiting(built) == Pending(new=(f"{uri}/renamed.csv",), deleted=(f"{uri}/a.csv",))
    _, texts = run_recorded(built, "p")
    assert (texts, reads()) == ([], ["renamed.csv"])
    bucket.put("in/b.csv", csv(30, 39))  # as it is: another date, and no change
    assert waiting(built).is_empty
    bucket.delete("in/c.csv")
    assert run_recorded(built, "p")[1] == reads() == []
    assert len(live_rows(built, "p")) == 39
    assert_as_anew(built, tmp_path / "elsewhere")


def test_messages_and_rows_name_objects_by_their_uri(home: Path, bucket: TestBucket) -> None:
    write_pipeline(home, "p", pipeline(bucket.uri).replace("metadata", "max_rejected: 1, metadata"))
    bucket.put("in/a.csv", csv(0, 3) + "id-9,too,many,cells\n")
    reports = run_steps(home, "p")
    assert report(reports, "documents").statistics["rejected"] == 1
    with run_of(home, "p") as run:
        rejected = read_table(run.folder.rejected)
        assert rejected is not None
        assert rejected.schema == REJECTED
        (row,) = rejected.to_pylist()
        documents = [row for name in run.spec.partition_names for row in read_shard(run, name)]
    assert (row["file"], row["row"]) == (f"{bucket.uri}/in/a.csv", 5)
    assert {row["source_file"] for row in documents} == {f"{bucket.uri}/in/a.csv"}


def test_what_cannot_be_read_is_not_gone(
    built: Path, bucket: TestBucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRIES", 0)
    before = live_rows(built, "p")
    for status in (403, 404, 503):
        code = {403: "AccessDenied", 404: "NoSuchBucket", 503: "SlowDown"}[status]
        answer = f"<Error><Code>{code}</Code></Error>".encode()

        def fail(exchange: Exchange, status: int = status, answer: bytes = answer) -> bool:
            return exchange.answer(status, answer)

        proxy.fault = fail
        with pytest.raises(SourceError, match=rf"^{bucket.uri}"):
            run_steps(built, "p")
        assert bucket.uri in pipeline_status(run_of(built, "p").spec, Warehouse(built))["source"]
    proxy.fault = lambda _: False
    assert run_recorded(built, "p")[1] == []
    assert live_rows(built, "p") == before


def test_a_prefix_that_was_emptied_deletes_nothing_and_half_of_it_is_held_back(
    built: Path, bucket: TestBucket
) -> None:
    before = live_rows(built, "p")
    write_pipeline(
        built, "p", pipeline(f"{bucket.uri}/in/*.csv").replace("shrink: 1", "shrink: 0.1")
    )
    bucket.delete("in/a.csv")
    with pytest.raises(ReleaseError, match="not_worse_than_live"):
        run_steps(built, "p")
    bucket.delete("in/b.csv")
    with pytest.raises(
        SourceError, match=r"matches no object; looked in '\S+', which holds nothing"
    ):
        run_steps(built, "p")
    assert live_rows(built, "p") == before


def test_an_object_that_is_replaced_during_a_run_is_taken_whole(
    built: Path, bucket: TestBucket, proxy: Proxy, tmp_path: Path
) -> None:
    bucket.put("in/b.csv", csv(30, 35))

    def replace(exchange: Exchange) -> bool:
        if exchange.path.endswith("/b.csv") and not any(
            path.endswith("/b.csv") for path in proxy.paths[:-1]
        ):
            bucket.put("in/b.csv", csv(30, 38, "newer"))
        return False

    proxy.fault = replace
    run_steps(built, "p")
    assert len(live_rows(built, "p")) == 38
    assert_as_anew(built, tmp_path / "elsewhere")


def test_a_line_with_faults_gives_what_a_good_one_gives(
    home: Path, bucket: TestBucket, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "LONGEST_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(objects, "PART_BYTES", 500)
    write_pipeline(home, "p", pipeline(bucket.uri))
    for number in range(5):
        bucket.put(f"{number}.csv", csv(number * 10, number * 10 + 10))

    def fail(exchange: Exchange) -> bool:
        if exchange.number % 5 == 1:
            return exchange.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        return exchange.number % 7 == 3 and exchange.reset()

    proxy.fault = fail
    run_steps(home, "p")
    proxy.fault = lambda _: False
    assert len(live_rows(home, "p")) == 50
    assert_as_anew(home, tmp_path / "elsewhere")


def test_plan_status_validate_and_doctor_look_at_the_bucket(
    built: Path, bucket: TestBucket
) -> None:
    bucket.put("in/c.csv", csv(40, 45))
    with run_of(built, "p") as run:
        planned = plan(run)
        spec = run.spec
    assert (planned.rows_new, planned.rows_unchanged) == (5, 40)
    assert pipeline_status(spec, Warehouse(built))["source"] == f"1 new: {bucket.uri}/in/c.csv"
    path = write_pipeline(built, "p", pipeline(f"{bucket.uri}/in/*.csv").replace("[cat]", "[cta]"))
    lines, _ = check_file(read_draft(path), Warehouse(built))
    assert "column 'cta' is missing; found 'id', 'title', 'cat'. Did you mean 'cat'?" in lines[0]
    write_pipeline(built, "p", pipeline(f"{bucket.uri}/in/*.csv"))
    findings = {each.what: each for each in examine(read_draft(path), Warehouse(built))}
    assert findings["file"].is_well
    assert findings["source"].sentence.startswith("3 files, 0.0 MB; 1 new: s3://")
    run_steps(built, "p")
    assert top(built, "p", "text number 44") == ["id-44"]


def test_init_guesses_a_pipeline_from_a_bucket(home: Path, bucket: TestBucket) -> None:
    bucket.put("shop/a.csv", csv(0, 30))
    bucket.put("shop/readme.txt", "x")
    guessed = guess(home, [f"{bucket.uri}/shop"])
    assert (guessed.kind, guessed.path, guessed.id) == ("csv", [f"{bucket.uri}/shop"], "id")
    assert f"path: {bucket.uri}/shop" in guessed.pipeline("hashing")
    with pytest.raises(SourceError, match=r"matches no object; looked in .* Did you mean 'shop'\?"):
        guess(home, [f"{bucket.uri}/shoq/*.csv"])
