"""The API server, as far as a node needs it: JSON over HTTP, by lightkube's way to it and its credentials."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
from lightkube import KubeConfig
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.core.exceptions import ConfigError

from vcuda.errors import VcudaError
from vcuda.kube.asks import mapping

GONE, NOT_FOUND, CONFLICT = 410, 404, 409
_PAGE = 200
_TEXT = 300


class ApiError(VcudaError):
    """The API server refused (`status`), or did not answer (0)."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ApiServer:
    """A connection to it.

    Raises:
        ApiError: nothing says where it is.

    """

    def __init__(self, kubeconfig: Path | None = None, *, timeout_s: float = 5.0) -> None:
        try:
            found = KubeConfig.from_env() if kubeconfig is None else KubeConfig.from_file(kubeconfig)
            config = found.get()
        except (ConfigError, OSError, KeyError) as error:
            raise ApiError(f"no way to the API server: {error}; set kubeconfig") from error
        if config is None:
            raise ApiError("no way to the API server: the kubeconfig names none; set kubeconfig")
        self._http: httpx2.AsyncClient = AsyncClient(
            config, ConnectionParams(timeout=httpx2.Timeout(timeout_s))
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def get(self, path: str, **query: str) -> Any:  # noqa: ANN401 (JSON)
        """An object.

        Raises:
            ApiError: it could not be had.

        """
        return await self._send("GET", path, query=query)

    async def create(self, path: str, body: object) -> Any:  # noqa: ANN401 (JSON)
        """Make an object.

        Raises:
            ApiError: it was not made.

        """
        return await self._send("POST", path, body=body, kind="application/json")

    async def merge(self, path: str, body: object) -> Any:  # noqa: ANN401 (JSON)
        """Change some fields of an object (RFC 7396).

        Raises:
            ApiError: it was not changed, or that is not known.

        """
        return await self._send("PATCH", path, body=body, kind="application/merge-patch+json")

    async def everything(self, path: str, **query: str) -> tuple[list[Any], str]:
        """All objects of a list, and the version at which they were so.

        Raises:
            ApiError: they could not be had.

        """
        found: list[Any] = []
        more = ""
        while True:
            paged = {**query, "limit": str(_PAGE), **({"continue": more} if more else {})}
            page = await self.get(path, **paged)
            found += page.get("items") or []
            metadata = mapping(page.get("metadata"))
            more = str(metadata.get("continue") or "")
            if not more:
                return found, str(metadata.get("resourceVersion") or "")

    async def changes(
        self, path: str, *, version: str, seconds: int, **query: str
    ) -> AsyncIterator[tuple[str, Any]]:
        """What changes after a version: kind and object, for so long at most.

        Raises:
            ApiError: it broke off; GONE: the version is too old.

        """
        asked = {
            **query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        # It ends by itself; where nothing is heard for longer than that, the connection is dead.
        timeout = httpx2.Timeout(5.0, read=seconds + 15.0)
        try:
            async with self._http.stream("GET", path, params=asked, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise _refused("GET", path, answer)
                async for line in answer.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = mapping(event["object"])
                        raise ApiError(
                            f"{path}: {str(status.get('message'))[:_TEXT]}",
                            status=int(status.get("code") or 0),
                        )
                    yield str(event["type"]), event["object"]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ApiError(f"{path}: {type(error).__name__}: {error}") from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: object = None,
        kind: str | None = None,
    ) -> Any:  # noqa: ANN401 (JSON)
        try:
            answer = await self._http.request(
                method,
                path,
                params=query,
                content=None if body is None else json.dumps(body).encode(),
                headers={} if kind is None else {"Content-Type": kind},
            )
            if answer.status_code >= 400:
                raise _refused(method, path, answer)
            return answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise ApiError(f"{method} {path}: {type(error).__name__}: {error}") from error


def _refused(method: str, path: str, answer: httpx2.Response) -> ApiError:
    try:
        text = str(mapping(answer.json()).get("message"))
    except ValueError:
        text = answer.text
    return ApiError(f"{method} {path}: {answer.status_code}: {text[:_TEXT]}", status=answer.status_code)
