"""What holds for a home's whole warehouse: its `warehouse.yaml`, which says where it is published and
what of the cache may stay, and a proof that the bucket's store can commit."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_pipelines.errors import BucketError, ConfigError, faults_in_words
from embedding_pipelines.objects import RETRY_SECONDS, Bucket, is_uri, open_bucket, open_folder

FILE_NAME = "warehouse.yaml"
EXAMPLE = (
    "It has to be one line that says where the warehouse is published, as in `bucket: "
    "s3://bucket/folder` (or gs://, az://, file:///folder), and may have another that says what of "
    "the embedding cache stays: `cache: {unused_days: 90, max_gb: 20}`."
)
RACERS = 8
PROVEN = "warehouse.json"  # the object that says that the store was tried


class CacheRules(BaseModel):
    """Which vectors that no pipeline uses leave the embedding cache; by default none does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unused_days: int | None = Field(None, ge=1)  # since a clean-up first saw that nobody uses them
    max_gb: float | None = Field(None, gt=0)  # of the file; those go first that are unused longest


def bucket_of(home: Path) -> str | None:
    """The URI that a home's `warehouse.yaml` gives, None without one. Raises ConfigError for a file
    that says anything else than these."""
    path, values = home / FILE_NAME, _read(home)
    if values is None or (values.keys() == {"cache"} and cache_rules(home)):
        return None
    uri = values.get("bucket")
    try:
        parts = urlsplit(uri) if isinstance(uri, str) else None
    except ValueError:  # as of s3://[b
        parts = None
    if parts is None or not (is_uri(parts.geturl()) or _is_folder(parts)):
        raise ConfigError(f"{path} names no bucket. {EXAMPLE}")
    if "@" in parts.netloc or parts.query:
        raise ConfigError(
            f"{path}: the address holds credentials. Leave them out, and set the store's usual "
            "environment variables."
        )
    return str(uri).rstrip("/")


def cache_rules(home: Path) -> CacheRules:
    """What a home's `warehouse.yaml` says of the embedding cache. Raises ConfigError for a file
    that cannot be read so."""
    try:
        return CacheRules.model_validate((_read(home) or {}).get("cache") or {})
    except ValidationError as error:
        faults = faults_in_words(
            {**fault, "loc": ("cache", *fault["loc"])} for fault in error.errors()
        )
        raise ConfigError(f"{home / FILE_NAME}: {faults}. {EXAMPLE}") from None


def _read(home: Path) -> dict[str, Any] | None:
    """The parts of the file, None without it."""
    path = home / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # Not the parser's own words: they quote the line, which may hold credentials.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: this is no YAML. {EXAMPLE}") from None
    if not isinstance(value, dict) or not value or not set(value) <= {"bucket", "cache"}:
        raise ConfigError(f"{path} names no bucket. {EXAMPLE}")
    return value


def _is_folder(parts: SplitResult) -> bool:
    """Whether a URI is of a folder of this machine, from its root."""
    is_here = parts.scheme == "file" and parts.netloc in ("", "localhost")
    return is_here and parts.path.startswith("/")


def open_uri(uri: str, patience_seconds: float = RETRY_SECONDS) -> tuple[Bucket, str]:
    """The bucket of a warehouse, and the prefix of its keys: empty, or ending in a slash. Arguments
    and errors are those of `open_bucket`."""
    if uri.startswith("file:"):
        from urllib.request import url2pathname  # with HTTP and TLS, which no run without it needs

        return open_folder(Path(url2pathname(urlsplit(uri).path))), ""
    bucket, folder = open_bucket(uri, patience_seconds)
    return bucket, f"{folder.strip('/')}/" if folder.strip("/") else ""


def require_commits(bucket: Bucket, prefix: str) -> None:
    """Try once, before the first object of a warehouse is written, that the store creates an object
    for one of several writers alone; it is on record in the bucket then.

    Raises BucketError for a store that lets each of them believe so: what they publish would be
    lost without an error.
    """
    if bucket.read(prefix + PROVEN) is not None:
        return
    one, other = (f"{prefix}probe/{uuid.uuid4().hex}" for _ in range(2))
    start = threading.Barrier(RACERS)

    def race(number: int) -> bool:
        start.wait()
        return bucket.create(other, b"%d" % number)

    try:
        again = (bucket.create(one, b"first"), bucket.create(one, b"second"))
        with ThreadPoolExecutor(RACERS) as threads:
            wins = [number for number, won in enumerate(threads.map(race, range(RACERS))) if won]
        content = bucket.read(other)
        is_right = again == (True, False) and bucket.read(one) == b"first"
        if not is_right or [b"%d" % number for number in wins] != [content]:
            raise BucketError(
                f"{bucket.address}: this store cannot hold a warehouse, since it does not let one "
                f"writer alone create an object: of {RACERS} at once {len(wins)} did, and a second "
                f"one after the first {'did too' if again[1] else 'did not'}. What one run "
                "publishes, another would overwrite without an error. Use a store that obeys "
                "`If-None-Match: *` (Amazon S3, Google Cloud Storage, Azure), or "
                f"remove {FILE_NAME} to keep the warehouse on this machine."
            )
    finally:
        bucket.delete([one, other])
    bucket.create(prefix + PROVEN, b'{"format": 1}')
