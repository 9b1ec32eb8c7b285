"""The `golem` command. Each of its subcommands is a module, imported when it is run."""

from golem_tasks.cli.entry import main

__all__ = ["main"]
