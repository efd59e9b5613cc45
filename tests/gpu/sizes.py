"""How large everything is: as on a GPU, or in small."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What the parts measure with.

    Attributes
    ----------
    smoke : bool
        Whether it is all in small, on the CPU.
    device : str
        Where.
    image, crop : (int, int)
        Height and width.
    scenes : int
        Different photographs.
    few, many : int
        Fewest and most images of a run of a network; the faster it is, the more.
    seconds : float
        That a bare loop is measured for, and about a network's run over its images.
    batch, steps, rounds : int
        Of a training that is measured: images a step, steps a turn, and turns.
    whole : int
        Steps of a training that is measured as a whole, and of a probe.
    workers : int
        Threads that decode, or processes that load samples.
    """

    smoke: bool = False
    device: str = "cuda"
    image: tuple[int, int] = (1024, 2048)
    crop: tuple[int, int] = (512, 1024)
    scenes: int = 12
    few: int = 48
    many: int = 240
    seconds: float = 2.0
    batch: int = 8
    steps: int = 15
    rounds: int = 3
    whole: int = 60
    workers: int = 12

    @classmethod
    def of(cls, *, smoke, cpu):
        """Return the sizes of a part."""
        if not smoke:
            return cls(device="cpu" if cpu else "cuda")
        little = {"scenes": 2, "few": 4, "many": 4, "seconds": 0.01, "workers": 1}
        training = {"crop": (32, 64), "batch": 2, "steps": 1, "rounds": 1, "whole": 2}
        return cls(smoke=True, device="cpu", image=(64, 96), **little, **training)
