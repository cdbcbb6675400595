"""A system for the tests, run as a script for its steps: it never removes a document, and it may
fail on a change.

Its vectors are the `hashing` provider's, so nothing has to be loaded.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks.corpus import read_texts
from benchmarks.exact import Vectors
from benchmarks.systems import Stored, Synced, System
from embedding_pipelines.providers.hashing import Hashing


def hashed(texts: list[str]) -> Vectors:
    return Hashing(dimensions=64).open(Path()).embed(texts, "document").vectors


class HashedRight:
    """Stands in for `RightVectors`."""

    def of(self, texts: set[str]) -> dict[str, Vectors]:
        ordered = sorted(texts)
        return dict(zip(ordered, hashed(ordered), strict=True))

    def cut(self, whole: str, stored: str) -> str:
        return stored if whole.startswith(stored) else whole


class Forgetful(System):
    title = "forgetful"
    fails: ClassVar[str] = ""  # the step that fails

    def step(self, name: str, folder: Path, *more: str) -> list[str]:
        return [sys.executable, __file__, self.fails, name, str(folder), *more]

    def sync(self, folder: Path) -> Synced:
        path = folder / "kept" / "rows.json"
        path.parent.mkdir(exist_ok=True)
        rows = json.loads(path.read_text()) if path.exists() else {}
        texts = read_texts(folder)
        changed = {name: text for name, text in texts.items() if rows.get(name) != text}
        path.write_text(json.dumps(rows | changed))
        return Synced(len(changed), ["a remark"] if changed else [])

    def dump(self, folder: Path) -> Stored:
        rows = json.loads((folder / "kept" / "rows.json").read_text())
        return Stored(list(rows), hashed(list(rows.values())))


def main(fails: str, step: str, folder: str, file: str = "") -> None:
    if step == fails:
        raise SystemExit(f"no {step} today")
    if step == "sync":
        print(json.dumps(asdict(Forgetful().sync(Path(folder)))))
    elif step == "dump":
        stored = Forgetful().dump(Path(folder))
        np.savez(file, ids=np.array(stored.ids), vectors=stored.vectors)


if __name__ == "__main__":
    main(*sys.argv[1:])
