"""Buckets of S3, Google Cloud Storage and Azure through one library, `obstore`: addresses, listings,
whole reads, and what a store's errors mean.

An object is told from what it was by its ETag, never by a date: listings round dates, and a copy may
bring an old one with it. Errors name the bucket and what to do; they quote no reply, for a reply may
hold an address with a signature.
"""

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from embedding_pipelines.errors import BucketError, ObjectGoneError
from embedding_pipelines.extras import need

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

PART_BYTES = 8 * 2**20  # of one request; a line of 1 Mbit/s has it within REQUEST_SECONDS
REQUEST_SECONDS = 90
RETRIES = 8  # of a request that ends in 5xx, 429 or a broken line: so one in five is borne
RETRY_SECONDS = 30  # after which none begins: Dagster gives a sensor a minute
LONGEST_WAIT_SECONDS = 5  # between two of them
READINGS = 5  # of an object that is replaced while it is read
LISTED_AT_ONCE = 1_000
ONE_PUT_BYTES = 64 * 2**20  # of an object that is held in memory and sent in one request

TO_READ = "to list the bucket and to read its objects"
URI = re.compile(r"(s3|gs|az)://([^/]*)/*(.*)", re.DOTALL)
ENDPOINTS = {  # by scheme: the variables that name another address than the service's own
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket, "
    "AWS_SKIP_SIGNATURE=true",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account; for a public "
    "bucket, GOOGLE_SKIP_SIGNATURE=true",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN; "
    "for a public container, AZURE_SKIP_SIGNATURE=true",
}
# Where these are set, obstore needs nobody else to find the credentials of S3.
AWS_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
# A service that gives a machine its credentials: asked where the environment names none.
MACHINE_CREDENTIALS = re.compile(r"169\.254\.169\.254|metadata\.google|/metadata/|latest/api/token")
NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
ELSEWHERE = re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|redirect without LOCATION")


def is_uri(text: str) -> bool:
    """Whether a text names a bucket, or something in one."""
    return URI.fullmatch(text) is not None


@dataclass(frozen=True)
class Object:
    """What a store says of an object. `tag` is its ETag without quotes: it changes with the
    content. `modified_at` is by the store's clock, and tells no two objects apart."""

    key: str
    size_bytes: int
    tag: str
    modified_at: datetime = field(compare=False)


class _ReplacedError(Exception):
    """The object is another one than it was."""


