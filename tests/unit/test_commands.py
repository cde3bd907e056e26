"""The command line without a machine: help, wrong use, and what it makes of its arguments."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.cli_reference import commands
from vcuda import symbols
from vcuda.__main__ import NAMES, cli
from vcuda.errors import VcudaError
from vcuda.run import preloads

SHIM = Path("/opt/vcuda/libvcuda.so")


def test_commands_are_listed_in_the_order_in_which_they_are_needed() -> None:
    assert (
        [command.name for command in commands()]
        == list(NAMES)
        == [*("run", "set", "cards", "ps", "top", "doctor", "bench", "queue", "explain")]
    )


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert f"\n    vcuda {name}" in shown.output
    assert "\b" not in shown.output


def test_no_command_is_answered_with_the_help() -> None:
    shown = CliRunner().invoke(cli, [])
    assert shown.exit_code == 2
    assert shown.output.startswith("Usage: vcuda [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "vcuda: no such command 'fly'; see 'vcuda --help'\n"),
        (["--fly"], "vcuda: no such option '--fly'; see 'vcuda --help'\n"),
        (["ps", "--fly"], "vcuda ps: no such option '--fly'; see 'vcuda ps --help'\n"),
        (
            ["top", "--interval", "0"],
            (
                "vcuda top: invalid value for '--interval': 0.0 is not in the range x>=0.1; "
                "see 'vcuda top --help'\n"
            ),
        ),
        (["run"], "vcuda run: missing argument 'COMMAND [ARGUMENT...]'; see 'vcuda run --help'\n"),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments: list[str], said: str) -> None:
    shown = CliRunner().invoke(cli, arguments)
    assert (shown.exit_code, shown.stderr, shown.stdout) == (2, said, "")


def test_version_is_told() -> None:
    shown = CliRunner().invoke(cli, ["--version"])
    assert shown.exit_code == 0
    assert shown.output.startswith("vcuda")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "/opt/vcuda/libvcuda.so"),
        ("libm.so.6", "/opt/vcuda/libvcuda.so libm.so.6"),
        ("a.so:b.so c.so", "/opt/vcuda/libvcuda.so a.so b.so c.so"),
        ("/opt/vcuda/libvcuda.so", "/opt/vcuda/libvcuda.so"),
        ("a.so /other/libvcuda.so", "/opt/vcuda/libvcuda.so a.so"),
    ],
)
def test_shim_stands_in_front_of_what_is_preloaded_once(before: str, after: str) -> None:
    assert preloads(SHIM, before) == after


def test_container_that_has_a_share_gets_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcuda.run.MOUNTED", tmp_path)
    shown = CliRunner().invoke(cli, ["run", "--memory", "1GiB", "--", "true"])
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr == (
        f"vcuda run: {tmp_path} is there: this container has a share already; "
        "start the program without vcuda\n"
    )


def test_exported_names_of_a_library_are_read_from_its_file() -> None:
    from vcuda import _abi  # pyright: ignore[reportAttributeAccessIssue]

    assert symbols.exported(Path(_abi.__file__)) == ["PyInit__abi"]


def test_what_is_no_library_has_no_names() -> None:
    with pytest.raises(VcudaError, match="not a 64-bit ELF library"):
        symbols.exported(Path(__file__))


def test_help_loads_neither_rich_nor_the_driver() -> None:
    code = "import sys, vcuda.__main__; print([name for name in ('rich', 'pynvml') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
