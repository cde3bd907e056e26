"""docs/reference/cli.md from the command line's own help: `python -m tools.cli_reference`."""

from pathlib import Path

import click

from vcuda.__main__ import cli

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
WIDTH = 100
"""Of the page's lines, whatever terminal it is written on."""


def commands() -> list[click.Command]:
    """List the sub-commands, in the order of the help."""
    context = click.Context(cli)
    found = (cli.get_command(context, name) for name in cli.list_commands(context))
    return [command for command in found if command is not None]


def reference() -> str:
    """Write the page's text."""
    top = click.Context(cli, info_name="vcuda", terminal_width=WIDTH, **cli.context_settings)
    parts = [
        "# Command line\n",
        "Generated from `--help` by `python -m tools.cli_reference`; a test compares them.\n",
        f"```\n{cli.get_help(top)}\n```\n",
    ]
    for command in commands():
        context = click.Context(command, info_name=command.name, parent=top, terminal_width=WIDTH)
        parts.append(f"## vcuda {command.name}\n\n```\n{command.get_help(context)}\n```\n")
        for below in command.commands.values() if isinstance(command, click.Group) else ():
            inner = click.Context(below, info_name=below.name, parent=context, terminal_width=WIDTH)
            parts.append(f"### {inner.command_path}\n\n```\n{below.get_help(inner)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    REFERENCE.write_text(reference())
