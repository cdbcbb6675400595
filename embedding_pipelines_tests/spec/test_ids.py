"""Numbers of pipelines: given once, never twice, the same for everybody."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import write_json
from embedding_pipelines.spec import ids as ids_of_pipelines
from embedding_pipelines.spec.ids import find_name, pipeline_ids
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.conftest import HASHING

MEMORY = Path("data") / "warehouse" / "ids.json"


def with_pipelines(home: Path, *names: str) -> Path:
    for name in names:
        write_pipeline(home, name, HASHING)
    return home


def test_pipelines_are_numbered_in_the_order_of_first_sight(home: Path) -> None:
    assert pipeline_ids(with_pipelines(home, "b", "c")) == {"b": 1, "c": 2}
    assert pipeline_ids(with_pipelines(home, "a")) == {"b": 1, "c": 2, "a": 3}


def test_a_deleted_pipeline_keeps_its_number_and_nobody_else_gets_it(home: Path) -> None:
    pipeline_ids(with_pipelines(home, "a", "b"))
    (home / "pipelines" / "b.yaml").unlink()
    assert pipeline_ids(with_pipelines(home, "c")) == {"a": 1, "b": 2, "c": 3}
    assert pipeline_ids(with_pipelines(home, "b")) == {"a": 1, "b": 2, "c": 3}


def test_a_home_without_pipelines_gets_no_warehouse(home: Path) -> None:
    assert pipeline_ids(home) == {}
    assert list(home.iterdir()) == []


def test_a_broken_file_has_a_number_and_one_that_can_name_no_pipeline_has_none(home: Path) -> None:
    write_pipeline(home, "broken", "source: [\n")
    write_pipeline(home, "7", HASHING)
    write_pipeline(home, "Upper", HASHING)
    assert pipeline_ids(home) == {"broken": 1}


def test_a_number_stands_for_its_pipeline_and_a_name_for_itself(home: Path) -> None:
    with_pipelines(home, "a", "b")
    texts = ("2", "02", "b", "nobody", "-1", "٢")
    assert [find_name(home, text) for text in texts] == ["b", "b", "b", "nobody", "-1", "٢"]


def test_a_number_that_nobody_has_is_refused_with_those_there_are(home: Path) -> None:
    with pytest.raises(
        ConfigError, match="No pipeline has the number 1: there are no pipelines yet"
    ):
        find_name(home, "1")
    with_pipelines(home, "a", "b")
    with pytest.raises(ConfigError, match="No pipeline has the number 3: 1 is 'a', 2 is 'b'"):
        find_name(home, "3")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"ids": {"a": 1', "cannot be read: its content is not what was written"),
        ("[]", "cannot be read: its content is not what was written"),
        ('{"ids": {"a": "1"}}', "are not whole numbers by name"),
        ('{"ids": {"a": true}}', "are not whole numbers by name"),
        ('{"ids": {"a": 0}}', "are not whole numbers by name"),
        ('{"ids": {"a": 1, "b": 1}}', "Two pipelines have the same number"),
    ],
)
def test_damaged_numbers_are_named_with_what_to_do(home: Path, content: str, problem: str) -> None:
    pipeline_ids(with_pipelines(home, "a"))
    if content.endswith("}}"):
        write_json(home / MEMORY, json.loads(content))
    else:
        (home / MEMORY).write_text(content)
    with pytest.raises(
        StoreError, match=rf"{problem}.*Put back a copy of it, or delete it.*ids\.json"
    ):
        pipeline_ids(home)
    (home / MEMORY).unlink()
    assert pipeline_ids(home) == {"a": 1}


def test_processes_at_once_agree_on_every_number(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from embedding_pipelines.spec.ids import pipeline_ids\n"
        "home, own = Path(sys.argv[1]), sys.argv[2]\n"
        "for n in range(20):\n"
        "    (home / 'pipelines' / f'{own}{n}.yaml').write_text('')\n"
        "    pipeline_ids(home)\n"
    )
    with_pipelines(home, "first")
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(home), own]) for own in ("a", "b", "c")
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    ids = pipeline_ids(home)
    assert len(ids) == 61
    assert sorted(ids.values()) == list(range(1, 62))


def test_where_no_number_can_be_kept_none_is_given(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with_pipelines(home, "b")
    with monkeypatch.context() as read_only:
        read_only.setattr(ids_of_pipelines, "write_json", refuse)
        assert pipeline_ids(home) == {}
    assert pipeline_ids(home) == {"b": 1}
    with_pipelines(home, "a")
    with monkeypatch.context() as read_only:
        read_only.setattr(ids_of_pipelines, "write_json", refuse)
        assert pipeline_ids(home) == {"b": 1}
        assert find_name(home, "1") == "b"
    assert pipeline_ids(home) == {"b": 1, "a": 2}
