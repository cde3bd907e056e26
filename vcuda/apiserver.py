"""The Kubernetes API as JSON, for the daemons. lightkube knows where the server is and who we are.

What goes wrong is one kind of error, with the status; 0 where there was no answer, so that what was asked may
or may not have been done.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, cast

import httpx2
from lightkube import KubeConfig
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.core.exceptions import ConfigError

from vcuda.errors import VcudaError
from vcuda.kube.asks import mapping

Json = dict[str, Any]
PatchKind = Literal["merge", "strategic-merge"]

CONFLICT, GONE, NOT_FOUND = HTTPStatus.CONFLICT, HTTPStatus.GONE, HTTPStatus.NOT_FOUND
NO_ANSWER = 0
_PAGE = 500
_MESSAGE_CHARACTERS = 300
_LATE_S = 15.0
"""By which a watch may outlast the time that was asked for it."""


class ApiError(VcudaError):
    """The API server refused, or did not answer."""

    def __init__(self, message: str, *, status: int = NO_ANSWER) -> None:
        super().__init__(message)
        self.status = status

    @property
    def refused(self) -> bool:
        """It was answered, for good: the same request would be refused again."""
        return self.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)


class Api:
    """One connection to one API server."""

    def __init__(self, *, kubeconfig: Path | None = None, timeout_s: float = 10.0) -> None:
        """Find the API server: by a kubeconfig, else by the pod's service account, else by $KUBECONFIG.

        Raises:
            VcudaError: none of these says where it is.

        """
        try:
            found = KubeConfig.from_env() if kubeconfig is None else KubeConfig.from_file(kubeconfig)
            config = found.get()
        except (ConfigError, OSError, KeyError) as error:
            raise VcudaError(f"Kubernetes: no way to the API server: {error}; set kubeconfig") from error
        if config is None:
            raise VcudaError(
                "Kubernetes: no way to the API server: the kubeconfig names none; set kubeconfig"
            )
        params = ConnectionParams(timeout=httpx2.Timeout(timeout_s))
        self._http: httpx2.AsyncClient = AsyncClient(config, params)
        self._timeout_s = timeout_s

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def get(self, path: str, **params: str) -> Json:
        """One object.

        Raises:
            ApiError: it could not be had.

        """
        return await self._send("GET", path, params=params)

    async def create(self, path: str, body: Json) -> Json:
        """Make an object.

        Raises:
            ApiError: it was not made; CONFLICT: it is there.

        """
        return await self._send("POST", path, body=body)

    async def replace(self, path: str, body: Json) -> Json:
        """Write a whole object, over the version that it names.

        Raises:
            ApiError: it was not written; CONFLICT: there is another version.

        """
        return await self._send("PUT", path, body=body)

    async def patch(self, path: str, body: Json, *, kind: PatchKind, timeout_s: float | None = None) -> Json:
        """Change an object; metadata.resourceVersion and metadata.uid in the body are preconditions.

        Raises:
            ApiError: it was not changed, or (status 0) that is not known; CONFLICT: a precondition fails.

        """
        return await self._send(
            "PATCH", path, body=body, content=f"application/{kind}-patch+json", timeout_s=timeout_s
        )

    async def list_all(self, path: str, **params: str) -> tuple[list[Json], str]:
        """All objects, and the version at which they were so.

        Raises:
            ApiError: they could not be had.

        """
        items: list[Json] = []
        more = ""
        while True:
            paged = {**params, "limit": str(_PAGE), **({"continue": more} if more else {})}
            page = await self._send("GET", path, params=paged)
            items.extend(page.get("items") or [])
            metadata = mapping(page.get("metadata"))
            more = str(metadata.get("continue") or "")
            if not more:
                return items, str(metadata.get("resourceVersion"))

    async def watch(
        self, path: str, *, version: str, seconds: float, **params: str
    ) -> AsyncGenerator[tuple[str, Json], None]:
        """What changes after a version: ADDED, MODIFIED, DELETED or BOOKMARK, and the object.

        Raises:
            ApiError: it broke off; GONE: the version is too old.

        """
        query = {
            **params,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        timeout = httpx2.Timeout(self._timeout_s, read=seconds + _LATE_S)
        try:
            async with self._http.stream("GET", path, params=query, timeout=timeout) as answer:
                if answer.is_error:
                    raise _refused("GET", path, answer.status_code, await answer.aread())
                async for line in answer.aiter_lines():
                    if not line:
                        continue
                    event: Json = json.loads(line)
                    found: Json = event["object"]
                    if event["type"] == "ERROR":
                        raise ApiError(
                            f"API server: watch {path}: {_short(found.get('message'))}",
                            status=int(found.get("code") or NO_ANSWER),
                        )
                    yield str(event["type"]), found
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ApiError(f"API server: watch {path}: {_text(error)}", status=NO_ANSWER) from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Json | None = None,
        content: str = "application/json",
        timeout_s: float | None = None,
    ) -> Json:
        try:
            answer = await self._http.request(
                method,
                path,
                params=params,
                content=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": content} if body is not None else None,
                timeout=httpx2.Timeout(timeout_s or self._timeout_s),
            )
            if answer.is_error:
                raise _refused(method, path, answer.status_code, answer.content)
            return cast("Json", json.loads(answer.content))
        except (httpx2.HTTPError, ValueError, ConfigError) as error:
            raise ApiError(f"API server: {method} {path}: {_text(error)}", status=NO_ANSWER) from error


def path_of(*parts: str, group: str = "", version: str = "v1") -> str:
    """Where a collection or an object is, of the parts that follow the version: namespaces, x, pods, y."""
    return "/".join((f"/apis/{group}/{version}" if group else f"/api/{version}", *parts))


def _refused(method: str, path: str, status: int, content: bytes) -> ApiError:
    try:
        message = _short(mapping(json.loads(content)).get("message"))
    except ValueError:
        message = _short(content.decode(errors="replace"))
    return ApiError(f"API server: {method} {path}: {status}: {message}", status=status)


def _short(text: object) -> str:
    """One line, and not the whole object that a server may quote."""
    line = " ".join(str(text).split())
    return line if len(line) <= _MESSAGE_CHARACTERS else f"{line[:_MESSAGE_CHARACTERS]}..."


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(error)}" if str(error) else type(error).__name__
