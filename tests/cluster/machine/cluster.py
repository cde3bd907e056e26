"""One Kubernetes with one node on this machine, from nothing to Ready and away again.

Servers start side by side: the node's namespace and the images are made while the API server comes up. What a
caller can do with a cluster is told in the docstring of tests/cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx2
import lightkube
from lightkube import codecs
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.resource import Resource
from lightkube.resources.core_v1 import Node, ServiceAccount

from tests.cluster.machine import binaries, cgroups, control, images
from tests.cluster.machine.control import Server
from tests.cluster.machine.errors import ClusterError, until
from tests.cluster.machine.identity import Identity
from tests.cluster.machine.images import Image
from tests.cluster.machine.network import Network
from tests.cluster.machine.node import NAME, PAUSE, RUNTIME_SOCKET, NodeFiles
from tests.cluster.machine.programs import ROOT, Program, Space

_PREFIX = "vcuda-cluster-"
_OWNER = "owner"
_KEPT_LOGS = ROOT / "build" / "cluster" / "logs"
_REQUEST_S = 30
_TRIES = 3


class Cluster:
    """A cluster while the `with` block lasts; all of it is in a temporary directory and two spaces.

    Args:
        users: More users of the API: name to groups.
        mounts: What the node sees of this machine in other places: path there to path here.
        kubelet_config: Keys of KubeletConfiguration that go over ours.
        kubelet_env: Variables of the kubelet and containerd, and so of what they start (not of containers).
        apiserver_flags: More flags of kube-apiserver.

    Raises:
        CannotRunContainers: This machine cannot run one; says why.
        ClusterError: A server did not come up; says which, with the end of its log.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, Sequence[str]] | None = None,
        mounts: Mapping[str, Path] | None = None,
        kubelet_config: Mapping[str, Any] | None = None,
        kubelet_env: Mapping[str, str] | None = None,
        apiserver_flags: Sequence[str] = (),
    ) -> None:
        self._users = dict(users or {})
        self._mounts = dict(mounts or {})
        self._kubelet_config = dict(kubelet_config or {})
        self._kubelet_env = dict(kubelet_env or {})
        self._apiserver_flags = list(apiserver_flags)
        self._clients: dict[str, lightkube.Client] = {}
        self._images: dict[str, Image] = {}
        self._closing = contextlib.ExitStack()
        self.servers: dict[str, Program] = {}
        self.started_in_s = 0.0

    def __enter__(self) -> Self:
        began = time.monotonic()
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        self.started_in_s = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.keep_logs()
        for client in self._clients.values():
            _close(client)
        self._clients.clear()
        self._closing.close()

    def _start(self) -> None:
        self._binaries = binaries.find()
        sweep()
        self.network = Network()
        self._closing.callback(self.network.close)
        self.url = self.network.url
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._closing.enter_context(_owned(self.directory))
        self._closing.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.logs = self.directory / "logs"
        self.logs.mkdir()
        network, kubernetes = self.network, self._binaries.kubernetes
        addresses = [network.service, network.control, network.node, network.host, "127.0.0.1"]
        self.identity = Identity(
            self.directory / "identity", server=network.url, addresses=addresses, node=NAME
        )
        for user, groups in self._users.items():
            self.identity.add_static(user, user, groups)
        self.control = self._control_space()
        self._closing.callback(self.control.end)
        self.control.begin()
        self._serve(self.control, control.etcd(kubernetes, network, self.directory))
        self._files = NodeFiles(self.directory / "node")
        self.node = self._node_space()
        self._closing.callback(cgroups.remove, self.directory.name)
        self._closing.callback(self.node.end)
        self.node.begin()
        self.servers["etcd"].wait_ready()
        self._serve(
            self.control, control.apiserver(kubernetes, network, self.identity, more=self._apiserver_flags)
        )
        runtime = self._serve(self.node, self._files.containerd(network), env=self._kubelet_env)
        runtime.ready = self._runtime_answers
        self._base_images()
        runtime.wait_ready()
        self._import(self._images[PAUSE])
        self.servers["apiserver"].wait_ready()
        config = self.directory / "scheduler.yaml"
        self._serve(self.control, control.scheduler(kubernetes, network, self.identity, config))
        self._serve(self.control, control.controller_manager(kubernetes, network, self.identity))
        kubelet = self._files.kubelet(kubernetes, network, self.identity, config=self._kubelet_config)
        self._serve(self.node, kubelet, env=self._kubelet_env)
        for name in ("busybox:test", "glibc:test"):
            self._import(self._images[name])
        for name in ("kubelet", "controller-manager", "scheduler"):
            self.servers[name].wait_ready()
        self.wait_node_ready()
        until(
            "service account default/default",
            lambda: self.client().get(ServiceAccount, "default", namespace="default"),
        )

    # --- servers

    def kill(self, name: str) -> None:
        """SIGKILL a server, and wait until it is gone."""
        self._server(name).kill()

    def start(self, name: str) -> None:
        """Start a server that was killed; it need not be ready yet."""
        self._server(name).start()

    def restart(self, name: str) -> None:
        """Kill a server, start it again, and wait until it is ready."""
        self._server(name).restart()

    def reboot(self) -> None:
        """Kill all of the node, as a loss of power does, and boot it: containerd, kubelet, nothing else."""
        self.node.end()
        cgroups.remove(self.directory.name)
        self.node.setup = self._files.setup()
        self.node.begin()
        for name in ("containerd", "kubelet"):
            self._bring_up(name)

    def _bring_up(self, name: str) -> None:
        """As systemd does: a kubelet that asks containerd too early ends, and is started again."""
        for left in reversed(range(_TRIES)):
            self.servers[name].start()
            try:
                self.servers[name].wait_ready()
            except ClusterError:
                if self.servers[name].running or not left:
                    raise
            else:
                return

    def keep_logs(self) -> None:
        """Copy the logs so far to build/cluster/logs, and say where they are."""
        if hasattr(self, "logs"):
            kept = _KEPT_LOGS / self.directory.name
            shutil.copytree(self.logs, kept, dirs_exist_ok=True)
            print(f"cluster: its logs are kept in {kept}", flush=True)

    def wait_node_ready(self, *, timeout_s: float = 60) -> None:
        """Wait until the node says that it is ready.

        Raises:
            ClusterError: It does not in time; with the end of the kubelet's log.
        """

        def ready() -> bool:
            self.servers["kubelet"].pid  # noqa: B018  # raises if it is gone
            status = self.client().get(Node, NAME).status
            conditions = (status and status.conditions) or []
            return any(each.type == "Ready" and each.status == "True" for each in conditions)

        try:
            until(f"node {NAME}: Ready", ready, timeout_s=timeout_s)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.servers['kubelet'].log_tail()}") from error

    # --- users

    def add_user(self, user: str, token: str) -> None:
        """Call the holder of `token` `user`, for `client`, `kubectl` and `kubeconfig`."""
        self.identity.add(user, token)
        if user in self._clients:
            _close(self._clients.pop(user))

    def token(self, user: str = "admin") -> str:
        return self.identity.tokens[user]

    def kubeconfig(self, user: str = "admin") -> Path:
        return self.identity.kubeconfig(user)

    def client(self, user: str = "admin", *, namespace: str = "default") -> lightkube.Client:
        """A lightkube client, kept and closed with the cluster; it never goes through a proxy."""
        if user not in self._clients:
            config = KubeConfig.from_file(self.kubeconfig(user))
            timeout = httpx2.Timeout(_REQUEST_S)
            self._clients[user] = lightkube.Client(
                config, namespace=namespace, timeout=timeout, trust_env=False
            )
        return self._clients[user]

    def account_token(
        self, account: str, *, namespace: str = "default", node: str = "", seconds: int = 3600
    ) -> str:
        """A token of an existing service account, by TokenRequest; with `node` bound to that Node object."""
        command = ["create", "token", account, f"--namespace={namespace}", f"--duration={seconds}s"]
        if node:
            command += ["--bound-object-kind=Node", f"--bound-object-name={node}"]
        return self.kubectl(*command).strip()

    def kubectl(
        self, *arguments: str | Path, user: str = "admin", stdin: str = "", timeout_s: float = 60
    ) -> str:
        """What kubectl prints; `stdin` is for `apply -f -`.

        Raises:
            ClusterError: It failed; with what it said.
        """
        command = [self.kubectl_path, f"--kubeconfig={self.kubeconfig(user)}", *arguments]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s, cwd=ROOT
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    @property
    def kubectl_path(self) -> Path:
        """The kubectl of the servers' own version."""
        return self._binaries.kubernetes / "kubectl"

    def create(self, thing: Resource | Mapping[str, Any], *, user: str = "admin") -> Any:
        """Create an object, a manifest or one of lightkube's; the object that the server made of it."""
        resource = codecs.from_dict(dict(thing)) if isinstance(thing, Mapping) else thing
        return cast(Any, self.client(user)).create(resource)  # which overload it is, nobody knows before

    def address(self, number: int) -> str:
        """A loopback address of this cluster's own: for a Service's cluster IP and the server behind it."""
        return self.network.address(number)

    # --- images

    def image(
        self,
        name: str,
        files: Mapping[str, Path | bytes | str],
        *,
        entrypoint: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        base: str = "glibc:test",
    ) -> str:
        """Make an image (images.build) on top of `base` ("" for none), and give it to the node; its name."""
        full = _full(name)
        self._images[name] = images.build(
            full,
            files,
            directory=self._files.images,
            entrypoint=entrypoint,
            env=env,
            base=self._images[base] if base else None,
        )
        self._import(self._images[name])
        return name

    def _base_images(self) -> None:
        directory, busybox = self._files.images, self._binaries.busybox
        self._images[PAUSE] = images.build(
            PAUSE, {"/init": self._binaries.init}, directory=directory, entrypoint=["/init"]
        )
        self._images["busybox:test"] = images.build(
            _full("busybox:test"), images.busybox_files(busybox), directory=directory
        )
        self._images["glibc:test"] = images.build(
            _full("glibc:test"), images.glibc_files(busybox), directory=directory
        )

    def _import(self, image: Image) -> None:
        self.node.run(
            "ctr",
            "--address",
            RUNTIME_SOCKET,
            "--namespace",
            "k8s.io",
            "images",
            "import",
            image.archive,
            timeout_s=120,
        )

    # --- inside

    def _control_space(self) -> Space:
        hosts = self.directory / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{self.network.node} {NAME}\n")
        return Space(
            "control plane",
            setup=f"mount --bind {hosts} /etc/hosts",
            init=self._binaries.init,
            log=self.logs / "control-plane.log",
        )

    def _node_space(self) -> Space:
        for target, source in self._mounts.items():
            self._files.mount(target, source)
        return Space(
            "node",
            setup=self._files.setup(),
            init=self._binaries.init,
            log=self.logs / "node.log",
            cgroup=self.directory.name,
        )

    def _serve(self, space: Space, server: Server, *, env: Mapping[str, str] | None = None) -> Program:
        program = space.start(server.name, server.argv, env=env)
        program.ready = server.ready
        self.servers[server.name] = program
        return program

    def _server(self, name: str) -> Program:
        if name not in self.servers:
            raise ClusterError(f"server '{name}': there are {', '.join(sorted(self.servers))}")
        return self.servers[name]

    def _runtime_answers(self) -> bool:
        done = self.node.run(
            "ctr",
            "--address",
            RUNTIME_SOCKET,
            "--connect-timeout=1s",
            "--namespace=k8s.io",
            "plugins",
            "ls",
            check=False,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        return any(line[:2] == ["io.containerd.grpc.v1", "cri"] and line[-1] == "ok" for line in lines)


def sweep() -> None:
    """Remove directories and control groups of clusters whose owners were killed (nothing of them runs)."""
    for mark in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_OWNER}"):
        with contextlib.suppress(OSError), mark.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cgroups.remove(mark.parent.name)
            shutil.rmtree(mark.parent, ignore_errors=True)


@contextlib.contextmanager
def _owned(directory: Path) -> Generator[None]:
    """Hold a lock in `directory` that ends with this process. The file appears locked: no sweep takes it."""
    unnamed = directory / f"{_OWNER}.new"
    with unnamed.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(directory / _OWNER)
        yield


def _full(name: str) -> str:
    return name if name.startswith("docker.io/") else f"docker.io/library/{name}"


def _close(client: lightkube.Client) -> None:
    """lightkube has no way to close its connections but through its inner client."""
    cast(Any, client)._client._client.close()
