"""A CSV file as people export them: cp1252, ragged, with bare quotes. No record of it vanishes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import live_rows, write_pipeline
from embedding_pipelines_tests.corpora import OWN, messy_csv, own_and, records_of
from embedding_pipelines_tests.runs import run_whole

pytestmark = [pytest.mark.slow]

PIPELINE = """\
source: {{kind: csv, path: {path}, text: v2, metadata: [v1]}}
model: {{provider: hashing}}
"""


@pytest.mark.parametrize("name", own_and("messy_csv/sms_spam_latin1_ragged.csv"))
def test_every_record_becomes_a_document_or_is_rejected_with_a_reason(
    home: Path, name: str
) -> None:
    path = messy_csv(name, home)
    header, *records = records_of(path)
    write_pipeline(home, "spam", PIPELINE.format(path=path))
    run = run_whole(home, "spam")
    statistics = run.reports["documents"].statistics
    assert statistics["documents"] + statistics["rejected"] == len(records)
    assert statistics["rejected"] == sum(len(record) != len(header) for record in records)
    assert (statistics["rejected"] > 0) == (name == OWN)
    assert statistics["other_encodings"] == "cp1252"
    assert any("cp1252" in note for note in run.notes)
    rejected = pq.read_table(Warehouse(home).pipeline("spam").rejected).to_pylist()
    assert len(rejected) == statistics["rejected"]
    assert all(row["reason"] and row["raw"] for row in rejected)
    rows = live_rows(home, "spam").values()
    assert (
        len({row["document_id"] for row in rows})
        == statistics["documents"] - run.reports["chunks"].statistics["empty"]
    )
    assert {row["v1"] for row in rows} == {"ham", "spam"}
    assert any("£" in row["text"] for row in rows)  # 0xA3: what UTF-8 readers make mojibake of
