"""Networks of namespaces to try tunlb in: topologies as data, built and removed by name."""

from __future__ import annotations

from tunlb.lab.host import Host, LabError
from tunlb.lab.net import Lab
from tunlb.lab.process import TunlbProcess
from tunlb.lab.topology import TOPOLOGIES, Topology

__all__ = ["TOPOLOGIES", "Host", "Lab", "LabError", "Topology", "TunlbProcess"]
