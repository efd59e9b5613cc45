"""What commands print."""

from ensdistill.cli.render import engine, results

__all__ = ["engine", "results"]
