"""Puts a measured compression in force: into the pipeline's file and into a release, or nowhere."""

from collections.abc import Callable
from pathlib import Path

from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.optimize.optimize import OptimizeResult, refit
from embedding_pipelines.run import Run
from embedding_pipelines.spec.edit import edit_pipeline
from embedding_pipelines.spec.load import find_file
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.codec import unless_it_fails
from embedding_pipelines.storage.warehouse import Warehouse


def adopt(home: Path, outcome: OptimizeResult, release: Callable[[PipelineSpec], str]) -> None:
    """Write the chosen compression into the pipeline's file and call `release`, which brings the
    pipeline up to date and returns why it could not, if so.

    Whatever is raised, the file and the codec in force are as they were. Raises ReleaseError with
    what `release` returned, and as `edit_pipeline` and `refit` do.
    """
    spec = outcome.spec
    with (
        Run(spec, Warehouse(home)) as run,
        edit_pipeline(find_file(spec.name, home), outcome.options, spec),
        unless_it_fails(run),
    ):
        refit(run)
        if problem := release(spec):
            raise ReleaseError(
                f"{problem}\nThe file of {spec.name!r} is as it was. To release this compression "
                "nevertheless, write it into the file, run the pipeline, then use "
                f"`embedding-pipelines release {spec.name} --force --reason '…'`."
            )
