"""The names that vcuda uses in the Kubernetes API. One place for all of them."""

from dataclasses import dataclass

DOMAIN = "vcuda.dev"
"""The default prefix of resources, annotations and labels."""

MEMORY_UNIT_BYTES = 256 * 2**20
"""Of one `vcuda-memory`, unless a cluster chooses another one."""
CORES_PER_CARD = 100

TENCENT_CORE = "tencent.com/vcuda-core"
TENCENT_MEMORY = "tencent.com/vcuda-memory"
"""In 256 MiB."""
ALIYUN_MEMORY = "aliyun.com/gpu-mem"
ALIYUN_COUNT = "aliyun.com/gpu-count"


@dataclass(frozen=True, kw_only=True)
class Names:
    """All names under one prefix."""

    domain: str = DOMAIN

    @property
    def core(self) -> str:
        """The resource of which a card has 100."""
        return f"{self.domain}/vcuda-core"

    @property
    def memory(self) -> str:
        """The resource of which one is a unit of a card's memory."""
        return f"{self.domain}/vcuda-memory"

    @property
    def gate(self) -> str:
        """The scheduling gate of a pod that waits for its placement."""
        return f"{self.domain}/placement"

    @property
    def placement(self) -> str:
        """The pod annotation that says where it was placed; the controller's alone (see placements.py)."""
        return f"{self.domain}/placement"

    @property
    def arrival(self) -> str:
        """The pod annotation with the instant when the webhook saw it: ns since 1970; the webhook's alone."""
        return f"{self.domain}/arrival"

    @property
    def managed(self) -> str:
        """The pod label, always "true", of each pod that asks for a share; the webhook's alone."""
        return f"{self.domain}/managed"

    @property
    def queue(self) -> str:
        """The pod label with the queue, within its namespace, that a pod stands in."""
        return f"{self.domain}/queue"

    @property
    def cores_max(self) -> str:
        """The pod annotation with the elastic ceiling of its shares, in percent of a card."""
        return f"{self.domain}/cores-max"

    @property
    def priority(self) -> str:
        """The pod annotation with the priority of its shares on a card: low, normal or high."""
        return f"{self.domain}/priority"

    @property
    def memory_bytes(self) -> str:
        """The pod annotation with the memory of containers that asked for less than whole units.

        An object of JSON, container to bytes. The webhook writes it; it can only make a share smaller.
        """
        return f"{self.domain}/memory-bytes"

    @property
    def policy(self) -> str:
        """The pod annotation with how cards are chosen: binpack or spread."""
        return f"{self.domain}/policy"

    @property
    def cards(self) -> str:
        """The node annotation with the node's cards (see nodes.py); the node agent's alone."""
        return f"{self.domain}/cards"

    @property
    def moved(self) -> str:
        """The node annotation with the pods that hold other cards than they were placed on (see nodes.py)."""
        return f"{self.domain}/moved"

    @property
    def condition(self) -> str:
        """The pod condition that tells a waiting pod's place in the queue and why it waits."""
        return f"{self.domain}/Placed"


ALIASES = (TENCENT_CORE, TENCENT_MEMORY, ALIYUN_MEMORY, ALIYUN_COUNT)
"""Resources of other systems that stand for shares; the webhook puts vcuda's own in their place."""

PRIORITIES = {"low": -1, "normal": 0, "high": 1}
POLICIES = ("binpack", "spread")
