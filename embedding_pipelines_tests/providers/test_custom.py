"""`custom`: the contract, a module in the home folder, what its space holds, and each way a class
can be wrong."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import Busy, ConfigError, ProviderError
from embedding_pipelines.providers.custom import Custom
from embedding_pipelines_tests.providers.contract import check_provider

HASHED = """\
from embedding_pipelines.providers.hashing import Hashing

class MyModel:
    def __init__(self, dimensions=64, scale=1.0):
        self.dimensions, self.scale = dimensions, scale
        self.inner = Hashing(dimensions=dimensions)

    def embed(self, texts, input_type):
        return (self.inner.embed(texts, input_type) * self.scale).tolist()
"""

AS_IN_THE_GUIDE = """\
class Abstract:
    def __init__(self):
        self.calls = []

class MyCustomEmbeddings(Abstract):
    def __init__(self, dims=384, normalize=False):
        super().__init__()
        self.dims = dims
        self.normalize = normalize

    def generate(self, text):
        return self._post(self._infer(text))

    def generate_batch(self, texts):
        return [self._post(self._infer(t)) for t in texts]

    def _infer(self, text):
        return [float(len(text))] * self.dims

    def _post(self, vec):
        norm = sum(x * x for x in vec) ** 0.5 or 1.0
        return [x / norm for x in vec] if self.normalize else vec
