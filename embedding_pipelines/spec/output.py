"""Where a pipeline delivers its releases: which places can hold an output, and which would make it
an input."""

import os
from pathlib import Path

from embedding_pipelines.home import pipelines_folder, warehouse_folder
from embedding_pipelines.objects import URI, is_uri
from embedding_pipelines.sources.base import FileSource, Source
from embedding_pipelines.sources.paths import reads
from embedding_pipelines.storage.output import absolute, is_below

# What an output says of each row beside what the chunks say.
ADDED = ("embedding_model", "embedding_dimensions", "embedding_space", "source_uri", "source_tag")


def output_problem(output: str, source: Source, home: Path, bucket: str | None = None) -> str:
    """Why a place cannot hold the output of a source's rows, empty if it can. `bucket` is the one
    that the warehouse is published in."""
    if is_uri(output):
        match = URI.fullmatch(output)
        if match is None or not match[2] or "@" in match[2] or set("?*[") & set(output):
            return f"{output!r} is no prefix of a bucket; write s3://bucket/folder/"
    elif "://" in output or not output.strip():
        return f"{output!r} is no place; write a folder, or s3://bucket/folder/ (gs://, az://)"
    address = absolute(output, home)
    for place in dict.fromkeys((address, address if is_uri(output) else os.path.realpath(address))):
        if problem := _problem_of(place, output, source, home, bucket):
            return problem
    if taken := [name for name in source.metadata_types if name in ADDED]:
        return f"its files have columns {', '.join(map(repr, taken))} of their own; rename source.metadata"
    return ""


def _problem_of(place: str, output: str, source: Source, home: Path, bucket: str | None) -> str:
    """As `output_problem`, for one absolute place, which may be behind a link."""
    if is_below(place, warehouse_folder(home).as_posix()):
        return (
            f"{output!r} is in the warehouse, whose files runs replace and remove; name another "
            "folder"
        )
    if is_below(place, pipelines_folder(home).as_posix()) or is_below(home.as_posix(), place):
        return f"{output!r} is where pipeline files are, or above them; name a folder of its own"
    if bucket is not None and is_below(place, bucket.rstrip("/")):
        return f"{output!r} is in {bucket!r}, where the warehouse is published; name another prefix"
    entries = source.path if isinstance(source, FileSource) else ()
    for entry in entries:
        if is_uri(entry) == is_uri(output) and reads(absolute(entry, home), place):
            return (
                f"{output!r} is inside the source {entry!r}, which would read what was written; "
                "name a place beside it"
            )
    return ""
