"""The command `vcuda-admission`: its help, what it says of settings that cannot be, and its end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from admission.__main__ import main
from tests.unit.test_admission_server import new_chain

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", main.commands.values(), ids=lambda command: str(command.name))
def test_command_has_help_for_itself_and_each_option(command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        assert isinstance(parameter, click.Option)
        assert parameter.help, parameter.opts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["webhook", "--port", "-1"],
            "settings: port: Input should be greater than or equal to 0",
        ),
        (
            ["webhook", "--config", "/nowhere/settings.yaml"],
            "settings: /nowhere/settings.yaml: no such file",
        ),
        (
            ["webhook", "--key-file", "x"],
            "settings: together: certificate_file and key_file: one without the other; set both or none",
        ),
        (
            [
                "webhook",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--health-port",
                "0",
                "--kubeconfig",
                "/nowhere",
            ],
            "Kubernetes: no way to the API server: Configuration file /nowhere not found; set kubeconfig",
        ),
        (
            ["controller", "--metrics-port", "-1"],
            "settings: metrics_port: Input should be greater than or equal to 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_setting_that_cannot_be_is_told_in_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output == f"Error: vcuda-admission {arguments[0]}: {message}\n"


@pytest.mark.parametrize("certificate", [True, False], ids=["serving", "waiting for its certificate"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_webhook_ends_when_it_is_told_to(tmp_path: Path, certificate: bool, number: signal.Signals) -> None:
    files = tmp_path / "tls.crt", tmp_path / "tls.key"
    if certificate:
        serving = new_chain().serving
        files[0].write_bytes(serving.certificate_pem)
        files[1].write_bytes(serving.key_pem)
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"host: 127.0.0.1\nport: 0\nhealth_port: 0\ndrain_s: 0\n"
        f"certificate_file: {files[0]}\nkey_file: {files[1]}\n"
    )
    command = [sys.executable, "-m", "admission", "webhook", "--config", str(settings)]
    expected = (
        "serving /mutate on port" if certificate else "tls.crt: No such file or directory; trying again"
    )
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            said = ""
            while expected not in said:
                line = process.stderr.readline()
                assert line, f"it ended: {said}"
                said += line
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait(60) == 0, rest
            assert "Traceback" not in said + rest
        finally:
            process.kill()
