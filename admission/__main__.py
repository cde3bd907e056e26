"""The command `vcuda-admission`: the webhook, or the controller of queue and placement."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from admission import controller as controllers
from admission import webhook as webhooks
from admission.controller import ControllerSettings
from admission.settings import read_settings
from vcuda.errors import VcudaError
from vcuda.kube.names import POLICIES
from vcuda.settings import settings_error

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="VCUDA_ADMISSION_LOG_LEVEL",
    show_default=True,
    help="How much is said on standard error.",
)
def main(log_level: str) -> None:
    """Admission of pods that ask for shares of cards: the webhook, and the controller that places them."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)


@main.command()
@click.option("--config", type=_FILE, envvar="VCUDA_ADMISSION_CONFIG", help="Settings, YAML.")
@click.option("--host", help="The address to listen on; without it, all.")
@click.option("--port", type=int, help="The port of /mutate, over TLS.  [default: 8443]")
@click.option("--health-port", type=int, help="Of /healthz, /readyz and /metrics.  [default: 8080]")
@click.option(
    "--certificate-file", type=_FILE, help="A certificate that somebody else renews; with --key-file."
)
@click.option("--key-file", type=_FILE, help="Its key.")
@click.option("--kubeconfig", type=_FILE, help="How to reach the API server, outside a pod.")
def webhook(config: Path | None, **flags: object) -> None:
    """Serve /mutate: check pods that ask for a share, put it in vcuda's resources, and gate them.

    All settings can be given in the file and, as VCUDA_ADMISSION_NAME, in the environment.
    """
    _run("webhook", lambda: webhooks.run(read_settings(config, **flags)))


@main.command()
@click.option("--kubeconfig", type=_FILE, help="How to reach the API server, outside a pod.")
@click.option("--policy", type=click.Choice(POLICIES), help="How cards are chosen.  [default: binpack]")
@click.option("--metrics-port", type=int, help="Of /metrics.  [default: none]")
def controller(**flags: object) -> None:
    """Place pods that wait, in order of arrival; of several replicas one does, the others stand by.

    All settings can be given as VCUDA_CONTROLLER_NAME in the environment.
    """
    _run("controller", lambda: _until_told(controllers.run(_controller_settings(**flags))))


def _controller_settings(**flags: object) -> ControllerSettings:
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    try:
        return ControllerSettings(**given)
    except ValidationError as error:
        raise settings_error(error) from error


async def _until_told(run: Coroutine[Any, Any, None]) -> None:
    """Run until SIGTERM or SIGINT, and then to the end that it makes of that.

    Raises:
        Exception: of what is run.

    """
    task = asyncio.ensure_future(run)
    told = False

    def tell() -> None:
        nonlocal told
        told = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise


def _run(name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        asyncio.run(make())
    except (VcudaError, OSError) as error:
        raise click.ClickException(f"vcuda-admission {name}: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main(prog_name="vcuda-admission")
