"""The command line: which commands there are, and what becomes of their errors.

Exit status: 0 done; 1 the user's input or a check failed; 2 wrong usage; 75 a signal ended
`train-heads`, `compare` or `sweep`, which saved its state and goes on; 130 interrupted at once,
143 by SIGTERM; 141 nobody reads the output any more.
"""

from __future__ import annotations

import errno
import gc
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cachedet.commands import (
    checks,
    comparisons,
    configs,
    conversions,
    estimates,
    pages,
    reports,
    runs,
    scores,
    stores,
    sweeps,
)
from cachedet.commands.entry import run_command
from cachedet.commands.output import OutputError
from cachedet.commands.usage import tell_usage
from cachedet.errors import CachedetError, InputError
from cachedet.progress import show_progress, tell
from cachedet.version import __version__


class _Commands(TyperGroup):
    """Progress and notes are shown; an error of the user's is one message and exit status 1,
    Ctrl-C one line and 130.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            with show_progress():
                return super().invoke(ctx)
        except CachedetError as error:
            from cachedet.store.files.locations import redacted  # `--help` stays quick

            first, *more = error.args or [type(error).__name__]
            for line in (f"error: {first}", *more):
                tell(redacted(line))
            sys.exit(1)
        except OutputError:
            raise
        except OSError as error:  # the last net: places are looked at before the work
            if error.filename is None and error.errno not in _NO_ROOM:
                raise
            tell(f"error: {_describe(error)}")
            sys.exit(1)
        except KeyboardInterrupt:
            tell(_INTERRUPTED)
            sys.exit(130)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a write that fails names no file
_MAY_BE_EMPTY = ("--levels", "--residency", "--keep-views", "--what-if", "--set")


def _describe(error: OSError) -> str:
    where = "" if error.filename is None else f"{error.filename}: "
    return (
        f"{where}{error.strerror or error}; repair the place or choose another, then run the same "
        "command again"
    )


class _Command(TyperCommand):
    """Refuses the empty text: as a path it would be the current folder. Its help fits any width."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, word in zip(["", *args], args, strict=False):
            name, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
            if not value and (not word or word.endswith("=")) and name not in _MAY_BE_EMPTY:
                name = name if name.startswith("-") else "an argument"
                raise InputError(f"{name} expects a value, got an empty text")
        return super().parse_args(ctx, args)


_INTERRUPTED = (
    "interrupted; `extract` continues with the same command, and so do `compare` and `sweep`; "
    "`train-heads` with --resume"
)

app = typer.Typer(
    name="cachedet",
    cls=_Commands,
    help="Train strong object detectors on cached features of a frozen backbone.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # of all commands
    pretty_exceptions_enable=False,
)

# Wrong usage; typer has no public name for the parent of its errors.
_UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def main() -> None:
    """Run the command line; `cachedet.__main__` does so too, and guards these imports."""
    run_command(run_app)


def run_app() -> None:
    """Run the command line, unguarded."""
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except _UsageError as error:
        tell_usage(error)
        sys.exit(getattr(error, "exit_code", 2))
    finally:
        gc.freeze()  # else Python ends with a search of all that torch imported: seconds


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cachedet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


for _module in (
    checks,
    estimates,
    stores,
    runs,
    scores,
    reports,
    pages,
    comparisons,
    sweeps,
    conversions,
):
    for _name, _command in _module.COMMANDS.items():
        app.command(_name, cls=_Command)(_command)
app.add_typer(configs.app, name="configs")
