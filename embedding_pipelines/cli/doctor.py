"""The command `doctor`: tests all that a pipeline depends on."""

from dataclasses import asdict
from functools import partial
from typing import Any

import typer

from embedding_pipelines.cli.common import (
    Files,
    Outcomes,
    Output,
    Problem,
    find_files,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import make_console, print_words

app = typer.Typer()


@app.command()
def doctor(names: Files = None) -> Outcomes:
    """Test a pipeline's file, source, model and stored data.

    The model is sent two short texts. Nothing is repaired: the next run makes anew what is damaged.
    """
    from embedding_pipelines.doctor import examine
    from embedding_pipelines.spec.load import read_draft

    console = make_console()
    paths, problems = find_files(names)
    for path in paths:
        findings: list[dict[str, Any]] = []
        for finding in examine(read_draft(path), open_warehouse()):
            findings.append(asdict(finding))
            mark, style = ("ok", "") if finding.is_well else ("NOT WELL", "red")
            line = f"{path.stem} {finding.what:<9} {mark}: {finding.sentence}"
            yield Output([], partial(print_words, console, line, style))
        bad = [finding["what"] for finding in findings if not finding["is_well"]]
        yield Output([{"pipeline": path.stem, "well": not bad, "findings": findings}])
        if bad:
            problems.append(Problem(f"{path.stem}: not well: {', '.join(bad)}.", path.stem))
    yield from problems
