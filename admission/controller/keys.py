"""The key that placements are signed with: a Secret of the controller's alone; its public half for nodes."""

import base64
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vcuda.apiserver import CONFLICT, NOT_FOUND, Api, ApiError, Json, path_of
from vcuda.errors import VcudaError
from vcuda.kube.asks import mapping

PRIVATE, PUBLIC = "private.pem", "public.pem"
"""In the data of the Secret, and of the ConfigMap."""


class KeyUnusableError(VcudaError):
    """The Secret holds no key. It is never replaced by itself: running pods were placed with what it held."""


async def signing_key(api: Api, *, namespace: str, name: str) -> Ed25519PrivateKey:
    """The key of this cluster, made if there is none; the ConfigMap with its public half is seen to.

    Only the leader calls this. Should there be two for a moment, the Secret that was made first counts.

    Raises:
        ApiError: the Secret or the ConfigMap cannot be read or written.
        KeyUnusableError: what is in the Secret is no key.

    """
    secret = await _get_or_create(api, "secrets", namespace, name, _new_secret)
    try:
        text = base64.b64decode(str(mapping(secret.get("data"))[PRIVATE]))
        key = serialization.load_pem_private_key(text, password=None)
    except (KeyError, ValueError, TypeError) as error:
        raise KeyUnusableError(
            f"Secret {namespace}/{name}: {PRIVATE} is no key ({error}); restore it, or delete the Secret for "
            "a new one: pods that are placed but not started yet must then be made anew"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusableError(f"Secret {namespace}/{name}: {PRIVATE} is not an Ed25519 key")
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    found = await _get_or_create(
        api, "configmaps", namespace, name, lambda: {"kind": "ConfigMap", "data": {PUBLIC: public.decode()}}
    )
    if mapping(found.get("data")).get(PUBLIC) != public.decode():
        data: Mapping[str, Any] = {**mapping(found.get("data")), PUBLIC: public.decode()}
        await api.replace(path_of("namespaces", namespace, "configmaps", name), {**found, "data": dict(data)})
    return key


def _new_secret() -> Json:
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"kind": "Secret", "type": "Opaque", "data": {PRIVATE: base64.b64encode(private).decode()}}


async def _get_or_create(api: Api, kind: str, namespace: str, name: str, make: Any) -> Json:  # noqa: ANN401
    path = path_of("namespaces", namespace, kind, name)
    try:
        return await api.get(path)
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
    body: Json = {"apiVersion": "v1", "metadata": {"name": name, "namespace": namespace}, **make()}
    try:
        return await api.create(path_of("namespaces", namespace, kind), body)
    except ApiError as error:
        if error.status != CONFLICT:
            raise
    return await api.get(path)
