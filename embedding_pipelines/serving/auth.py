"""Who may do what: the keys of a server, and the dependency `allow` that a route names.

`data/warehouse/keys.json` holds a name, a scope and a hash of each key, and no key. A key that is
added or removed there counts at once. $EMBEDDING_API_KEY is one more, which may do everything.

A pipeline with permissions is read for principals. A key is bound to some, or acts for others and
says in a header for whom; every other key reads nothing of such a pipeline.
"""

import hashlib
import hmac
import ipaddress
import os
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.serving.wire import (
    KEY_VARIABLE,
    PRINCIPALS_HEADER,
    BadRequest,
    Forbidden,
    TooManyRequests,
    Unauthorized,
    principals_in,
)

PREFIX = "ep_"  # of the keys that `keys --add` makes, so that a scanner of secrets knows them
Scope = Literal["read", "write", "admin"]  # each includes those before it
SCOPES: tuple[Scope, ...] = get_args(Scope)
LOCK_SECONDS = 10.0
UNNAMED = KEY_VARIABLE  # the name of that key, which no other has: see `add_key`


class Key(BaseModel):
    """One key as it is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    scope: Scope
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    per_minute: int | None = Field(None, ge=1)  # requests; None: no limit
    principals: tuple[str, ...] = ()  # whom it is bound to: a user and their groups
    acts_for_others: bool = False  # whether it says for whom it reads
    created_at: datetime

    @property
    def hash(self) -> bytes:
        return bytes.fromhex(self.sha256)


def keys_file(home: Path) -> Path:
    return warehouse_folder(home) / "keys.json"


def read_keys(home: Path) -> list[Key]:
    """The keys on record. Raises StoreError if the file is damaged: then no key counts."""
    path = keys_file(home)
    try:
        return [Key.model_validate(each) for each in (read_json(path) or {}).get("keys", [])]
    except (ValidationError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read. Put back a copy of it, or delete it and make the keys anew."
        ) from error


def add_key(
    home: Path,
    name: str,
    scope: str,
    per_minute: int | None = None,
    principals: Sequence[str] = (),
    acts_for_others: bool = False,
) -> str:
    """A new key, which is shown this once and kept as a hash. Raises ConfigError for a name that is
    taken or none, a scope that there is not, a rate below one, or a key that is bound to principals
    and may do more than read as them."""
    if scope not in SCOPES:
        raise ConfigError(f"scope is {scope!r}: write one of {', '.join(SCOPES)}.")
    if not all(map(str.strip, principals)):
        raise ConfigError("principals of a key: a name is empty. Leave it out.")
    if principals and (acts_for_others or scope != "read"):
        raise ConfigError(
            "A key that is bound to principals reads as them: its scope is read, and it acts for "
            "nobody else. Leave out the principals, or the other option."
        )
    token = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(
            name=name,
            scope=scope,
            sha256=_hash(token).hex(),
            per_minute=per_minute,
            principals=tuple(principals),
            acts_for_others=acts_for_others,
            created_at=datetime.now(UTC),
        )
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        remedy = {
            "name": "use letters, digits, '.', '_' and '-'; 64 at most",
            "per_minute": "write a number of requests, from 1",
        }[str(field)]
        raise ConfigError(f"{field} of a key: {remedy}.") from None
    with _changing(home):
        keys = read_keys(home)
        if name == UNNAMED or any(each.name == name for each in keys):
            raise ConfigError(f"There is a key {name!r}. Choose another name, or remove it first.")
        _write(home, [*keys, key])
    return token


def remove_key(home: Path, name: str) -> None:
    """Raises ConfigError if there is no key of this name."""
    with _changing(home):
        keys = read_keys(home)
        left = [each for each in keys if each.name != name]
        if len(left) == len(keys):
            names = ", ".join(each.name for each in keys) or "none"
            raise ConfigError(f"There is no key {name!r}. There are: {names}.")
        _write(home, left)


def _changing(home: Path) -> FileLock:
    path = keys_file(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(".keys.lock"), timeout=LOCK_SECONDS)


def _write(home: Path, keys: list[Key]) -> None:
    write_json(keys_file(home), {"keys": [key.model_dump(mode="json") for key in keys]})


@dataclass
class Allowance:
    """The requests that a key has left: they come back evenly, up to those of a minute."""

    per_minute: int
    left: float
    at: float  # of time.monotonic

    def take(self, now: float) -> float:
        """Take one request: 0, or the seconds until there is one."""
        pace = self.per_minute / 60
        self.left = min(self.per_minute, self.left + (now - self.at) * pace)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / pace


class Keys:
    """The keys that a server accepts. Without any, everybody may do everything, so such a server
    listens on loopback only and answers no page of another site.

    `key` is that of the environment; `home` has the others on record. `trusts_network`: whoever
    can send a request may, as in SageMaker's container, which sees to that itself.
    """

    def __init__(
        self,
        key: str | None = None,
        home: Path | None = None,
        trusts_network: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        now = datetime.now(UTC)
        self._own = (
            [Key(name=UNNAMED, scope="admin", sha256=_hash(key).hex(), created_at=now)]
            if key
            else []
        )
        self._file = str(keys_file(home)) if home else None
        self._home, self.trusts_network, self._clock = home, trusts_network, clock
        self._read_at: tuple[int, int] | None = None  # time and number of the file that was read
        self._file_keys: list[Key] = []
        self._allowances: dict[str, Allowance] = {}
        self._lock = threading.Lock()
        self._had_any = bool(self._own)

    @property
    def is_open(self) -> bool:
        """Whether nobody needs a key. A server that had one never becomes so: whoever removes the
        last key wants nobody in."""
        return not self._all() and not self._had_any

    def check(self, token: str | None, scope: Scope) -> Key | None:
        """The key; None where none is needed. Raises Unauthorized without a key that is
        accepted, Forbidden if its scope is too small, TooManyRequests beyond its rate."""
        keys = self._all()
        if not keys and not self._had_any:
            return None
        if token is None:
            raise Unauthorized(
                f"This server needs a key. Set ${KEY_VARIABLE} to one that it has, which commands "
                "and the Python client send as the header `Authorization: Bearer KEY`."
            )
        digest, match = _hash(token), None
        for key in keys:  # all are compared, each in constant time: how long it takes says nothing
            match = key if hmac.compare_digest(digest, key.hash) else match
        if match is None:
            raise Unauthorized(
                f"The key is wrong. Set ${KEY_VARIABLE} to one that this server has."
            )
        if SCOPES.index(match.scope) < SCOPES.index(scope):
            raise Forbidden(f"The key {match.name!r} may {match.scope}; this takes {scope}.")
        if match.per_minute is not None:
            self._take(match, match.per_minute)
        return match

    def _take(self, key: Key, per_minute: int) -> None:
        now = self._clock()
        with self._lock:
            allowance = self._allowances.get(key.sha256)
            if allowance is None or allowance.per_minute != per_minute:
                allowance = Allowance(per_minute, per_minute, now)
                self._allowances[key.sha256] = allowance
            seconds = allowance.take(now)
        if seconds:
            raise TooManyRequests(
                f"The key {key.name!r} may send {per_minute:,} requests a minute. Send this one "
                f"again in {seconds:.1f} s.",
                seconds,
            )

    def _all(self) -> list[Key]:
        """Those of today: a file that was changed is read again. A file that is damaged stops the
        server from answering, not from asking for a key."""
        if self._home is None or self._file is None:
            return self._own
        try:
            status = os.stat(self._file)
            stamp = (status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            stamp = None
        with self._lock:
            if stamp != self._read_at:
                self._file_keys = read_keys(self._home) if stamp else []
                self._read_at = stamp
                self._had_any = self._had_any or bool(self._file_keys)
            return self._own + self._file_keys


def allow(scope: Scope) -> Callable[..., Coroutine[None, None, None]]:
    """A dependency of routes: only requests whose key has `scope` go on."""
    bearer = HTTPBearer(auto_error=False, description=f"The key in ${KEY_VARIABLE}.")

    async def check(  # in the event loop: a thread would take longer than the work
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        authorize(request, scope)

    return check


def authorize(request: Request, scope: Scope) -> None:
    """Let a request go on whose key has `scope`, and note the key at it; once, so that it
    counts once against the key's rate. Raises as `Keys.check`."""
    if hasattr(request.state, "key"):
        return
    keys: Keys = request.app.state.server.keys
    kind, token = get_authorization_scheme_param(request.headers.get("authorization"))
    key = keys.check(token if kind.lower() == "bearer" and token else None, scope)
    if key is None and not keys.trusts_network:  # no key was asked for
        _require_local(request)
    request.state.key = key


