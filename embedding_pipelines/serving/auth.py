"""Who may do what: the keys of a server, and the dependency `allow` that a route names."""

import hashlib
import hmac
from collections.abc import Callable, Coroutine
from typing import Annotated, Literal

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from embedding_pipelines.serving.wire import Unauthorized

KEY_VARIABLE = "EMBEDDING_API_KEY"
Scope = Literal["read", "write", "admin"]


class Keys:
    """The keys that a server accepts, kept as hashes. Without any, everybody may do everything, so
    such a server listens on loopback only."""

    def __init__(self, key: str | None = None) -> None:
        self._hashes = [_hash(key)] if key else []

    @property
    def is_open(self) -> bool:
        return not self._hashes

    def check(self, token: str | None, scope: Scope) -> None:
        """Raises Unauthorized without a key that is accepted."""
        if self.is_open:
            return
        if token is None:
            raise Unauthorized(
                f"This server needs a key. Send the header `Authorization: Bearer ${KEY_VARIABLE}`."
            )
        given = _hash(token)
        # All are compared, each in constant time: how long it takes says nothing.
        if not sum(hmac.compare_digest(given, known) for known in self._hashes):
            raise Unauthorized(
                f"The key is wrong. Set ${KEY_VARIABLE} to one that this server has."
            )


def allow(scope: Scope) -> Callable[..., Coroutine[None, None, None]]:
    """A dependency of routes: only requests whose key has `scope` go on."""
    bearer = HTTPBearer(auto_error=False, description=f"The key in ${KEY_VARIABLE}.")

    async def check(  # in the event loop: a thread would take longer than the work
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> None:
        request.app.state.server.keys.check(credentials and credentials.credentials, scope)

    return check


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
