"""What an edit costs, through the steps: the chunks beside it, and how many tokens they have for each
one that was edited; and no text that the model never sees."""

from pathlib import Path

import pytest

from embedding_pipelines.progress import StepReport, sum_reports
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.checks import current_checks
from embedding_pipelines_tests.chain import (
    hashing,
    live_rows,
    run_of,
    run_recorded,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import PLAIN, UNMEASURED

ONE_PARTITION = PLAIN.replace("partitions: 4", "partitions: 1") + UNMEASURED


def paragraph(name: str) -> str:
    return " ".join(f"On {name} the fox {number} jumped over the dog." for number in range(4))


def embeddings(reports: list[StepReport]) -> StepReport:
    return sum_reports("embeddings", [each for each in reports if each.step == "embeddings"])


def test_a_paragraph_at_the_top_of_10_000_words_embeds_three_chunks_at_most(home: Path) -> None:
    write_pipeline(home, "p", ONE_PARTITION)
    paragraphs = [paragraph(f"d{number}") for number in range(280)]
    write_csv(home, "a.csv", [("long", "\n\n".join(paragraphs), "x"), ("other", "a fox", "x")])
    first = embeddings(run_steps(home, "p")).statistics
    assert "tokens_per_edited_token" not in first  # nothing was there to be edited
    assert first["vectors"] > 40
    paragraphs.insert(0, paragraph("another"))
    assert len(" ".join(paragraphs).split()) > 10_000
    write_csv(home, "a.csv", [("long", "\n\n".join(paragraphs), "x"), ("other", "a fox", "x")])
    reports, texts = run_recorded(home, "p")
    assert 1 <= len(texts) <= 3
    statistics = embeddings(reports).statistics
    with run_of(home, "p") as run:
        new = len(run.model.tokenizer.encode(paragraph("another")).ids)
    assert statistics["edited_tokens"] == pytest.approx(new, rel=0.2)  # counted by characters
    ratio = statistics["embedded_tokens"] / statistics["edited_tokens"]
    assert statistics["tokens_per_edited_token"] == pytest.approx(ratio, abs=0.06)
    assert ratio < 15
    starts = sorted(row["start"] for row in live_rows(home, "p").values())
    assert len(starts) >= first["vectors"]


def test_edits_that_were_cut_and_not_embedded_give_no_figure(home: Path) -> None:
    write_pipeline(home, "p", ONE_PARTITION)
    paragraphs = [paragraph(f"d{number}") for number in range(20)]
    for number in range(3):
        paragraphs.insert(0, paragraph(f"another {number}"))
        write_csv(home, "a.csv", [("long", "\n\n".join(paragraphs), "x")])
        if number != 1:
            reports = run_steps(home, "p")
            continue
        with run_of(home, "p") as run:  # a run that ends before the model
            for step in steps_of(run.spec)[:2]:
                list(step.work(run, run.spec.partition_names))
    statistics = embeddings(reports).statistics
    assert statistics["embedded_tokens"] > 0
    assert "tokens_per_edited_token" not in statistics


def test_tokens_that_the_model_never_sees_are_none_or_told(home: Path) -> None:
    text = " ".join(f"word{number}" for number in range(600))
    write_csv(home, "a.csv", [("a", text, "x"), ("b", "a fox", "x")])
    for chunk, unseen in (("{}", 0), ("null", 600 - 256)):
        write_pipeline(home, "p", f"{ONE_PARTITION}preprocessing: {{chunk: {chunk}}}\n")
        run_steps(home, "p")
        record = current_checks(run_of(home, "p", hashing()))
        assert record is not None
        assert record.metrics["tokens_unseen"] == pytest.approx(unseen, abs=5)
        (check,) = [check for check in record.checks if check.name == "model_sees_all_text"]
        assert check.passed == (not unseen)
        assert check.effect == ("warn" if unseen else "block")
        assert not unseen or "The model never saw 34" in check.sentence
