"""Waking who sleeps on a word of shared memory: futex(2), which Python has no function for."""

import ctypes
import platform

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
_FUTEX_WAKE = 1
_EVERYBODY = 2**31 - 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def wake(address: int) -> int:
    """Wake all processes that sleep on the 32-bit word at `address`; returns how many slept.

    On a machine whose number for the call is not known, nobody is woken: they look again by themselves.
    """
    if _SYS_FUTEX is None:
        return 0
    woken = _libc.syscall(
        ctypes.c_long(_SYS_FUTEX),
        ctypes.c_void_p(address),
        ctypes.c_long(_FUTEX_WAKE),
        ctypes.c_long(_EVERYBODY),
        None,
        None,
        ctypes.c_long(0),
    )
    return max(0, woken)
