"""`word2vec`: the contract, every format of file, texts of which no word has a vector, and
training on one's own texts."""

import gzip
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import (
    ConfigError,
    EmbeddingPipelinesError,
    ProviderError,
    SourceError,
)
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.providers.word2vec import (
    NO_WORD,
    Training,
    Word2vec,
    Word2vecModel,
    split_words,
    train_vectors,
    word_tokenizer,
)
from embedding_pipelines_tests.providers import contract

WORDS = ["paris", "Paris", "cat", "warm", "über", "漢字"]
ROWS = np.random.default_rng(0).standard_normal((len(WORDS), 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def _own_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))


def text_lines(words: list[str] = WORDS, rows: np.ndarray = ROWS) -> bytes:
    numbers = (" ".join(repr(float(number)) for number in row) for row in rows)
    return "".join(f"{word} {line}\n" for word, line in zip(words, numbers, strict=True)).encode()


def header(words: list[str] = WORDS, rows: np.ndarray = ROWS) -> bytes:
    return f"{len(words)} {rows.shape[1]}\n".encode()


def binary() -> bytes:
    return header() + b"".join(
        word.encode() + b" " + row.tobytes() for word, row in zip(WORDS, ROWS, strict=True)
    )


def save_keyed_vectors(path: Path, sep_limit: int, pickle_protocol: int = 4) -> None:
    from gensim.models import KeyedVectors

    table = KeyedVectors(ROWS.shape[1])
    table.add_vectors(WORDS, ROWS)
    table.save(str(path), sep_limit=sep_limit, pickle_protocol=pickle_protocol)


def save_as_numpy_1_did(path: Path) -> None:
    save_keyed_vectors(path, 1 << 20, pickle_protocol=2)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))


FORMATS: dict[str, Callable[[Path], object]] = {
    "word2vec text": lambda path: path.write_bytes(header() + text_lines()),
    "word2vec text with blanks at the ends": lambda path: path.write_bytes(
        header() + text_lines().replace(b"\n", b" \n")
    ),
    "word2vec binary": lambda path: path.write_bytes(binary()),
    "word2vec binary with line ends": lambda path: path.write_bytes(
        header()
        + b"".join(
            w.encode() + b" " + row.tobytes() + b"\n" for w, row in zip(WORDS, ROWS, strict=True)
        )
    ),
    "word2vec binary, gzipped": lambda path: path.write_bytes(gzip.compress(binary())),
    "GloVe": lambda path: path.write_bytes(text_lines()),
    "GloVe, gzipped, with a word of spaces and one twice": lambda path: path.write_bytes(
        gzip.compress(
            text_lines()
            + b". . "
            + text_lines()[6:].split(b"\n")[0]
            + b"\n"
            + text_lines(["cat"], ROWS[:1])
        )
    ),
    "KeyedVectors": lambda path: save_keyed_vectors(path, 1 << 20),
    "KeyedVectors with numpy 1": save_as_numpy_1_did,
    "KeyedVectors in two files": lambda path: save_keyed_vectors(path, 0),
}


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def opened(home: Path, name: str = "words", trusted: bool = True) -> Word2vecModel:
    return Word2vec(vectors=name, trusted=trusted).open(home)


