"""`python -m benchmarks.systems NAME sync|dump|prepare FOLDER [FILE]`: one step, in a process of
its own."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.systems import all_systems


def main(name: str, step: str, folder: Path, file: str = "") -> None:
    system = all_systems()[name]
    if step == "sync":
        print(json.dumps(asdict(system.sync(folder))))
    elif step == "dump":
        stored = system.dump(folder)
        held: dict[str, Any] = {"ids": np.array(stored.ids, dtype=str), "vectors": stored.vectors}
        if stored.texts is not None:
            held["texts"] = np.array(stored.texts, dtype=str)
        np.savez(file, **held)
    else:
        system.prepare(folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
