"""A small Kubernetes API server for tests: objects, versions, watches, patches, preconditions, and faults.

It keeps to the API where our programs meet it: one sequence of versions, 409 for a precondition that fails,
410 for a version that is forgotten, and what may be changed on a pod. It answers on loopback.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from aiohttp import web

Json = dict[str, Any]
Key = tuple[str, str, str]
"""Plural, namespace ("" for none), name."""

_NAMESPACED = {"pods", "leases", "secrets", "configmaps", "events"}
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Asked:
    """One request, as hooks see it."""

    def __init__(self, who: str, method: str, path: str, body: Any) -> None:
        self.who, self.method, self.path, self.body = who, method, path, body

    def __repr__(self) -> str:
        return f"{self.who} {self.method} {self.path}"

    @property
    def places(self) -> bool:
        """It is the patch that places a pod."""
        return self.method == "PATCH" and "/pods/" in self.path and not self.path.endswith("/status")


class ApiServer:
    """The server. `before` and `after` are called around each request, and may raise or wait."""

    def __init__(self, directory: Path) -> None:
        self.objects: dict[Key, Json] = {}
        self.history: list[tuple[int, str, str, Json]] = []
        self.asked: list[Asked] = []
        self.dead: set[str] = set()
        """Clients whose connections are cut: what a killed process looks like from here."""
        self.before: Callable[[Asked], Awaitable[None]] | None = None
        self.after: Callable[[Asked], Awaitable[None]] | None = None
        self.port = 0
        self._directory = directory
        self._versions = itertools.count(1)
        self._forgotten = 0
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._watches: set[asyncio.Task[Any]] = set()

    # Life

    async def start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._runner is not None:
            for task in self._watches:
                task.cancel()
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def kubeconfig(self, who: str) -> Path:
        """A kubeconfig for a client of this name."""
        path = self._directory / f"{who}.kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                    "users": [{"name": who, "user": {"token": who}}],
                    "contexts": [
                        {"name": "test", "context": {"cluster": "test", "user": who, "namespace": "team"}}
                    ],
                }
            )
        )
        return path

    # What tests do themselves

    def put(self, obj: Json) -> Json:
        """Make an object, or replace it whatever its version."""
        key = self._key_of(obj)
        new = key not in self.objects
        return self._store(key, copy.deepcopy(obj), "ADDED" if new else "MODIFIED")

    def delete(self, plural: str, namespace: str, name: str) -> None:
        found = self.objects.pop((plural, namespace, name))
        self._note(plural, "DELETED", found)

    def edit(self, plural: str, namespace: str, name: str, change: Callable[[Json], None]) -> None:
        found = copy.deepcopy(self.objects[plural, namespace, name])
        change(found)
        self._store((plural, namespace, name), found, "MODIFIED")

    def get(self, plural: str, namespace: str, name: str) -> Json:
        return self.objects[plural, namespace, name]

    def all(self, plural: str) -> list[Json]:
        return [obj for (kind, _, _), obj in sorted(self.objects.items()) if kind == plural]

    def forget_history(self) -> None:
        """Whoever resumes a watch from before now is too late."""
        self._forgotten = next(self._versions)

    def cut_watches(self) -> None:
        for task in self._watches:
            task.cancel()

    # Requests

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        who = request.headers.get("Authorization", "").removeprefix("Bearer ")
        text = await request.text()
        asked = Asked(who, request.method, request.path, json.loads(text) if text else None)
        if who in self.dead:
            return self._cut(request)
        self.asked.append(asked)
        try:
            if self.before is not None:
                await self.before(asked)
            if who in self.dead:
                return self._cut(request)
            answer = await self._answer(request, asked)
            if self.after is not None:
                await self.after(asked)
            if who in self.dead:
                return self._cut(request)
        except Refused as refused:
            status = {"kind": "Status", "status": "Failure", "message": str(refused), "code": refused.status}
            return web.json_response(status, status=refused.status)
        except ConnectionError:
            return self._cut(request)
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)

    def _cut(self, request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def _answer(self, request: web.Request, asked: Asked) -> Json | web.StreamResponse:
        plural, namespace, name, sub = self._parse(request.path)
        selector = request.query.get("labelSelector", "")
        match request.method, name:
            case "GET", "" if request.query.get("watch") == "true":
                return await self._watch(request, plural, namespace, selector)
            case "GET", "":
                return self._list(plural, namespace, selector)
            case "GET", _:
                return self._found((plural, namespace, name))
            case "POST", "":
                made = asked.body
                key = (plural, namespace, made["metadata"]["name"])
                if key in self.objects:
                    raise Refused(409, f"{plural} {key[2]!r} already exists")
                return self._store(key, made, "ADDED")
            case "POST", _ if sub == "eviction":
                before = self._found((plural, namespace, name))
                self._check_preconditions(asked.body["deleteOptions"]["preconditions"], before)
                self.delete(plural, namespace, name)
                return {"kind": "Status", "status": "Success"}
            case "PUT", _:
                before = self._found((plural, namespace, name))
                self._check_preconditions(asked.body["metadata"], before)
                return self._store((plural, namespace, name), asked.body, "MODIFIED")
            case "PATCH", _:
                before = self._found((plural, namespace, name))
                self._check_preconditions(asked.body.get("metadata") or {}, before)
                kind = request.headers["Content-Type"]
                after = _patched(before, asked.body, strategic="strategic" in kind)
                if sub == "status":
                    after = {**copy.deepcopy(before), "status": after.get("status")}
                elif plural == "pods":
                    _check_pod(before, after)
                if after == before:
                    return before
                return self._store((plural, namespace, name), after, "MODIFIED")
            case _:
                raise Refused(405, f"{request.method} {request.path}")

    def _parse(self, path: str) -> tuple[str, str, str, str]:
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        plural, name, sub = [*parts, "", ""][:3]
        return plural, namespace, name, sub

    def _found(self, key: Key) -> Json:
        if key not in self.objects:
            raise Refused(404, f"{key[0]} {key[2]!r} not found")
        return self.objects[key]

    def _check_preconditions(self, said: Json, before: Json) -> None:
        for field in ("resourceVersion", "uid"):
            if said.get(field) is not None and said[field] != before["metadata"].get(field):
                raise Refused(409, f"the object has been modified; {field} is another one")

    def _store(self, key: Key, obj: Json, kind: str) -> Json:
        obj = copy.deepcopy(obj)
        obj["metadata"]["resourceVersion"] = str(next(self._versions))
        obj["metadata"].setdefault("uid", f"uid-{'-'.join(key)}")
        self.objects[key] = obj
        self._note(key[0], kind, obj)
        return obj

    def _note(self, plural: str, kind: str, obj: Json) -> None:
        if kind == "DELETED":
            obj = copy.deepcopy(obj)
            obj["metadata"]["resourceVersion"] = str(next(self._versions))
        self.history.append((int(obj["metadata"]["resourceVersion"]), plural, kind, obj))

    def _key_of(self, obj: Json) -> Key:
        plural = f"{obj['kind'].lower()}s"
        namespace = obj["metadata"].get("namespace", "") if plural in _NAMESPACED else ""
        return plural, namespace, obj["metadata"]["name"]

    def _list(self, plural: str, namespace: str, selector: str) -> Json:
        items = [
            obj
            for (kind, space, _), obj in sorted(self.objects.items())
            if kind == plural and namespace in ("", space) and _selected(obj, selector)
        ]
        version = self.history[-1][0] if self.history else 0
        return {"metadata": {"resourceVersion": str(max(version, self._forgotten))}, "items": items}

    async def _watch(
        self, request: web.Request, plural: str, namespace: str, selector: str
    ) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        end = asyncio.get_running_loop().time() + float(request.query.get("timeoutSeconds", 60))
        response = web.StreamResponse()
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            if since < self._forgotten:
                gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
                await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                return response
            position = 0
            who = request.headers.get("Authorization", "").removeprefix("Bearer ")
            while asyncio.get_running_loop().time() < end and who not in self.dead:
                while position < len(self.history):
                    version, kind, event, obj = self.history[position]
                    position += 1
                    if version <= since or kind != plural or not _selected(obj, selector):
                        continue
                    if namespace not in ("", obj["metadata"].get("namespace", "")):
                        continue
                    await response.write(json.dumps({"type": event, "object": obj}).encode() + b"\n")
                await asyncio.sleep(0.003)
        except (ConnectionError, asyncio.CancelledError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._watches.discard(task)
        return response


def _selected(obj: Json, selector: str) -> bool:
    if not selector:
        return True
    key, _, value = selector.partition("=")
    return (obj["metadata"].get("labels") or {}).get(key) == value


def _patched(before: Json, patch: Json, *, strategic: bool) -> Json:
    """JSON merge patch (RFC 7396); strategic: conditions are merged by their type."""
    after = copy.deepcopy(before)

    def merge(target: Json, change: Json) -> None:
        for name, value in change.items():
            if value is None:
                target.pop(name, None)
            elif isinstance(value, dict):
                below = target.get(name)
                target[name] = below if isinstance(below, dict) else {}
                merge(target[name], value)
            elif strategic and name == "conditions":
                new = {each["type"]: each for each in value}
                kept = [
                    {**each, **new.pop(each["type"])} if each["type"] in new else each
                    for each in target.get(name) or []
                ]
                target[name] = [*kept, *new.values()]
            else:
                target[name] = copy.deepcopy(value)

    merge(after, patch)
    return after


def _check_pod(before: Json, after: Json) -> None:
    """What the API allows to be changed on a pod: gates removed; while gated, affinity narrowed."""
    old, new = before["spec"], after["spec"]
    gates, left = ([gate["name"] for gate in spec.get("schedulingGates") or []] for spec in (old, new))
    if [name for name in gates if name in left] != left:
        raise Refused(422, "spec.schedulingGates: only deletion is allowed")
    fixed = ("affinity", "schedulingGates")
    if {k: v for k, v in old.items() if k not in fixed} != {k: v for k, v in new.items() if k not in fixed}:
        raise Refused(422, "spec: Forbidden: pod updates may not change this field")
    if old.get("affinity") == new.get("affinity"):
        return
    if not gates:
        raise Refused(422, "spec.affinity: only gated pods may be changed")
    was, now = (
        ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(_REQUIRED, {}).get("nodeSelectorTerms")
        for spec in (old, new)
    )
    if not was:
        return
    if len(was) != len(now or []):
        raise Refused(422, "nodeSelectorTerms: no additions or deletions are allowed to non-empty list")
    for one, other in zip(was, now, strict=True):
        for part in ("matchExpressions", "matchFields"):
            had, has = one.get(part) or [], other.get(part) or []
            if has[: len(had)] != had or (
                has and not (one.get("matchExpressions") or one.get("matchFields"))
            ):
                raise Refused(422, f"nodeSelectorTerms: only additions are allowed to {part}")
