"""PCA of a million vectors, from the pipeline's own shards to the fitted codec, in little
memory."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.measure import measure
from embedding_pipelines.schemas import embeddings_schema
from embedding_pipelines.vectors import unit
from embedding_pipelines_tests.chain import run_of, write_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROWS, DIMENSIONS, PARTITIONS = 1_000_000, 384, 16
BATCH_ROWS = 12_500
MOST_BYTES = 1_500_000_000
STRENGTHS = np.linspace(2, 0.2, DIMENSIONS, dtype=np.float32) ** 2
PIPELINE = """\
source: {kind: csv, path: unread.csv}
model: {provider: hashing, dimensions: 384}
compression: [{kind: pca, dimensions: 128}]
"""
FIT = """
import json
from embedding_pipelines.environment import home
from embedding_pipelines.steps.codec import fit_codec
from embedding_pipelines_tests.chain import run_of
print(json.dumps(fit_codec(run_of(home(), "million")).statistics))
"""


@pytest.fixture
def million(home: Path) -> Iterator[Path]:
    """A home whose pipeline has a million embeddings, 1.4 GB, gone again after the test."""
    write_pipeline(home, "million", PIPELINE)
    context = run_of(home, "million")
    shards, space = context.folder.embeddings, context.model.space
    schema = embeddings_schema(DIMENSIONS, space.id)
    for number, partition in enumerate(context.spec.partition_names):
        shards.write(partition, schema, _batches(number, schema), "", space.id, {})
    yield home
    shutil.rmtree(home / "data")


def _batches(seed: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A partition's rows: the same ones several times, for they take longer to make than to fit."""
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((BATCH_ROWS, DIMENSIONS), np.float32) * STRENGTHS)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSIONS)
    for part in range(ROWS // PARTITIONS // BATCH_ROWS):
        ids = pa.array([f"{seed}-{part}-{row}" for row in range(BATCH_ROWS)])
        yield pa.RecordBatch.from_arrays([ids, column], schema=schema)


def test_a_million_vectors_are_fitted_in_less_than_a_gigabyte_and_a_half(
    million: Path, tmp_path: Path
) -> None:
    alone = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
    }  # several wait for one another where a machine is busy
    done = measure([sys.executable, "-c", FIT], alone, tmp_path / "fit")
    assert done.code == 0, done.stderr
    assert done.peak_bytes < MOST_BYTES
    energies = STRENGTHS.astype(np.float64) ** 2
    assert json.loads(done.stdout)["kept_energy"] == pytest.approx(
        energies[:128].sum() / energies.sum(), abs=0.01
    )
