"""Call every function that a library exports with zeros for arguments, each in a process of its own.

Usage: call_everything.py LIBRARY PREFIX FIRST

Prints one JSON object: how each function whose name begins with PREFIX and a capital ended. A number is the
status that it answered, "signal 11" its death. FIRST is called once before all of them, with zeros too; "-"
calls none. Functions are found through dlsym, as programs find them.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import subprocess
import sys

ARGUMENTS = 14
SECONDS = 3
POINTERS = {"nvmlErrorString"}
"""Functions that answer with a text."""


def exported(library: str, prefix: str) -> list[str]:
    """The names of the functions that the library's symbol table has."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True, env=environment
    )
    symbols = (line.split() for line in listing.stdout.splitlines())
    names = (symbol[2].partition("@")[0] for symbol in symbols if symbol[1] in "TWi")
    return sorted(name for name in names if name.startswith(prefix) and name[len(prefix)].isupper())


def call(library: ctypes.CDLL, name: str) -> int:
    """The function's status, or for a text the sum of its bytes."""
    function = library[name]
    function.argtypes = [ctypes.c_void_p] * ARGUMENTS
    if name in POINTERS:
        function.restype = ctypes.c_char_p
        return sum(function(*[None] * ARGUMENTS))
    return function(*[None] * ARGUMENTS)


def outcome(library: ctypes.CDLL, name: str) -> int | str:
    """How a call of the function ends in a child of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(SECONDS)
        os.write(writer, struct.pack("q", call(library, name)))
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 8)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        return f"signal {-status}"
    return struct.unpack("q", answer)[0] if len(answer) == 8 else f"exit {status}"


def main() -> None:
    path, prefix, first = sys.argv[1:]
    library = ctypes.CDLL(path)
    if first != "-":
        call(library, first)
    print(json.dumps({name: outcome(library, name) for name in exported(path, prefix)}))


if __name__ == "__main__":
    main()
