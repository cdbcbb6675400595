"""The bill of materials of a bundle: the installed packages that its release needs, in CycloneDX's
JSON, and the licences of this package and of the model."""

import re
import shutil
import uuid
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from embedding_pipelines.files import write_atomic
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.serving.pin import model_folder_of

OWN = "embedding-pipelines"
EXTRAS = {  # what a provider needs beside the package itself
    "aios": ("aios",),
    "clip": ("local", "images"),
    "hf": ("local",),
    "openai": ("openai",),
    "tensorflow": ("tensorflow",),
    "word2vec": (),
}
UNKNOWN = "unknown"
MAX_LICENCE = 200  # characters; some packages put the whole text where the name belongs


@dataclass(frozen=True)
class Package:
    """An installed package. `importlib` reads its metadata anew whenever it is asked for them."""

    name: str
    version: str
    requires: list[str]
    metadata: PackageMetadata

    @classmethod
    def read(cls, name: str) -> "Package":
        """Raises PackageNotFoundError."""
        package = distribution(name)
        metadata = package.metadata
        requires = metadata.get_all("Requires-Dist") or package.requires or []
        return cls(_normal(metadata["Name"]), metadata["Version"], requires, metadata)

    @property
    def ref(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"

    @property
    def licence(self) -> str:
        """Its first line, or UNKNOWN."""
        names = [*self.values("License-Expression"), *self.values("License")]
        for line in self.values("Classifier"):
            if line.startswith("License :: OSI Approved :: "):
                names.append(line.rpartition(" :: ")[2])
        lines = (name.strip().splitlines()[0] for name in names if name and name.strip())
        return next((line[:MAX_LICENCE] for line in lines if line), UNKNOWN)

    def values(self, key: str) -> list[str]:
        return self.metadata.get_all(key) or []


def write_sbom(path: Path, options: ProviderOptions, pipeline: str) -> None:
    """Write the packages that serve a model of these options, with versions and licences, as
    CycloneDX 1.6."""
    import json

    packages = _closure(OWN, (*EXTRAS.get(options.kind, ()), "serving"))
    components = [_component(package) for package in packages.values()]
    own = next(part for part in components if part["name"] == OWN)
    value = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "component": {"type": "data", "name": pipeline, "bom-ref": f"bundle:{pipeline}"},
        },
        "components": components,
        "dependencies": [
            {"ref": f"bundle:{pipeline}", "dependsOn": [own["bom-ref"]]},
            *_dependencies(packages),
        ],
    }
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def licences_of(folder: Path, options: ProviderOptions, home: Path) -> dict[str, str]:
    """The licences of this package and of the model, by name; their texts go to `folder`, where
    they are at hand."""
    licences = {OWN: Package.read(OWN).licence, "model": UNKNOWN}
    for file in distribution(OWN).files or []:
        path = Path(str(file.locate()))
        if path.name == "LICENSE" and path.is_file():
            _copy(path, folder / f"{OWN}.txt")
    model = model_folder_of(options, home)
    if model is not None:
        for path in sorted(model.glob("LICEN[CS]E*")):
            if path.is_file():
                _copy(path, folder / f"model-{path.name}")
        card = model / "README.md"
        if card.is_file():
            licences["model"] = _of_card(card.read_text(encoding="utf-8", errors="replace"))
    return licences


def _of_card(text: str) -> str:
    """The licence that a model card's front matter names."""
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    line = re.search(r"^license:\s*(\S.*)$", match[1], re.MULTILINE) if match else None
    return line[1].strip("\"' ")[:MAX_LICENCE] if line else UNKNOWN


def _closure(name: str, extras: tuple[str, ...]) -> dict[str, Package]:
    """A package with all that it needs and that is installed, by name."""
    result: dict[str, Package] = {}
    visits, waiting = set[tuple[str, tuple[str, ...]]](), deque([(name, extras)])
    while waiting:
        name, extras = waiting.popleft()
        if (name, extras) in visits:
            continue
        visits.add((name, extras))
        try:
            package = result.get(_normal(name)) or Package.read(name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        result[_normal(name)] = package
        waiting += _requirements(package, extras)
    return dict(sorted(result.items()))


def _requirements(package: Package, extras: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    from packaging.requirements import Requirement

    needed = []
    for line in package.requires:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needed.append((_normal(requirement.name), tuple(sorted(requirement.extras))))
    return needed


def _component(package: Package) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.ref,
        "name": package.name,
        "version": package.version,
        "purl": package.ref,
    }
    if (licence := package.licence) != UNKNOWN:
        is_expression = licence in package.values("License-Expression")
        entry = {"expression": licence} if is_expression else {"license": {"name": licence}}
        component["licenses"] = [entry]
    return component


def _dependencies(packages: dict[str, Package]) -> list[dict[str, Any]]:
    entries = []
    for package in packages.values():
        names = {name for name, _ in _requirements(package, ())}
        refs = sorted(packages[name].ref for name in names if name in packages)
        entries.append({"ref": package.ref, "dependsOn": refs})
    return entries


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
