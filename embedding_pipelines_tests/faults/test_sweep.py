"""The shim. Faults by it are tried in `make faults`, a part of `.ci/run`."""

import os
import subprocess
import sys
from pathlib import Path

from embedding_pipelines_tests.faults.children import library


def test_the_shim_reaches_a_process_by_its_environment(tmp_path: Path) -> None:
    """As `embedding-pipelines` itself can be run with it."""
    faults = {"FAULT_FOLDER": str(tmp_path), "FAULT_KIND": "ENOSPC", "FAULT_AT": "2"}
    code = (
        "import pathlib, sys\n"
        "for name in 'ab':\n"
        "    try:\n"
        "        print(pathlib.Path(sys.argv[1], name).write_text(name))\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, **faults, "LD_PRELOAD": str(library())},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["28", "28"], ended.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
