"""Tries the installation in parts: each extra alone, in a new environment, at what it is for.

    python scripts/try_extras.py                  all of them
    python scripts/try_extras.py core report      just these

The project is installed as a user would have it: a wheel, with the versions of constraints.txt; the
core once, and what an extra brings into a copy of that environment. In the core alone every feature
that lacks its extra has to end with one sentence that names it. Only Python itself is needed, and
pip's packages; nothing else is fetched. Exit code 1 if one fails.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ANIMALS, DEEDS = ("cat", "dog", "bird", "horse", "mouse"), ("sleeps", "eats", "runs", "hides")
PLACES = ("on a roof", "in the barn", "below the stairs", "near a river")
TEXTS = [
    f"The {animal} {deed} {place}." for animal in ANIMALS for deed in DEEDS for place in PLACES
]
QUERY, ANSWER = "the mouse hides near a river", "The mouse hides near a river."
MINILM = "hf:sentence-transformers/all-MiniLM-L6-v2"
COMPILED = "import lancedb; from embedding_pipelines.orchestration import launch"
SECONDS = 600  # of one command; TensorFlow is downloaded in two minutes on a slow line


class Failed(Exception):
    """A command did not do what it should."""


class Environment:
    """A new environment with one extra, and a home folder with one pipeline per model."""

    def __init__(self, folder: Path, core: Path, wheel: Path, extras: str) -> None:
        self.python = folder / "venv" / "bin" / "python"
        self.home = folder / "home"
        (self.home / "pipelines").mkdir(parents=True)
        (self.home / "data").mkdir()
        rows = [f"{number},{text}" for number, text in enumerate(TEXTS)]
        (self.home / "data" / "texts.csv").write_text("\n".join(["id,text", *rows, ""]))
        self.variables = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "EMBEDDING_PIPELINES_HOME": str(self.home),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        copy_environment(core, folder / "venv")
        if extras:
            install(folder / "venv", wheel, extras)

    def megabytes(self) -> int:
        files = (path for path in self.python.parent.parent.rglob("*") if not path.is_symlink())
        return round(sum(path.stat().st_size for path in files if path.is_file()) / 1e6)

    def pipeline(self, name: str, model: str, more: str = "", path: str = "data/texts.csv") -> None:
        source = f"source: {{kind: csv, path: '{path}', id: id, text: text}}"
        text = f"{source}\nmodel: {model}\npartitions: 2\n{more}"
        (self.home / "pipelines" / f"{name}.yaml").write_text(text)

    def command(self, *words: str) -> str:
        """What `embedding-pipelines` prints; it has to end well."""
        program = str(self.python.with_name("embedding-pipelines"))
        return run([program, *words], self.variables, self.home)

    def code(self, text: str) -> str:
        return run([str(self.python), "-c", text], self.variables, self.home)

    def finds(self, name: str) -> None:
        """Run a pipeline, from its files to the release, and search it."""
        self.command("run", name)
        result = json.loads(self.command("search", name, QUERY, "-k", "1", "--json"))
        expect(json.dumps(result), ANSWER)

    def names(self, extra: str, *words: str) -> None:
        """A command has to fail with one sentence that names the extra."""
        try:
            self.command(*words)
        except Failed as error:
            expect(str(error), f"pip install 'embedding-pipelines[{extra}]'")
            if "Traceback" in str(error):
                raise
        else:
            raise Failed(f"{' '.join(words)} works without the extra {extra}.")


def new_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the project and no extra."""
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], os.environ)
    install(folder, wheel, "")
    # Compiled is what every use imports.
    run([str(folder / "bin" / "python"), "-c", COMPILED], {**os.environ, "PYTHONPATH": ""}, folder)
    return folder


def install(environment: Path, wheel: Path, extras: str) -> None:
    python = str(environment / "bin" / "python")
    what = f"embedding-pipelines{f'[{extras}]' if extras else ''} @ {wheel.as_uri()}"
    # Not compiled: a use imports a tenth.
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-compile"]
    run([*pip, "-c", str(ROOT / "constraints.txt"), what], os.environ)


