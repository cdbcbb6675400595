"""Pipeline files: every mistake at once, with its line and what to do."""

import contextlib
import os
import re
import tempfile
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.spec.load import (
    find_pipeline,
    parse_pipeline,
    pipeline_file,
    pipeline_files,
    read_pipeline,
    read_pipelines,
)
from embedding_pipelines.spec.pipeline import PipelineSpec
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
        "1: source: needs a `kind`: one of csv, html, huggingface, images, json, jsonl, markdown, "
        "parquet, pdf, push, sql.",
    ),
    "a path as source": (
        S.replace("{kind: csv, path: a.csv}", "a.csv") + M,
        "1: source: needs options, such as {kind: csv, …}.",
    ),
    "an unknown alias": (
        S + "model: brt\n",
        "2: model: 'brt' is no known alias. Did you mean 'bert'? Write 'hf:<organisation>/<model>' or one of "
        f"{', '.join(ALIASES)}.",
    ),
    "an unknown store": (
        S + M + "store: lance\n",
        "3: store: 'lance' is not known; did you mean 'lancedb'?",
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
        "2: input_type: only 'text' is supported.",
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


def test_a_store_s_options_need_no_kind() -> None:
    store = parse_pipeline(S + M + "store: {keep_releases: 9}\n", "p", "p.yaml").store
    assert (store.kind, store.keep_releases) == ("lancedb", 9)
    with pytest.raises(ConfigError, match=r"p\.yaml:3: store\.indx: .*did you mean 'index'"):
        parse_pipeline(S + M + "store: {indx: rq}\n", "p", "p.yaml")


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


def test_two_pipelines_do_not_take_each_other_s_messages(home: Path) -> None:
    text = HASHING.replace("path: 'data/*.csv'", "path: 's3://shop/in/*.csv'")
    text += "events: https://sqs.eu-central-1.amazonaws.com/1/products\n"
    write_pipeline(home, "a", text)
    write_pipeline(home, "b", text)
    write_pipeline(home, "c", text.replace("/products", "/others"))
    specs, problems = read_pipelines(home)
    assert set(specs) == {"a", "c"}
    (problem,) = problems.values()
    assert str(problem).startswith("b.yaml: events: a.yaml names this queue too")


def test_a_queue_s_address_with_credentials_is_refused_and_not_repeated(home: Path) -> None:
    text = HASHING.replace("path: 'data/*.csv'", "path: 's3://shop/in/*.csv'")
    text += "events: https://AKIA:secret@sqs.eu-central-1.amazonaws.com/1/products\n"
    with pytest.raises(ConfigError, match="the queue's address holds credentials") as raised:
        read_pipeline(write_pipeline(home, "a", text))
    assert "secret" not in str(raised.value)


def test_an_unknown_pipeline_is_met_with_the_nearest_one(home: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"There is no pipeline 'stdlib'.*`embedding-pipelines init FILE` writes one",
    ):
        find_pipeline("stdlib", home)
    write_pipeline(home, "stdlib", HASHING)
    write_pipeline(home, "other", HASHING)
    with pytest.raises(ConfigError, match=r"Did you mean 'stdlib'\? There are: other, stdlib\."):
        find_pipeline("stdlb", home)
    assert find_pipeline("stdlib", home).name == "stdlib"


LAUGHS = "\n".join(
    f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9) if level else 'ha'}]"
    for level in range(12)
)
ODD = {
    "deep YAML": ("description: " + "[" * 500 + "]" * 500, "is not YAML: more than 40 levels"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(500)), "more than 40 levels deep"),
    "deep JSON": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "more than 40 levels deep"),
    "a deep list": ("[" * 100_000, "more than 40 levels deep"),
    "a long number": ("seed: " + "9" * 5_000, "3: a number of 5,000 characters; write a shorter"),
    "a long octal": ("seed: 0b" + "1" * 5_000, "a number of 5,002 characters"),
    "a long sexagesimal": ("seed: 1" + ":59" * 5_000, "a number of 15,001 characters"),
    "a long number in JSON": ('{"seed": ' + "9" * 5_000 + "}", "a number of 5,000 characters"),
    "billion laughs": (LAUGHS, "its aliases stand for more than 20,000 values"),
    "merged laughs": (
        "\n".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" if n else
                  "m0: &m0 {a: 1}" for n in range(12)),
        "its aliases stand for more than 20,000 values",
    ),
    "a merge of itself": ("a: &a {<<: *a}", "refers to itself; write the value out"),
    "infinity": ("budget: {usd: .inf}", r"\.inf is no finite number"),
    "not a number": ("evaluation: {may_lose: .nan}", r"\.nan is no finite number"),
    "a zero character": ('description: "a\\0b"', r"holds the character U\+0000"),
    "half a pair": ('description: "\\ud83d"', "half a surrogate pair"),
    "half a pair in JSON": ('{"description": "\\ud83d"}', "half a surrogate pair"),
    "half a pair as key": ('"\\ud83d": 1', "half a surrogate pair"),
    "no character": ('description: "\\U00110000"', "is not YAML"),
    "yes as key": ("yes: 1", "the key 'yes' is not text; put it in quotes"),
    "a date as key": ("2024-01-01: 1", "the key '2024-01-01' is not text"),
    "null as key": ("~: 1", "the key '~' is not text"),
    "a list as key": ("[a, b]: 1", "the key is not text"),
    "a key of a key": ("? {a: b}\n: 1", "the key is not text"),
    "yes in a list": ("owners: [yes]", "owners.0: must be text; put it in quotes"),
    "a date as text": ("description: 2024-01-01", "description: must be text; put it in quotes"),
    "a wrong tag": ("description: !mine x", "write a plain value"),
    "a long word": (f"store: {'x' * 9_000}", r"store: 'x{350,400} … x"),
    "many mistakes": ("\n".join(f"x{n}: 1" for n in range(300)), r"p\.yaml: 260 mistakes more\."),
    "an alias of nothing": ("description: *x", "is not YAML: found undefined alias"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_a_file_may_hold_ends_soon_and_with_its_line(case: str) -> None:
    more, words = ODD[case]
    text = more if more.startswith(("{", "[")) else S + M + more
    with pytest.raises(ConfigError, match=words) as caught:
        parse_pipeline(text, "p", "p.yaml")
    lines = str(caught.value).splitlines()
    assert all(re.match(r"p\.yaml(:\d+)?: ", line) for line in lines)
    assert max(map(len, lines)) < 1_000


def test_anchors_and_merges_are_followed() -> None:
    text = (
        "source: &s {kind: csv, path: a.csv, id: &i sku}\nmodel: minilm\nevaluation: {pairs: *i}\n"
    )
    assert parse_pipeline(text, "p", "p.yaml").evaluation.pairs == "sku"
    text = "source: {<<: &s {kind: csv, path: a.csv}, id: sku}\nmodel: minilm\n"
    source = parse_pipeline(text, "p", "p.yaml").source
    assert (source.kind, source.id) == ("csv", "sku")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "path", "provider", "text", "clean", "checks", "usd"]), inner
    ),
    max_leaves=6,
), st.sampled_from([*PipelineSpec.model_fields, "data_path", "other"]))  # fmt: skip
def test_whatever_an_option_is_set_to_the_file_is_read_or_its_mistakes_are_told(
    value: object, option: str
) -> None:
    base = {"source": {"kind": "csv", "path": "a.csv"}, "model": "minilm"}
    text = yaml.safe_dump({**base, option: value}, allow_unicode=True)
    with contextlib.suppress(ConfigError):
        parse_pipeline(text, "p", "p.yaml")


