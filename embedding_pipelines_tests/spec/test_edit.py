"""Options of a pipeline file change, and nothing else in it does: no comment, no other line."""

import json
import math
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
from embedding_pipelines.spec.edit import edit_pipeline, with_options
from embedding_pipelines.spec.evaluation import Optimized
from embedding_pipelines.spec.load import pipeline_files, read_pipeline

REPOSITORY = Path(__file__).parents[2]
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


def test_a_block_of_many_lines_becomes_one_and_all_else_stays() -> None:
    assert with_options(MANY_HANDS, {COMPRESSION: PCA}) == MANY_HANDS.replace(
        """\
compression:
  # keep the strongest
  - kind: pca   # as measured in May
    dimensions: 16
  - int8  # a byte each
""",
        f"""\
# keep the strongest
# as measured in May
# a byte each
compression: {PCA_TEXT}
""",
    )


def test_new_options_stand_behind_those_they_follow_from_and_above_the_next_comment() -> None:
    text = "# ours\nmodel: {provider:  hashing}  # no model\n\n# Local.\nstore: lancedb\n"
    options = {COMPRESSION: ["int8"], ("optimized",): {"on": "x"}}
    assert with_options(text, options) == text.replace(
        "no model\n", "no model\ncompression: [int8]\noptimized: {'on': x}\n"
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("compression: [int8]  # small\n", f"compression: {PCA_TEXT} # small\n"),
        ("compression:\nstore:  lancedb\n", f"compression: {PCA_TEXT}\nstore:  lancedb\n"),
        ("compression: &c [int8]\nx: *c\n", f"compression: {PCA_TEXT}\nx: [int8]\n"),
        ("compression: [\n  pca,  # a\n  int8\n]\n", f"# a\ncompression: {PCA_TEXT}\n"),
        ("model: a", f"model: a\ncompression: {PCA_TEXT}"),
        ("model: a\r\nx:   1\r\n", f"model: a\r\ncompression: {PCA_TEXT}\r\nx:   1\r\n"),
        ("model: |\n  a\n  b\nx: 1\n", f"model: |\n  a\n  b\ncompression: {PCA_TEXT}\nx: 1\n"),
        ("---\nmodel: a\n...\n", f"---\nmodel: a\ncompression: {PCA_TEXT}\n...\n"),
        ("x: {\n  b: 1,  # c\n}\nmodel: a\n", f"x: {{\n  b: 1,  # c\n}}\nmodel: a\ncompression: {PCA_TEXT}\n"),
        ("{model: a, x: 1}\n", f"{{model: a, compression: {PCA_TEXT}, x: 1}}\n"),
        ("\ufeffmodel: a\n", f"\ufeffmodel: a\ncompression: {PCA_TEXT}\n"),
        ('{"model": "a"}', f'{{"model": "a", "compression": {json.dumps(PCA)}}}'),
        (
            '{\n\t"model": "a",\n\t"x": {"a":  1},\n\t"y": "\\ud83d\\ude00"\n}\n',
            '{\n\t"model": "a",\n\t"compression": [\n\t\t{\n\t\t\t"kind": "pca",\n'
            '\t\t\t"dimensions": 128\n\t\t},\n\t\t{\n\t\t\t"kind": "int8"\n\t\t}\n\t],\n'
            '\t"x": {"a":  1},\n\t"y": "\\ud83d\\ude00"\n}\n',
        ),
    ],
)  # fmt: skip
def test_only_the_option_changes(before: str, after: str) -> None:
    assert with_options(before, {COMPRESSION: PCA}) == after


