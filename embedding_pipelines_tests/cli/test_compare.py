"""`compare`: a table of figures, a table of costs, and a sentence for each model."""

from pathlib import Path

import pytest

from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.compare.test_compare import FEW, PIPELINE, ROWS


def test_compare_shows_figures_costs_and_what_is_proven(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(monkeypatch, capsys)
    write_pipeline(home, "tales", PIPELINE)
    write_csv(home, "a.csv", ROWS)
    said = command("compare", "tales", FEW, "--documents", "80")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "tales: 80 of 300 documents, 40 known items"
    assert lines[1].split(maxsplit=1) == ["model", "MRR of known items"]
    assert lines[-1].startswith("hashing finds less than hashing: MRR of known items -0.")
    assert lines[-1].endswith("over 40 queries")
    [result] = command("compare", "tales", FEW, "--documents", "80", "--json").results
    assert [row["dimensions"] for row in result["models"]] == [256, 8]
    assert result["models"][1]["differences"]["known_item_mrr"]["high"] < 0
    few = command("compare", "tales", FEW, "--documents", "10").out.splitlines()
    assert few[0] == "tales: 40 of 300 documents, 40 known items"
    assert few[1].startswith("The sample is larger than --documents 10: the queries are about all")
    assert Warehouse(home).comparison("tales").exists()  # for the report
    wrong = command("compare", "tales", "minlm")
    assert (wrong.code, wrong.out) == (1, "")
    assert "Did you mean 'minilm'" in wrong.err
