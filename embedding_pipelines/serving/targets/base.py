"""The contract of all deploy targets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from embedding_pipelines.deployments import Deployment
from embedding_pipelines.progress import Progress

Resources = Mapping[str, JsonValue]


@dataclass(frozen=True)
class Order:
    """What is to be deployed, and where."""

    home: Path
    pipeline: str
    bundle: Path  # a sealed archive
    endpoint: str
    key: str  # of a server's API, empty without one
    before: Deployment | None  # the one at this endpoint now, if this home deployed it
    progress: Progress
    keep: Callable[[Resources | None], None]
    """Puts resources on record. To be called before they are created, so that `undeploy` finds what
    a deployment that was killed has left. None: the record is as it was before, since all that was
    created is removed again."""


class Target(ABC):
    """One kind of endpoint. A file of this folder each, which holds one object of its class."""

    name: ClassVar[str]
    example: ClassVar[str]  # an endpoint of this kind

    @abstractmethod
    def accepts(self, endpoint: str) -> bool:
        """Whether an endpoint is of this kind."""

    @abstractmethod
    def deploy(self, order: Order) -> Resources:
        """Create all that serves the bundle; what was created. What was live at the endpoint stays
        live if it fails. Raises TargetError or ConfigError, in a sentence."""

    @abstractmethod
    def undeploy(self, home: Path, deployment: Deployment, key: str) -> list[str]:
        """Remove all that `deploy` created and is still there; a line for each thing removed. May
        be called again after it failed."""
