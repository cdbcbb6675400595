"""PCA of a million vectors: this project's beside scikit-learn's, each in a process of its own, on
the same file.

    python -m benchmarks.pca [--rows 1000000] [--dimensions 384] [--keep 128] [--rounds 1] [--json FILE]

The vectors are made once, float32 in a temporary file, with energies that fall as those of text
models do; each process reads them from there, streaming where its library can. Seconds are from the
first byte read to the fitted directions, without imports; memory is the peak of the whole process,
imports included. The errors of this project's directions are those to the same products in float64,
which is measured as well.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measure import measure
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.vectors import unit

BLOCK_ROWS = 4_096  # as the pipeline reads its shards
Rows = NDArray[np.float32]


def write_vectors(path: Path, rows: int, dimensions: int) -> None:
    """Unit vectors float32[rows, dimensions]: a common direction and others whose energy falls,
    rotated."""
    random = np.random.default_rng(0)
    rotation = np.linalg.qr(random.normal(size=(dimensions, dimensions)))[0].astype(np.float32)
    strengths = (1 + np.arange(dimensions, dtype=np.float32)) ** -0.5
    with path.open("wb") as file:
        for start in range(0, rows, BLOCK_ROWS):
            block = (
                random.standard_normal((min(BLOCK_ROWS, rows - start), dimensions), np.float32)
                * strengths
            )
            block[:, 0] += 1.5
            unit(block @ rotation).tofile(file)


def blocks(path: Path, dimensions: int) -> Iterator[Rows]:
    """The vectors of the file, BLOCK_ROWS at a time."""
    with path.open("rb") as file:
        while (block := np.fromfile(file, np.float32, BLOCK_ROWS * dimensions)).size:
            yield block.reshape(-1, dimensions)


def project(path: Path, dimensions: int, keep: int) -> Rows:
    return Pca(dimensions=keep).principal(dimensions, map(unit, blocks(path, dimensions)))[0]


def float64(path: Path, dimensions: int, keep: int) -> Rows:
    """What the project's directions would be without float32."""
    products = np.zeros((dimensions, dimensions))
    for block in blocks(path, dimensions):
        exact = block.astype(np.float64)
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        products += exact.T @ exact
    return np.asarray(np.linalg.eigh(products)[1].T[::-1][:keep])


def sklearn_pca(solver: str) -> Callable[[Path, int, int], Rows]:
    def fit(path: Path, dimensions: int, keep: int) -> Rows:
        from sklearn.decomposition import PCA

        vectors = np.fromfile(path, np.float32).reshape(-1, dimensions)
        return np.asarray(PCA(keep, svd_solver=solver).fit(vectors).components_)

    return fit


def sklearn_incremental(path: Path, dimensions: int, keep: int) -> Rows:
    from sklearn.decomposition import IncrementalPCA

    fitted = IncrementalPCA(keep)
    for block in blocks(path, dimensions):
        if len(block) >= keep:  # it refuses fewer; a last, smaller block is left out
            fitted.partial_fit(block)
    return np.asarray(fitted.components_)


SYSTEMS: dict[str, Callable[[Path, int, int], Rows]] = {
    "this project": project,
    "sklearn PCA covariance_eigh": sklearn_pca("covariance_eigh"),
    "sklearn PCA auto": sklearn_pca("auto"),
    "float64 products": float64,
    "sklearn IncrementalPCA": sklearn_incremental,
}


def child(system: str, path: Path, dimensions: int, keep: int) -> None:
    """Fit once; print the seconds, and leave the directions beside the vectors."""
    import sklearn.decomposition  # noqa: F401  # imports are not timed

    started, processor = time.perf_counter(), time.process_time()
    directions = SYSTEMS[system](path, dimensions, keep)
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - processor,
    }
    print(json.dumps(figures))
    np.save(path.with_name(f"{system}.npy"), directions)


def fit_alone(system: str, path: Path, dimensions: int, keep: int) -> dict[str, float]:
    """Seconds, processor seconds and peak memory of one system in a process of its own."""
    code = "import sys; from pathlib import Path; from benchmarks.pca import child\n"
    code += "child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))"
    command = [sys.executable, "-c", code, system, str(path), str(dimensions), str(keep)]
    done = measure(command, os.environ, path.with_name(f"{system}.log"))
    if done.code:
        raise RuntimeError(f"{system} ended with exit code {done.code}:\n{done.stderr}")
    return {**json.loads(done.stdout), "peak_mb": done.peak_bytes / 1e6}


def compare(folder: Path, rows: int, dimensions: int, keep: int, rounds: int) -> dict[str, Any]:
    """Each system `rounds` times, in turns; medians, and the largest error of the project's
    directions."""
    path = folder / "vectors.f32"
    write_vectors(path, rows, dimensions)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for _ in range(rounds):
        for name in SYSTEMS:
            figures[name].append(fit_alone(name, path, dimensions, keep))
    own, exact = (
        np.load(path.with_name(f"{name}.npy")) for name in ("this project", "float64 products")
    )
    exact *= np.sign((own * exact).sum(axis=1, keepdims=True))
    medians = {
        name: {
            figure: round(statistics.median(run[figure] for run in runs), 2) for figure in runs[0]
        }
        for name, runs in figures.items()
    }
    error = float(np.linalg.norm(own - exact, axis=1).max())
    return {
        "rows": rows,
        "dimensions": dimensions,
        "keep": keep,
        "systems": medians,
        "direction_error": error,
    }


def show(results: dict[str, Any]) -> None:
    table = Table(
        title=f"PCA-{results['keep']} of {results['rows']:,} x {results['dimensions']} float32"
    )
    for column in ("", "seconds", "ratio", "CPU seconds", "ratio", "peak MB"):
        table.add_column(column, justify="left" if not column else "right")
    own = results["systems"]["this project"]
    for name, row in results["systems"].items():
        times = [
            f"{part:.2f}"
            for key in ("seconds", "cpu_seconds")
            for part in (row[key], row[key] / own[key])
        ]
        table.add_row(name, *times, f"{row['peak_mb']:,.0f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"largest error of a direction of this project: {results['direction_error']:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pca", description=str(__doc__).split("\n\n")[0]
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--keep", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = compare(
            Path(folder), arguments.rows, arguments.dimensions, arguments.keep, arguments.rounds
        )
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
