"""Which files are opened, whatever opens them (permissions stop no test that runs as root)."""

import os
import sys
from contextlib import contextmanager

_listening = []


def _hear(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes):
        for paths in _listening:
            paths.append(os.fsdecode(arguments[0]))


@contextmanager
def opened():
    """Yield a list that every path opened in the block is added to."""
    if not hasattr(sys, "_opened_hook"):  # a hook stays for good
        sys.addaudithook(_hear)
        sys._opened_hook = True
    paths = []
    _listening.append(paths)
    try:
        yield paths
    finally:
        _listening.remove(paths)
