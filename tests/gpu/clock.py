"""Time and memory of a device whose work goes on while the program does."""

import re
import time

import torch

# Images after which a run of few is measured, and one of so many that what was decoded ahead of
# it has been used up: whole batches, which come all at once.
FIRST, FIRST_OF_MANY, MANY = 8, 48, 144


def settle(device):
    """Wait until a device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def rate(work, device, seconds, least=2):
    """Return how often a second `work` is done, after three times that do not count."""
    for _ in range(3):
        work()
    settle(device)
    begin, count = time.perf_counter(), 0
    while count < least or time.perf_counter() - begin < seconds:
        for _ in range(least):
            work()
        count += least
        settle(device)
    return count / (time.perf_counter() - begin)


class Peak:
    """The most memory that was in use on a device since it was made, beyond what was then."""

    def __init__(self, device):
        self._counts = device == "cuda"
        if self._counts:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()

    def megabytes(self):
        """Return it, None where nobody counts."""
        if not self._counts:
            return None
        return (torch.cuda.max_memory_allocated() - self._before) / 1e6


class Watched:
    """Progress that takes the times at which images are done, and what is said."""

    def __init__(self):
        self.times, self.said = [], []

    def start(self, total, done, unit):
        pass

    def advance(self, count=1, note=""):
        self.times.append(time.perf_counter())

    def message(self, text):
        self.said.append(text)

    def rate(self):
        """Return images a second, from when the pipeline was full to the last one."""
        count = len(self.times)
        first = min(FIRST if count < MANY else FIRST_OF_MANY, count // 2)
        return (count - first) / (self.times[-1] - self.times[first - 1])

    def shares(self):
        """Return where the time went, as the product says it."""
        found = [m[0] for text in self.said if (m := re.search(r"\(network .*\)", text))]
        return found[-1] if found else None
