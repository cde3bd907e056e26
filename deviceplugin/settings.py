"""The settings of `vcuda-node`: flags over environment (VCUDA_NODE_...) over a TOML file over defaults."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from vcuda.kube.names import DOMAIN, MEMORY_UNIT_BYTES, Names
from vcuda.settings import Domain, SettingsError, Size, settings_error

CONFIG = "VCUDA_NODE_CONFIG"
"""The variable that names the file."""


class Settings(BaseSettings):
    """Offer a node's cards to Kubernetes, and hold each container in its share."""

    model_config = SettingsConfigDict(
        env_prefix="VCUDA_NODE_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        cli_prog_name="vcuda-node",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    name: str = Field(min_length=1, description="the node's name in Kubernetes")
    domain: Domain = Field(
        default=DOMAIN, description="the prefix of resources, labels and annotations; as admission has it"
    )
    memory_unit: Size = Field(
        default=MEMORY_UNIT_BYTES, description="bytes of one vcuda-memory, as 256MiB; as admission has it"
    )
    require_placement: bool = Field(
        default=True,
        description="only pods that vcuda's controller placed get cards; false, where there is none: all",
    )
    policy: Literal["binpack", "spread"] = Field(
        default="binpack", description="how pods are placed here that nobody else places"
    )

    kubelet_dir: Path = Field(default=Path("/var/lib/kubelet"), description="the kubelet's directory")
    run_dir: Path = Field(
        default=Path("/run/vcuda-node"),
        description="where tickets, grants, ledgers and libraries are kept; empty after a boot",
    )
    host_run_dir: Path | None = Field(
        default=None, description="the same as the kubelet sees it, if it is another path there"
    )
    dev_dir: Path = Field(default=Path("/dev"), description="where the cards' device nodes are seen")
    driver_dir: Path | None = Field(
        default=None,
        description="a directory of the host with NVIDIA's libraries, which containers get too, at "
        "/usr/local/nvidia/lib64; none: the linker's, and containers have their own",
    )
    cdi_kind: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)$",
        description="hand out cards as CDI devices of this kind, such as nvidia.com/gpu; none: device nodes",
    )
    simulated: str | None = Field(
        default=None, description="simulate these cards, as V100-SXM2-16GB,T4, in place of a driver's"
    )

    metrics_address: str = Field(
        default="127.0.0.1:9402",
        description="ADDRESS:PORT of /metrics, /healthz and /readyz; none: they are not served",
    )
    kubeconfig: Path | None = Field(
        default=None,
        description="how to reach the API server; none: the pod's service account, or $KUBECONFIG",
    )
    key_namespace: str = Field(default="vcuda-system", description="of the ConfigMap with the public key")
    key_name: str = Field(default="vcuda-placement-key", description="the ConfigMap with the public key")

    kubelet_seconds: float = Field(
        default=0.5, gt=0, description="how often to look whether the kubelet was started anew"
    )
    health_seconds: float = Field(
        default=5.0, gt=0, description="how often cards are asked whether they are well"
    )
    well_seconds: float = Field(
        default=30.0,
        ge=0,
        description="how long a card must answer, without a new fault, to be offered again",
    )
    outside_seconds: float = Field(
        default=15.0, gt=0, description="how often to look for processes that use a card outside their share"
    )
    reconcile_seconds: float = Field(
        default=5.0, gt=0, description="how often to look for tickets of pods that are over"
    )

    @model_validator(mode="after")
    def _together(self) -> "Settings":
        if self.simulated is not None and (self.driver_dir is not None or self.cdi_kind is not None):
            raise ValueError("simulated: goes with neither driver_dir nor cdi_kind")
        _ = self.metrics
        return self

    @property
    def names(self) -> Names:
        """All names under the prefix."""
        return Names(domain=self.domain)

    @property
    def host_dir(self) -> Path:
        """The run directory as the kubelet sees it."""
        return self.host_run_dir or self.run_dir

    @property
    def metrics(self) -> tuple[str, int] | None:
        """The address and port of the metrics; None: there are none.

        Raises:
            ValueError: it is none.

        """
        if self.metrics_address == "none":
            return None
        host, colon, port = self.metrics_address.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"metrics_address: {self.metrics_address!r} is not ADDRESS:PORT")
        return host.strip("[]"), int(port)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags (given as the init settings), environment, file."""
        del dotenv_settings, file_secret_settings
        file = os.environ.get(CONFIG)
        found: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if file:
            found.append(TomlConfigSettingsSource(settings_cls, toml_file=file))
        return tuple(found)


def read_settings(arguments: Sequence[str] = ()) -> Settings:
    """The settings, with the flags of a command line.

    Raises:
        SettingsError: a value cannot be, or the file cannot be read.
        SystemExit: help was asked, or a flag is unknown.

    """
    file = os.environ.get(CONFIG)
    if file and not Path(file).is_file():
        raise SettingsError(f"{CONFIG}: {file}: no such file")
    try:
        flags = CliSettingsSource[object](Settings, cli_parse_args=list(arguments))
        return Settings(_cli_settings_source=flags)  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        raise settings_error(error) from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"settings: {' '.join(str(error).split())}") from error
