"""The node side, not written yet: the Kubernetes device plugin.

It will discover cards through NVML, advertise shares to the kubelet, write grant and ledger per container,
and compare NVML's view with the ledgers. It stands on `vcuda` and knows nothing of `admission`.
"""
