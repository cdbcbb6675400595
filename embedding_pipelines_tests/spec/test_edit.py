"""Options of a pipeline file change, and nothing else in it does: not a comment, not a space."""

import json
import stat
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.spec.edit import edited, with_option
from embedding_pipelines.spec.evaluation import Optimized
from embedding_pipelines.spec.load import read_pipeline

COMPRESSION = ("compression",)
PCA = [{"kind": "pca", "dimensions": 128}, {"kind": "int8"}]
PCA_TEXT = "[{kind: pca, dimensions: 128}, {kind: int8}]"

MANY_HANDS = """\
# Our captions.

source:  {kind: csv,   path: a.csv}   # by hand
model: "hashing:words"  # no model
compression:
  # keep the strongest
  - kind: pca   # as measured in May
    dimensions: 16
  - int8  # a byte each

# The store is local.
store:
    kind: lancedb   # on this disk
    keep_releases: 3

schedule: '0 2 * * *'   # nightly
"""


def test_a_block_of_many_lines_becomes_one_and_comments_around_it_stay() -> None:
    assert with_option(MANY_HANDS, COMPRESSION, PCA) == MANY_HANDS.replace(
        """\
  - kind: pca   # as measured in May
    dimensions: 16
  - int8  # a byte each
""",
        f"  {PCA_TEXT}  # a byte each\n",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "compression: [int8]  # small\nstore: lancedb\n",
            f"compression: {PCA_TEXT}  # small\nstore: lancedb\n",
        ),
        ("compression: int8", f"compression: {PCA_TEXT}"),
        ("compression:\nstore: lancedb\n", f"compression: {PCA_TEXT}\nstore: lancedb\n"),
        ("compression:   # to be chosen\n", f"compression: {PCA_TEXT}   # to be chosen\n"),
        ("compression:\n- int8\nstore: lancedb\n", f"compression: {PCA_TEXT}\nstore: lancedb\n"),
        ("compression: [\n  pca,  # a\n  int8\n]\n", f"compression: {PCA_TEXT}\n"),
        ("compression: &c [int8]\n", f"compression: {PCA_TEXT}\n"),
        ("c: &c [int8]\ncompression: *c\n", f"c: &c [int8]\ncompression: {PCA_TEXT}\n"),
        ("'compression': [int8]\n", f"'compression': {PCA_TEXT}\n"),
        (
            "{model: a, compression: [int8], seed: 1}",
            f"{{model: a, compression: {PCA_TEXT}, seed: 1}}",
        ),
    ],
)
def test_a_value_that_is_there_is_replaced(before: str, after: str) -> None:
    assert with_option(before, COMPRESSION, PCA) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "model: a  # b\nstore: lancedb\n",
            f"model: a  # b\ncompression: {PCA_TEXT}\nstore: lancedb\n",
        ),
        ("model: a", f"model: a\ncompression: {PCA_TEXT}"),
        ("source: b\n\n", f"source: b\ncompression: {PCA_TEXT}\n\n"),
        ("model: a\r\nseed: 1\r\n", f"model: a\r\ncompression: {PCA_TEXT}\r\nseed: 1\r\n"),
        (
            "model:\n  provider: hashing\n# c\n",
            f"model:\n  provider: hashing\ncompression: {PCA_TEXT}\n# c\n",
        ),
        (
            "model: |\n  a\n  b\nseed: 1\n",
            f"model: |\n  a\n  b\ncompression: {PCA_TEXT}\nseed: 1\n",
        ),
        ("  model: a\n  seed: 1\n", f"  model: a\n  compression: {PCA_TEXT}\n  seed: 1\n"),
        ("---\nmodel: a\n...\n", f"---\nmodel: a\ncompression: {PCA_TEXT}\n...\n"),
        ("{model: a, seed: 1}\n", f"{{model: a, compression: {PCA_TEXT}, seed: 1}}\n"),
        ("{model: a}", f"{{model: a, compression: {PCA_TEXT}}}"),
        ("{\n  model: a,\n}\n", f"{{\n  model: a,\n  compression: {PCA_TEXT},\n}}\n"),
        ("\ufeffmodel: a\n", f"\ufeffmodel: a\ncompression: {PCA_TEXT}\n"),
    ],
)
def test_a_value_that_is_not_there_gets_a_place_behind_the_model(before: str, after: str) -> None:
    assert with_option(before, COMPRESSION, PCA) == after


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        (
            "store:\n  kind: lancedb  # here\n",
            "rq",
            "store:\n  kind: lancedb  # here\n  index: rq\n",
        ),
        (
            "store:\n  index: sq  # quick\n  kind: x\n",
            "rq",
            "store:\n  index: rq  # quick\n  kind: x\n",
        ),
        ("store: {kind: lancedb}\n", "rq", "store: {kind: lancedb, index: rq}\n"),
        ("store: {}\n", "rq", "store: {index: rq}\n"),
        ("store: lancedb\n", "rq", "store: {index: rq}\n"),
        ("model: a\n", "rq", "model: a\nstore: {index: rq}\n"),
        ("store: {kind: lancedb}\n", None, "store: {kind: lancedb}\n"),
        ("model: a\n", None, "model: a\n"),
        ("store: {index: rq}\n", None, "store: {index: null}\n"),
        ("store: {index: 'rq'}\n", "rq", "store: {index: 'rq'}\n"),
    ],
)
def test_an_option_within_an_option_is_set(before: str, value: str | None, after: str) -> None:
    assert with_option(before, ("store", "index"), value) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"model": "a"}', '{"model": "a", "compression": ["int8"]}'),
        (
            '{\n\t"model": "a",\n\t"seed": 1\n}\n',
            '{\n\t"model": "a",\n\t"compression": ["int8"],\n\t"seed": 1\n}\n',
        ),
        ('{"compression": [\n  "pca"\n], "seed": 1}', '{"compression": ["int8"], "seed": 1}'),
        ('{"compression" : null}', '{"compression" : ["int8"]}'),
        ('{"description": "\\ud83d\\ude00 \\/ {}", "model": "a"}', None),
    ],
)
def test_json_stays_json(before: str, after: str | None) -> None:
    found = with_option(before, COMPRESSION, ["int8"])
    assert json.loads(found) == json.loads(before) | {"compression": ["int8"]}
    assert after in (found, None)


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12),
    st.dates(),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=3),
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["compression", "model", "optimized", "seed", "source", "store"])


