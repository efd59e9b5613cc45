"""`ensdistill doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from ensdistill.cli import options
from ensdistill.cli.grid import Table, print_table
from ensdistill.cli.screen import echo, echo_json

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.option(
    "-c",
    "--config",
    type=options.FILE,
    help="Also look at what this experiment file needs.",
)
@options.as_json
def command(config: Path | None, as_json: bool) -> None:
    """Explain this installation, and what each teacher of an experiment needs.

    Looks at Python, torch and its GPUs, torchvision, onnxruntime, optional packages, cores, memory
    and disk; with -c also at the packages and files of each teacher. No image and no network is
    opened. Exits with 1 if anything is a problem, which a warning is not.

    \b
    Example:
      ensdistill doctor
      ensdistill doctor -c experiment.yaml
    """
    from ensdistill.stages.checks.doctor import gather, judge
    from ensdistill.stages.graph import load

    facts = gather(None if config is None else load(config))
    findings = judge(facts)
    if as_json:
        found = {"findings": [asdict(f) for f in findings], "facts": asdict(facts)}
        echo_json(found)
    else:
        table = Table("", "about", "found")
        for f in findings:
            table.add_row(Text(f.level, style=_STYLES[f.level]), Text(f.about), Text(f.text))
            if f.remedy is not None:
                table.add_row("", "", Text(f"-> {f.remedy}"))
        print_table(table)
        count = {level: sum(f.level == level for f in findings) for level in _STYLES}
        echo(", ".join(f"{n} {level}" for level, n in count.items() if n))
    if any(f.level == "problem" for f in findings):
        raise click.exceptions.Exit(1)
