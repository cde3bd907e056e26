"""The Secret and the webhook configuration in the Kubernetes API, by lightkube."""

import base64
from http import HTTPStatus
from typing import Any, cast

import httpx2
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Secret
from lightkube.types import PatchType

from admission.keeper import ClusterError
from admission.settings import WebhookSettings


class KubernetesCluster:
    """Implements `keeper.Cluster`."""

    def __init__(self, settings: WebhookSettings) -> None:
        """Find the API server: by a kubeconfig, else by the pod's service account.

        Raises:
            ClusterError: neither says where it is.

        """
        path = settings.kubeconfig
        try:
            config = KubeConfig.from_env() if path is None else KubeConfig.from_file(path)
            self._client = AsyncClient(config=config)
        except (ConfigError, OSError, KeyError) as error:
            raise ClusterError(f"Kubernetes: no way to the API server: {error}; set kubeconfig") from error
        self._namespace = settings.namespace
        self._secret = settings.secret
        self._configuration = settings.configuration

    async def close(self) -> None:
        """Close connections to the API server."""
        await self._client.close()

    async def read(self) -> tuple[dict[str, str], str] | None:
        """The Secret's data and version; see `keeper.Cluster`."""
        try:
            secret = await self._client.get(Secret, self._secret, namespace=self._namespace)
        except httpx2.HTTPError as error:
            if _status(error) == HTTPStatus.NOT_FOUND:
                return None
            raise self._failed("read", f"Secret {self._secret}", error) from error
        version = secret.metadata.resourceVersion if secret.metadata else None
        return cast("dict[str, str]", secret.data or {}), version or ""

    async def write(self, data: dict[str, str], *, version: str | None) -> bool:
        """Replace or make the Secret; see `keeper.Cluster`."""
        secret = Secret(
            metadata=ObjectMeta(name=self._secret, namespace=self._namespace, resourceVersion=version),
            data=data,
            type="Opaque",
        )
        try:
            if version is None:
                await self._client.create(secret)
            else:
                await self._client.replace(secret)
        except httpx2.HTTPError as error:
            # Conflict: another replica was first. Not found: it was deleted meanwhile; made on the next look.
            if _status(error) in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                return False
            raise self._failed("write", f"Secret {self._secret}", error) from error
        return True

    async def publish(self, bundle: bytes) -> None:
        """Write the bundle into all webhooks of the configuration; see `keeper.Cluster`."""
        what = f"MutatingWebhookConfiguration {self._configuration}"
        wanted = base64.b64encode(bundle).decode()
        try:
            found = await self._client.get(MutatingWebhookConfiguration, self._configuration)
            patch: list[dict[str, Any]] = []
            for index, webhook in enumerate(found.webhooks or []):
                if webhook.clientConfig.caBundle != wanted:
                    at = f"/webhooks/{index}"
                    patch.append({"op": "test", "path": f"{at}/name", "value": webhook.name})
                    patch.append({"op": "add", "path": f"{at}/clientConfig/caBundle", "value": wanted})
            if patch:
                await self._client.patch(  # pyright: ignore[reportUnknownMemberType]
                    MutatingWebhookConfiguration, self._configuration, patch, patch_type=PatchType.JSON
                )
        except httpx2.HTTPError as error:
            raise self._failed("write the authorities of", what, error) from error

    def _failed(self, verb: str, what: str, error: httpx2.HTTPError) -> ClusterError:
        said = error.status.message if isinstance(error, ApiError) else None
        why = said or str(error).partition("\n")[0] or type(error).__name__
        return ClusterError(f"Kubernetes: cannot {verb} {what}: {why}")


def _status(error: httpx2.HTTPError) -> int | None:
    """The status of an answer; what stands in front of an API server answers without its forms."""
    return error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else None
