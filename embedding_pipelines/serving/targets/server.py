"""A running server of this package: it gets the bundle in parts, proves it, and switches to it."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedding_pipelines.deployments import Deployment
from embedding_pipelines.errors import ConfigError, TargetError
from embedding_pipelines.serving.targets.base import Order, Resources, Target

if TYPE_CHECKING:
    import httpx2

PATH = "/api/deployments"
PART_BYTES = 4 << 20
ATTEMPTS = 5  # of a request that the network lost
WAIT_SECONDS = 0.2  # between two looks at a proof, growing to
MOST_WAIT_SECONDS = 5.0
PROOF_SECONDS = 3_600.0  # that a proof may take: it may have to fetch a model
TIMEOUT_SECONDS = 60.0  # of one request


class ServerTarget(Target):
    name = "server"
    example = "http://my-server:8080"

    def accepts(self, endpoint: str) -> bool:
        parts = _split(endpoint)
        is_sagemaker = "sagemaker" in (parts.hostname or "") if parts else True
        return parts is not None and parts.scheme in ("http", "https") and not is_sagemaker

    def deploy(self, order: Order) -> Resources:
        address = _address(order.endpoint)
        resources = {"pipeline": order.pipeline, "address": address}
        with _Api(address, order.key) as api:
            with order.bundle.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = order.bundle.stat().st_size
            body = {"pipeline": order.pipeline, "size_bytes": size, "sha256": digest}
            upload = api.send("POST", PATH, body)
            order.keep(resources)
            part_bytes, offset = min(PART_BYTES, int(upload["max_part_bytes"])), 0
            with order.bundle.open("rb") as file:
                while block := file.read(part_bytes):
                    upload = api.send("PUT", f"{PATH}/{upload['id']}?offset={offset}", block)
                    offset += len(block)
                    order.progress.update("upload", offset, size, "bytes")
            order.progress.note("the server compares the bundle with what its own model gives")
            upload = self._wait(api, api.send("POST", f"{PATH}/{upload['id']}/prove", {}))
        if upload["status"] != "live":
            raise TargetError(
                f"{address} did not take up {order.pipeline!r}; what was live there still is. "
                f"{upload['error']}"
            )
        return {**resources, "release": upload["release"]}

    def undeploy(self, home: Path, deployment: Deployment, key: str) -> list[str]:
        address, pipeline = str(deployment.resources["address"]), deployment.resources["pipeline"]
        with _Api(address, key) as api:
            reply = api.send("DELETE", f"{PATH}/{pipeline}", missing={"removed": []})
        return [f"{address}: {line}" for line in reply["removed"]]

    def _wait(self, api: "_Api", upload: dict[str, Any]) -> dict[str, Any]:
        wait, end = WAIT_SECONDS, time.monotonic() + PROOF_SECONDS
        while upload["status"] == "proving":
            if time.monotonic() > end:
                raise TargetError(f"{api.address} still compares the bundle after an hour.")
            time.sleep(wait)
            wait = min(1.5 * wait, MOST_WAIT_SECONDS)
            upload = api.send("GET", f"{PATH}/{upload['id']}")
        return upload


class _Api:
    """The management API of one server."""

    def __init__(self, address: str, key: str) -> None:
        import httpx2

        self.address = address
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(base_url=address, headers=headers, timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> "_Api":
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        missing: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A request's reply; `missing` if the server says 404. Raises TargetError, in the server's
        words."""
        reply = self._attempt(method, path, body)
        try:
            value = reply.json()
        except ValueError:
            value = None
        if reply.status_code == 404 and missing is not None and isinstance(value, dict):
            return missing
        if reply.status_code >= 400 or not isinstance(value, dict):
            words = value.get("error") if isinstance(value, dict) else None
            words = words or f"it answered {reply.status_code}, and no JSON of this API"
            remedy = " Set $EMBEDDING_API_KEY to a key of that server with the scope admin."
            hint = remedy if reply.status_code in (401, 403) else ""
            raise TargetError(f"{self.address}: {words}{hint}")
        return value

    def _attempt(
        self, method: str, path: str, body: Mapping[str, Any] | bytes | None
    ) -> "httpx2.Response":
        import httpx2

        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        wait = 0.5
        for attempt in range(ATTEMPTS):
            try:
                reply = self._client.request(
                    method, path, content=content, headers={"Content-Type": kind}
                )
                # The same part may be sent again; a beginning that was answered is not repeated.
                if reply.status_code not in (429, 503) or attempt == ATTEMPTS - 1:
                    return reply
            except httpx2.HTTPError as error:
                if attempt == ATTEMPTS - 1:
                    raise TargetError(
                        f"{self.address} does not answer ({type(error).__name__}: {error}). Start "
                        "`embedding-pipelines serve` there, or correct the endpoint."
                    ) from None
            time.sleep(wait)
            wait *= 2
        raise AssertionError("unreachable")


def _split(endpoint: str) -> Any:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname else None


def _address(endpoint: str) -> str:
    parts = _split(endpoint)
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "The endpoint holds credentials or a query, and would be on record. Leave them out, and "
            "set $EMBEDDING_API_KEY."
        )
    return endpoint.rstrip("/")
