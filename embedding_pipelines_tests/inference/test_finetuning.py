"""Fine-tuning goes on after it was cut off, and comes to the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.inference.finetuning import Example, Finetuning, finetune
from embedding_pipelines.inference.weights import revision_sha256
from embedding_pipelines_tests.tiny import one_thread, write_tiny

pytestmark = pytest.mark.slow  # imports of torch, transformers and datasets
EXAMPLES = [
    Example(f"query {number} of a cat", f"text {number} on a roof", (f"other {number}",))
    for number in range(40)
]
STEPS = 10


class Cut(Exception):
    """The training ends in its middle."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("models")
    write_tiny(folder)
    with one_thread():
        yield folder


def train(folder: Path, name: str, cut_at: int = 0, **options: Any) -> tuple[str, list[int]]:
    """The trained model's digest, and the steps that were taken."""
    steps: list[int] = []

    def advance(done: int, total: int) -> None:
        assert total == STEPS
        steps.append(done)
        if done == cut_at:
            raise Cut

    finetune(
        folder / "tiny",
        folder / name,
        EXAMPLES,
        Finetuning(pairs="pairs.jsonl", batch_size=8, epochs=2, learning_rate=1e-3, **options),
        prompts={"query": "query: "},
        device="cpu",
        checkpoints=folder / f"checkpoints-{name}",
        advance=advance,
    )
    return revision_sha256(folder / name), steps


@pytest.mark.parametrize("options", [{}, {"lora": 4}, {"matryoshka": [16]}])
def test_what_was_cut_off_goes_on_to_the_same_weights(
    folder: Path, options: dict[str, Any]
) -> None:
    name = "-".join(["model", *options])
    whole, steps = train(folder, name, **options)
    assert steps == [*range(1, STEPS + 1)]
    assert whole != revision_sha256(folder / "tiny")
    with pytest.raises(Cut):
        train(folder, f"{name}-cut", cut_at=7, **options)
    assert not (folder / f"{name}-cut").exists()
    # A kill in the middle of a checkpoint leaves one without the trainer's state.
    (folder / f"checkpoints-{name}-cut" / "checkpoint-6" / "trainer_state.json").unlink()
    again, steps = train(folder, f"{name}-cut", **options)
    assert (again, steps) == (whole, [*range(6, STEPS + 1)])
    assert not (folder / name / "README.md").exists()  # the library's would quote texts