@pytest.mark.parametrize("path", pipeline_files(REPOSITORY), ids=lambda path: path.name)
def test_our_own_files_keep_all_other_lines(path: Path) -> None:
    before = path.read_text(encoding="utf-8").splitlines()
    after = with_options("\n".join(before), {COMPRESSION: PCA}).splitlines()
    assert [line for line in after if line not in before] == [f"compression: {PCA_TEXT}"]
    assert {line.partition(":")[0] for line in before if line not in after} <= {"compression"}


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        (
            "store:\n  kind: lancedb   # here\n\n# at two\nx: 1\n",
            "rq",
            "store:\n  kind: lancedb   # here\n  index: rq\n\n# at two\nx: 1\n",
        ),
        ("store:\n  index: sq # b\n  kind: x\n", "rq", "store:\n  index: rq # b\n  kind: x\n"),
        ("store:\n    kind:  x\nb: 1\n", "rq", "store:\n    kind:  x\n    index: rq\nb: 1\n"),
        ("store: {\n  kind: x, # a\n}\n", "rq", "# a\nstore: {kind: x, index: rq}\n"),
        ("store: lancedb\n", "rq", "store: {index: rq}\n"),
        ("model: a\n", "rq", "model: a\nstore: {index: rq}\n"),
        ("store: {kind:  lancedb}\n", None, "store: {kind:  lancedb}\n"),
        ("model: a\n", None, "model: a\n"),
        ("store: {index: rq}\n", None, "store: {index: null}\n"),
        ('{"store": {"kind": "x"}}', "rq", '{"store": {"kind": "x", "index": "rq"}}'),
        ("store: {index:  'rq'}\n", "rq", "store: {index:  'rq'}\n"),
    ],
)
def test_an_option_within_an_option_is_set(before: str, value: str | None, after: str) -> None:
    assert with_options(before, {("store", "index"): value}) == after


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
    has_comments=st.booleans(),
)
@settings(max_examples=100)
def test_whatever_stands_in_a_file_only_the_one_option_changes_and_each_comment_stays(
    file: dict[str, Any], key: str, value: Any, flow: bool | None, indent: int, has_comments: bool
) -> None:
    text = yaml.safe_dump(
        file,
        default_flow_style=flow,
        indent=indent,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
    )
    if has_comments:
        lines = text.removesuffix("...\n").splitlines()
        text = "".join(f"{line}  # no {n}.\n# above {n}.\n" for n, line in enumerate(lines))
    after = with_options(text, {(key,): value})
    assert yaml.safe_load(after) == file | {key: value}
    for n in range(len(text.splitlines()) // 2 if has_comments else 0):
        assert (after.count(f"# no {n}."), after.count(f"# above {n}.")) == (1, 1)


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
    edited = spec.model_copy(
        update={"compression": (Pca(dimensions=16), Int8()), "optimized": optimized}
    )
    options = {
        ("compression",): [{"kind": "pca", "dimensions": 16}, {"kind": "int8"}],
        ("optimized",): optimized.model_dump(exclude_defaults=True),
    }
    return options, edited


def test_the_file_is_what_was_wanted_once_the_body_has_ended(home: Path) -> None:
    path = write_pipeline(home, PIPELINE)
    path.chmod(0o640)
    options, spec = options_of(path)
    with edit_pipeline(path, options, spec):
        assert read_pipeline(path) == spec
    assert read_pipeline(path) == spec
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
    with pytest.raises(failure), edit_pipeline(path, *options_of(path)):
        raise failure
    assert path.read_text() == PIPELINE


def test_what_somebody_else_has_written_meanwhile_is_kept(home: Path) -> None:
    path = write_pipeline(home, PIPELINE)
    editing = edit_pipeline(path, *options_of(path))
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
    with edit_pipeline(path, *options_of(path)):
        pass
    assert path.is_symlink()
    assert "int8" in target.read_text()


@pytest.mark.parametrize(
    ("text", "update"),
    [
        (PIPELINE, {"seed": 7}),  # which no option sets
        # The library takes `._1` for a number, and changes the only line there is.
        (f"{{{', '.join(PIPELINE.replace('  # ours', '').splitlines())}, description: ._1}}\n", {}),
    ],
)
def test_a_file_that_would_come_to_mean_something_else_is_left_alone(
    home: Path, text: str, update: dict[str, Any]
) -> None:
    path = write_pipeline(home, text)
    options, spec = options_of(path)
    editing = edit_pipeline(path, options, spec.model_copy(update=update))
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
    options, spec = options_of(path)
    with edit_pipeline(path, options, spec):
        assert read_pipeline(path) == spec
    assert "${WHERE}/*.csv" in path.read_text()
