"""The documentation against the program: every command has help, is mentioned, and is quoted as it is."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tools.cli_reference import REFERENCE, commands, reference
from vcuda.ledger import Kind

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_command_has_help_for_itself_and_each_option(command: click.Command) -> None:
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{command.name} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_command_is_mentioned_in_readme_and_docs(command: click.Command) -> None:
    mention = f"vcuda {command.name}"
    assert mention in (ROOT / "README.md").read_text()
    assert any(mention in page.read_text() for page in PAGES if page not in (REFERENCE, ROOT / "README.md"))


def test_reference_quotes_the_help_as_it_is() -> None:
    assert REFERENCE.read_text() == reference(), "run: python -m tools.cli_reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_exist(page: Path) -> None:
    names = {command.name for command in commands()}
    for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
        for name in re.findall(r"^ *vcuda ([a-z]+)", block, re.MULTILINE):
            assert name in names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_in_the_docs_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert name in targets


def test_every_kind_of_charge_is_explained() -> None:
    text = (ROOT / "docs/explanation/memory.md").read_text()
    for kind in Kind:
        assert f"| {kind.name.lower()} |" in text


def test_help_is_printed_without_a_machine() -> None:
    from vcuda.__main__ import cli

    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
