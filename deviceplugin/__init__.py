"""The node side: `vcuda-node`, one on each node with cards.

Decides (`state`, `allocation`, `starting`: pure), keeps books (`tickets`), serves the kubelet (`server`,
`kubelet`), watches (`inventory`, `cluster`, `processes`), and tells (`metrics`). It stands on `vcuda` and
knows nothing of `admission`. What is decided how: docs/decisions/0003-way-of-a-request.md.
"""
