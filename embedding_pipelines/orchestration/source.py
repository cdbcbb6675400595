"""The source of a pipeline as an asset: no run makes it; it is observed."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from embedding_pipelines.orchestration.failures import readable_errors
from embedding_pipelines.orchestration.metadata import asset_key, described
from embedding_pipelines.orchestration.resources import WarehouseResource
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import digest
from embedding_pipelines.sources.base import Input, Stamp
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.documents import inputs_of

SOURCE = "source"

Listing = Mapping[str, Stamp]  # file name -> `SourceFile.stamp`


def source_asset(spec: PipelineSpec, home: Path) -> dg.AssetsDefinition:
    """The files that the pipeline reads, upstream of its documents. The sensor observes them when
    they change, the web interface when somebody asks it to."""
    asset = dg.AssetSpec(
        asset_key(spec, SOURCE),
        group_name=spec.name,
        kinds={spec.source.kind},
        owners=list(spec.owners),
        description=described("The files of the source; its sensor asks for runs.", spec),
        metadata={"path": spec.source.place},
    )

    def source(warehouse: WarehouseResource) -> dg.ObserveResult:
        with readable_errors():
            version, metadata = observe(inputs_of(Run(spec, warehouse.open(home))))
        return dg.ObserveResult(data_version=dg.DataVersion(version), metadata=metadata)

    with warnings.catch_warnings():
        # Of a plain AssetSpec, dagster 1.13 compares no observation with what was read last; it
        # calls this decorator beta.
        warnings.filterwarnings(
            "ignore", message=r"Function `multi_observable_source_asset`", category=dg.BetaWarning
        )
        observable: Callable[..., dg.AssetsDefinition] = dg.multi_observable_source_asset(
            name=f"{spec.name}__{SOURCE}", specs=[asset]
        )
    return observable(source)


def observe(files: Sequence[Input]) -> tuple[str, dict[str, Any]]:
    """The version of the source's files, and what to show of them."""
    size = sum(file.size_bytes for file in files)
    return listing_version(listing_of(files)), {"files": len(files), "size_bytes": size}


def listing_of(files: Sequence[Input]) -> Listing:
    return {file.name: file.stamp for file in files}


def listing_version(listing: Listing, options: str = "") -> str:
    """A digest of the files' names and stamps, and of the options they are read with."""
    return digest(json.dumps(sorted(listing.items())).encode(), options.encode()).hex()
