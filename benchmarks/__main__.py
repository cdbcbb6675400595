"""`python -m benchmarks`: parse, run each system through all phases, print one table."""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from platformdirs import user_cache_path
from rich.console import Console

from benchmarks.corpus import phases, read_corpus
from benchmarks.errors import BenchmarkError
from benchmarks.exact import RightVectors, refuse_invisible
from benchmarks.report import as_json, print_report
from benchmarks.suite import Result, run_system
from benchmarks.systems import System, all_systems, weights_folder

CORPUS = Path(__file__).parents[2] / "shared" / "data" / "scifact" / "corpus.jsonl"
ORDER = ("ours", "floor", "naive", "cocoindex", "llamaindex", "txtai")
MARK = ".benchmark"  # in a folder of stores and logs that the next run may empty
WIDTH = 150  # of the table where no terminal says how wide it is


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        return _run(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - started:7.1f} s  {text}", file=sys.stderr, flush=True)

    systems = _chosen(options.systems)
    for system in systems:
        system.versions()  # what is not installed is said before anything is measured
    documents = read_corpus(options.corpus, options.documents)
    steps = phases(documents)

    right = RightVectors(weights_folder(), user_cache_path("embedding-pipelines") / "benchmarks")
    texts = {text for phase in steps for text in phase.texts.values()}
    say(
        f"{len(documents)} documents of {options.corpus}; the vectors that {len(texts)} texts should have"
    )
    vectors = right.of(texts)
    for before, after in itertools.pairwise(steps):
        refuse_invisible(after.edited, after.texts, before.texts, vectors)

    work = _work_folder(options.work)
    results: list[Result] = []
    try:
        for system in systems:
            results.append(
                run_system(system, steps, work / system.name, right, options.every_phase, say)
            )
            base = next(
                (result for result in results if result.name == options.relative_to), results[0]
            )
            if options.json:  # after each system: an hour's work does not hang on the last one
                figures = as_json(
                    results, steps, base, f"{options.corpus.name}, {len(documents)} documents"
                )
                options.json.write_text(
                    json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                )
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print_report(results, steps, base, Console(width=None if sys.stdout.isatty() else WIDTH))
    return 0 if all(map(_as_promised, results)) else 1


def _work_folder(folder: Path | None) -> Path:
    """BenchmarkError for a folder that holds anything else: what stands in it is deleted."""
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="benchmark-"))
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise BenchmarkError(
            f"{folder} is neither empty nor a folder of this benchmark. Name another one by --work."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder.resolve()


def _as_promised(result: Result) -> bool:
    """Peers may be wrong, that is what the table is for; this project may not."""
    return result.name != "ours" or all(phase.right for phase in result.phases.values())


def _chosen(names: str | None) -> list[System]:
    systems = all_systems()
    chosen = names.split(",") if names else [*ORDER, *sorted(systems.keys() - set(ORDER))]
    unknown = [name for name in chosen if name not in systems]
    if unknown:
        raise BenchmarkError(
            f"There is no system {', '.join(unknown)}. There are {', '.join(sorted(systems))}."
        )
    return [systems[name] for name in chosen]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="This project beside its peers on a corpus that changes, in one table.",
    )
    parser.add_argument(
        "--corpus", type=Path, default=CORPUS, metavar="FILE", help="JSON Lines: _id, title, text"
    )
    parser.add_argument(
        "--documents", type=int, metavar="N", help="only the first N of them, for a quick look"
    )
    parser.add_argument(
        "--systems", metavar="A,B", help=f"which ones and in which order; all: {','.join(ORDER)}"
    )
    parser.add_argument(
        "--relative-to", default="ours", metavar="NAME", help="whom the ratios are to (ours)"
    )
    parser.add_argument(
        "--every-phase",
        action="store_true",
        help="measure the naive script in each phase, not just once",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="keep stores and logs there; else a temporary folder",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