def test_word2vec_keeps_the_contract(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer()
    texts = [  # "" has no vector
        text if split_words(text, tokenizer) else f"blank{at}"
        for at, text in enumerate(contract.TEXTS)
    ]
    monkeypatch.setattr(contract, "TEXTS", texts)
    words = sorted({word.lower() for text in texts for word in split_words(text, tokenizer)})
    rows = Hashing(dimensions=64).open(home).embed(words, "document").vectors
    (home / "words.txt").write_bytes(header(words, rows) + text_lines(words, rows))
    contract.check_provider(opened(home, "words.txt"))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_mean_of_the_words(home: Path, form: str) -> None:
    FORMATS[form](home / "words")
    model = opened(home)
    assert model.space.dimensions == 8
    assert model.space.revision != ""
    texts = ["A CAT, so warm!", "漢字 ÜBER", "cat cat warm"]
    vectors = model.embed(texts, "document").vectors
    assert np.allclose(vectors[0], unit(ROWS[2] + ROWS[3]), atol=1e-6)
    assert np.allclose(vectors[1], unit(ROWS[5] + ROWS[4]), atol=1e-6)
    assert np.allclose(vectors[2], unit(2 * ROWS[2] + ROWS[3]), atol=1e-6)


def test_a_word_is_looked_up_as_written_then_in_lower_case(home: Path) -> None:
    (home / "words").write_bytes(binary())
    vectors = opened(home).embed(["Paris", "paris", "PARIS", "Cat"], "query").vectors
    assert np.allclose(
        vectors, [unit(ROWS[1]), unit(ROWS[0]), unit(ROWS[0]), unit(ROWS[2])], atol=1e-6
    )


def test_a_text_of_which_no_word_has_a_vector_is_rejected(home: Path) -> None:
    (home / "words").write_bytes(text_lines(["cat", "anticat"], np.stack([ROWS[0], -ROWS[0]])))
    response = opened(home).embed(["dog", "", " ... ", "cat", "cat anticat"], "document")
    assert np.isnan(response.vectors).all(axis=1).tolist() == [True, True, True, False, True]
    assert response.rejected == dict.fromkeys((0, 1, 2, 4), NO_WORD)


def test_the_space_is_the_file_s_content_wherever_it_lies(home: Path) -> None:
    (home / "words").write_bytes(binary())
    (home / "other").mkdir()
    (home / "other/words").write_bytes(binary())
    first = opened(home)
    assert first.space == opened(home, "other/words").space
    (home / "words").write_bytes(header() + text_lines())
    edited = opened(home)
    assert edited.space.id != first.space.id  # which is what it was opened with
    assert edited.space.dimensions == 8


def test_two_homes_in_one_process_each_have_their_own_words(tmp_path: Path) -> None:
    homes = [tmp_path / "first", tmp_path / "second"]
    for number, home in enumerate(homes):
        home.mkdir()
        (home / "words").write_bytes(text_lines(["cat"], ROWS[number : number + 1]))
    models = [opened(home) for home in homes]
    assert models[0].space.id != models[1].space.id
    for number, model in enumerate(models):
        assert np.allclose(model.embed(["cat"], "query").vectors, unit(ROWS[number]), atol=1e-6)


def test_the_arrays_beside_a_file_belong_to_it(home: Path) -> None:
    save_keyed_vectors(home / "words", 0)
    before = opened(home).space
    np.save(home / "words.vectors.npy", 2 * ROWS)
    assert opened(home).space != before


def test_a_file_is_read_once_and_then_mapped_into_memory(home: Path) -> None:
    (home / "words").write_bytes(binary())
    opened(home).embed(["cat"], "document")
    (cache,) = (home / "cache/embedding-pipelines").iterdir()
    assert sorted(file.name for file in cache.iterdir()) == ["vectors.f32", "words.json"]
    os.utime(cache / "words.json", ns=(0, 0))
    (home / "again").write_bytes(binary())
    opened(home, "again").embed(["cat"], "document")
    assert (cache / "words.json").stat().st_mtime_ns == 0


def test_a_damaged_copy_is_named_and_made_again_once_removed(home: Path) -> None:
    (home / "words").write_bytes(binary())
    opened(home).embed(["cat"], "query")
    (cache,) = (home / "cache/embedding-pipelines").iterdir()
    (cache / "vectors.f32").write_bytes(b"\0" * 7)
    (home / "again").write_bytes(binary())
    with pytest.raises(ProviderError, match="Delete this folder") as caught:
        opened(home, "again").embed(["cat"], "query")
    assert str(cache) in str(caught.value)
    shutil.rmtree(cache)
    assert np.allclose(
        opened(home, "again").embed(["cat"], "query").vectors, unit(ROWS[2]), atol=1e-6
    )


@pytest.mark.parametrize("form", ["word2vec binary", "KeyedVectors in two files"])
def test_a_release_outlives_a_new_file(home: Path, form: str) -> None:
    FORMATS[form](home / "words")
    model, folder = opened(home), home / "data/warehouse/p/calibration"
    vectors = model.embed(["cat"], "query").vectors
    options = model.release_options(folder)
    assert model.release_options(folder) == options
    (home / "words").write_bytes(text_lines(["cat"], ROWS[:1]))
    shutil.rmtree(home / "cache")
    assert opened(home).space != model.space
    release = Word2vec.model_validate_json(options.model_dump_json()).open(home)
    assert release.space == model.space
    assert np.array_equal(release.embed(["cat"], "query").vectors, vectors)


def test_a_file_that_changes_during_a_run_is_not_released(home: Path) -> None:
    (home / "words").write_bytes(binary())
    model = opened(home)
    model.embed(["cat"], "document")
    (home / "words").write_bytes(text_lines(["cat"], ROWS[:1]))
    with pytest.raises(
        ProviderError, match=r"words has changed since the run began.*Run the pipeline again"
    ):
        model.release_options(home / "data/warehouse/p/calibration")
    assert not (home / "data").exists()


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"3 8\n", "ends after 0 of 3 words"),
        (b"0 8\n", "it holds no word"),
        (b"rubbish", "its first line is not a word with numbers"),
        (b"6 0\ncat\n", "vectors of 0 numbers"),
        (b"6 99999999999\ncat 0.5\n", "vectors of 99,999,999,999 numbers"),
        (gzip.compress(binary())[:-30], "it cannot be unpacked"),
        (b"\x1f\x8b rubbish", "it cannot be unpacked"),
        (b"\x00\x01\x02 rubbish\n", "line 1 is not a word and 1 numbers"),
        (b"cat 0.5 0.5\ndog 0.5\n", "line 2 is not a word and 2 numbers"),
        (header() + text_lines()[:-40], "line 7 is not a word and 8 numbers"),
        (header() + b"\n".join(text_lines().split(b"\n")[:3]), "ends after 3 of 6 words"),
        (binary()[:-5], "ends after 5 of 6 words"),
        (b"3 8\n" + b"\xff" * 100_000, "neither text nor in word2vec's binary format"),
        (pickle.dumps({"a": 1}), "KeyedVectors cannot be read"),
        (b"\x80\x04rubbish", "KeyedVectors cannot be read"),
    ],
)
def test_what_is_no_file_of_vectors_is_rejected(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    monkeypatch.chdir(home)
    (home / "words").write_bytes(content)
    with pytest.raises(ProviderError, match=said) as caught:
        _ = opened(home).space
    assert str(home / "words") in str(caught.value)
    assert not (home / "pwned").exists()
    assert not any((home / "cache/embedding-pipelines").iterdir())


@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_is_not_opened_unless_it_is_trusted(
    home: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.chdir(home)
    content = pickle.dumps(Evil())
    (home / "words").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ProviderError, match="is a pickle, and opening one may run code") as caught:
        _ = opened(home, trusted=False).space
    assert str(home / "words") in str(caught.value)
    assert not (home / "pwned").exists()


def test_a_whole_model_of_gensim_gives_its_vectors(home: Path) -> None:
    from gensim.models import Word2Vec

    Word2Vec([["a", "b"]], vector_size=4, min_count=1).save(str(home / "words"))
    assert opened(home).space.dimensions == 4


def test_a_missing_file_is_named(home: Path) -> None:
    with pytest.raises(ProviderError, match="this file of word vectors does not exist") as caught:
        opened(home, "gone.txt").embed(["cat"], "query")
    assert str(home / "gone.txt") in str(caught.value)


def test_options_that_say_nothing_of_vectors_are_rejected(home: Path) -> None:
    with pytest.raises(ValidationError, match="name a file of word vectors with `vectors`"):
        Word2vec()
    with pytest.raises(ValidationError, match="dimension"):
        Word2vec.model_validate({"train": {"dimension": 100}})
    with pytest.raises(ValidationError, match="keep one of them"):  # the file would be overwritten
        Word2vec(vectors="glove.txt", train=Training())
    for folder in (None, home / "data/warehouse/p"):
        with pytest.raises(ConfigError, match="Run the pipeline's `train` step"):
            _ = Word2vec(train=Training()).open(home, folder).space
    with pytest.raises(ConfigError, match="can be trained"):
        Word2vec(train=Training()).open(home).train(["a cat"])


@pytest.mark.parametrize(
    "needs_gensim",
    [
        lambda home: opened(home).embed(["cat"], "query"),
        lambda home: Word2vec(train=Training()).open(home, home / "out").train(["a cat"]),
    ],
)
def test_without_gensim_one_line_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch, needs_gensim: Callable[[Path], object]
) -> None:
    FORMATS["KeyedVectors"](home / "words")
    for module in (
        "gensim",
        "gensim.models",
        "gensim.models.keyedvectors",
        "gensim.models.word2vec",
    ):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[word2vec\]'"):
        needs_gensim(home)


