"""A kubelet and an API server for `vcuda-node`: real sockets, real gRPC, real HTTP, no containers."""

from __future__ import annotations

import base64
import json
import os
import queue
import random
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client.parser import text_string_to_metric_families

from deviceplugin._proto import device_plugin_pb2 as plugin
from deviceplugin._proto import device_plugin_pb2_grpc as plugin_grpc
from deviceplugin._proto import pod_resources_pb2 as resources
from deviceplugin._proto import pod_resources_pb2_grpc as resources_grpc
from tests import support
from vcuda.kube import placements
from vcuda.kube.names import Names
from vcuda.kube.placements import CardShare, PodPlacement

NODE = "node-1"
NAMES = Names()
UNIT_BYTES = 2**28
SHOW = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
total, free, context, at = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_uint64()
count = ctypes.c_int()
assert cuda.cuInit(0) == 0
cuda.cuDeviceGetCount(ctypes.byref(count))
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
cuda.cuCtxSetCurrent(context)
cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
fits = cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(free.value // 2**21 * 2**21 - 2**21))
beyond = cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(2**23))
print(count.value, total.value, fits, beyond, flush=True)
if len(sys.argv) > 1:
    sys.stdin.readline()
"""
"""A program: prints how many cards there are, the first one's size, if what is free can be had, and more."""


