"""The webhook's settings: flags over environment (VCUDA_ADMISSION_...) over a YAML file over defaults."""

import datetime as dt
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from admission.aliases import Rules
from admission.certificate import CertificateError, Plan
from vcuda.kube.names import DOMAIN, MEMORY_UNIT_BYTES, Names
from vcuda.settings import Domain, SettingsError, Size, settings_error


class WebhookSettings(BaseSettings):
    """What the webhook can be told. Durations are seconds, or ISO 8601 such as P30D."""

    model_config = SettingsConfigDict(
        env_prefix="VCUDA_ADMISSION_", extra="forbid", frozen=True, env_ignore_empty=True
    )

    domain: Domain = DOMAIN
    """The manifests must have the same."""
    memory_unit: Size = MEMORY_UNIT_BYTES
    """Bytes of one `vcuda-memory`; the node agents must have the same."""
    aliyun_unit: Literal["MiB", "GiB"] = "MiB"
    """Of one `aliyun.com/gpu-mem`."""

    host: str = ""
    """The address to listen on; empty: all."""
    port: int = Field(default=8443, ge=0, le=65535)
    """Of /mutate, over TLS; 0: any."""
    health_port: int = Field(default=8080, ge=0, le=65535)
    """Of /healthz, /readyz and /metrics, without TLS; 0: any."""
    body_limit: Size = 3 * 2**20
    """The largest request in bytes: what the API server itself allows, and then some."""
    read_timeout_s: float = Field(default=4.0, gt=0, le=60)
    """For a handshake, for a first request's headers, and for a body."""
    drain_s: float = Field(default=5.0, ge=0, le=300)
    """How long requests are still answered after SIGTERM, until nobody sends any."""

    kubeconfig: Path | None = None
    """How to reach the API server; without it the pod's service account, then $KUBECONFIG."""
    namespace: str = "vcuda-system"
    service: str = "vcuda-admission"
    """The Service in front of the replicas: with the namespace, the name in the certificate."""
    names: tuple[str, ...] = ()
    """More DNS names and addresses for the certificate."""
    secret: str = "vcuda-admission-certificate"  # noqa: S105 (a name)
    """The Secret in which replicas share the certificate."""
    configuration: str = "vcuda-admission"
    """The MutatingWebhookConfiguration that is to trust it."""
    certificate_life: dt.timedelta = dt.timedelta(days=30)
    authority_life: dt.timedelta = dt.timedelta(days=365)
    overlap: dt.timedelta = dt.timedelta(hours=1)
    """How long an authority is known before it signs, and after."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """A certificate that somebody else makes and renews; then none is made, and nothing is published."""

    @model_validator(mode="after")
    def _together(self) -> "WebhookSettings":
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file: one without the other; set both or none")
        try:
            _ = self.plan
        except CertificateError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def rules(self) -> Rules:
        """What reviews go by."""
        return Rules(
            names=Names(domain=self.domain),
            memory_unit_bytes=self.memory_unit,
            aliyun_unit_bytes=2**20 if self.aliyun_unit == "MiB" else 2**30,
        )

    @property
    def plan(self) -> Plan:
        """What certificates are to be."""
        return Plan(
            names=(f"{self.service}.{self.namespace}.svc", *self.names),
            serving=self.certificate_life,
            authority=self.authority_life,
            overlap=self.overlap,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def read_settings(file: Path | None = None, **flags: object) -> WebhookSettings:
    """The settings; flags that are None were not given.

    Raises:
        SettingsError: a value cannot be, or the file is none.

    """
    if file is not None and not file.is_file():
        raise SettingsError(f"settings: {file}: no such file")

    class FromFile(WebhookSettings):
        model_config = SettingsConfigDict(yaml_file=file)

    try:
        return FromFile(**{name: value for name, value in flags.items() if value is not None})  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        raise settings_error(error) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise SettingsError(f"settings: {file}: {why}") from error
