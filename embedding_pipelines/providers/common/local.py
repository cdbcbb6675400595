"""What options of models on this machine have in common: the device, and where the model is."""

import re
from collections.abc import Iterator
from pathlib import Path

from embedding_pipelines.errors import did_you_mean
from embedding_pipelines.providers.common.prices import MODELS, ROWS

DEVICE = r"auto|cpu|mps|cuda(:\d{1,3})?"


def check_device(device: str) -> str:
    """The device, for a pydantic validator."""
    if not re.fullmatch(DEVICE, device):
        raise ValueError(f"{device!r} is no device; write auto, cpu, cuda, cuda:1 or mps")
    return device


def model_mistakes(kind: str, model: str, revision: str | None, home: Path) -> Iterator[str]:
    """What is wrong with the name of a model."""
    aliases = [row["alias"] for row in ROWS if "alias" in row]
    if _is_at_hand(model, revision, home):
        return
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        yield f"there is no folder {str(home / model)!r} with a model. Correct the path."
    elif model in aliases:
        yield f"{model!r} is a short name: write `model: {model}`."


def model_doubts(kind: str, model: str, revision: str | None, home: Path) -> Iterator[str]:
    """That a model will be downloaded, or that its name may be wrong."""
    published = [name.partition(":")[2] for name in MODELS if name.startswith(f"{kind}:")]
    is_wrong = any(model_mistakes(kind, model, revision, home))
    if not _is_at_hand(model, revision, home) and not is_wrong:
        near = did_you_mean(model, published, 0.85)
        yield (
            f"{model!r} is not on this machine: the first run downloads it from the Hugging Face "
            f"hub.{'' if model in published else near}"
        )


def _is_at_hand(model: str, revision: str | None, home: Path) -> bool:
    from embedding_pipelines.inference.weights import local_folder

    return local_folder(model, revision, home) is not None