def copy_environment(environment: Path, copy: Path) -> None:
    """By hard links, which pip replaces and does not write to; programs name the copy's Python."""
    shutil.copytree(environment, copy, symlinks=True, copy_function=os.link)
    for program in (copy / "bin").iterdir():
        content = b"" if program.is_symlink() else program.read_bytes()
        if content.startswith(b"#!"):
            program.unlink()
            program.write_bytes(content.replace(bytes(environment), bytes(copy), 1))
            program.chmod(0o755)


def run(words: list[str], variables: os._Environ[str] | dict[str, str], folder: Path = ROOT) -> str:
    """A command's standard output; Failed with all that it printed if it ends otherwise than well."""
    done = subprocess.run(
        words, env=variables, cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode:
        raise Failed(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(text: str, part: str) -> None:
    if part not in text:
        raise Failed(f"Expected {part!r} in: {text}")


def vector(text: str, input_type: str) -> list[float]:
    """A direction of a text's own: a number for each pair of letters, and one for its input type."""
    numbers = [1e-3] * 64
    numbers[len(input_type) % 64] += 1
    for first, second in zip(text.lower(), text.lower()[1:], strict=False):
        numbers[(ord(first) * 31 + ord(second)) % 64] += 1
    length = sum(number**2 for number in numbers) ** 0.5
    return [number / length for number in numbers]


@contextlib.contextmanager
def service() -> Iterator[str]:
    """The address of a server that speaks as Cohere's and OpenAI's do."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            vectors = [
                vector(text, body.get("input_type", ""))
                for text in body.get("texts") or body["input"]
            ]
            reply: dict[str, object] = {"embeddings": {"float": vectors}}
            if "input" in body:
                data = [{"index": at, "embedding": each} for at, each in enumerate(vectors)]
                reply = {"data": data, "model": body["model"], "object": "list"}
            answer = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        yield address


@contextlib.contextmanager
def bucket(content: bytes) -> Iterator[str]:
    """The address of a server that speaks as S3 does and holds one object, whatever it is asked
    for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(206 if self.headers["range"] else 200)
            self.send_header("etag", '"1"')
            self.send_header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("content-range", f"bytes 0-{len(content) - 1}/{len(content)}")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        yield address


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def core(environment: Environment) -> None:
    """Files to search with a local and a hosted model; what is missing is named."""
    environment.pipeline("toy", "{provider: hashing}")
    environment.command("validate")
    environment.command("plan", "toy")
    environment.finds("toy")
    with (environment.home / "data" / "texts.csv").open("a") as file:
        file.write("new,A whale sings in the sea.\n")
    environment.finds("toy")
    expect(environment.command("search", "toy", "the whale sings", "-k", "1"), "A whale sings")
    environment.command("rollback", "toy")
    environment.command("status", "toy")
    environment.variables |= {"COHERE_API_KEY": "none", "OPENAI_API_KEY": "none"}
    with service() as address:
        options = f"model: toy, dimensions: 64, base_url: {address}, tokenizer_of: estimate"
        environment.pipeline("hosted", f"{{provider: cohere, {options}}}")
        environment.finds("hosted")
        environment.pipeline("openai", f"{{provider: openai, {options}}}")
        environment.names("openai", "run", "openai")
    environment.pipeline("local", MINILM)
    environment.names("local", "run", "local")
    environment.pipeline("word2vec", "{provider: word2vec, train: {}}")
    environment.names("word2vec", "run", "word2vec")
    (environment.home / "model").mkdir()
    (environment.home / "model" / "saved_model.pb").touch()
    environment.pipeline("tensorflow", "{provider: tensorflow, model: model}")
    environment.names("tensorflow", "run", "tensorflow")
    with contextlib.closing(sqlite3.connect(environment.home / "data" / "shop.db")) as connection:
        connection.execute("create table texts (id integer, text text)")
        connection.executemany("insert into texts values (?, ?)", enumerate(TEXTS))
        connection.commit()
    shop(environment, "sqlite:///data/shop.db")
    environment.finds("shop")
    shop(environment, "postgresql://127.0.0.1:1/shop")
    environment.names("sql", "run", "shop")
    (environment.home / "data" / "empty.pdf").touch()
    (environment.home / "pipelines" / "pages.yaml").write_text(
        "source: {kind: pdf, path: data/empty.pdf}\nmodel: {provider: hashing}\n"
    )
    environment.names("pdf", "run", "pages")
    (environment.home / "data" / "empty.png").touch()
    (environment.home / "pipelines" / "photos.yaml").write_text(
        "source: {kind: images, path: data/empty.png}\nmodel: {provider: clip}\n"
    )
    environment.names("images", "run", "photos")
    judged(environment)
    environment.names("evaluation", "run", "judged")
    environment.names("report", "report", "toy")
    environment.names("explore", "clusters", "toy")
    environment.pipeline("spread", "{provider: hashing}", "engine: ray\n")
    environment.names("ray", "run", "spread")
    environment.pipeline("objects", "{provider: hashing}", path="s3://shop/texts.csv")
    environment.names("buckets", "run", "objects")
    shutil.rmtree(environment.home / "data" / "warehouse" / "dagster")
    without_postgres(environment)


def buckets(environment: Environment) -> None:
    environment.pipeline("objects", "{provider: hashing}", path="s3://shop/texts.csv")
    environment.variables |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    with bucket((environment.home / "data" / "texts.csv").read_bytes()) as address:
        environment.variables |= {"AWS_ENDPOINT_URL": address}
        environment.finds("objects")
    environment.code("import boto3")


def shop(environment: Environment, url: str) -> None:
    """A pipeline whose source is a database."""
    source = f"{{kind: sql, url: '{url}', table: texts, id: id}}"
    text = f"source: {source}\nmodel: {{provider: hashing}}\npartitions: 2\n"
    (environment.home / "pipelines" / "shop.yaml").write_text(text)


def sql(environment: Environment) -> None:
    """No server is at hand: the driver says so."""
    shop(environment, "postgresql://127.0.0.1:1/shop")
    try:
        environment.command("run", "shop")
    except Failed as error:
        expect(str(error), "cannot connect to postgresql://127.0.0.1:1/shop")
    else:
        raise Failed("A database came from nowhere.")


def records_on_a_server(environment: Environment) -> None:
    """No server is at hand: where Dagster's records should be, the driver says so."""
    environment.pipeline("toy", "{provider: hashing}")
    folder = environment.home / "data" / "warehouse" / "dagster"
    folder.mkdir(parents=True)
    (folder / "dagster.yaml").write_text(
        "storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}\n"
    )
    environment.variables["DAGSTER_POSTGRES_URL"] = "postgresql+psycopg2://127.0.0.1:1/dagster"


def without_postgres(environment: Environment) -> None:
    records_on_a_server(environment)
    with (environment.home / "data" / "texts.csv").open("a") as file:
        file.write("newer,A seal sleeps on the shore.\n")  # else there is nothing to record
    environment.names("postgres", "run", "toy")


def postgres(environment: Environment) -> None:
    records_on_a_server(environment)
    try:
        environment.command("run", "toy")
    except Failed as error:
        expect(str(error), "Is the server up")
    else:
        raise Failed("A database came from nowhere.")


def spread(environment: Environment) -> None:
    """Workers of this machine alone."""
    environment.pipeline("spread", "{provider: hashing}", "engine: {kind: ray, workers: 2}\n")
    environment.finds("spread")


def reviews(environment: Environment) -> None:
    """A dataset of the hub, which does not answer."""
    environment.variables["HF_ENDPOINT"] = "http://127.0.0.1:1"
    source = "{kind: huggingface, dataset: org/reviews, id: id}"
    text = f"source: {source}\nmodel: {{provider: hashing}}\n"
    (environment.home / "pipelines" / "reviews.yaml").write_text(text)


def huggingface(environment: Environment) -> None:
    reviews(environment)
    try:
        environment.command("run", "reviews")
    except Failed as error:
        expect(str(error), "the Hugging Face hub does not give its revision")
    else:
        raise Failed("A dataset came from nowhere.")


def telemetry(environment: Environment) -> None:
    """What is sent reaches a server."""
    environment.pipeline("toy", "{provider: hashing}")
    paths: list[str] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        environment.variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = address
        environment.command("run", "toy")
        server.shutdown()
    if "/v1/traces" not in paths:
        raise Failed("No span has come.")


PICTURES = """
import io
from PIL import Image
from embedding_pipelines.images import Resize, decode, prepare

image, file = Image.new("RGBA", (300, 200), (0, 0, 0, 0)), io.BytesIO()
image.save(file, "PNG")
assert prepare(decode(file.getvalue()), Resize(224, True, "bicubic")).min() == 255
"""


PDF = """
import pypdf
from pypdf.generic import DictionaryObject, NameObject, StreamObject
writer = pypdf.PdfWriter()
page, content = writer.add_blank_page(300, 99), StreamObject()
font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
font = DictionaryObject({NameObject(name): NameObject(value) for name, value in font.items()})
fonts = DictionaryObject({NameObject("/F"): font})
page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
content.set_data(b"BT /F 9 Tf 9 9 Td (" + WORDS.encode() + b") Tj ET")
page[NameObject("/Contents")] = content
writer.encrypt("", owner_password="owner", algorithm="AES-256")
writer.write("data/page.pdf")
"""


def pdf(environment: Environment) -> None:
    """A file that anybody may read is encrypted all the same."""
    environment.code(PDF.replace("WORDS", repr(ANSWER)))
    source = "{kind: pdf, path: data/page.pdf}"
    text = f"source: {source}\nmodel: {{provider: hashing}}\npartitions: 2\n"
    (environment.home / "pipelines" / "pages.yaml").write_text(text)
    environment.finds("pages")


def pictures(environment: Environment) -> None:
    """A white square with a transparent edge, from PNG to what a model is shown."""
    environment.code(PICTURES)


def judged(environment: Environment) -> None:
    """A pipeline whose queries have relevance judgements."""
    data = environment.home / "data"
    (data / "queries.csv").write_text(f"id,text\nq,{QUERY}\n")
    (data / "qrels.csv").write_text(f"query-id,corpus-id,score\nq,{TEXTS.index(ANSWER)},1\n")
    files = "{queries: data/queries.csv, qrels: data/qrels.csv}"
    environment.pipeline("judged", "{provider: hashing}", f"evaluation: {files}\n")


def evaluation(environment: Environment) -> None:
    judged(environment)
    environment.finds("judged")
    files = environment.home.rglob("*.json")
    expect(" ".join(path.read_text() for path in files), '"ndcg_at_10": 1.0')


def report(environment: Environment) -> None:
    environment.pipeline("toy", "{provider: hashing}")
    environment.finds("toy")
    environment.command("report", "toy", "--no-open")


def local(environment: Environment) -> None:
    """The error names the next extra, because a model's weights are none of this one."""
    environment.pipeline("local", MINILM)
    environment.variables |= {"HF_HUB_OFFLINE": "1"}
    try:
        environment.command("run", "local")
    except Failed as error:
        expect(str(error), "extra 'offline'")
    else:
        raise Failed("A model came from nowhere.")


def offline(environment: Environment) -> None:
    environment.pipeline("local", MINILM)
    environment.finds("local")
    (environment.home / "calibration.txt").write_text("\n".join(TEXTS * 3))
    environment.pipeline("int8", int8_model())
    environment.names("int8", "run", "int8")


def int8_model() -> str:
    name = MINILM.removeprefix("hf:")
    return f"{{provider: hf, model: {name}, precision: int8, calibration: calibration.txt}}"


def int8(environment: Environment) -> None:
    (environment.home / "calibration.txt").write_text("\n".join(TEXTS * 3))
    environment.pipeline("int8", int8_model())
    environment.finds("int8")


def finetune(environment: Environment) -> None:
    name = MINILM.removeprefix("hf:")
    rows = [{"query": f"what {text[4:-1]}", "positive": text} for text in TEXTS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (environment.home / "pairs.jsonl").write_text(lines)
    options = "{pairs: pairs.jsonl, hard_negatives: 0}"
    environment.pipeline("tuned", f"{{provider: hf, model: {name}, finetune: {options}}}")
    environment.finds("tuned")


def word2vec(environment: Environment) -> None:
    environment.pipeline("words", "{provider: word2vec, train: {min_count: 1}}")
    environment.finds("words")


def openai(environment: Environment) -> None:
    environment.variables |= {"OPENAI_API_KEY": "none"}
    with service() as address:
        options = f"model: toy, dimensions: 64, base_url: {address}, tokenizer_of: estimate"
        environment.pipeline("hosted", f"{{provider: openai, {options}}}")
        environment.finds("hosted")
    environment.code("import tiktoken; tiktoken.Encoding")


AIOS = """
import json, sys
from concurrent import futures
import grpc
from embedding_pipelines.providers.aios import message_classes

sys.path.insert(0, sys.argv[1])
from try_extras import vector

MESSAGES = message_classes()

class Block(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            self.infer, MESSAGES["BlockInferencePacket"].FromString,
            MESSAGES["AIOSPacket"].SerializeToString)
    def infer(self, packet, context):
        rows = [vector(text, "") for text in json.loads(packet.data)["texts"]]
        return MESSAGES["AIOSPacket"](data=json.dumps({"data": {"embeddings": rows}}))

server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Block(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
server.stop(None).wait()
"""


def aios(environment: Environment) -> None:
    words = [str(environment.python), "-c", AIOS, str(ROOT / "scripts")]
    with subprocess.Popen(
        words, env=environment.variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as block:
        assert block.stdin is not None
        assert block.stdout is not None
        try:
            options = f"model: block, dimensions: 64, grpc_url: '127.0.0.1:{block.stdout.readline().strip()}'"
            environment.pipeline("blocks", f"{{provider: aios, {options}}}")
            environment.finds("blocks")
        finally:
            block.stdin.close()


TENSORFLOW = """
import tensorflow as tf

class Words(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        words = tf.strings.split(tf.strings.lower(tf.strings.regex_replace(texts, "[.]", "")))
        places = tf.strings.to_hash_bucket_fast(words, 64).to_tensor(default_value=-1)
        return {"vectors": tf.reduce_sum(tf.one_hot(places, 64), 1) + 1e-3}

model = Words()
tf.saved_model.save(model, "model", signatures=model.__call__)
"""


def tensorflow(environment: Environment) -> None:
    environment.code(TENSORFLOW)
    environment.pipeline("saved", "{provider: tensorflow, model: model, normalize: true}")
    environment.finds("saved")


def explore(environment: Environment) -> None:
    environment.pipeline("toy", "{provider: hashing}")
    environment.finds("toy")
    expect(environment.command("clusters", "toy", "-k", "4"), "4 clusters")
    environment.command("outliers", "toy")
    search = "from pathlib import Path; from embedding_pipelines.search import search"
    frame = f"search(Path.cwd(), 'toy', '{QUERY}', k=1).to_pandas()"
    expect(environment.code(f"{search}; print({frame}['text'][0])"), ANSWER)


def server(environment: Environment) -> None:
    """Dagster's web interface answers over the pipelines of the home folder."""
    words = ["dagster-webserver", "-m", "embedding_pipelines.definitions", "-h", "127.0.0.1", "-p"]
    serve(environment, words, "/server_info", "dagster_webserver_version")


def api(environment: Environment) -> None:
    """The HTTP API is ready with the pipelines of the home folder."""
    serve(environment, ["embedding-pipelines", "serve", "--port"], "/ready", '"ok"')


def assistants(environment: Environment) -> None:
    """The tools of an assistant list the pipelines."""
    environment.pipeline("toy", "{provider: hashing}")
    found = environment.code(
        "import asyncio\n"
        "from pathlib import Path\n"
        "from mcp.client import Client\n"
        "from embedding_pipelines.serving.assistants import assistants_server\n"
        "from embedding_pipelines.serving.auth import Keys\n"
        "from embedding_pipelines.serving.server import Server\n"
        "async def use():\n"
        "    async with Client(assistants_server(Server(Path('.'), Keys()))) as client:\n"
        "        print((await client.call_tool('list')).structured_content)\n"
        "asyncio.run(use())\n"
    )
    expect(found, "'toy'")


def serve(environment: Environment, command: list[str], path: str, words: str) -> None:
    """A server, whose command ends with its port, answers with these words."""
    environment.pipeline("toy", "{provider: hashing}")
    program, *arguments = command
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = subprocess.Popen(
        [str(environment.python.with_name(program)), *arguments, port],
        env=environment.variables,
        cwd=environment.home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 180  # of a machine that is busy
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
                    expect(reply.read().decode(), words)
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
    finally:
        running.send_signal(signal.SIGINT)
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


# By extra: what else is installed beside it, and its use.
TRIES: dict[str, tuple[str, Callable[[Environment], None]]] = {
    "core": ("", core),
    "aios": ("aios", aios),
    "assistants": ("assistants", assistants),
    "buckets": ("buckets", buckets),
    "evaluation": ("evaluation", evaluation),
    "explore": ("explore", explore),
    "finetune": ("finetune,offline", finetune),  # the weights of a model, beside what trains it
    "huggingface": ("huggingface", huggingface),
    "images": ("images", pictures),
    "int8": ("int8,offline", int8),  # the weights of a model, beside what runs it
    "local": ("local", local),
    "offline": ("offline", offline),
    "openai": ("openai", openai),
    "pdf": ("pdf", pdf),
    "postgres": ("postgres", postgres),
    "ray": ("ray", spread),
    "report": ("report", report),
    "server": ("server", server),
    "serving": ("serving", api),
    "sql": ("sql", sql),
    "telemetry": ("telemetry", telemetry),
    "tensorflow": ("tensorflow", tensorflow),
    "word2vec": ("word2vec", word2vec),
}


def main(names: list[str]) -> int:
    if strangers := set(names) - TRIES.keys():
        print(f"No such extra: {', '.join(strangers)}. Name some of: {', '.join(TRIES)}.")
        return 2
    failures = 0
    with tempfile.TemporaryDirectory(prefix="extras-") as folder:
        wheels = ["wheel", "-qq", "--no-deps", "-w", folder, str(ROOT)]
        run([sys.executable, "-m", "pip", *wheels], os.environ)
        (wheel,) = Path(folder).glob("*.whl")
        bare = new_environment(Path(folder) / "bare", wheel)
        for name in names or TRIES:
            extras, use = TRIES[name]
            start = time.monotonic()
            with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder) as own:
                size, problem = 0, ""
                try:
                    environment = Environment(Path(own), bare, wheel, extras)
                    size = environment.megabytes()
                    use(environment)
                except (Failed, OSError, subprocess.TimeoutExpired) as error:
                    problem = str(error)
                seconds = time.monotonic() - start
                print(f"{name:<11}{size:>6} MB {seconds:>5.0f} s  {problem or 'works'}", flush=True)
                failures += bool(problem)
    tried = len(names or TRIES)
    print(f"{tried - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
