"""Pipeline files: every mistake at once, with its line and what to do."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.spec.load import (
    find_pipeline,
    parse_pipeline,
    pipeline_files,
    read_pipeline,
    read_pipelines,
)
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.conftest import HASHING

S = "source: {kind: csv, path: a.csv}\n"
M = "model: minilm\n"

MISTAKES = {
    "an empty file": ("", "1: holds no pipeline. Write at least `source:` and `model:`."),
    "a comment": (
        "# nothing yet\n",
        "1: holds no pipeline. Write at least `source:` and `model:`.",
    ),
    "a list": ("- a\n", "1: holds no pipeline. Write at least `source:` and `model:`."),
    "no model": (S, "1: model: is missing."),
    "no source": (
        M,
        "1: source: is missing; write `source: {kind: csv, path: …}` or `data_path: …`.",
    ),
    "a typo in a source": (
        "source:\n  kind: csv\n  path: a.csv\n  txt: title\n" + M,
        "4: source.txt: is no option here; did you mean 'text'?",
    ),
    "a typo in a chunk": (
        S + M + "preprocessing:\n  chunk:\n    max_token: 3\n",
        "5: preprocessing.chunk.max_token: is no option here; did you mean 'max_tokens'?",
    ),
    "an unknown kind": (
        "source: {kind: cvs, path: a}\n" + M,
        "1: source: 'cvs' is not known; did you mean 'csv'?",
    ),
    "no kind": (
        "source: {path: a}\n" + M,
        "1: source: needs a `kind`: one of csv, json, jsonl, parquet.",
    ),
    "a path as source": (
        S.replace("{kind: csv, path: a.csv}", "a.csv") + M,
        "1: source: needs options, such as {kind: csv, …}.",
    ),
    "an unknown alias": (
        S + "model: brt\n",
        "2: model: 'brt' is no known alias; write 'hf:<organisation>/<model>' or one of "
        f"{', '.join(ALIASES)}.",
    ),
    "an unknown store": (
        S + M + "store: lance\n",
        "3: store.kind: 'lance' is not known; did you mean 'lancedb'?",
    ),
    "no list": (S + M + "compression: int8\n", "3: compression: must be a list: [ … ]."),
    "an unknown codec": (
        S + M + "compression:\n  - int8\n  - kind: pcaa\n",
        "5: compression.1: 'pcaa' is not known; did you mean 'pca'?",
    ),
    "no number": (
        S + M + "partitions: many\n",
        "3: partitions: must be a whole number, not 'many'.",
    ),
    "too many": (S + M + "partitions: 1000\n", "3: partitions: must be 256 or less, not 1000."),
    "yes for a name": (
        "source: {kind: csv, path: a, id: yes}\n" + M,
        "1: source.id: must be text; put it in quotes.",
    ),
    "a key twice": (
        S + M + "seed: 1\nseed: 2\n",
        "4: 'seed' stands twice, first in line 3. Keep one.",
    ),
    "a number as key": (S + M + "1: 2\n", "3: the key '1' is not text; put it in quotes."),
    "a name": (
        S + M + "name: other\n",
        "3: name: the file's name is the pipeline's; leave this out.",
    ),
    "a tab": ("source:\n\tkind: csv\n", "2: is not YAML: a tab stands here. Indent with spaces."),
    "an open brace": (
        "source: {kind: csv, path: a.csv\nmodel: minilm\n",
        "2: is not YAML: expected ',' or '}', but got ':'; is the '{' of line 1 closed?",
    ),
    "two colons": (
        "source: csv: a.csv\n",
        "1: is not YAML: a second ': ' stands in this line; put the value in quotes, "
        "or begin a new line.",
    ),
    "two documents": (
        S + M + "---\n" + S,
        "3: is not YAML: a second document begins here; one file is one pipeline.",
    ),
    "a wrong date": (
        S + M + "description: 2020-13-45\n",
        "1: a value cannot be read (month must be in 1..12); put it in quotes.",
    ),
    "a loop": (S + M + "description: &a [*a]\n", "3: refers to itself; write the value out."),
    "a control character": (
        S + M + "description: \x07\n",
        "3: holds the control character #x0007. Remove it.",
    ),
    "an unset variable": (
        S + "model:\n  provider: hf\n  model: ${NOT_SET_ANYWHERE}\n",
        "4: the environment variable 'NOT_SET_ANYWHERE' is not set. Set it, or write the value.",
    ),
    "another input": (
        '{"model": "bert",\n "input_type": "image", "data_path": "x.csv"}',
        "1: input_type: only 'text' is supported.",
    ),
    "a wrong ending": (
        '{"model": "bert", "data_path": "x.xlsx"}',
        "1: data_path: the kind of 'x.xlsx' is not clear from its ending; write source.kind.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_with_its_line_and_what_to_do(mistake: str) -> None:
    text, expected = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(text, "p", "p.yaml")
    assert f"p.yaml:{expected}" in str(caught.value).splitlines()


def test_no_code_is_run_and_no_tag_is_known() -> None:
    with pytest.raises(ConfigError, match=r"p\.yaml:3: .*python/object.*write a plain value"):
        parse_pipeline(S + M + "description: !!python/object/apply:os.getcwd []\n", "p", "p.yaml")


def test_all_mistakes_are_reported_at_once_in_the_order_of_their_lines() -> None:
    text = "source: {kind: csv, pth: a}\nmodel: {provider: hf}\nseed: 1\nseed: x\nowners: [me]\n"
    text += "sede: ${NOT_SET}\n"
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(text, "p", "p.yaml")
    lines = str(caught.value).splitlines()
    assert [int(line.split(":")[1]) for line in lines] == [1, 1, 2, 4, 4, 5, 6, 6]
    assert all(line.startswith("p.yaml:") and line.endswith((".", "?")) for line in lines)


def test_a_value_that_may_be_a_secret_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(
            S + "model: {provider: hf, model: x, api_key: sk-123, revision: [sk-456]}\n",
            "p",
            "p.yaml",
        )
    assert "sk-" not in str(caught.value)


def test_variables_of_the_environment_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "elsewhere")
    monkeypatch.setenv("PARTITIONS", "7")
    text = "source: {kind: csv, path: '${DATA}/${DATA}.csv'}\npartitions: ${PARTITIONS}\n"
    spec = parse_pipeline(text + M, "p", "p.yaml")
    assert spec.source.path == ("elsewhere/elsewhere.csv",)
    assert spec.partitions == 7
    plain = parse_pipeline(S + M + "description: $DATA and $5 and $${x\n", "p", "p.yaml")
    assert plain.description == "$DATA and $5 and $${x"


def test_json_may_be_indented_by_tabs_and_escaped() -> None:
    text = '{\n\t"model": "bert",\n\t"data_path": "a\\/\\ud83d\\ude00.csv"\n}'
    for where in ("p.json", "p.yaml"):
        assert parse_pipeline(text, "p", where).source.path == ("a/😀.csv",)


def test_wrong_json_in_a_json_file_is_reported_as_json() -> None:
    with pytest.raises(ConfigError, match=r"p\.json:3: is not JSON: .*\(column 1\)"):
        parse_pipeline('{"model": "bert",\n "data_path": "a.csv",\n}', "p", "p.json")


def test_a_byte_order_mark_is_no_mistake(home: Path) -> None:
    for name, text in (("a.yaml", S + M), ("b.json", '{"model": "bert", "data_path": "x.csv"}')):
        path = home / "pipelines" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_pipeline(path).name == path.stem


def test_a_file_that_is_not_utf8_or_not_there_is_reported(home: Path) -> None:
    path = write_pipeline(home, "p", S + M)
    path.write_bytes("description: Größe\n".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"p\.yaml: is not UTF-8 at byte 15\. Save it as UTF-8"):
        read_pipeline(path)
    with pytest.raises(ConfigError, match=r"q\.yaml: cannot be read: No such file"):
        read_pipeline(home / "pipelines" / "q.yaml")


def test_a_broken_file_does_not_hide_the_others(home: Path) -> None:
    assert pipeline_files(home) == []
    write_pipeline(home, "good", HASHING)
    broken = write_pipeline(home, "broken", "nothing")
    (home / "pipelines" / "good.json").write_text('{"model": "bert", "data_path": "x.csv"}')
    (home / "pipelines" / "notes.txt").write_text("no pipeline")
    specs, problems = read_pipelines(home)
    assert set(specs) == {"good"}
    assert {path.name for path in problems} == {broken.name, "good.yaml"}
    assert "another file is called 'good' too" in str(problems[home / "pipelines" / "good.yaml"])


def test_an_unknown_pipeline_is_met_with_the_nearest_one(home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"There is no pipeline 'stdlib'.*`embedding-pipelines example` makes two"
    ):
        find_pipeline("stdlib", home)
    write_pipeline(home, "stdlib", HASHING)
    write_pipeline(home, "other", HASHING)
    with pytest.raises(ConfigError, match=r"Did you mean 'stdlib'\? There are: other, stdlib\."):
        find_pipeline("stdlb", home)
    assert find_pipeline("stdlib", home).name == "stdlib"
