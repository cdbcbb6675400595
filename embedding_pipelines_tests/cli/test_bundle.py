"""The commands `bundle` and `import`."""

from pathlib import Path

import pytest

from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import UNMEASURED

PIPELINE = f"""\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title]}}
model: {{provider: hashing}}
partitions: 1
{UNMEASURED}"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_a_release_goes_to_another_home(home: Path, tmp_path: Path, command: Command) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", [(n, f"text number {n}") for n in range(3)], "id,title")
    run_steps(home, "p")
    there, archive = tmp_path / "there", tmp_path / "p.tar"
    there.mkdir()
    said = command("bundle", "p", "--to", str(archive))
    assert said.code == 0
    assert f"{archive}: release 1 of p, 3 rows, {archive.stat().st_size:,} bytes" in said.out
    again = command("bundle", "p", "--to", str(archive), "--json")
    assert (again.code, again.errors) == (
        1,
        [f"{archive} exists. Name another file or folder, or remove it first."],
    )
    taken = command("import", str(archive), "--home", str(there), "--json")
    assert taken.code == 0
    (result,) = taken.results
    assert (result["release"], result["rows"], result["goes_on"]) == (1, 3, True)
    assert result["files"] == ["pipelines/p.yaml"]
    archive.write_bytes(archive.read_bytes()[:-5000])
    cut = command("import", str(archive), "--home", str(there))
    assert cut.code == 1
    assert "ends" in cut.err
    nothing = command("import", str(tmp_path / "none"), "--home", str(there))
    assert (nothing.code, "There is no bundle" in nothing.err) == (1, True)