CORPUS = [
    *(
        f"The {animal} eats {food} and sleeps."
        for animal in ("cat", "dog", "mouse")
        for food in ("meat", "bread")
    ),
    *(
        f"The {court} rejects the {claim}, and adjourns."
        for court in ("judge", "court")
        for claim in ("plea", "claim")
    ),
] * 40
OPTIONS = Training(dimensions=16, window=3, epochs=10)


def test_trained_vectors_have_geometry_and_a_space(home: Path) -> None:
    folder, options = home / "data/warehouse/p", Word2vec(train=OPTIONS)
    assert options.trains
    model = options.open(home, folder)
    model.train(iter(CORPUS))
    texts = ["Cat, meat", "dog bread", "judge claim"]
    near, same, far = model.embed(texts, "document").vectors
    assert near @ same > near @ far + 0.1
    assert model.space.dimensions == 16
    assert [file.name for file in folder.iterdir()] == ["vectors.bin"]


def test_a_model_that_is_trained_again_has_another_space_and_its_release_the_old_one(
    home: Path,
) -> None:
    model = Word2vec(train=OPTIONS).open(home, home / "data/warehouse/p")
    model.train(CORPUS)
    space, vectors = model.space, model.embed(["a cat eats"], "query").vectors
    options = model.release_options(home / "data/warehouse/p/calibration")
    assert options.train == OPTIONS
    assert not options.trains
    assert options.trained is not None
    assert options.trained.startswith("data/warehouse/p/calibration/")
    model.train([text.replace("cat", "horse") for text in CORPUS])
    assert model.space != space
    assert model.embed(["a cat eats"], "query").vectors.tolist() != vectors.tolist()
    release = Word2vec.model_validate_json(options.model_dump_json()).open(home)
    assert release.space == space
    assert np.array_equal(release.embed(["a cat eats"], "query").vectors, vectors)
    with pytest.raises(ConfigError, match="can be trained"):
        release.train(CORPUS)


