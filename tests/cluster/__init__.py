"""Tests on a real Kubernetes 1.34 with one real node, all on this machine: what there is, and how to use it.

Start one:

    from tests.cluster.machine import Cluster

    with Cluster() as cluster:                # all up and the node Ready inside; all gone after it
        cluster.kubectl("apply", "-k", "manifests/base")
        cluster.create(pods.pod("one", resources={"vcuda.dev/vcuda-core": 30}))

In tests take the fixture `cluster` (one for the session). `python -m tests.cluster.machine` starts one and
keeps it until Ctrl-C, with what to type to look into it. The first time tools/kubernetes/build.sh builds
the servers.

**Addresses.** Each cluster has a network of its own in the loopback range, 127.N.0.0/16 (N is free, from 96
on), which is also the range of its Services. The API server is 127.N.0.1:443 (`cluster.url`), so the
in-cluster address (the variables KUBERNETES_SERVICE_HOST and _PORT, Service `default/kubernetes`) works in
pods with `hostNetwork: true`. There is no kube-proxy: the API server calls a webhook's Service at its
cluster IP; so give the Service `clusterIP: cluster.address(50)`, and let the server bind to that (a server
on the host does the same). `clientConfig.url` works as well. Pods without hostNetwork have a network of
their own with nothing but loopback.

**Who you are.** `cluster.kubeconfig(user)` is a file, `cluster.client(user)` a lightkube client,
`cluster.token(user)` the bearer token, `cluster.kubectl(..., user=user)` the command, for the users "admin"
(system:masters), "node" (system:node:node-1, which the kubelet is), "scheduler", and those you name:
`Cluster(users={"alice": ["team-a"]})`. For a service account: `cluster.account_token("vcuda-node",
namespace="vcuda-system", node="node-1")` asks for a token as the kubelet would; with `node=` it is bound to
the Node and carries authentication.kubernetes.io/node-name. Such a token is a user too:
`cluster.add_user("agent", token)`. Authorization is Node,RBAC; admission has NodeRestriction, the webhooks
and ValidatingAdmissionPolicy besides the defaults.

**The node** has mount, PID and cgroup namespaces of its own: /run is empty at its boot, /var/lib, /etc and
/opt are overlays of the host's, /var/log is its own, so nothing of the host is touched, and the usual paths
hold: /var/lib/kubelet/device-plugins, /var/lib/kubelet/pod-resources/kubelet.sock,
/run/containerd/containerd.sock, /var/log/pods. Paths elsewhere (the checkout, /tmp) are the host's. To run
something there:

    cluster.node.run("ls", "/var/lib/kubelet/device-plugins")        # -> CompletedProcess, text; fails loudly
    agent = cluster.node.start("vcuda-node", ["build/venv/bin/python", "-m", "deviceplugin"], env={...})
    agent.pid, agent.running, agent.log()
    agent.kill()  # SIGKILL
    agent.stop()  # SIGTERM; then agent.start(), or agent.restart()

`cluster.control.start(name, argv, env=...)` is the same beside the control plane (on the host's mounts):
for vcuda-admission. What was started so ends with the cluster at the latest. If the tests' process is
killed, the kernel ends it all.

**Servers**: "etcd", "apiserver", "controller-manager", "scheduler", "containerd", "kubelet":
`cluster.kill(name)`, `cluster.restart(name)` (which waits until it is ready; SIGKILL, then start),
`cluster.servers[name]`. `cluster.reboot()` kills all of the node, containers and agents too, empties /run,
changes the boot id, and starts containerd and kubelet again. Logs of all are in `cluster.logs`, kept when
the block ends with an exception; what failed is printed with the last lines.

**Images**: "busybox:test" (static, knows no preload), "glibc:test" (dynamic bash, as /bin/sh too, and
python3; obeys /etc/ld.so.preload). More: `cluster.image("client:test", {"/bin/client": path},
entrypoint=["/bin/client"], base=...)` adds the libraries that programs need by themselves. Pods say
`imagePullPolicy: Never` (`pods.pod` does).
"""
