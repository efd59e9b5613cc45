"""Locks on artifacts: one writer, or several that share the items, each known by name.

On one machine the operating system's file lock decides, and dies with its process. Two machines on
a shared file system may not see each other's locks, so a holder also beats: it writes a count into
a file beside the lock. Who finds another machine's file watches whether the count moves, which no
clock can falsify.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import LockedError
from ensdistill.pipeline.opening import read_json
from ensdistill.pipeline.ownership import require_no_link
from ensdistill.pipeline.repeating import every

BEAT: Final = 5.0  # seconds
PATIENCE: Final = 3 * BEAT
TURN: Final = 60.0  # seconds that a part waits for another to look round or to publish
_COMMAND: Final = "command-"  # before the name of the lock of a command that is under way
# what file systems say that have no locks: old NFS, Lustre, FUSE and what is mounted without them
_NO_LOCKS: Final = frozenset(
    {
        *(errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL),
        *(errno.ENODEV, errno.ENOTTY, errno.EPROTONOSUPPORT),
    }
)
_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_LONGEST: Final = 10_000_000  # bytes of a holder's file
_BRIEF: Final = 0.2  # seconds for which somebody may hold a lock only to look at it


@dataclass(frozen=True)
class Part:
    """A share of the items: those whose position leaves the remainder ``index - 1`` by `count`."""

    index: int  # from 1 on
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, position: int) -> bool:
        """Whether the item at a position of the stored order belongs to it."""
        return position % self.count == self.index - 1


@dataclass(frozen=True)
class Needs:
    """What a command that is under way needs; artifacts go by the names of their locks."""

    artifacts: frozenset[str] = frozenset()  # those that its plan reaches
    reads: frozenset[str] = frozenset()  # those of them that are made, and taken as they are
    # those of which it still makes a node, which may take items from any artifact of the stage
    stages: frozenset[str] = frozenset()
    everything: bool = False  # it does not know yet

    def has(self, stage: str, name: str) -> bool:
        """Whether an artifact of a stage, by its lock's name, is needed."""
        return self.everything or stage in self.stages or name in self.artifacts

    def takes(self, name: str) -> bool:
        """Whether an artifact, by its lock's name, is needed as it is."""
        return self.everything or name in self.reads

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.artifacts | other.artifacts,
            self.reads | other.reads,
            self.stages | other.stages,
            self.everything or other.everything,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the holder's file says."""
        return {
            "everything": self.everything,
            "artifacts": sorted(self.artifacts),
            "reads": sorted(self.reads),
            "stages": sorted(self.stages),
        }


_EVERYTHING: Final = Needs(everything=True)


