"""What monitors read, in the format that they read."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from embedding_pipelines.prometheus import Sample, exposition, samples
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING, PLAIN

LINE = re.compile(r'[a-z_]+\{([a-z]+="(\\[\\"n]|[^\\"\n])*",?)+\} -?[\d.e+-]+')


def test_a_monitor_reads_state_rows_and_figures_of_all_pipelines(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = HASHING.replace("metadata: [cat]", "metadata: {cat: int}, max_rejected: 5")
    write_pipeline(home, "p", file)
    write_csv(home, "a.csv", [(1, "one", 1), (2, "two", 2), (3, "three", "no number")])
    run_steps(home, "p")
    write_csv(home, "b.csv", [(4, "four", 4)])
    write_pipeline(home, "wrong", "source: 3\n")
    command = Command(monkeypatch, capsys)
    text = command("metrics").out
    comments = [line for line in text.splitlines() if line.startswith("#")]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines)
    assert "# TYPE embedding_pipelines_usd_total counter" in comments
    assert len(comments) == len(set(comments)) == 2 * len({line.split("{")[0] for line in lines})
    for line in (
        'state{pipeline="p",state="active"} 1.0',
        'state{pipeline="wrong",state="broken"} 1.0',
        'state{pipeline="p",state="held back"} 0.0',
        'source_up_to_date{pipeline="p"} 0.0',
        'rows{pipeline="p",step="documents"} 2.0',
        'rejected{pipeline="p",kind="records"} 1.0',
        'live_rows{pipeline="p"} 2.0',
        'live_release{pipeline="p"} 1.0',
        'release_metric{pipeline="p",metric="tokens_unseen"} 0.0',
    ):
        assert f"embedding_pipelines_{line}" in lines
    (released,) = [each.value for each in samples(home) if "released" in each.name]
    assert abs(datetime.now(UTC).timestamp() - released) < 600
    result = command("metrics", "--json").results[0]
    assert result.keys() == {"name", "labels", "value"}


def test_no_sample_comes_twice_and_a_damaged_pipeline_hides_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "damaged"):
        write_pipeline(home, name, PLAIN)
    (home / "pipelines" / "good.yml").write_text(PLAIN)
    for ending in ("yaml", "yml"):
        (home / "pipelines" / f"wrong.{ending}").write_text("source: 3\n")
    folder = Warehouse(home).pipeline("damaged")
    folder.releases.parent.mkdir(parents=True)
    folder.releases.write_text("{")
    said = Command(monkeypatch, capsys)("metrics")
    lines = [line.rpartition(" ")[0] for line in said.out.splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))
    assert 'embedding_pipelines_rows{pipeline="good",step="documents"}' in lines
    for name, state in (("good", "new"), ("damaged", "broken"), ("wrong", "broken")):
        line = f'embedding_pipelines_state{{pipeline="{name}",state="{state}"}} 1.0'
        assert line in said.out.splitlines()


def test_labels_are_escaped() -> None:
    text = exposition([Sample("rows", {"pipeline": 'a\\b"c\nd'}, 1)])
    assert text.splitlines()[-1] == r'embedding_pipelines_rows{pipeline="a\\b\"c\nd"} 1'
    assert text.endswith("\n")