def test_training_again_gives_the_same_file_in_another_process(home: Path) -> None:
    texts = CORPUS * 20  # more words than gensim gives to one thread at once
    train_vectors(texts, Training(dimensions=16, epochs=5), home / "here.bin")
    code = (
        "from pathlib import Path\n"
        "from embedding_pipelines.providers.word2vec import Training, train_vectors\n"
        f"options, path = Training(dimensions=16, epochs=5), Path({str(home / 'there.bin')!r})\n"
        f"train_vectors({CORPUS!r} * 20, options, path)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert (home / "here.bin").read_bytes() == (home / "there.bin").read_bytes()
    train_vectors(texts, Training(dimensions=16, epochs=5, seed=1), home / "there.bin")
    assert (home / "here.bin").read_bytes() != (home / "there.bin").read_bytes()


def test_training_that_fails_leaves_the_old_file(home: Path) -> None:
    (home / "words").write_bytes(binary())

    def broken() -> Iterator[str]:
        yield "a cat"
        raise SourceError("the disk is gone")

    with pytest.raises(SourceError, match="the disk is gone"):
        train_vectors(broken(), OPTIONS, home / "words")
    for texts in ([], ["every word once"]):
        with pytest.raises(
            EmbeddingPipelinesError, match=f"2 times or more in the {len(texts)} texts"
        ):
            train_vectors(texts, OPTIONS, home / "words")
    assert (home / "words").read_bytes() == binary()
    assert [file.name for file in home.iterdir()] == ["words"]
