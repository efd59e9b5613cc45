"""The command group; `ensdistill` and `python -m ensdistill.cli` both end here."""

from __future__ import annotations

import importlib
import io
import keyword
import os
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import click

from ensdistill.cli import failures, options
from ensdistill.cli.screen import advised, echo, echo_lines
from ensdistill.pipeline.errors import EnsdistillError

# Command to its line in the overview. A command's module is imported when it is called, so that
# `status` does not wait for what only training needs.
COMMANDS: Final[Mapping[str, str]] = {
    "init": "Write a commented experiment file.",
    "import": "Write one about label maps that were made elsewhere.",
    "doctor": "Explain this installation, and what each teacher needs.",
    "check": "Find everything that is wrong with the inputs, before any work.",
    "infer-teacher": "Argmax label maps of each teacher.",
    "select-policy": "Probe each teacher and choose one for every class.",
    "fuse": "Fused pseudo-labels.",
    "train-student": "The student, trained on the fused labels.",
    "run": "All of the above, only what is missing or stale; then evaluation.",
    "status": "What is fresh, stale, partial or missing, and why.",
    "explain": "Why a node stands as it does, to the field and the image.",
    "evaluate": "Scores of all methods on a labelled split.",
    "compare": "Experiments side by side: scores, teachers, policies, cost.",
    "report": "All that is known, in one HTML file.",
    "ablate": "Which teachers help, and what bad ones or noise cost.",
    "export": "Labels and student for other programs.",
    "verify": "Find damaged artifacts, and make them good.",
    "gc": "Clear away what no experiment reaches any more.",
    "demo": "The whole pipeline on a small generated city.",
}


_SPEAKING: Final = 10.0  # seconds in which rank 0 says what it and all others refuse


class Group(options.Group):
    """Commands in the order in which a user needs them, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_") + "_" * keyword.iskeyword(cmd_name)
        module = importlib.import_module(f"ensdistill.cli.commands.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # which click takes for a reader of ours, and says nothing
            raise EnsdistillError(
                f"a process that this command wrote to has ended ({error}); finished work is kept"
            ) from error


@click.command(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ensdistill", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks of errors, and all warnings.")
def cli(verbose: bool) -> None:
    """Make one strong segmentation student out of any set of domain-adapted teachers.

    No target labels are needed. Everything is cached: a command does what is missing, so adding
    a teacher re-runs only what it must.

    \b
    Example:
      ensdistill init --template cityscapes
      ensdistill check
      ensdistill run
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    # Before torch loads its OpenMP. Threads that spin for long while they wait made a step of two
    # small trainings on the same two cores 1400 ms; after a short spin it is 47 ms (alone: 11 and
    # 13 ms; with threads that sleep at once 86 and 21 ms).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # pydantic would read the metadata of every installed package to look for plugins: 20 ms
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    arguments: Any = None if argv is None else list(argv)
    verbose = any(a in ("-v", "--verbose") for a in (arguments or sys.argv[1:]))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")
    said: dict[str, Any] = {}
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            code = _with_ranks(arguments, said, verbose=verbose)
        else:
            code = _command(arguments, said)
    except SystemExit:
        raise
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show(text := io.StringIO())
        echo_lines(text.getvalue().rstrip(), err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        echo("interrupted; finished work is kept, run the same command again", err=True)
        code = 130
    except BaseException as error:  # libraries in Rust raise what is no Exception
        if verbose:
            echo_lines(traceback.format_exc().rstrip(), err=True)
        for line in failures.told(error):
            echo(advised(line, said), err=True)
        code = error.exit_code if isinstance(error, EnsdistillError) else 1
    sys.exit(code)


def _command(arguments: Any, said: dict[str, Any]) -> Any:
    return cli.main(arguments, prog_name="ensdistill", standalone_mode=False, obj=said)


def _with_ranks(arguments: Any, said: dict[str, Any], *, verbose: bool) -> Any:
    """Run the command at rank 0 of ``torchrun``, and what it trains at all ranks."""
    from ensdistill.stages.training import loop, ranks

    if not ranks.launched():
        return _command(arguments, said)
    if ranks.join() > 0:
        if not verbose:
            warnings.simplefilter("ignore")  # rank 0 is told the same
        with suppress(EnsdistillError, KeyboardInterrupt):  # rank 0 says it
            ranks.follow(loop.follow)
            return 0
        time.sleep(_SPEAKING)  # torchrun ends all where one has ended, rank 0 too
        return 1
    code = _command(arguments, said)
    ranks.dismiss()  # after an error torchrun stops them: they may be in the middle of a step
    return code


if __name__ == "__main__":
    main()
