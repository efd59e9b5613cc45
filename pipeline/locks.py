"""Locks on artifacts: one writer, or several that share the items, each known by name.

On one machine the operating system's file lock decides, and dies with its process. Two machines on
a shared file system may not see each other's locks, so a holder also beats: it writes a count into
a file beside the lock. Who finds another machine's file watches whether the count moves, which no
clock can falsify.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import LockedError

BEAT: Final = 5.0  # seconds
PATIENCE: Final = 3 * BEAT
_TURN: Final = 60.0  # seconds that a part waits for another to look round or to publish


@dataclass(frozen=True)
class Part:
    """A share of the items: those whose position leaves the remainder ``index - 1`` by `count`.

    Attributes
    ----------
    index, count : int
        ``1 <= index <= count``.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, position: int) -> bool:
        """Whether the item at a position of the stored order belongs to it."""
        return position % self.count == self.index - 1


class Claim:
    """The right to fill an artifact, while it is held.

    Attributes
    ----------
    took_over : str or None
        Who held it before and is gone.
    """

    def __init__(self, lock: _Lock):
        self._lock = lock
        self.took_over = lock.took_over

    def require(self) -> None:
        """Refuse to go on if another machine took the claim, as after a long standstill."""
        if self._lock.lost is not None:
            raise LockedError(self._lock.lost)


class Locks:
    """The locks of a workspace.

    Parameters
    ----------
    folder : Path
        Where they lie.
    beat, patience : float
        Seconds between two beats, and until a holder that does not beat counts as gone.
    """

    def __init__(self, folder: Path, beat: float = BEAT, patience: float = PATIENCE):
        self.folder = folder
        self._beat = beat
        self._patience = patience

    @contextmanager
    def hold(
        self,
        name: str,
        node_id: str,
        part: Part | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Claim]:
        """Hold an artifact, or a part of its items, while the block runs.

        Parameters
        ----------
        name : str
            The artifact's.
        node_id : str
            For messages.
        part : Part, optional
            Hold this share only; others may hold other shares of the same number.
        say : callable
            Told what is waited for.

        Raises
        ------
        LockedError
            If another process holds it; the text names it and the way out.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = self._lock(name, node_id, say)
        if part is None:
            with whole.held():
                for other, _ in self._parts(name):
                    self._lock(other, f"a part of {node_id}", say).refuse_if_held()
                yield Claim(whole)
            return
        own = self._lock(
            f"{name}.part-{part.index}-of-{part.count}", f"part {part} of {node_id}", say
        )
        with own.held():
            with whole.held(wait=_TURN):
                for other, count in self._parts(name):
                    if count != part.count:
                        self._lock(other, f"a part of {node_id}", say).refuse_if_held()
            yield Claim(own)

    @contextmanager
    def turn(self, name: str, node_id: str) -> Iterator[Claim]:
        """Hold what parts take turns in, such as publishing; their own locks do not matter."""
        whole = self._lock(name, node_id, lambda _: None)
        with whole.held(wait=_TURN):
            yield Claim(whole)

    def _lock(self, name: str, what: str, say: Callable[[str], None]) -> _Lock:
        return _Lock(self.folder / f"{name}.lock", what, self._beat, self._patience, say)

    def _parts(self, name: str) -> Iterator[tuple[str, int]]:
        for path in sorted(self.folder.glob(f"{name}.part-*.lock")):
            found = re.fullmatch(r".*\.part-\d+-of-(\d+)", path.stem)
            if found:
                yield path.stem, int(found[1])


class _Lock:
    """One lock file, and beside it the holder's file."""

    def __init__(
        self, path: Path, what: str, beat: float, patience: float, say: Callable[[str], None]
    ):
        self._path = path
        self._holder = path.with_suffix(".json")
        self._what = what
        self._beat = beat
        self._patience = patience
        self._say = say
        self._token = os.urandom(16).hex()
        self._since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.took_over: str | None = None
        self.lost: str | None = None

    @contextmanager
    def held(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the lock while the block runs."""
        with self._acquired(wait):
            self._write(0)
            stop = threading.Event()
            beating = threading.Thread(target=self._go_on_beating, args=(stop,), daemon=True)
            beating.start()
            try:
                yield
            finally:
                stop.set()
                beating.join()
                if self.lost is None:
                    self._forget_holder()

    def refuse_if_held(self) -> None:
        """Raise `LockedError` if somebody holds the lock."""
        with self._acquired(0.0):
            holder = _read(self._holder)
            if holder is not None and holder.get("machine") != machine():
                self._forget_holder()  # was waited for; nobody need wait again

    @contextmanager
    def _acquired(self, wait: float) -> Iterator[None]:
        from filelock import FileLock, Timeout  # `status` takes no lock and must not wait for it

        lock = FileLock(self._path, timeout=wait)
        seen = True
        try:
            lock.acquire(poll_interval=0.05)
        except Timeout:
            raise LockedError(self._refusal(_read(self._holder))) from None
        except NotImplementedError:  # a file system without locks: the beat alone decides
            seen = False
        try:
            self._require_gone(seen)
            yield
        finally:
            lock.release()

    def _forget_holder(self) -> None:
        with suppress(OSError):
            self._holder.unlink()

    def _require_gone(self, seen: bool) -> None:
        """Refuse if the holder that a file names lives where its lock cannot be seen."""
        holder = _read(self._holder)
        if holder is None:
            return
        # on this machine the lock itself has told: it is free, so its holder is gone
        if not seen or holder.get("machine") != machine():
            self._say(
                f"{self._what} was held by {_name(holder)}; "
                f"waiting {self._patience:.0f} s for a sign of life"
            )
            end = time.monotonic() + self._patience
            while time.monotonic() < end:
                time.sleep(min(self._beat / 2, self._patience / 4))
                now = _read(self._holder)
                if now is None:  # it ended well
                    return
                if (now.get("token"), now.get("beat")) != (holder.get("token"), holder.get("beat")):
                    raise LockedError(self._refusal(now))
        self.took_over = f"{_name(holder)} did not finish {self._what}; going on where it was"

    def _go_on_beating(self, stop: threading.Event) -> None:
        count = 0
        while not stop.wait(self._beat):
            holder = _read(self._holder)
            if holder is not None and holder.get("token") != self._token:
                self.lost = self._refusal(holder)
                return
            count += 1
            with suppress(OSError):  # a full disk must not stop the work
                self._write(count)

    def _write(self, beat: int) -> None:
        holder = {
            "what": self._what,
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "since": self._since,
            "machine": machine(),
            "token": self._token,
            "beat": beat,
        }
        atomic.write_bytes(self._holder, atomic.json_bytes(holder), sync=False)

    def _refusal(self, holder: dict[str, Any] | None) -> str:
        return (
            f"{self._what} is being made by {_name(holder)}; wait for it or stop it, then run "
            "again (its finished items are kept)"
        )


def machine() -> str:
    """Return a name of the running kernel: those who share it see each other's locks."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return os.uname().nodename


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _name(holder: dict[str, Any] | None) -> str:
    if holder is None or "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host')} since {holder.get('since')}"
