"""`custom`: the contract, a module in the home folder, what its space holds, and each way a class
can be wrong."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import Busy, ConfigError, ProviderError
from embedding_pipelines.providers.custom import Custom, CustomModel
from embedding_pipelines_tests.providers.contract import check_provider

HASHED = """\
from pathlib import Path
from embedding_pipelines.providers.hashing import Hashing

class MyModel:
    def __init__(self, dimensions=64, scale=1.0):
        self.dimensions, self.scale = dimensions, scale
        self.inner = Hashing(dimensions=dimensions).open(Path.cwd())

    def embed(self, texts, input_type):
        return (self.inner.embed(texts, input_type).vectors * self.scale).tolist()
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
Open = Callable[..., CustomModel]


@pytest.fixture
def module(home: Path) -> Write:
    """Writes a module below the home folder and returns its name."""

    def write(source: str) -> str:
        name = f"custom_models_{len(list(home.glob('*.py')))}"
        (home / f"{name}.py").write_text(source)
        return name

    return write


@pytest.fixture
def model(home: Path, module: Write) -> Open:
    """Opens the class M of a module that holds `source`."""
    return lambda source, **options: Custom(cls=f"{module(source)}:M", **options).open(home)


def said(body: str, attributes: str = "dimensions = 2") -> str:
    return f"class M:\n    {attributes}\n    def embed(self, texts, input_type):\n        {body}\n"


def test_custom_keeps_the_contract(home: Path, module: Write) -> None:
    plain = Custom(cls=f"{module(HASHED)}:MyModel")
    check_provider(plain.open(home))
    options = {"options": {"dimensions": 32, "scale": 3.0}, "normalize": True}
    check_provider(plain.model_copy(update=options).open(home))


def test_a_generator_with_generate_batch_is_taken_as_it_is(home: Path, module: Write) -> None:
    cls = f"{module(AS_IN_THE_GUIDE)}:MyCustomEmbeddings"
    model = Custom(cls=cls, options={"dims": 4, "normalize": True}).open(home)
    assert model.space.dimensions == 4
    assert np.allclose(model.embed(["one", "three"], "query").vectors, 0.5)


def test_a_module_of_the_home_folder_needs_no_path_and_leaves_none(
    home: Path, module: Write, model: Open
) -> None:
    helper = module("TWO = 2\n")
    path, names, write_none = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    own = model(f"from {helper} import TWO\n" + said("return [[1, TWO]] * len(texts)"))
    assert own.embed(["a"], "document").vectors.tolist() == [[1, 2]]
    assert sys.path == path
    assert set(sys.modules) == names
    assert sys.dont_write_bytecode == write_none
    assert not (home / "__pycache__").exists()


def test_the_constructor_may_import_from_the_home_folder(module: Write, model: Open) -> None:
    helper = module("TWO = 2\n")
    constructor = (
        f"def __init__(self):\n        from {helper} import TWO\n        self.dimensions = TWO\n"
    )
    assert model(said("return [[1, 2]] * len(texts)", constructor)).space.dimensions == 2