class Claim:
    """The right to fill an artifact, while it is held."""

    def __init__(self, lock: _Lock):
        self._lock = lock
        self._checked = time.monotonic()
        self.took_over = lock.took_over  # who held it before and is gone

    def require(self, *, now: bool = False) -> None:
        """Refuse to go on if another machine took the claim, as after a long standstill.

        With `now` it is looked at again, even if that was done less than a beat ago.
        """
        time_now = time.monotonic()
        if now or time_now - self._checked > self._lock.beat:
            self._checked = time_now
            self._lock.require_own()


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
        self._mine: set[str] = set()  # commands of this process

    @contextmanager
    def hold(
        self,
        name: str,
        node_id: str,
        part: Part | None = None,
        say: Callable[[str], None] = lambda _: None,
        uses: Sequence[str] = (),
    ) -> Iterator[Claim]:
        """Hold an artifact, or a part of its items, while the block runs.

        Others may hold other parts of the same number. `say` is told what is waited for; `uses` are
        folders that are read meanwhile (see `in_use`).

        Raises
        ------
        LockedError
            If another process holds it; the text names it and the way out.
        """
        self._make()
        whole = self._lock(name, node_id, say, uses)
        if part is None:
            with whole.held():
                self._refuse_parts(name, node_id, say, None)
                yield Claim(whole)
            return
        self._refuse_parts(name, node_id, say, part.count)
        own_name = f"{name}.part-{part.index}-of-{part.count}"
        own = self._lock(own_name, f"part {part} of {node_id}", say, uses)
        with own.held():
            with whole.held(wait=TURN):  # nobody makes the whole, nor began other parts meanwhile
                self._refuse_parts(name, node_id, say, part.count)
            yield Claim(own)

    @contextmanager
    def turn(self, name: str, node_id: str) -> Iterator[None]:
        """Hold what parts take turns in, such as publishing; their own locks do not matter."""
        self._make()
        with self._lock(name, node_id).held(wait=TURN):
            yield

    def in_use(self) -> dict[str, str]:
        """Return the folders that holders read, and by whom.

        A holder that died counts until somebody takes over from it.
        """
        require_no_link(self.folder)
        found: dict[str, str] = {}
        for path in self.folder.glob("*.json"):
            holder = _read(path) or {}
            found |= dict.fromkeys(_texts(holder.get("uses")), _name(holder))
        return found

    @contextmanager
    def needing(self) -> Iterator[Callable[[Needs], None]]:
        """Say to other processes what this one needs, while the block runs.

        What is yielded takes what is needed from then on; before it is called first, that is
        everything. Where nothing can be written, nothing is said.
        """
        name = f"{_COMMAND}{os.urandom(8).hex()}"
        lock = self._lock(name, "a command")
        with ExitStack() as stack:
            try:
                with self.clearing():  # what is being deleted is gone before we look
                    lock.needs = _EVERYTHING
                    stack.enter_context(lock.held())
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                yield lambda _: None
                return
            self._mine.add(name)
            try:
                yield lock.say_needs
            finally:
                self._mine.discard(name)
                stack.close()
                lock.remove()

    def clearing(self) -> AbstractContextManager[None]:
        """Hold what commands begin under, and what is deleted."""
        return self.turn("clearing", "clearing of the workspace")

    def needed(
        self, say: Callable[[str], None] = lambda _: None, *, wait: bool = True
    ) -> dict[str, Needs]:
        """Return what other commands that are under way need, by who they are.

        With `wait`, those whose locks are not seen are waited for, once, and forgotten if they give
        no sign of life; else they count.

        Raises
        ------
        DataError
            If the folder of locks is a link.
        """
        require_no_link(self.folder)
        found: dict[str, Needs] = {}
        unseen: list[_Lock] = []
        names = {path.stem for path in self.folder.glob(f"{_COMMAND}*")}
        for name in sorted(names - self._mine):
            lock = self._lock(name, "a command", say)
            try:
                if lock.refuse_if_seen():
                    unseen.append(lock)
                else:
                    lock.remove()
            except (LockedError, OSError):  # what cannot be looked at counts as well
                _add(found, lock)
        if unseen and wait:
            alive = self._alive(unseen, "commands", say)
            for lock in unseen:
                if lock not in alive:
                    lock.remove()
            unseen = alive
        for lock in unseen:
            _add(found, lock)
        return found

    def _alive(self, locks: list[_Lock], what: str, say: Callable[[str], None]) -> list[_Lock]:
        """Wait, once, for a sign of life of holders; return the locks of those that gave one."""
        say(f"waiting {self._patience:.0f} s for a sign of life of {len(locks)} {what}")
        before = [lock.sign() for lock in locks]
        time.sleep(self._patience)
        signs = zip(locks, before, strict=True)
        return [lock for lock, sign in signs if lock.sign() not in (None, sign)]

    def _make(self) -> None:
        require_no_link(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def busy(self, name: str) -> str | None:
        """Return who is making an artifact or a part of it, None if nobody is; waits for nothing.

        A holder on a machine whose locks are not seen counts, whether it lives or not.
        """
        if self.folder.is_symlink():
            return None
        for path in (
            self.folder / f"{name}.json",
            *sorted(self.folder.glob(f"{name}.part-*.json")),
        ):
            holder = _read(path)
            if holder is None:
                continue
            try:
                if self._lock(path.stem, "").refuse_if_seen():
                    return _name(holder)
            except LockedError:
                return _name(holder)
        return None

    def _lock(
        self,
        name: str,
        what: str,
        say: Callable[[str], None] = lambda _: None,
        uses: Sequence[str] = (),
    ) -> _Lock:
        path = self.folder / f"{name}.lock"
        return _Lock(path, what, self._beat, self._patience, say, uses)

    def _refuse_parts(
        self, name: str, node_id: str, say: Callable[[str], None], count: int | None
    ) -> None:
        """Refuse if a part is being made that does not go together with `count` parts."""
        unseen = []
        for path in sorted(self.folder.glob(f"{name}.part-*.lock")):
            found = re.fullmatch(r".*\.part-\d+-of-(\d+)", path.stem)
            if found is None or int(found[1]) == count:
                continue
            lock = self._lock(path.stem, f"a part of {node_id}", say)
            if lock.refuse_if_seen():
                unseen.append(lock)
        alive = self._alive(unseen, f"parts of {node_id}", say) if unseen else []
        for lock in unseen:
            if lock in alive:
                raise LockedError(lock.refusal())
            lock.forget_holder()  # was waited for; nobody need wait again


class _Lock:
    """One lock file, and beside it the holder's file."""

    def __init__(
        self,
        path: Path,
        what: str,
        beat: float,
        patience: float,
        say: Callable[[str], None],
        uses: Sequence[str],
    ):
        self._path = path
        self._holder = path.with_suffix(".json")
        self._what = what
        self._patience = patience
        self._say = say
        self._count = 0
        self._uses = list(uses)
        self.needs: Needs | None = None
        self._token = os.urandom(16).hex()
        self._since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.beat = beat
        self.took_over: str | None = None

    @contextmanager
    def held(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the lock while the block runs."""
        with self._acquired(wait):
            self._write(0)
            try:
                with every(self.beat, self._beat):
                    yield
            finally:
                if self._is_own():
                    self.forget_holder()

    def say_needs(self, needs: Needs) -> None:
        """Replace what the holder's file says of what is needed."""
        if needs != self.needs:
            self.needs = needs
            self._write(self._count)

    def needed(self) -> tuple[str, Needs]:
        """Return who holds it, and what its file says is needed."""
        holder = _read(self._holder)
        return _name(holder), _needs((holder or {}).get("needs"))

    def remove(self) -> None:
        """Remove lock and holder's file, of a name that is used once."""
        self.forget_holder()
        with suppress(OSError):
            self._path.unlink()

    def require_own(self) -> None:
        """Raise `LockedError` if the holder's file is not ours any more."""
        if not self._is_own():
            raise LockedError(
                f"{self._what} was taken over by {_name(_read(self._holder))} while this process "
                "stood still; nothing more is written, its finished items are kept"
            )

    def refuse_if_seen(self) -> bool:
        """Raise `LockedError` if the lock is seen to be held.

        Return whether a holder is named whose lock could not be seen: only its beat can tell.
        """
        with self._flock(0.0) as seen:
            holder = _read(self._holder)
            return holder is not None and (not seen or holder.get("machine") != machine())

    def sign(self) -> tuple[Any, Any] | None:
        """Return what changes while the holder lives, None without one."""
        holder = _read(self._holder)
        return None if holder is None else (holder.get("token"), holder.get("beat"))

    def forget_holder(self) -> None:
        """Remove the holder's file."""
        with suppress(OSError):
            self._holder.unlink()

    def refusal(self) -> str:
        """Return who holds it, and the way out."""
        return (
            f"{self._what} is being made by {_name(_read(self._holder))}; wait for it or stop it, "
            "then run again (its finished items are kept)"
        )

    @contextmanager
    def _acquired(self, wait: float) -> Iterator[None]:
        end = time.monotonic() + wait
        while True:
            with self._flock(max(_BRIEF, end - time.monotonic())) as seen:
                if self._holder_is_gone(seen):
                    yield
                    return
            if time.monotonic() >= end:
                raise LockedError(self.refusal())

    @contextmanager
    def _flock(self, wait: float) -> Iterator[bool]:
        """Hold the system's lock; yields whether the file system has any."""
        from filelock import FileLock, Timeout  # `status` takes no lock and must not wait for it

        lock = FileLock(self._path, timeout=wait, fallback_to_soft=False)
        try:
            lock.acquire(poll_interval=0.05)
        except Timeout:
            raise LockedError(self.refusal()) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                require_no_link(self._path)
            if error.errno not in _NO_LOCKS:
                raise
            yield False  # the beat alone decides
            return
        try:
            yield True
        finally:
            lock.release()

    def _holder_is_gone(self, seen: bool) -> bool:
        """Whether the holder that a file names, if one does, does not live any more."""
        holder = _read(self._holder)
        if holder is None:
            return True
        # on this machine the lock itself has told: it is free, so its holder is gone
        if not seen or holder.get("machine") != machine():
            before = self.sign()
            self._say(
                f"{self._what} was held by {_name(holder)}; "
                f"waiting {self._patience:.0f} s for a sign of life"
            )
            end = time.monotonic() + self._patience
            while time.monotonic() < end:
                time.sleep(min(self.beat / 2, self._patience / 4))
                now = self.sign()
                if now is None:  # it ended well
                    return True
                if now != before:
                    return False
        self.took_over = f"{_name(holder)} did not finish {self._what}; going on where it was"
        return True

    def _is_own(self) -> bool:
        return (_read(self._holder) or {}).get("token") == self._token

    def _beat(self) -> None:
        if self._is_own():
            self._count += 1
            with suppress(OSError):  # a full disk must not stop the work
                self._write(self._count)

    def _write(self, beat: int) -> None:
        holder = {
            "what": self._what,
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "since": self._since,
            "machine": machine(),
            "uses": self._uses,
            "needs": None if self.needs is None else self.needs.to_json(),
            "token": self._token,
            "beat": beat,
        }
        atomic.write_bytes(self._holder, atomic.json_bytes(holder), sync=False)


def machine() -> str:
    """Return a name of the running kernel: those who share it see each other's locks."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return os.uname().nodename


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path, _LONGEST)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _add(found: dict[str, Needs], lock: _Lock) -> None:
    """Add what a command needs; two may be of one process, or of nobody who can be named."""
    who, needs = lock.needed()
    found[who] = found.get(who, Needs()) | needs


def _texts(found: Any) -> list[str]:
    listed = found if isinstance(found, list) else []
    return [text for text in listed if isinstance(text, str) and "\0" not in text]


def _needs(found: Any) -> Needs:
    """Return what a holder's file says is needed; everything, where it says nothing clear."""
    if not isinstance(found, dict) or found.get("everything", True):
        return _EVERYTHING
    return Needs(
        artifacts=frozenset(_texts(found.get("artifacts"))),
        reads=frozenset(_texts(found.get("reads"))),
        stages=frozenset(_texts(found.get("stages"))),
    )


def _name(holder: dict[str, Any] | None) -> str:
    if holder is None or "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host')} since {holder.get('since')}"
