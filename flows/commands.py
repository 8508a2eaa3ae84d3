"""How a command of `oxa` is written: a function under its line of help, its description and its options."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

Run = Callable[[Namespace], int | None]
Option = Callable[[argparse.ArgumentParser], Any]  # adds itself to a command's parser
COMMANDS: list[
    Callable[[Any], None]
] = []  # in the order of `oxa --help`; each adds itself to argparse's subparsers


def command(name: str, help: str, description: str, *options: Option) -> Callable[[Run], Run]:
    """Makes a function a command; it returns the exit code, or None for 0."""

    def decorate(run: Run) -> Run:
        def add_command(commands: Any) -> None:
            parser = commands.add_parser(name, help=help, description=description)
            parser.set_defaults(command=run)
            _add_options(parser, options)

        COMMANDS.append(add_command)
        return run

    return decorate


def option(*names: str, **settings: Any) -> Option:
    """An argument as `add_argument` takes it."""
    return lambda parser: parser.add_argument(*names, **settings)


def either(*options: Option) -> Option:
    """Options of which one at most is given."""
    return lambda parser: _add_options(parser.add_mutually_exclusive_group(), options)


def subcommand(name: str, *options: Option, **texts: Any) -> Option:
    """The one command of a group, as in `oxa world check`; `texts` as `add_parser` takes them."""
    return lambda parser: _add_options(
        parser.add_subparsers(required=True, metavar="COMMAND").add_parser(name, **texts), options
    )


def _add_options(parser: Any, options: Sequence[Option]) -> None:
    for add_option in options:
        add_option(parser)


def add(commands: Any) -> None:
    """Adds every command that has been defined to argparse's `commands`."""
    for add_command in COMMANDS:
        add_command(commands)