def test_a_package_of_the_home_folder_may_import_its_own_modules(home: Path) -> None:
    folder = home / "my_own_package/models"
    folder.mkdir(parents=True)
    (home / "my_own_package/__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "numbers.py").write_text("ONE = 1\n")
    (folder / "mine.py").write_text(
        "from .numbers import ONE\n" + said("return [[ONE, 0]] * len(texts)")
    )
    model = Custom(cls="my_own_package.models.mine:M").open(home)
    assert model.embed(["a", "b"], "query").vectors.tolist() == [[1, 0], [1, 0]]


def test_two_homes_in_one_process_each_have_their_own_modules(tmp_path: Path) -> None:
    """Of the same names, and with what they import from beside them."""
    homes, models = [tmp_path / "first", tmp_path / "second", tmp_path / "first"], []
    for number, home in enumerate(homes, 1):
        (home / "parts").mkdir(parents=True, exist_ok=True)
        (home / "helper.py").write_text(f"NUMBER = {number}\n")
        (home / "parts/one.py").write_text(f"NUMBER = {number}\n")
        source = "import helper\nfrom parts import one\n"
        (home / "mine.py").write_text(
            source + said("return [[helper.NUMBER, one.NUMBER]] * len(texts)") + f"# {number}\n"
        )
        models.append(Custom(cls="mine:M").open(home))
        assert models[-1].space.dimensions == 2
    vectors = [model.embed(["a"], "query").vectors.tolist() for model in models]
    assert vectors == [[[1, 1]], [[2, 2]], [[3, 3]]]  # the third is the first's, edited
    assert len({model.space.id for model in models}) == 3
    assert not {"mine", "helper", "parts", "parts.one"} & sys.modules.keys()


def test_modules_that_a_class_imports_from_elsewhere_stay_where_they_are(
    home: Path, tmp_path: Path, model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even from below the home folder, as where a virtual environment lies in it."""
    packages = home / "environment/packages"
    packages.mkdir(parents=True)
    (packages / "library_of_this_test.py").write_text("TWO = 2\n")
    monkeypatch.syspath_prepend(str(packages))
    own = model("import library_of_this_test\n" + said("return [[1, 2]] * len(texts)"))
    assert own.space.dimensions == 2
    assert sys.modules.pop("library_of_this_test").TWO == 2


def test_homes_are_imported_from_one_at_a_time(tmp_path: Path) -> None:
    homes = [tmp_path / str(number) for number in range(4)]
    for number, home in enumerate(homes):
        home.mkdir()
        (home / "helper.py").write_text(f"import time\ntime.sleep(0.05)\nNUMBER = {number}\n")
        (home / "mine.py").write_text(
            "from helper import NUMBER\n" + said("return [[NUMBER, 1]] * len(texts)")
        )
    with ThreadPoolExecutor(4) as pool:
        models = [Custom(cls="mine:M").open(home) for home in homes]
        responses = list(pool.map(lambda model: model.embed(["a"], "query"), models))
    assert [int(response.vectors[0, 0]) for response in responses] == [0, 1, 2, 3]


def test_a_class_cannot_change_the_options_of_its_pipeline(model: Open) -> None:
    constructor = "dimensions = 2\n    def __init__(self, layers):\n        layers.append(1)\n"
    own = model(said("return [[1, 2]] * len(texts)", constructor), options={"layers": [3]})
    assert own.embed(["a"], "query").vectors.tolist() == [[1, 2]]
    assert own.options.options == {"layers": [3]}
    assert own.space.model.endswith('{"layers":[3]}')


def test_an_installed_module_serves_as_well_if_it_is_trusted(home: Path) -> None:
    with pytest.raises(ConfigError, match="json:JSONDecoder has no method embed"):
        _ = Custom(cls="json:JSONDecoder", trusted=True).open(home).space
    with pytest.raises(ConfigError, match=r"'json' is not below .* but installed. Set `trusted"):
        _ = Custom(cls="json:JSONDecoder").open(home).space


@pytest.mark.parametrize("trusted", [False, True])
def test_no_class_is_called_that_cannot_embed(home: Path, trusted: bool) -> None:
    options = {"args": f"touch {home / 'pwned'}", "shell": True}
    own = Custom(cls="subprocess:Popen", options=options, trusted=trusted).open(home)
    with pytest.raises(ConfigError):
        _ = own.space
    assert not (home / "pwned").exists()


def test_the_input_type_reaches_the_class(model: Open) -> None:
    own = model(said("return [[1, 2 if input_type == 'query' else 3]] * len(texts)"))
    assert own.embed(["a"], "query").vectors.tolist() == [[1, 2]]
    assert own.embed(["a"], "document").vectors.tolist() == [[1, 3]]


def test_the_space_holds_path_options_and_revision(home: Path, module: Write) -> None:
    cls = f"{module(HASHED)}:MyModel"
    plain = Custom(cls=cls).open(home).space
    assert plain.model == cls
    some = Custom(cls=cls, options={"scale": 2, "dimensions": 16}).open(home).space
    assert some.model == f'{cls} {{"dimensions":16,"scale":2}}'
    assert some.revision == plain.revision
    assert some == Custom(cls=cls, options={"dimensions": 16, "scale": 2}).open(home).space
    assert Custom(cls=cls, normalize=True).open(home).space.normalized


def test_an_edited_file_is_another_space_unless_the_class_says_its_revision(model: Open) -> None:
    source = said("return [[1, 2]] * len(texts)")
    first, edited = (model(text).space for text in (source, source + "# edited\n"))
    assert first.revision != edited.revision
    own = said("return [[1, 2]] * len(texts)", "dimensions, revision = 2, 7")
    first, edited = (model(text).space for text in (own, own + "# edited\n"))
    assert first.revision == edited.revision == "7"


def test_the_class_is_made_once_and_called_from_one_thread(model: Open) -> None:
    own = model(
        "import threading, time\nINSTANCES, BUSY = [], threading.Lock()\n\nclass M:\n"
        "    dimensions = 2\n"
        "    def __init__(self):\n        time.sleep(0.02)\n        INSTANCES.append(self)\n"
        "    def embed(self, texts, input_type):\n        assert BUSY.acquire(blocking=False)\n"
        "        time.sleep(0.01)\n        BUSY.release()\n"
        "        return [[1, len(INSTANCES)]] * len(texts)\n"
    )
    assert own.limits.concurrent_requests == 1
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: own.embed(["a"], "query"), range(8)))
    assert [response.vectors.tolist() for response in responses] == [[[1, 1]]] * 8


def test_several_calls_at_once_where_the_class_allows_them(model: Open) -> None:
    source = "import threading\nALL = threading.Barrier(3, timeout=60)\n\n"
    source += said("ALL.wait(); return [[1, 2]] * len(texts)")
    own = model(source, concurrent_requests=3)
    assert own.limits.concurrent_requests == 3
    with ThreadPoolExecutor(3) as pool:
        responses = list(pool.map(lambda _: own.embed(["a"], "query"), range(3)))
    assert len(responses) == 3


@pytest.mark.parametrize(
    ("body", "problem", "remedy"),
    [
        (
            "raise KeyError('no such weight')",
            "failed on 2 texts: KeyError: 'no such weight'",
            "Correct the class",
        ),
        ("return [[1, 2], [1]]", "a list that is not a table of numbers", "2 rows of 2 numbers"),
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
def test_an_answer_that_is_no_vectors_is_rejected(
    model: Open, body: str, problem: str, remedy: str
) -> None:
    own = model(said(body))
    with pytest.raises(ProviderError, match=f"{problem}.*{remedy}") as caught:
        own.embed(["a", "b"], "document")
    assert f"{own.options.cls} " in str(caught.value)


def test_the_user_s_own_exception_is_kept(model: Open) -> None:
    with pytest.raises(ProviderError) as caught:
        model(said("raise KeyError(1)")).embed(["a"], "query")
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_a_class_says_in_this_package_s_own_terms_is_passed_on(model: Open) -> None:
    source = "from embedding_pipelines.errors import Busy\n" + said("raise Busy('later', 3.0)")
    with pytest.raises(Busy, match="later") as caught:
        model(source).embed(["a"], "query")
    assert caught.value.retry_after_seconds == 3.0


@pytest.mark.parametrize("normalize", [False, True])
def test_numbers_beyond_float32_are_left_to_who_checks_without_a_warning(
    model: Open, normalize: bool
) -> None:
    own = model(said("return [[1e300, 1.0]]"), normalize=normalize)
    assert not np.isfinite(own.embed(["a"], "query").vectors).all()


def test_a_zero_vector_and_a_missing_one_are_left_for_the_caller_to_reject(model: Open) -> None:
    own = model(said("return [[0, 0], [float('nan')] * 2, [3, 4]]"), normalize=True)
    vectors = own.embed(["a", "b", "c"], "query").vectors
    assert np.allclose(vectors, [[0, 0], [np.nan, np.nan], [0.6, 0.8]], equal_nan=True)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "class M:\n    embed = print\n",
            "has no attribute `dimensions`. Set `dimensions` .* to the length of its vectors",
        ),
        ("class M:\n    dimensions, embed = 'many', print\n", "has 'many' dimensions"),
        (
            "class M:\n    dimensions, embed = 2, print\n    def revision(self): ...\n",
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
            "class M:\n    embed = print\n    def __init__(self):\n        open('/no/such/file')\n",
            r"failed with options \(none\): FileNotF",
        ),
        (
            "from embedding_pipelines.providers.hashing import Hashing as M\n",
            "Register it in your package's pyproject",
        ),
    ],
)
def test_a_class_that_cannot_serve_is_rejected_in_a_sentence(
    model: Open, source: str, problem: str
) -> None:
    own = model(source)
    with pytest.raises(ConfigError, match=problem) as caught:
        _ = own.space
    assert own.options.cls.partition(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_options_are_named_without_their_values(home: Path, module: Write) -> None:
    own = Custom(cls=f"{module(HASHED)}:MyModel", options={"colour": "sk-private"}).open(home)
    with pytest.raises(ConfigError, match="failed with options 'colour': TypeError") as caught:
        _ = own.space
    assert "sk-private" not in str(caught.value)


def test_a_missing_module_is_named_with_where_it_was_looked_for(home: Path) -> None:
    with pytest.raises(ConfigError, match=f"the module is neither below {home} nor installed"):
        _ = Custom(cls="no_such_module_here.models:M").open(home).space


@pytest.mark.parametrize("name", ["random", "sys"])
def test_a_module_that_is_hidden_by_another_is_told(home: Path, name: str) -> None:
    (home / f"{name}.py").write_text(said("return [[1, 2]] * len(texts)"))
    with pytest.raises(
        ConfigError,
        match=f"{name}.py has the name of a module .*, '{name}'. Give yours another name",
    ):
        _ = Custom(cls=f"{name}:M").open(home).space


@pytest.mark.parametrize(
    "path", ["my_models", "my_models:", ":M", "my-models:M", "a..b:M", "my_models.py:M:N", "m:M()"]
)
def test_a_path_of_another_form_is_rejected(path: str) -> None:
    with pytest.raises(ValidationError, match="write the module and the class with a colon"):
        Custom(cls=path)


@pytest.mark.parametrize(
    "name", ["api_key", "OPENAI_API_KEY", "password", "client_secret", "token"]
)
def test_a_secret_is_no_option(name: str) -> None:
    with pytest.raises(ValidationError, match="looks like a secret") as caught:
        Custom(cls="a:B", options={name: "sk-private"})
    assert "sk-private" not in str(caught.value)
    allowed = Custom(cls="a:B", options={"api_key_env": "KEY", "max_tokens": 3})
    assert allowed.options["api_key_env"] == "KEY"


def test_a_secret_is_none_further_down_either() -> None:
    with pytest.raises(ValidationError, match="'api_key' looks like a secret"):
        Custom(cls="my_models:M", options={"clients": [{"name": "a", "api_key": "x"}]})


def test_nobody_knows_the_price_unless_it_is_said() -> None:
    assert Custom(cls="a:B").price is None
    assert Custom(cls="a:B", usd_per_million_tokens=0.1).price == 0.1


def test_no_text_is_no_call(model: Open) -> None:
    assert model(said("raise KeyError(1)")).embed([], "query").vectors.shape == (0, 2)
