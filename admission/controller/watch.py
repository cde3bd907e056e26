"""All objects of a kind, and then each change: list, watch, go on where it broke off, else list again."""

import logging
from collections.abc import Sequence
from typing import Protocol

from admission.controller.backoff import BackOff
from vcuda.apiserver import GONE, Api, ApiError, Json
from vcuda.kube.asks import mapping

_LOG = logging.getLogger(__name__)


class Sink(Protocol):
    """Who is told."""

    def replace(self, objects: Sequence[Json]) -> None:
        """These are all, whatever was known before."""
        ...

    def changed(self, found: Json) -> None:
        """One is new, or different."""
        ...

    def deleted(self, found: Json) -> None:
        """One is gone; this is how it was at last."""
        ...


async def follow(
    api: Api, path: str, sink: Sink, *, watch_s: float, back_off_s: float, **params: str
) -> None:
    """Tell `sink` of all objects and of every change, until cancelled, through trouble with the server."""
    version = ""
    back_off = BackOff(back_off_s)
    while True:
        try:
            if not version:
                objects, version = await api.list_all(path, **params)
                sink.replace(objects)
                back_off.reset()
            async for kind, found in api.watch(path, version=version, seconds=watch_s, **params):
                version = str(mapping(found.get("metadata")).get("resourceVersion") or version)
                if kind == "DELETED":
                    sink.deleted(found)
                elif kind != "BOOKMARK":
                    sink.changed(found)
                back_off.reset()
        except ApiError as error:
            if error.status == GONE:
                _LOG.info("%s: what happened since is forgotten there; all are listed again", path)
                version = ""
            else:
                _LOG.warning("%s; trying again", error)
            await back_off.pause()
