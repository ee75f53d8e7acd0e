"""Options that commands share, and how they speak."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import typing
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, TypeVar

import click

from orchestrator.launch.options import OPTIONS, RunOptions, option_name
from trainables.printable import escaped, redacted, without_login
from trainables.progress import StepProgress, Watcher, watch_steps
from trainables.spec import kinds_of

Command = TypeVar("Command", bound=Callable[..., Any])


def beside(storage: str) -> str:
    """What a command that goes on with runs in ``storage`` ends with: `` --storage FOLDER``, or
    nothing for the default."""
    if storage == RunOptions.storage:
        return ""
    return f" --storage {shlex.quote(without_login(storage))}"


class _PlainLines(logging.Handler):
    """Each record as its bare message on what is ``sys.stderr`` at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        # Not click's echo, which writes past what a live view has put in the place of stderr, right
        # into the table.
        print(escaped(redacted(record.getMessage())), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Print what ``orchestrator`` and ``trainables`` log from INFO up, once however often called;
    the loggers of libraries are left as they are."""
    for package in ("orchestrator", "trainables"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _PlainLines) for handler in logger.handlers):
            logger.addHandler(_PlainLines())


def draw_steps() -> None:
    """Where stderr is a terminal, a long step before the first epoch is a bar there, not lines."""
    draw: Watcher | None = None

    def draw_step(step: StepProgress | None) -> None:
        nonlocal draw
        if draw is None:
            from orchestrator.ops.progress import StepBars

            draw = StepBars()
        draw(step)

    if sys.stderr.isatty():
        watch_steps(draw_step)


def echo(text: str, *, err: bool = False, nl: bool = True, keep: str = "\n\t") -> None:
    """Print what may hold words of a file, a server or another machine: no control character of
    theirs, but those to ``keep``, reaches the terminal, and no login."""
    click.echo(escaped(redacted(text), keep=keep), err=err, nl=nl)


def show(as_json: bool, document: Mapping[str, object], text: Callable[[], str]) -> None:
    """Data on stdout: ``document`` as JSON, or as ``text``."""
    echo(json.dumps(document, indent=2) if as_json else text())


def _option(field: str) -> Callable[[Any], Any]:
    """The option of a field of :class:`RunOptions`: its name, type and default are the field's."""
    kind, *others = kinds_of(RunOptions, field)
    name, default = option_name(field), getattr(RunOptions, field)
    arguments = {key: value for key, value in OPTIONS[field].items() if key != "path"}
    if kind is bool:
        flags = f"--{name}/--no-{name}" if NoneType in others else f"--{name}"
        return click.option(flags, field, is_flag=True, default=default, **arguments)
    if "above" in arguments:
        arguments["type"] = click.FloatRange(min=arguments.pop("above"), min_open=True)
    elif kind in (int, float):
        arguments["type"] = kind
    is_repeatable = typing.get_origin(kind) is tuple
    return click.option(f"--{name}", field, default=default, multiple=is_repeatable, **arguments)


_OPTIONS = {field: _option(field) for field in OPTIONS}


def options(*names: str) -> Callable[[Command], Command]:
    """The options of these fields of :class:`RunOptions`, listed by ``--help`` in this order."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


_NAMES = list(_OPTIONS)
# What is trained on what, in tournaments and claims alike; then, how and where.
SUBJECT, MEANS = options(*_NAMES[:3]), options(*_NAMES[_NAMES.index("set") : -1])
_OF_TOURNAMENTS = ("pool", "from_screen")
RUN = options(*(name for name in _NAMES[:-1] if name not in _OF_TOURNAMENTS))
TOURNAMENT, REOPEN = options(*_NAMES[:-1]), options("reopen_test")
SET, STORAGE, TRACKING = options("set"), options("storage"), options("tracking_uri")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