"""

Write = Callable[[str], str]
NUMBERS = itertools.count()


@pytest.fixture
def module(home: Path) -> Iterator[Write]:
    """Writes a module below the home folder and returns its name, which no other test uses."""
    made: list[str] = []

    def write(source: str) -> str:
        name = f"custom_models_{next(NUMBERS)}"
        (home / f"{name}.py").write_text(source)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def said(body: str, attributes: str = "dimensions = 2") -> str:
    return f"class M:\n    {attributes}\n    def embed(self, texts, input_type):\n        {body}\n"


def test_custom_keeps_the_contract(module: Write) -> None:
    name = module(HASHED)
    check_provider(Custom(cls=f"{name}:MyModel"))
    check_provider(
        Custom(cls=f"{name}:MyModel", options={"dimensions": 32, "scale": 3.0}, normalize=True)
    )


def test_a_generator_with_generate_batch_is_taken_as_it_is(module: Write) -> None:
    provider = Custom(
        cls=f"{module(AS_IN_THE_GUIDE)}:MyCustomEmbeddings", options={"dims": 4, "normalize": True}
    )
    assert provider.space.dimensions == 4
    assert np.allclose(provider.embed(["one", "three"], "query"), 0.5)


def test_a_module_of_the_home_folder_needs_no_path_and_leaves_none(
    home: Path, module: Write
) -> None:
    helper = module("TWO = 2\n")
    name = module(f"from {helper} import TWO\n" + said("return [[1, TWO]] * len(texts)"))
    path, written = list(sys.path), sys.dont_write_bytecode
    assert Custom(cls=f"{name}:M").embed(["a"], "document").tolist() == [[1, 2]]
    assert sys.path == path
    assert sys.dont_write_bytecode == written
    assert not (home / "__pycache__").exists()


def test_the_constructor_may_import_from_the_home_folder(module: Write) -> None:
    helper = module("TWO = 2\n")
    source = f"class M:\n    def __init__(self):\n        from {helper} import TWO\n        self.dimensions = TWO\n"
    name = module(
        source + "    def embed(self, texts, input_type):\n        return [[1, 2]] * len(texts)\n"
    )
    assert Custom(cls=f"{name}:M").space.dimensions == 2


def test_a_package_of_the_home_folder_may_import_its_own_modules(home: Path) -> None:
    folder = home / "my_own_package/models"
    folder.mkdir(parents=True)
    (home / "my_own_package/__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "numbers.py").write_text("ONE = 1\n")
    (folder / "mine.py").write_text(
        "from .numbers import ONE\n" + said("return [[ONE, 0]] * len(texts)")
    )
    assert Custom(cls="my_own_package.models.mine:M").embed(["a", "b"], "query").tolist() == [
        [1, 0],
        [1, 0],
    ]


def test_an_installed_module_serves_as_well() -> None:
    with pytest.raises(
        ConfigError, match="json:JSONDecoder says nothing of the length of its vectors"
    ):
        _ = Custom(cls="json:JSONDecoder").space


def test_the_input_type_reaches_the_class(module: Write) -> None:
    name = module(said("return [[1, 2 if input_type == 'query' else 3]] * len(texts)"))
    provider = Custom(cls=f"{name}:M")
    assert provider.embed(["a"], "query").tolist() == [[1, 2]]
    assert provider.embed(["a"], "document").tolist() == [[1, 3]]


def test_the_space_holds_path_options_and_revision(module: Write) -> None:
    name = module(HASHED)
    plain = Custom(cls=f"{name}:MyModel").space
    assert plain.model == f"{name}:MyModel"
    some = Custom(cls=f"{name}:MyModel", options={"scale": 2, "dimensions": 16}).space
    assert some.model == f'{name}:MyModel {{"dimensions":16,"scale":2}}'
    assert some.revision == plain.revision
    assert some == Custom(cls=f"{name}:MyModel", options={"dimensions": 16, "scale": 2}).space
    assert Custom(cls=f"{name}:MyModel", normalize=True).space.normalized


def test_an_edited_file_is_another_space_unless_the_class_says_its_revision(module: Write) -> None:
    source = said("return [[1, 2]] * len(texts)")
    first, edited = (
        Custom(cls=f"{module(text)}:M").space for text in (source, source + "# edited\n")
    )
    assert first.revision != edited.revision
    own = said("return [[1, 2]] * len(texts)", "dimensions, revision = 2, 7")
    first, edited = (Custom(cls=f"{module(text)}:M").space for text in (own, own + "# edited\n"))
    assert first.revision == edited.revision == "7"


def test_the_class_is_made_once_and_called_from_one_thread(module: Write) -> None:
    name = module(
        "import threading, time\nMADE, BUSY = [], threading.Lock()\n\nclass M:\n    dimensions = 2\n"
        "    def __init__(self):\n        time.sleep(0.02)\n        MADE.append(self)\n"
        "    def embed(self, texts, input_type):\n        assert BUSY.acquire(blocking=False)\n"
        "        time.sleep(0.01)\n        BUSY.release()\n        return [[1, 2]] * len(texts)\n"
    )
    provider = Custom(cls=f"{name}:M")
    assert provider.limits.concurrent_requests == 1
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(provider.embed(["a"], "query")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(sys.modules[name].MADE) == 1


def test_several_calls_at_once_where_the_class_allows_them(module: Write) -> None:
    name = module(
        "import threading\nALL = threading.Barrier(3, timeout=5)\n\n"
        + said("ALL.wait(); return [[1, 2]] * len(texts)")
    )
    provider = Custom(cls=f"{name}:M", concurrent_requests=3)
    assert provider.limits.concurrent_requests == 3
    started, answers = time.monotonic(), []
    threads = [
        threading.Thread(target=lambda: answers.append(provider.embed(["a"], "query")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 3
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("body", "found", "remedy"),
    [
        (
            "raise KeyError('no such weight')",
            "failed on 2 texts: KeyError: 'no such weight'",
            "Mend the class",
        ),
        ("return [[1, 2], [1]]", "a list that is no table of numbers", "2 rows of 2 numbers"),
        ("return None", "a NoneType, not numbers", "2 rows of 2 numbers"),
        ("return {'a': 1}", "a dict, not numbers", "2 rows of 2 numbers"),
        ("return (text for text in texts)", "a generator, not numbers", "2 rows of 2 numbers"),
        ("return [['1', 'x']] * 2", "a list, not numbers", "2 rows of 2 numbers"),
        ("return [[1, 2]]", r"shape \(1, 2\) for 2 texts", "one row for each text"),
        (
            "return [[1, 2, 3]] * 2",
            r"shape \(2, 3\) for 2 texts of 2 dimensions",
            "set `dimensions`",
        ),
        ("return [1, 2]", r"shape \(2,\) for 2 texts", "one row for each text"),
    ],
)
def test_an_answer_that_is_no_vectors_is_refused(
    module: Write, body: str, found: str, remedy: str
) -> None:
    provider = Custom(cls=f"{module(said(body))}:M")
    with pytest.raises(ProviderError, match=f"{found}.*{remedy}") as caught:
        provider.embed(["a", "b"], "document")
    assert f"{provider.cls} " in str(caught.value)


def test_the_user_s_own_exception_is_kept(module: Write) -> None:
    with pytest.raises(ProviderError) as caught:
        Custom(cls=f"{module(said('raise KeyError(1)'))}:M").embed(["a"], "query")
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_a_class_says_in_this_package_s_own_terms_is_passed_on(module: Write) -> None:
    name = module(
        "from embedding_pipelines.providers.common.http import Busy\n"
        + said("raise Busy('later', 3.0)")
    )
    with pytest.raises(Busy, match="later") as caught:
        Custom(cls=f"{name}:M").embed(["a"], "query")
    assert caught.value.retry_after_seconds == 3.0


@pytest.mark.parametrize("normalize", [False, True])
def test_numbers_beyond_float32_are_left_to_who_checks_without_a_warning(
    module: Write, normalize: bool
) -> None:
    found = Custom(cls=f"{module(said('return [[1e300, 1.0]]'))}:M", normalize=normalize).embed(
        ["a"], "query"
    )
    assert not np.isfinite(found).all()


def test_a_zero_vector_and_a_missing_one_are_left_for_the_caller_to_refuse(module: Write) -> None:
    name = module(said("return [[0, 0], [float('nan')] * 2, [3, 4]]"))
    found = Custom(cls=f"{name}:M", normalize=True).embed(["a", "b", "c"], "query")
    assert np.allclose(found, [[0, 0], [np.nan, np.nan], [0.6, 0.8]], equal_nan=True)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (
            "class M:\n    pass\n",
            "says nothing of the length of its vectors. Give it an attribute `dimensions`",
        ),
        ("class M:\n    dimensions = 'many'\n", "says 'many' of the length of its vectors"),
        (
            "class M:\n    dimensions = 2\n    def revision(self): ...\n",
            "`revision` of .* is a method, not a string",
        ),
        ("class M:\n    dimensions = 2\n", r"has no method embed\(texts, input_type\)"),
        ("class Other:\n    pass\n", r"\.py has no class 'M'"),
        ("M = 3\n", r"\.py has no class 'M'"),
        (
            "import no_such_package_at_all\n",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_pack",
        ),
        ("class M\n", "cannot be imported: SyntaxError"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError"),
        (
            "class M:\n    def __init__(self):\n        open('/no/such/file')\n",
            r"made with options \(none\): FileNotF",
        ),
        (
            "from embedding_pipelines.providers.hashing import Hashing as M\n",
            "Register it in your package's pyproject",
        ),
    ],
)
def test_a_class_that_cannot_serve_is_refused_in_a_sentence(
    module: Write, source: str, found: str
) -> None:
    name = module(source)
    with pytest.raises(ConfigError, match=found) as caught:
        _ = Custom(cls=f"{name}:M").space
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_options_are_named_without_their_values(module: Write) -> None:
    with pytest.raises(ConfigError, match="made with options 'colour': TypeError") as caught:
        _ = Custom(cls=f"{module(HASHED)}:MyModel", options={"colour": "sk-private"}).space
    assert "sk-private" not in str(caught.value)


def test_a_missing_module_is_named_with_where_it_was_looked_for(home: Path) -> None:
    with pytest.raises(ConfigError, match=f"no such module, neither below {home} nor installed"):
        _ = Custom(cls="no_such_module_here.models:M").space


@pytest.mark.parametrize("name", ["random", "sys"])
def test_a_module_that_is_hidden_by_another_is_told(home: Path, name: str) -> None:
    (home / f"{name}.py").write_text(said("return [[1, 2]] * len(texts)"))
    with pytest.raises(
        ConfigError,
        match=f"{name}.py is not what Python knows as '{name}'.*Give yours another name",
    ):
        _ = Custom(cls=f"{name}:M").space


@pytest.mark.parametrize(
    "path", ["my_models", "my_models:", ":M", "my-models:M", "a..b:M", "my_models.py:M:N", "m:M()"]
)
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="write the module and the class with a colon"):
        Custom(cls=path)


@pytest.mark.parametrize(
    "name", ["api_key", "OPENAI_API_KEY", "password", "client_secret", "token"]
)
def test_a_secret_is_no_option(name: str) -> None:
    with pytest.raises(ValidationError, match="looks like a secret") as caught:
        Custom(cls="a:B", options={name: "sk-private"})
    assert "sk-private" not in str(caught.value)
    assert (
        Custom(cls="a:B", options={"api_key_env": "KEY", "max_tokens": 3}).options["api_key_env"]
        == "KEY"
    )


def test_a_secret_is_none_further_down_either() -> None:
    with pytest.raises(ValidationError, match="'api_key' looks like a secret"):
        Custom(cls="my_models:M", options={"clients": [{"name": "a", "api_key": "x"}]})


def test_nobody_knows_the_price_unless_it_is_said() -> None:
    assert Custom(cls="a:B").price is None
    assert Custom(cls="a:B", usd_per_million_tokens=0.1).price == 0.1


def test_no_text_is_no_call(module: Write) -> None:
    assert Custom(cls=f"{module(said('raise KeyError(1)'))}:M").embed([], "query").shape == (0, 2)
