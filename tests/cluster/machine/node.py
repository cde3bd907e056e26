"""The node: its namespace, containerd, the kubelet, and a network plugin that gives pods loopback alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.machine import cgroups
from tests.cluster.machine.control import Server, answers
from tests.cluster.machine.identity import Identity
from tests.cluster.machine.network import Network

NAME = "node-1"
RUNTIME_SOCKET = "/run/containerd/containerd.sock"
_HEALTH_PORT = 10248
PAUSE = "docker.io/library/pause:test"

_OVERLAID = ("/var/lib", "/etc", "/opt")
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""The kubelet writes these to the kernel where it reads something else: the node sees them so already."""

_NETWORK_PLUGIN = """#!/bin/sh
# A pod has a network namespace with nothing but loopback, and an address that only looks like one.
conf=$(cat)
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.0","0.3.1","0.4.0"]}' ;;
ADD)
    rest=${CNI_CONTAINERID#??????}
    number=$((0x${CNI_CONTAINERID%"$rest"}))
    address=10.$((number >> 16)).$((number >> 8 & 255)).$((number & 255))
    printf '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"%s"}],' "$CNI_NETNS"
    printf '"ips":[{"version":"4","interface":0,"address":"%s/32"}],"dns":{}}\\n' "$address"
    ;;
esac
"""


class NodeFiles:
    """Everything of the node that outlives a reboot, below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mounts: dict[str, Path] = {}
        for each in ("kubelet", "log", "containerd", "cni/bin", "cni/conf", "kernel", "images"):
            (directory / each).mkdir(parents=True)
        for path in _OVERLAID:
            (self._upper(path) / "work").mkdir(parents=True)
            (self._upper(path) / "files").mkdir()
        self.images = directory / "images"
        for name, value in _SYSCTLS.items():
            (directory / "kernel" / Path(name).name).write_text(f"{value}\n")

    def mount(self, target: str, source: Path) -> None:
        """Show `source` of this machine at `target` of the node, from its next boot on."""
        self._mounts[target] = source

    def setup(self) -> str:
        """The shell script of a boot, in a mount namespace of the node's own; each call is another boot."""
        kernel = self._directory / "kernel"
        (kernel / "boot_id").write_text(f"{uuid.uuid4()}\n")
        lines = [cgroups.mount()]
        lines += [f"mount --bind {kernel / Path(name).name} /proc/sys/{name}" for name in _SYSCTLS]
        lines.append(f"mount --bind {kernel / 'boot_id'} /proc/sys/kernel/random/boot_id")
        for path in _OVERLAID:
            upper = self._upper(path)
            options = f"lowerdir={path},upperdir={upper / 'files'},workdir={upper / 'work'}"
            lines.append(f"mount -t overlay overlay -o {options} {path}")
        lines += [
            "mount -t tmpfs -o mode=755 tmpfs /run",
            "mkdir -p /run/lock /var/lib/kubelet",
            f"mount --bind {self._directory / 'kubelet'} /var/lib/kubelet",
            f"mount --bind {self._directory / 'log'} /var/log",
        ]
        for target, source in self._mounts.items():
            make = (
                f"mkdir -p {target}" if source.is_dir() else f"mkdir -p $(dirname {target}); touch {target}"
            )
            lines += [make, f"mount --bind {source} {target}"]
        return "\n".join(lines)

    def containerd(self, network: Network) -> Server:
        """containerd with our configuration; pods may not raise what the machine does not let them."""
        binaries = self._directory / "cni" / "bin"
        (binaries / "loopback").symlink_to("/usr/lib/cni/loopback")
        plugin = binaries / "loopback-alone"
        plugin.write_text(_NETWORK_PLUGIN)
        plugin.chmod(0o755)
        conf = self._directory / "cni" / "conf"
        (conf / "10-test.conf").write_text(
            json.dumps({"cniVersion": "0.4.0", "name": "test", "type": "loopback-alone"})
        )
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        snapshotters = ["aufs", "btrfs", "devmapper", "zfs"]
        config = self._directory / "containerd.toml"
        config.write_text(f"""version = 2
root = "{self._directory / "containerd"}"
state = "/run/containerd"
disabled_plugins = {json.dumps([f"io.containerd.snapshotter.v1.{each}" for each in snapshotters])}
[grpc]
address = "{RUNTIME_SOCKET}"
[{cri}]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
stream_server_address = "{network.node}"
stream_server_port = "0"
[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false
[{cri}.cni]
bin_dir = "{binaries}"
conf_dir = "{conf}"
""")
        argv = ["containerd", "--config", config, "--log-level", "warn"]
        return Server(name="containerd", argv=argv, ready=lambda: True)

    def kubelet(
        self, programs: Path, network: Network, identity: Identity, *, config: Mapping[str, Any]
    ) -> Server:
        """The kubelet of node NAME; `config` goes over our KubeletConfiguration, key by key."""
        certificate, key = identity.kubelet
        path = self._directory / "kubelet.yaml"
        settings: dict[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": network.node,
            "healthzBindAddress": network.node,
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(identity.authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{RUNTIME_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "failCgroupV1": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": 0,
            "resolvConf": "",
            "clusterDNS": [network.address(10)],
            "clusterDomain": "cluster.local",
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "maxPods": 250,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            "eventRecordQPS": 0,
            **config,
        }
        path.write_text(yaml.safe_dump(settings))
        argv = [
            programs / "kubelet",
            f"--config={path}",
            f"--kubeconfig={identity.kubeconfig('node')}",
            f"--hostname-override={NAME}",
            f"--node-ip={network.host}",
            "--root-dir=/var/lib/kubelet",
        ]
        url = f"http://{network.node}:{_HEALTH_PORT}/healthz"
        return Server(name="kubelet", argv=argv, ready=lambda: answers(url))

    def _upper(self, path: str) -> Path:
        return self._directory / "overlay" / path.strip("/").replace("/", "-")
