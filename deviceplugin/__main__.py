"""`vcuda-node`: the agent of one node. Its settings are in settings.py."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from deviceplugin.settings import read_settings
from vcuda.errors import VcudaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `vcuda-node`; 0 when it was told to end, 1 for what went wrong, 2 for settings."""
    try:
        settings = read_settings(sys.argv[1:] if arguments is None else arguments)
    except VcudaError as error:
        print(f"vcuda-node: {error}; see 'vcuda-node --help'", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # They tell of each request.
    for noisy in ("httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from deviceplugin.agent import serve  # after the settings: --help needs none of it

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(settings, stop)

    try:
        asyncio.run(run())
    except VcudaError as error:
        print(f"vcuda-node: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