class FakeApiServer:
    """Pods, one node, one ConfigMap and Events, as far as a node's agent asks for them."""

    def __init__(self, tmp_path: Path) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.pods: dict[str, dict[str, Any]] = {}
        self.annotations: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        self.away = False
        self._version = 1
        self._watchers: list[queue.Queue[dict[str, Any] | None]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.kubeconfig = tmp_path / "kubeconfig"
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        named = {"clusters": ("cluster", {"server": url}), "users": ("user", {"token": "t"})}
        content: dict[str, Any] = {
            field: [{"name": "it", kind: value}] for field, (kind, value) in named.items()
        }
        content["contexts"] = [{"name": "it", "context": {"cluster": "it", "user": "it"}}]
        self.kubeconfig.write_text(json.dumps({**content, "current-context": "it"}))

    def close(self) -> None:
        for each in self._watchers:
            each.put(None)
        self._server.shutdown()
        self._server.server_close()

    def put(self, pod: dict[str, Any]) -> None:
        with self._lock:
            self._version += 1
            uid = pod["metadata"]["uid"]
            kind = "MODIFIED" if uid in self.pods else "ADDED"
            pod["metadata"]["resourceVersion"] = str(self._version)
            self.pods[uid] = pod
            self._tell(kind, pod)

    def delete(self, pod: dict[str, Any]) -> None:
        with self._lock:
            self._version += 1
            self.pods.pop(pod["metadata"]["uid"])
            self._tell(
                "DELETED", {**pod, "metadata": {**pod["metadata"], "resourceVersion": str(self._version)}}
            )

    def pod(
        self,
        name: str,
        *,
        cores: int,
        units: int,
        cards: tuple[str, ...],
        key: Ed25519PrivateKey | None = None,
        memory_bytes: int = 0,
    ) -> dict[str, Any]:
        """A pod of one container `main`, placed on cards; made known."""
        uid = f"{random.getrandbits(32):08x}-0000-4000-8000-{random.getrandbits(48):012x}"
        whole = cores % 100 == 0 and cores > 0
        shares = tuple(
            CardShare(
                uuid=card,
                cores=100 if whole else cores,
                cores_max=100 if whole else cores,
                memory_bytes=memory_bytes or units * UNIT_BYTES,
                whole=whole,
            )
            for card in cards
        )
        placed = PodPlacement(uid=uid, node=NODE, containers={"main": shares})
        asks = {NAMES.core: cores, NAMES.memory: units}
        pod = {
            "metadata": {
                "uid": uid,
                "name": name,
                "namespace": "default",
                "creationTimestamp": f"2026-01-01T00:00:{len(self.pods):02}Z",
                "annotations": {NAMES.placement: placements.encode(placed, key or self.key)},
            },
            "spec": {
                "nodeName": NODE,
                "containers": [
                    {
                        "name": "main",
                        "resources": {"limits": {each: str(count) for each, count in asks.items() if count}},
                    }
                ],
            },
            "status": {"phase": "Pending"},
        }
        self.put(pod)
        return pod

    def _tell(self, kind: str, pod: dict[str, Any]) -> None:
        for each in self._watchers:
            each.put({"type": kind, "object": pod})

    def _handler(api) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def _send(self, content: object, status: int = 200) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def _body(self) -> dict[str, Any]:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def _refused(self) -> bool:
                if api.away:
                    self._send({"message": "away"}, 503)
                return api.away

            def do_GET(self) -> None:
                if self._refused():
                    return
                if "watch=true" in self.path:
                    self._watch()
                elif self.path.startswith("/api/v1/pods"):
                    with api._lock:
                        items, version = list(api.pods.values()), str(api._version)
                    self._send({"metadata": {"resourceVersion": version}, "items": items})
                elif "/configmaps/" in self.path:
                    public = api.key.public_key().public_bytes(
                        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
                    )
                    self._send({"data": {"public.pem": public.decode()}})
                else:
                    self._send({"metadata": {"name": NODE, "annotations": api.annotations}})

            def do_PATCH(self) -> None:
                body = self._body()
                if self._refused():
                    return
                for name, value in body["metadata"]["annotations"].items():
                    if value is None:
                        api.annotations.pop(name, None)
                    else:
                        api.annotations[name] = value
                self._send({})

            def do_POST(self) -> None:
                body = self._body()
                if not self._refused():
                    api.events.append(body)
                    self._send(body, 201)

            def _watch(self) -> None:
                mine: queue.Queue[dict[str, Any] | None] = queue.Queue()
                since = int(self.path.partition("resourceVersion=")[2].partition("&")[0])
                with api._lock:
                    for pod in api.pods.values():
                        if int(pod["metadata"]["resourceVersion"]) > since:
                            mine.put({"type": "MODIFIED", "object": pod})
                    api._watchers.append(mine)
                self.send_response(200)
                self.end_headers()
                try:
                    while (event := mine.get()) is not None:
                        if api.away:
                            return
                        self.wfile.write(json.dumps(event).encode() + b"\n")
                        self.wfile.flush()
                except OSError:
                    pass

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


class FakeKubelet(plugin_grpc.RegistrationServicer, resources_grpc.PodResourcesListerServicer):
    """Registers plugins, gives out ids, keeps a checkpoint, lists; `restart` forgets what is not in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "device-plugins").mkdir(parents=True)
        (directory / "pod-resources").mkdir()
        self.chance = random.Random(1)
        self.given: dict[tuple[str, str], dict[str, tuple[list[str], plugin.ContainerAllocateResponse]]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.plugins: dict[str, plugin_grpc.DevicePluginStub] = {}
        self.devices: dict[str, dict[str, str]] = {}
        self.registrations: list[str] = []
        self.servers: list[grpc.Server] = []
        self.begin()

    def begin(self) -> None:
        for directory, add in (
            ("device-plugins", plugin_grpc.add_RegistrationServicer_to_server),
            ("pod-resources", resources_grpc.add_PodResourcesListerServicer_to_server),
        ):
            for each in (self.directory / directory).glob("*.sock"):
                each.unlink()
            server = grpc.server(futures.ThreadPoolExecutor(4))
            add(self, server)
            server.add_insecure_port(f"unix:{self.directory / directory}/kubelet.sock")
            server.start()
            self.servers.append(server)

    def end(self) -> None:
        for server in self.servers:
            server.stop(0).wait()
        self.servers, self.plugins, self.devices = [], {}, {}

    def restart(self) -> None:
        self.end()
        self.begin()

    # ---- the kubelet's own services ----

    def Register(self, request, context):
        path = self.directory / "device-plugins" / request.endpoint
        stub = plugin_grpc.DevicePluginStub(
            grpc.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])
        )
        self.plugins[request.resource_name] = stub
        self.registrations.append(request.resource_name)
        threading.Thread(target=self._listen, args=(request.resource_name, stub), daemon=True).start()
        return plugin.Empty()

    def _listen(self, name: str, stub) -> None:
        try:
            for answer in stub.ListAndWatch(plugin.Empty()):
                self.devices[name] = {each.id: each.health for each in answer.devices}
        except grpc.RpcError:
            if self.plugins.get(name) is stub:
                self.devices.pop(name, None)

    def List(self, request, context):
        return resources.ListPodResourcesResponse(
            pod_resources=[
                resources.PodResources(
                    name=pod["metadata"]["name"],
                    namespace=pod["metadata"]["namespace"],
                    containers=[
                        resources.ContainerResources(
                            name="main",
                            devices=[
                                resources.ContainerDevices(resource_name=name, device_ids=ids)
                                for name, (ids, _) in self.given.get((uid, "main"), {}).items()
                            ],
                        )
                    ],
                )
                for uid, pod in list(self.pods.items())
            ]
        )

    def GetAllocatableResources(self, request, context):
        return resources.AllocatableResourcesResponse(
            devices=[
                resources.ContainerDevices(resource_name=name, device_ids=list(ids))
                for name, ids in self.devices.items()
            ]
        )

    def Get(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "is off by default")

    # ---- what it does ----

    def ready(self) -> bool:
        return all(name in self.devices for name in (NAMES.core, NAMES.memory))

    def healthy(self, name: str) -> int:
        return sum(health == "Healthy" for health in self.devices.get(name, {}).values())

    def admit(self, pod: dict[str, Any]) -> None:
        """Raises grpc.RpcError where the plugin refuses, and then the pod is not there any more."""
        uid = pod["metadata"]["uid"]
        self.pods[uid] = pod
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        names = list(limits)
        self.chance.shuffle(names)
        try:
            for name in names:
                taken = {each for given in self.given.values() for each in given.get(name, ([], None))[0]}
                free = [
                    each
                    for each, health in self.devices[name].items()
                    if each not in taken and health == "Healthy"
                ]
                ids = self.chance.sample(free, int(limits[name]))
                request = plugin.AllocateRequest(container_requests=[{"device_ids": ids}])
                answer = self.plugins[name].Allocate(request, timeout=30).container_responses[0]
                self.given.setdefault((uid, "main"), {})[name] = (ids, answer)
        except (grpc.RpcError, KeyError):
            self.forget(pod)
            raise
        self.write_checkpoint()

    def forget(self, pod: dict[str, Any]) -> None:
        self.pods.pop(pod["metadata"]["uid"], None)
        self.given.pop((pod["metadata"]["uid"], "main"), None)

    def write_checkpoint(self) -> None:
        entries = [
            {
                "PodUID": uid,
                "ContainerName": container,
                "ResourceName": name,
                "DeviceIDs": {"-1": ids},
                "AllocResp": base64.b64encode(answer.SerializeToString()).decode(),
            }
            for (uid, container), given in self.given.items()
            for name, (ids, answer) in given.items()
        ]
        content = {"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 0}
        (self.directory / "device-plugins" / "kubelet_internal_checkpoint").write_text(json.dumps(content))

    def start(self, pod: dict[str, Any]) -> dict[str, str]:
        """Have its container start; its programs' environment. Raises grpc.RpcError where it must not."""
        given = self.given[pod["metadata"]["uid"], "main"]
        for name, (ids, _) in given.items():
            self.plugins[name].PreStartContainer(plugin.PreStartContainerRequest(device_ids=ids), timeout=30)
        answers = [answer for _, answer in given.values()]
        mounts = {each.container_path: each.host_path for answer in answers for each in answer.mounts}
        for answer in answers:
            assert {each.container_path: each.host_path for each in answer.mounts} == mounts
        assert Path(mounts["/etc/ld.so.preload"]).read_text() == "/opt/vcuda/lib/libvcuda.so\n"
        assert Path(mounts["/run/vcuda/ledger"]).stat().st_mode & 0o777 == 0o666
        variables = dict(answers[0].envs)
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("VCUDA_", "SIMGPU_"))
            },
            **variables,
            "VCUDA_GRANT_DIR": mounts["/run/vcuda"],
            "LD_PRELOAD": mounts["/opt/vcuda/lib"] + "/libvcuda.so",
            "LD_LIBRARY_PATH": mounts["/opt/vcuda/sim"],
            "SIMGPU_DIR": mounts["/opt/vcuda/machine"],
        }


