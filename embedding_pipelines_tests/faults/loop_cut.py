"""A real power cut: a file system in a file, copied while the real command runs or just after, is
what its disk held at that moment. Needs root and a loop device:

    python -m embedding_pipelines_tests.faults.loop_cut [CUTS]

Prints a line for each cut, and ends with 1 if a release was lost or a run failed afterwards.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE
from embedding_pipelines_tests.conftest import HASHING

MEGABYTES = 256
ROWS = 400
QUERY = "text number 7"


def mount(image: Path, place: Path) -> None:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)


def call(home: Path, *arguments: str) -> tuple[int, str]:
    """The real command in a home: exit code, and all that it said."""
    done = subprocess.run(
        [EXECUTABLE, "--home", str(home), *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def live(home: Path) -> int:
    path = home / "data" / "warehouse" / "pipelines" / "p" / "releases.json"
    return int(json.loads(path.read_text())["live"])


def rows(turn: int) -> list[tuple[object, str, str]]:
    """A tenth of the rows is another one in each turn."""
    return [
        (n, f"text number {n}" + (f" of turn {turn}" if n % 10 == turn % 10 else ""), f"c{n % 3}")
        for n in range(ROWS)
    ]


def main(cuts: int) -> int:
    dice, failures = random.Random(20_260_101), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, copy = folder / "disk.img", folder / "cut.img"
        with image.open("wb") as file:
            file.truncate(MEGABYTES << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        place, after = folder / "disk", folder / "cut"
        mount(image, place)
        try:
            write_pipeline(place, "p", HASHING)
            write_csv(place, "a.csv", rows(0))
            code, words = call(place, "run", "p")
            assert code == 0, words
            os.sync()
            for turn in range(1, cuts + 1):
                write_csv(place, "a.csv", rows(turn))
                file = os.open(place / "data" / "a.csv", os.O_RDONLY)
                os.fsync(file)
                before, started = live(place), time.monotonic()
                process = subprocess.Popen(
                    [EXECUTABLE, "--home", str(place), "run", "p"], stdout=subprocess.DEVNULL
                )
                if turn % 2:  # in the middle
                    wait = dice.uniform(2, 25)
                    while time.monotonic() < started + wait and process.poll() is None:
                        time.sleep(0.05)
                else:
                    process.wait()
                    time.sleep(dice.uniform(0, 4))
                number = live(place) if process.poll() is not None else 0
                subprocess.run(["cp", "--sparse=always", image, copy], check=True)
                moment = time.monotonic() - started
                process.wait()
                os.close(file)
                mount(copy, after)
                try:
                    now = live(after)
                    searched = call(after, "search", "p", QUERY)
                    again = call(after, "run", "p")
                    final = call(after, "search", "p", QUERY)
                finally:
                    subprocess.run(["umount", after], check=True)
                is_right = (
                    now >= max(before, number)
                    and searched[0] == again[0] == final[0] == 0
                    and "Traceback" not in searched[1] + again[1] + final[1]
                )
                failures += not is_right
                state = "after the run" if number else "in the run"
                verdict = "right" if is_right else f"WRONG: {searched} {again} {final}"
                print(
                    f"{turn:3} {moment:5.1f} s {state:13} {before} -> {now}: {verdict}", flush=True
                )
        finally:
            subprocess.run(["umount", place], check=True)
    print(f"{cuts} cuts, {failures} wrong")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
