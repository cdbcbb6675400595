"""A pipeline's documents and chunks as a run would make them now, without changing the pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.files import temporary_folder
from embedding_pipelines.run import Run
from embedding_pipelines.steps.chunks import ChunksStep
from embedding_pipelines.steps.documents import DocumentsStep


@contextmanager
def copy_with_chunks(run: Run) -> Iterator[Run]:
    """The same pipeline in a folder that is removed afterwards, up to its chunks: these cost
    nothing but time. The cache is that of the warehouse, and takes nothing in.

    Raises as the steps `documents` and `chunks` do, and BusyError if another process is at work on
    the pipeline.
    """
    parent = Path(gettempdir())
    with run.folder.lock_to_read(), temporary_folder(parent, "embedding-pipelines-copy-") as folder:
        warehouse = run.warehouse.copy_for_reading(folder, run.spec.name)
        with Run(run.spec, warehouse, run.progress, run.model, is_old_line=run.is_old_line) as copy:
            try:
                for step in (DocumentsStep(), ChunksStep()):
                    for _ in step.work(copy, run.spec.partition_names):
                        pass
                yield copy
            except EmbeddingPipelinesError as error:  # a user looks where the copy was made of
                message = str(error).replace(str(copy.folder.folder), str(run.folder.folder))
                raise type(error)(message) from error