@given(
    file=st.dictionaries(KEYS, VALUES, min_size=1),
    key=st.sampled_from(["compression", "optimized", "store"]),
    value=VALUES.filter(lambda value: value is not None),
    flow=st.sampled_from([True, False, None]),
    indent=st.integers(2, 6),
)
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_file_only_the_one_option_changes(
    file: dict[str, Any], key: str, value: Any, flow: bool | None, indent: int
) -> None:
    text = yaml.safe_dump(
        file, default_flow_style=flow, indent=indent, sort_keys=False, allow_unicode=True
    )
    assert yaml.safe_load(with_option(text, (key,), value)) == file | {key: value}


# --- the file itself

PIPELINE = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title]}  # ours
model: {provider: hashing}
store: lancedb
"""


def write_pipeline(home: Path, text: str) -> Path:
    path = home / "pipelines" / "p.yaml"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    return path


def options_of(path: Path) -> tuple[Any, Any]:
    spec = read_pipeline(path)
    optimized = Optimized(measured_on=date(2026, 1, 31), method="pca 16", recall_at_10=0.9)
    wanted = spec.model_copy(
        update={"compression": (Pca(dimensions=16), Int8()), "optimized": optimized}
    )
    options = {
        ("compression",): [{"kind": "pca", "dimensions": 16}, {"kind": "int8"}],
        ("optimized",): optimized.model_dump(exclude_defaults=True),
    }
    return options, wanted


def test_the_file_is_what_was_wanted_once_the_body_has_ended(home: Path) -> None:
    path = write_pipeline(home, PIPELINE)
    path.chmod(0o640)
    options, wanted = options_of(path)
    with edited(path, options, wanted):
        assert read_pipeline(path) == wanted
    assert read_pipeline(path) == wanted
    assert path.read_text() == PIPELINE.replace(
        "hashing}\n",
        "hashing}\ncompression: [{kind: pca, dimensions: 16}, {kind: int8}]\n"
        "optimized: {measured_on: 2026-01-31, method: pca 16, recall_at_10: 0.9}\n",
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["p.yaml"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_the_file_is_as_before_if_the_body_fails(home: Path, failure: type[BaseException]) -> None:
    path = write_pipeline(home, PIPELINE)
    with pytest.raises(failure), edited(path, *options_of(path)):
        raise failure
    assert path.read_text() == PIPELINE


def test_what_somebody_else_has_written_meanwhile_is_kept(home: Path) -> None:
    path = write_pipeline(home, PIPELINE)
    editing = edited(path, *options_of(path))
    editing.__enter__()
    path.write_text("# another hand\n" + path.read_text())
    late = ValueError("late")
    assert not editing.__exit__(ValueError, late, None)
    assert path.read_text().startswith("# another hand\n")


def test_a_link_stays_a_link(home: Path) -> None:
    path = write_pipeline(home, PIPELINE)
    target = home / "elsewhere.yaml"
    path.rename(target)
    path.symlink_to(target)
    with edited(path, *options_of(path)):
        pass
    assert path.is_symlink()
    assert "int8" in target.read_text()


@pytest.mark.parametrize(
    ("text", "update"),
    [
        (PIPELINE, {"seed": 7}),  # which no option sets
        (PIPELINE + "compression: [&last float16]\ndescription: *last\n", {}),
    ],
)
def test_a_file_that_would_come_to_mean_something_else_is_left_alone(
    home: Path, text: str, update: dict[str, Any]
) -> None:
    path = write_pipeline(home, text)
    options, wanted = options_of(path)
    editing = edited(path, options, wanted.model_copy(update=update))
    with pytest.raises(
        ConfigError, match=r"put them in yourself .*compression: \[\{kind: pca, dimensions: 16\}"
    ):
        editing.__enter__()
    assert path.read_text() == text


def test_the_edited_file_names_the_environment_as_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "data")
    path = write_pipeline(home, PIPELINE.replace("data/", "${WHERE}/"))
    options, wanted = options_of(path)
    with edited(path, options, wanted):
        assert read_pipeline(path) == wanted
    assert "${WHERE}/*.csv" in path.read_text()
