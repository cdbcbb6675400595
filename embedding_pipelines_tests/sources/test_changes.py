import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines import changes, listing
from embedding_pipelines.errors import SourceError
from embedding_pipelines_tests.buckets import TestBucket

LISTINGS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.integers(0, 2), st.sampled_from(["x", "y"]))
)


@given(LISTINGS, LISTINGS)
def test_each_change_is_told_once_and_leads_from_one_listing_to_the_other(
    before: dict[str, tuple[int, str]], now: dict[str, tuple[int, str]]
) -> None:
    new, changed, deleted = changes(before, now)
    assert len({*new, *changed, *deleted}) == len(new) + len(changed) + len(deleted)
    told = {name: stamp for name, stamp in before.items() if name not in deleted}
    told |= {name: now[name] for name in (*new, *changed)}
    assert told == now
    assert changes(json.loads(json.dumps(before)), now) == (new, changed, deleted)
    assert not any(changes(now, json.loads(json.dumps(now))))


def test_files_and_objects_are_listed_alike(tmp_path: Path, bucket: TestBucket) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.csv"):
        (tmp_path / "in" / name).write_text(name)
        bucket.put(f"in/{name}", name)
    places = ["in", f"{bucket.uri}/in"]
    before = listing(places, tmp_path)
    assert list(before) == [
        "in/a.txt",
        "in/b.csv",
        *(f"{places[1]}/{x}" for x in ("a.txt", "b.csv")),
    ]
    (tmp_path / "in" / "a.txt").write_text("other")
    os.utime(tmp_path / "in" / "a.txt", (0, 0))  # an older date
    bucket.put("in/a.txt", "other")  # the same second
    bucket.copy("in/b.csv", "in/c.csv")
    bucket.delete("in/b.csv")
    difference = changes(before, listing(places, tmp_path))
    assert difference.changed == ("in/a.txt", f"{places[1]}/a.txt")
    assert (difference.new, difference.deleted) == (
        (f"{places[1]}/c.csv",),
        (f"{places[1]}/b.csv",),
    )
    with pytest.raises(SourceError, match="there is no such bucket"):
        listing("s3://absent/in")