class Agent:
    """A `vcuda-node` with all of its files in a test's directory."""

    def __init__(self, tmp_path: Path, api: FakeApiServer, *, cards: str, **settings: str) -> None:
        self.run_dir = tmp_path / "node"
        self.log = tmp_path / "node.log"
        self.port = _free_port()
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("VCUDA_", "SIMGPU_")) and name not in ("LD_PRELOAD", "LD_LIBRARY_PATH")
        }
        self.env = {
            **clean,
            "PYTHONPATH": str(support.ROOT),
            "VCUDA_NODE_NAME": NODE,
            "VCUDA_NODE_RUN_DIR": str(self.run_dir),
            "VCUDA_NODE_KUBELET_DIR": str(tmp_path / "kubelet"),
            "VCUDA_NODE_KUBECONFIG": str(api.kubeconfig),
            "VCUDA_NODE_SIMULATED": cards,
            "VCUDA_NODE_METRICS_ADDRESS": f"127.0.0.1:{self.port}",
            "VCUDA_NODE_KUBELET_SECONDS": "0.05",
            "VCUDA_NODE_RECONCILE_SECONDS": "0.2",
            "VCUDA_NODE_HEALTH_SECONDS": "0.2",
            "VCUDA_NODE_OUTSIDE_SECONDS": "0.3",
            **{f"VCUDA_NODE_{name.upper()}": value for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "deviceplugin"],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """By name and label values (sorted by label): what a scrape says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10):
                return True
        except urllib.error.HTTPError as error:
            assert error.code == 503
            return False

    def tickets(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "shares").iterdir())

    def rss_bytes(self) -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        raise AssertionError("it is gone")


def program(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SHOW, *arguments],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def shown(process: subprocess.Popen[str]) -> tuple[int, int, int, int]:
    assert process.stdout is not None
    count, total, fits, beyond = map(int, process.stdout.readline().split())
    return count, total, fits, beyond


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