def principals_of(request: Request) -> tuple[str, ...] | None:
    """For whom a request reads; None where it does not say, which a pipeline with permissions
    refuses. Raises Forbidden for principals that its key may not act for, BadRequest for two headers."""
    key: Key | None = request.state.key
    headers = request.headers.getlist(PRINCIPALS_HEADER)
    if len(headers) > 1:  # a proxy adds its own to that of a client, which may be a lie
        raise BadRequest(f"{PRINCIPALS_HEADER}: it stands {len(headers)} times. Send it once.")
    stated = principals_in(headers[0]) if headers else None
    if key is None or key.name == UNNAMED or key.acts_for_others:
        return stated or None
    if not key.principals:
        if stated is not None:
            raise Forbidden(
                f"{PRINCIPALS_HEADER}: the key {key.name!r} acts for nobody else. Make one that does: "
                "`embedding-pipelines keys --add NAME --acts-for-others`."
            )
        return None
    if others := set(stated or ()).difference(key.principals):
        raise Forbidden(
            f"{PRINCIPALS_HEADER}: the key {key.name!r} does not read for {sorted(others)[0]!r}."
        )
    return stated or key.principals


def has_own_key(request: Request) -> bool:
    """Whether a request came with the server's own key, $EMBEDDING_API_KEY."""
    key: Key | None = request.state.key
    return key is not None and key.name == UNNAMED


def reads_sentences(request: Request) -> bool:
    """Whether a request may read what runs and checks say of a pipeline with permissions, which
    quotes documents: a key that only reads, and for itself, may not."""
    key: Key | None = request.state.key
    return key is None or key.scope != "read" or key.acts_for_others


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, without asking anybody."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _require_local(request: Request) -> None:
    """A server without keys trusts whoever is on this machine, and a page of another site that a
    browser shows here is not: neither by its own name for this machine (DNS rebinding) nor by a
    form. Raises Forbidden."""
    host = _host_of(f"//{request.headers.get('host', '')}")
    origin = request.headers.get("origin")
    if _is_foreign(host):
        raise Forbidden("A server without keys answers to localhost and 127.0.0.1 alone.")
    if origin is not None and (not _host_of(origin) or _is_foreign(_host_of(origin))):
        raise Forbidden("A server without keys answers no page of another site.")


def _is_foreign(host: str) -> bool:
    """Whether a host's name is one that somebody else can own: it has a dot, or is an address."""
    return ("." in host or ":" in host) and not is_loopback(host)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
