"""vcuda: share one NVIDIA GPU between unmodified CUDA programs.

The public face of the library: grants, ledgers, sizes, placement. The command line is in `vcuda.commands`.
"""

from vcuda.errors import GrantError, LedgerError, RefusedError, VcudaError
from vcuda.grant import CardGrant, Grant
from vcuda.ledger import Ledger
from vcuda.placement import CardRoom, Placement, Request, place
from vcuda.units import format_size, parse_size

__all__ = [
    "CardGrant",
    "CardRoom",
    "Grant",
    "GrantError",
    "Ledger",
    "LedgerError",
    "Placement",
    "RefusedError",
    "Request",
    "VcudaError",
    "format_size",
    "parse_size",
    "place",
]