@given(st.binary(max_size=200))
def test_whatever_bytes_a_file_holds_it_is_read_or_its_mistakes_are_told(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        Path(file.name).write_bytes(data)
        with pytest.raises(ConfigError):
            read_pipeline(Path(file.name))


def odd_files(folder: Path) -> dict[str, str]:
    """What may lie in `pipelines/`, and what is said of it."""
    folder.mkdir(exist_ok=True)
    os.mkfifo(folder / "pipe.yaml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    (folder / "folder.yaml").mkdir()
    (folder / "nowhere.yaml").symlink_to("no/such/file")
    (folder / "round.yaml").symlink_to("round.yaml")
    (folder / "huge.yaml").write_text(S + M + "#" * 300_000)
    (folder / "wide.yaml").write_bytes((S + M).encode("utf-16"))
    (folder / "wider.yaml").write_bytes((S + M).encode("utf-16-be"))
    (folder / "deep.json").write_text('{"a": ' * 40_000)
    (folder / "my-pipe.yaml").write_text(S + M)
    (folder / "my pipe.yaml").write_text(S + M)
    (folder / "ä.yaml").write_text(S + M)
    (folder / "ö.yaml").write_text(S + M)
    (folder / "good.yml").write_text(S + M)
    (folder / "2024-01-01.yaml").write_text(S + M)
    (folder / os.fsdecode(b"\xff.yaml")).write_text(S + M)
    (folder / ".#editor.yaml").symlink_to("user@host.1234")
    (folder / "UPPER.YAML").write_text(S + M)
    return {
        "pipe": "is a pipe, socket or device, not a file",
        "zero": "is a pipe, socket or device, not a file",
        "folder": "is a folder, not a file",
        "nowhere": "cannot be read: No such file or directory; it links to no/such/file",
        "round": "cannot be read: Too many levels of symbolic links",
        "huge": "has more than 256 KiB",
        "wide": "is UTF-16, not UTF-8. Save it as UTF-8",
        "wider": "is UTF-16, not UTF-8",
        "deep": "more than 40 levels deep",
        "my-pipe": "'my-pipe' cannot name a pipeline",
        "my pipe": "'my pipe' cannot name a pipeline",
        "ä": "cannot name a pipeline",
        "ö": "cannot name a pipeline",
        "2024-01-01": "cannot name a pipeline",
        "\udcff": "cannot name a pipeline",
        "UPPER": "cannot name a pipeline",
        "good": "another file is called 'good' too",
    }


def test_whatever_lies_in_the_folder_the_good_files_are_read(home: Path) -> None:
    write_pipeline(home, "good", HASHING)
    expected = odd_files(home / "pipelines")
    specs, errors = read_pipelines(home)
    assert set(specs) == {"good"}
    words = {path.stem: str(error) for path, error in errors.items()}
    assert words.keys() == expected.keys()
    for name, part in expected.items():
        assert part in words[name]
        words[name].encode()  # to a terminal, and to Dagster
    assert find_pipeline("good", home).model.kind == "hashing"


def test_a_folder_that_cannot_be_listed_is_no_empty_one(home: Path) -> None:
    (home / "pipelines").write_text("a file")
    for look in (pipeline_files, partial(pipeline_file, "p")):
        with pytest.raises(ConfigError, match="pipelines: cannot be listed: Not a directory"):
            look(home)


def test_one_file_is_what_all_files_say_of_its_name(home: Path) -> None:
    assert pipeline_file("a", home) is None
    names = ("a.yml", "a.JSON", "a.b.yaml", "ab.yaml", ".a.yaml", "a.txt", "a", "b.YAML", "x..yaml")
    for name in names:
        write_pipeline(home, "p", "").rename(home / "pipelines" / name)
    for name in ("a", "a.b", "ab", "b", "x.", "", ".a", "c", "a.yml"):
        files = [path for path in pipeline_files(home) if path.stem == name]
        assert pipeline_file(name, home) == (files[0] if files else None), name


BESIDE = {
    "a misspelled kind": (
        "source: {kind: cvs, pth: a, max_rejected: x}\nmodel: minilm\nseed: x\n",
        ["source: 'cvs' is not known", "source.path: is missing", "source.pth: is no option",
         "source.max_rejected: 'x' is no limit", "seed: must be a whole number"],
    ),
    "no kind": (
        "source: {path: a.jsonl, txt: a}\nmodel: {modell: x}\n",
        ["source: needs a `kind`", "source.txt: is no option here; did you mean 'text'",
         "model: needs a `provider`", "model.modell: is no option here"],
    ),
    "a compressor": (
        S + M + "compression: [{kind: pcaa, dimension: 3}]\nevaluation: {label: topic}\n",
        ["compression.0: 'pcaa' is not known", "compression.0.dimension: is no option",
         "compression.0.dimensions: is missing",
         "4: evaluation.label: 'topic' is no metadata column"],
    ),
    "evaluation": (
        S + M + "evaluation: {label: topic, require: {x: 1, y: 2}, checks: {z: off}, may_lose: 3, qrels: a}\n"
        "budget: {usd: -1}\n",
        ["3: evaluation.label: 'topic' is no", "3: evaluation.require: 'x' is no metric that can be "
         "better or worse. 'y' is no metric", "evaluation.checks: 'z' is no check",
         "evaluation.may_lose: 3 is no share", "evaluation.qrels: qrels needs queries",
         "budget.usd: must be 0 or more"],
    ),
    "no source": (
        M + "evaluation: {label: topic}\npartitions: 0\n",
        ["source: is missing", "partitions: must be 1 or more"],
    ),
    "a model": (
        S + "model: minilmm\nevaluation: {label: topic}\nstore: {kind: lancedb, index: tree}\n",
        ["Did you mean 'minilm'?", "no metadata column", "store.index: 'tree' is not known; there are sq"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_wrong_beside_a_wrong_section_is_told_too(case: str) -> None:
    text, expected = BESIDE[case]
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(text, "p", "p.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected)
    for words in expected:
        assert any(words in line for line in lines), (words, lines)


def test_a_variable_is_not_shown_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2-hunter2")
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(S + M + "seed: ${A_SECRET}\nowners: ['x${A_SECRET}']\n", "p", "p.yaml")
    assert "hunter2" not in str(caught.value)
    assert "not '${A_SECRET}'" in str(caught.value)
