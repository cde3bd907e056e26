"""The difference between two values of JSON as a JSON patch (RFC 6902). Pure."""

from collections.abc import Iterator
from typing import Any, cast

Operation = dict[str, Any]
_Object = dict[str, Any]


def difference(before: Any, after: Any, *, path: str = "") -> Iterator[Operation]:  # noqa: ANN401 (JSON)
    """The operations that make `after` of `before`: none for equal values, and none about what is equal.

    Lists are compared place by place where they are equally long or grew at the end, else replaced whole.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _of_objects(cast("_Object", before), cast("_Object", after), path)
    elif (
        isinstance(before, list)
        and isinstance(after, list)
        and len(cast("list[Any]", before)) <= len(cast("list[Any]", after))
    ):
        yield from _of_lists(cast("list[Any]", before), cast("list[Any]", after), path)
    elif not _same(before, after):
        yield {"op": "replace", "path": path, "value": after}


def _of_objects(before: _Object, after: _Object, path: str) -> Iterator[Operation]:
    for key, value in before.items():
        at = f"{path}/{_escaped(key)}"
        if key not in after:
            yield {"op": "remove", "path": at}
        else:
            yield from difference(value, after[key], path=at)
    for key, value in after.items():
        if key not in before:
            yield {"op": "add", "path": f"{path}/{_escaped(key)}", "value": value}


def _of_lists(before: list[Any], after: list[Any], path: str) -> Iterator[Operation]:
    for index, value in enumerate(before):
        yield from difference(value, after[index], path=f"{path}/{index}")
    for value in after[len(before) :]:
        yield {"op": "add", "path": f"{path}/-", "value": value}


def _same(before: Any, after: Any) -> bool:  # noqa: ANN401 (JSON)
    """Whether two values are the same in JSON, where 1 and true are not, though they are in Python."""
    return type(before) is type(after) and before == after


def _escaped(key: str) -> str:
    """A key as a part of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