class Bucket:
    """An open bucket; in Azure, a container. Threads may share it.

    `address` is e.g. `s3://name`. A folder is the part of a key before a slash, "" for all of it.
    Every method raises BucketError where the store refuses, or does not answer.
    """

    def __init__(self, address: str, store: "ObjectStore") -> None:
        self.address = address
        self._store = store
        self._errors = need("obstore.exceptions", "buckets")

    def __reduce__(self) -> tuple[Callable[[str], "Bucket"], tuple[str]]:
        """Another process opens it with the credentials of its own environment."""
        return _reopened, (self.address,)

    def uri(self, key: str) -> str:
        return f"{self.address}/{key}"

    def find(self, key: str) -> Object | None:
        """The object of this key, None if there is none. Raises nothing for a bucket that there is
        not: a request for one object does not tell."""
        try:
            with self._explained(key):
                return self._object(self._store.head(key))
        except FileNotFoundError:
            return None

    def walk(self, folder: str) -> Iterator[Object]:
        """All objects below a folder, in no order. What only stands for a folder is left out."""
        empty: list[Object] = []
        folders: set[str] = set()  # that hold something
        with self._explained(folder):
            for metas in self._store.list(folder or None, chunk_size=LISTED_AT_ONCE):
                for meta in metas:
                    entry = self._object(meta)
                    parent = entry.key.rpartition("/")[0]
                    while parent and parent not in folders:
                        folders.add(parent)
                        parent = parent.rpartition("/")[0]
                    if entry.size_bytes:
                        yield entry
                    else:
                        empty.append(entry)
        yield from (entry for entry in empty if entry.key not in folders)

    def list_folder(self, folder: str) -> tuple[list[str], list[Object]]:
        """The folders in a folder, by their whole keys, and the objects in it."""
        with self._explained(folder):
            listed = self._store.list_with_delimiter(folder or None)
        return list(listed["common_prefixes"]), [self._object(meta) for meta in listed["objects"]]

    def download(self, entry: Object, path: Path) -> Object:
        """Write the whole content of one version of an object to a file: the one that was listed
        or, if it has been replaced, the one that is there now, which is returned."""
        for _ in range(READINGS):
            with path.open("wb") as file, contextlib.suppress(_ReplacedError):
                self._copy(entry, file)
                return entry
            newer = self.find(entry.key)
            if newer is None:
                break
            entry = newer
        else:
            raise BucketError(
                f"{self.uri(entry.key)}: is replaced again and again while it is read. Write it "
                "less often, or under a new name each time."
            )
        raise ObjectGoneError(
            f"{self.uri(entry.key)}: the object is gone. Put it back, or run again."
        )

    def replace(self, key: str, content: bytes) -> str:
        """Write a small object, whatever was there; its ETag without quotes."""
        with self._explained(key, "to write objects"):
            written = self._store.put(key, content)
        return (written["e_tag"] or "").strip('"')

    # What a warehouse needs: it creates objects and never replaces one.

    def create(self, key: str, content: bytes | Path) -> bool:
        """Write an object unless there is one of this key; True if there was none. Of several
        writers one succeeds. A file beyond ONE_PUT_BYTES is sent in parts, which no store makes
        depend on what is there: its name must be its own."""
        is_large = isinstance(content, Path) and content.stat().st_size > ONE_PUT_BYTES
        if is_large and self.find(key) is not None:
            return False
        mode: Literal["create", "overwrite"] = "overwrite" if is_large else "create"
        try:
            with self._explained(key, "to write objects"):
                self._store.put(key, content, mode=mode, use_multipart=is_large)
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            return False
        return True

    def touch(self, key: str) -> datetime:
        """The store's own time, of an object without content that is written for it."""
        with self._explained(key, "to write objects"):
            self._store.put(key, b"")
            modified_at: datetime = self._store.head(key)["last_modified"]
            return modified_at

    def read(self, key: str) -> bytes | None:
        """The content of a small object, None if there is none of this key."""
        try:
            with self._explained(key):
                return bytes(self._store.get(key).bytes())
        except FileNotFoundError:
            return None

    def fetch(self, key: str, file: IO[bytes]) -> bool:
        """Write an object's content to a file, part by part; False if there is none."""
        try:
            with self._explained(key):
                for part in self._store.get(key).stream(PART_BYTES):
                    file.write(part)
        except FileNotFoundError:
            return False
        return True

    def list_after(self, folder: str, after: str = "") -> list[Object]:
        """The objects below a folder whose keys come after another, sorted by key."""
        with self._explained(folder):
            listed = self._store.list(folder, offset=after or None, chunk_size=LISTED_AT_ONCE)
            metas = [meta for part in listed for meta in part]
        return sorted(map(self._object, metas), key=lambda entry: entry.key)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        for start in range(0, len(keys), LISTED_AT_ONCE):
            with (
                self._explained(keys[start], "to delete objects"),
                contextlib.suppress(FileNotFoundError),
            ):
                self._store.delete(keys[start : start + LISTED_AT_ONCE])

    def _copy(self, entry: Object, file: IO[bytes]) -> None:
        """Raises _ReplacedError."""
        for start in range(0, entry.size_bytes, PART_BYTES):
            file.write(self._part(entry, start, min(start + PART_BYTES, entry.size_bytes)))

    def _part(self, entry: Object, start: int, end: int) -> memoryview:
        """Bytes of just this version. Raises _ReplacedError."""
        try:
            with self._explained(entry.key):
                condition = f'"{entry.tag}"'
                result = self._store.get(
                    entry.key, options={"range": (start, end), "if_match": condition}
                )
                now, data = self._object(result.meta), memoryview(result.bytes())
        except (FileNotFoundError, self._errors.PreconditionError) as error:
            raise _ReplacedError from error
        if now != entry or len(data) != end - start:  # not every store takes a condition
            raise _ReplacedError
        return data

    def _object(self, meta: "ObjectMeta") -> Object:
        tag = (meta["e_tag"] or "").strip('"')
        if not tag:
            raise BucketError(
                f"{self.uri(meta['path'])}: the store gives no ETag, which alone tells whether an "
                "object has changed. Copy the objects to another store, or to this machine."
            )
        return Object(meta["path"], meta["size"], tag, meta["last_modified"])

    @contextlib.contextmanager
    def _explained(self, key: str, right: str = TO_READ) -> Iterator[None]:
        """Turn the library's errors into BucketError, but for what is no failure of the store: an
        object that there is not, and a condition that does not hold. `right` is what the request
        takes."""
        try:
            yield
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            raise
        except FileNotFoundError as error:
            if NO_BUCKET.search(str(error)):
                raise BucketError(_explain(self.address, key, str(error), right)) from None
            raise
        except (self._errors.BaseError, ValueError) as error:
            raise BucketError(_explain(self.address, key, str(error), right)) from None


