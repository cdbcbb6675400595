"""The server under load, on loopback, beside the bare engine on the same texts in the same run.

    python -m benchmarks.serving [--data FOLDER] [--seconds 8] [--only PART ...] [--json FILE]
        [--server-cpus 0-3 --client-cpus 4-7] [--device cpu] [--infinity PYTHON]

Real server processes over MiniLM; requests come from an asyncio client in this process. Without
CPUs of its own it takes processor time from the server: then the clock says little, and `cpu`, the
processor seconds of the server's process and of the engine for a text, are compared. With
`--server-cpus` the engine alone has the same CPUs as the server, in turns with it.

- alone: one client that sends a text at a time, in turns with the bare model call.
- many: 64 clients that each send the next text when the last is answered, beside the engine on 512;
  after as long a time that counts as cold, in which OpenVINO prepares for each size of a batch.
- mixed: 8 such clients, while bulk requests of 256 texts go on.
- bulk: 8 clients that pause between texts, while 100,000 texts are embedded in bulk.
- overload: requests come four times as fast as `many` were answered, each with 10 seconds.
- leave: 1,000 clients that hang up; the tokens that were computed for them.
- switch: 10,000 searches while a new release of the pipeline goes live.
- drain: 10,000 requests to two servers of which one gets SIGTERM.
- infinity: `many` and `alone` beside infinity-emb on the same weights, which PYTHON has installed
  (in an environment of its own).

Each part ends in time, says whether it keeps its bound, and the exit status is 1 if one does not.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.engine import TEXTS, corpora
from benchmarks.serving.bench import Bench
from benchmarks.serving.changes import drain, switch
from benchmarks.serving.load import bulk, leave, mixed, overload
from benchmarks.serving.processes import use_cpus
from benchmarks.serving.speed import alone, infinity, many

PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part
    for part in (alone, many, mixed, bulk, overload, leave, switch, drain, infinity)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__.split("\n")[0] if __doc__ else ""
    )
    default = Path(__file__).parents[3] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each part that has no end")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--server-cpus", help="of the server, and of the engine: 0-3")
    parser.add_argument("--client-cpus", help="of all else: 4-7")
    parser.add_argument("--device", default="auto", help="of the server, and of the engine: cpu")
    parser.add_argument("--infinity", metavar="PYTHON", help="an interpreter with infinity-emb")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    use_cpus(options.client_cpus)
    parts = options.only or [name for name in PARTS if name != "infinity" or options.infinity]
    if "infinity" in parts and not options.infinity:
        parser.error("the part infinity needs --infinity PYTHON")
    with tempfile.TemporaryDirectory() as folder:
        run = Bench(options, Path(folder), corpora(options.data, 1.0, TEXTS))
        try:
            for name in parts:
                PARTS[name](run)
        finally:
            run.close()
    if options.json:
        options.json.write_text(json.dumps(run.figures, indent=1), encoding="utf-8")
    bounds = {name: values["keeps"] for name, values in run.figures.items() if "keeps" in values}
    print("kept:", *[name for name, keeps in bounds.items() if keeps])
    print("not kept:", *[name for name, keeps in bounds.items() if not keeps])
    sys.exit(not all(bounds.values()))


if __name__ == "__main__":
    main()
