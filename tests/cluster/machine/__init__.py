"""A real Kubernetes on this machine, for tests and demos: see the docstring of tests/cluster."""

from tests.cluster.machine.cluster import Cluster
from tests.cluster.machine.errors import CannotRunContainers, ClusterError, until
from tests.cluster.machine.node import NAME as NODE
from tests.cluster.machine.programs import Program, Space

__all__ = ["NODE", "CannotRunContainers", "Cluster", "ClusterError", "Program", "Space", "until"]