def open_folder(path: Path) -> Bucket:
    """A folder of this machine that stands for a bucket."""
    stores = need("obstore.store", "buckets")
    return Bucket(path.as_uri(), stores.LocalStore(path, mkdir=True))


def _reopened(address: str) -> Bucket:
    return open_bucket(f"{address}/")[0]


def open_bucket(uri: str, patience_seconds: float = RETRY_SECONDS) -> tuple[Bucket, str]:
    """The bucket that a URI names, and the rest of the URI: a key, a folder, a pattern. Asks nobody
    but who may know the credentials. A request that fails is sent again until `patience_seconds`
    have passed.

    Raises BucketError for a URI without a bucket and without credentials, ConfigError without the
    extra.
    """
    match = URI.fullmatch(uri)
    if match is None or not match[2]:
        raise BucketError(f"{uri!r} names no bucket. Write it as s3://bucket/folder/*.jsonl.")
    scheme, name, rest = match.groups()
    address = f"{scheme}://{name}"
    stores = need("obstore.store", "buckets")
    options: dict[str, Any] = {
        "client_options": {"timeout": timedelta(seconds=REQUEST_SECONDS)},
        "retry_config": {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=patience_seconds),
            "backoff": {"max_backoff": timedelta(seconds=LONGEST_WAIT_SECONDS)},
        },
    }
    endpoint = _endpoint(scheme)
    if _is_loopback(endpoint) or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1"):
        options["client_options"]["allow_http"] = True
    if scheme == "s3":
        options |= _aws_credentials(address)
        if endpoint:
            options["endpoint"] = endpoint
    opens = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[scheme]
    try:
        return Bucket(address, opens(name, **options)), rest
    except Exception as error:  # noqa: BLE001 # of several classes, some not public
        raise BucketError(_explain(address, "", str(error))) from None


def _aws_credentials(address: str) -> dict[str, Any]:
    """What boto3 finds where the environment holds no keys: a profile, a single sign-on, the
    machine's role."""
    if any(map(os.environ.get, AWS_CREDENTIALS)):
        return {}
    boto3, botocore = need("boto3", "buckets"), need("botocore.exceptions", "buckets")
    provider = need("obstore.auth.boto3", "buckets").Boto3CredentialProvider
    try:
        return {"credential_provider": provider(boto3.Session())}
    except botocore.BotoCoreError as error:
        raise BucketError(f"{address}: {error}. {CREDENTIALS['s3']}.") from None
    except ValueError:  # there are none
        raise BucketError(f"{address}: there are no credentials. {CREDENTIALS['s3']}.") from None


def _endpoint(scheme: str) -> str:
    """The address that the environment names in place of the service's own; empty if it names
    none."""
    return next(filter(None, map(os.environ.get, ENDPOINTS.get(scheme, ()))), "")


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _explain(address: str, key: str, error: str, right: str = TO_READ) -> str:
    """What went wrong with a bucket, and what to do."""
    scheme = address.partition(":")[0]
    endpoint = _endpoint(scheme)
    host = urlsplit(endpoint).netloc.rpartition("@")[2]
    at = f" at {host}" if host else ""
    status = re.search(r"status code: (\d{3})", error)
    code = re.search(r"<Code>(\w+)</Code>", error)
    number, word = status[1] if status else "", code[1] if code else ""
    reason = ", ".join(filter(None, (number, word)))
    if NO_BUCKET.search(error):
        return f"{address}: there is no such bucket{at}. Correct its name."
    if MACHINE_CREDENTIALS.search(error) or "Account must be specified" in error:
        return f"{address}: there are no credentials. {CREDENTIALS[scheme]}."
    if ELSEWHERE.search(error):
        return f"{address}: the bucket is in another region. Set AWS_REGION to its own."
    if "invalid path" in error or "Error parsing Path" in error:
        match = re.search(r'Path "(.*?)"', error)
        return (
            f"{address}/{match[1] if match else key}: the key has an empty part, '.' or '..' between its "
            "slashes, and such objects cannot be read. Rename the object, or name another folder."
        )
    if word in WRONG_KEYS:
        return f"{address}: the store does not take these credentials ({reason}). {CREDENTIALS[scheme]}."
    if number in ("401", "403"):
        return (
            f"{address}/{key}: access denied ({reason}). Give these credentials the right "
            f"{right}, or use others."
        )
    if "builder error" in error and endpoint.startswith("http:"):
        return (
            f"{address}: the address {host} is plain http, where everybody on the way reads "
            "along. Use https; if you trust the network, set AWS_ALLOW_HTTP=true."
        )
    cause = f"the store{at} answers with {reason}" if reason else f"the store{at} does not answer"
    return f"{address}: {cause}. What was read before is as it was; try again later."
