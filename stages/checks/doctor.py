"""What this installation is, and what the teachers of an experiment need of it.

Facts are gathered first, those about packages that can break in processes of their own; then they
are judged, by functions that see nothing but facts.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.opening import what_instead
from ensdistill.stages.checks.packages import LOOKS, Package, ask, version_of
from ensdistill.stages.checks.trainings import sections
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import Teacher, Training
from ensdistill.stages.networks.backbones import BACKBONES
from ensdistill.stages.networks.files import Source
from ensdistill.stages.networks.kinds import KINDS, kind_of
from ensdistill.stages.networks.whole import SAVED, require_whole

# Optional packages: the extra that brings each, and what for.
EXTRAS: Final = {
    "tensorboard": ("tensorboard", "`runtime: {tensorboard: FOLDER}`"),
    "distributed": ("cluster", "`runtime: {scheduler: ...}`"),
    **{k.package: (k.extra, f"`network: {{{k.key}: FILE}}`") for k in KINDS if k.extra},
    **{
        about.package: ("weights", f"`init: imagenet` with `backbone: {name}`")
        for name, about in BACKBONES.items()
        if about.package
    },
}
GIGABYTE: Final = 10**9
_RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu")  # both install the package onnxruntime
_COMPILING: Final = 10  # seconds that it takes to compile what a fusion needs
_SOME: Final = 50  # label files of a folder whose first bytes are looked at

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Gpu:
    """A device that torch sees: memory in bytes, and whether it computes in bfloat16 itself."""

    name: str
    memory: int
    bfloat16: bool


@dataclass(frozen=True)
class Torch:
    """torch: the CUDA version of its build (None: for CPUs), and what it warned of."""

    package: Package
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    warning: str | None = None


@dataclass(frozen=True)
class Torchvision:
    """torchvision; `wants` is its requirement of torch where the one installed does not meet it."""

    package: Package
    wants: str | None = None


@dataclass(frozen=True)
class Onnxruntime:
    """onnxruntime: what installed it, what it offers, and why its CUDA part does not start."""

    package: Package
    distributions: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    cuda_error: str | None = None


@dataclass(frozen=True)
class Numba:
    """numba, and where it keeps what it compiled; None: nowhere."""

    package: Package
    cache: str | None = None


@dataclass(frozen=True)
class Machine:
    """Cores, those that this process may use, and bytes of memory and of ``/dev/shm``."""

    cores: int
    usable: int
    memory: int
    shm: int | None
    nvidia_driver: bool


@dataclass(frozen=True)
class Need:
    """A path that the experiment file names, whether it is there, and what is wrong with it."""

    key: str
    path: str
    present: bool
    problem: str | None = None


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher: ``labels`` or the kind of its network, whether it runs code, and its paths."""

    name: str
    kind: str
    trusted: bool
    needs: tuple[Need, ...]


@dataclass(frozen=True)
class ExperimentFacts:
    """What an experiment asks of the installation; `free` is in bytes."""

    workspace: str
    free: int
    device: str
    workers: int
    threads: int | None
    packages: tuple[str, ...]
    bfloat16: tuple[str, ...]
    teachers: tuple[TeacherFacts, ...]


@dataclass(frozen=True)
class Facts:
    """All of it."""

    python: str
    packages: tuple[Package, ...]
    torch: Torch
    torchvision: Torchvision
    onnxruntime: Onnxruntime
    numba: Numba
    machine: Machine
    experiment: ExperimentFacts | None = None

    def package(self, name: str) -> Package:
        """Return a package by name."""
        found = (*self.packages, self.torch.package, self.onnxruntime.package)
        return next(p for p in found if p.name == name)


@dataclass(frozen=True)
class Finding:
    """A judgement: `about` what, what is so, and what to do about it."""

    about: str
    level: Level
    text: str
    remedy: str | None = None


def gather(experiment: Experiment | None = None) -> Facts:
    """Look at the installation and the machine, and at which files an experiment names.

    No network is loaded, and no ground truth is opened. torch, torchvision, onnxruntime and
    numba are imported, each in a process of its own: a broken one breaks nothing else.
    """
    with ThreadPoolExecutor() as threads:
        torch, torchvision, onnxruntime, numba = threads.map(ask, LOOKS)
    core = ["ensdistill", "numpy", "zarr", "isal", "transformers"]
    core += [name for name in EXTRAS if name not in LOOKS]
    gpus = tuple(Gpu(**gpu) for gpu in torch[1].pop("gpus", ()))
    runtimes = tuple(name for name in _RUNTIMES if version_of(name) is not None)
    providers = tuple(onnxruntime[1].pop("providers", ()))
    return Facts(
        python=platform.python_version(),
        packages=tuple(Package(n, find_spec(n) is not None, version_of(n)) for n in core),
        torch=Torch(torch[0], gpus=gpus, **torch[1]),
        torchvision=Torchvision(torchvision[0], **torchvision[1]),
        onnxruntime=Onnxruntime(onnxruntime[0], runtimes, providers, **onnxruntime[1]),
        numba=Numba(numba[0], **numba[1]),
        machine=_machine(),
        experiment=None if experiment is None else _experiment(experiment),
    )


def judge(facts: Facts) -> list[Finding]:
    """Return what is to be said of the facts, in an order to read."""
    found = [Finding("python", "ok", facts.python)]
    found += [_judge_package(p) for p in facts.packages if p.name not in EXTRAS]
    found += _judge_torch(facts)
    found += _judge_torchvision(facts)
    found += _judge_onnxruntime(facts)
    found.append(_judge_numba(facts.numba))
    found += _judge_extras(facts)
    found += _judge_machine(facts)
    if facts.experiment is not None:
        for teacher in facts.experiment.teachers:
            found += _judge_teacher(teacher, facts)
    return found


def _judge_package(package: Package) -> Finding:
    if package.installed:
        return Finding(package.name, "ok", package.version or "of unknown version")
    return Finding(package.name, "problem", "absent", "install ensdistill again, with pip")


def _judge_torch(facts: Facts) -> Iterator[Finding]:
    torch, package = facts.torch, facts.torch.package
    asks = facts.experiment is not None and facts.experiment.device.startswith("cuda")
    if not package.installed or package.error:
        text = f"{package} does not import: {package.error}" if package.error else "absent"
        yield Finding("torch", "problem", text, "install torch again: https://pytorch.org")
        return
    build = "CPU build" if torch.cuda is None else f"built for CUDA {torch.cuda}"
    yield Finding("torch", "ok", f"{package.version}, {build}")
    sections = () if facts.experiment is None else facts.experiment.bfloat16
    for k, gpu in enumerate(torch.gpus):
        able = "bfloat16" if gpu.bfloat16 else "no bfloat16 of its own"
        text = f"{gpu.name}, {gpu.memory / GIGABYTE:.0f} GB, {able}"
        if sections and not gpu.bfloat16:
            remedy = f"`precision: float16` for {' and '.join(sections)}"
            yield Finding(f"cuda:{k}", "warning", text, remedy)
        else:
            yield Finding(f"cuda:{k}", "ok", text)
    if torch.gpus and torch.warning is None:
        return
    level: Level = "problem" if asks and not torch.gpus else "warning"
    old = re.search(
        r"driver on your system is too old \(found version (\d+)\)", torch.warning or ""
    )
    if old:
        version = int(old[1])
        yield Finding(
            "cuda",
            level,
            f"the NVIDIA driver is too old: it knows CUDA {version // 1000}.{version % 1000 // 10}"
            f" at most, and this torch was built for CUDA {torch.cuda}; all runs on the CPU",
            "update the driver, or install a build of torch for an older CUDA",
        )
    elif torch.warning is not None:
        yield Finding("cuda", level, f"torch warns: {torch.warning}")
    elif asks or facts.machine.nvidia_driver:
        reason = "device is cuda" if asks else "this machine has an NVIDIA driver"
        text = "torch sees no GPU"
        remedy = "see `nvidia-smi`, and whether CUDA_VISIBLE_DEVICES hides them"
        if torch.cuda is None:
            text, remedy = "this torch is a CPU build and uses no GPU", "install torch's CUDA build"
        yield Finding("cuda", level, f"{reason}, but {text}", remedy)
    else:
        yield Finding("cuda", "ok", "no GPU; all runs on the CPU, bfloat16 too")


def _judge_torchvision(facts: Facts) -> Iterator[Finding]:
    package = facts.torchvision.package
    if not package.installed:
        yield Finding("torchvision", "ok", "absent; ensdistill does not need it")
        return
    cuda, torch = facts.torch.cuda, facts.torch.package
    index = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    remedy = (
        f"`pip uninstall torchvision`, or install the build that fits {torch}: "
        f"https://download.pytorch.org/whl/{index}"
    )
    if package.error:
        text = f"{package} does not import ({package.error}), and stops transformers' models too"
        yield Finding("torchvision", "problem", text, remedy)
    elif facts.torchvision.wants is not None:
        text = f"{package} asks for {facts.torchvision.wants}, and here is {torch}"
        yield Finding("torchvision", "warning", text, remedy)
    else:
        yield Finding("torchvision", "ok", package.version or "of unknown version")


def _judge_onnxruntime(facts: Facts) -> Iterator[Finding]:
    runtime, package = facts.onnxruntime, facts.onnxruntime.package
    if not package.installed:
        return  # said with the other extras
    teachers = () if facts.experiment is None else facts.experiment.teachers
    bad: Level = (
        "problem" if any(_package(t.kind) == "onnxruntime" for t in teachers) else "warning"
    )
    if len(runtime.distributions) > 1:
        yield Finding(
            "onnxruntime",
            bad,
            f"{' and '.join(runtime.distributions)} are both installed, and overwrite each "
            "other's files",
            f"`pip uninstall {' '.join(runtime.distributions)}`, then install one of them",
        )
    if package.error:
        text = f"{package} does not import: {package.error}"
        yield Finding("onnxruntime", bad, text, "install it again")
        return
    if runtime.cuda_error is not None:
        yield Finding(
            "onnxruntime",
            bad if _on_gpu(facts) else "warning",
            f"its CUDA provider does not start and leaves all to the CPU: {runtime.cuda_error}",
            "install the CUDA and cuDNN that this onnxruntime-gpu was built for: "
            "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html",
        )
    elif _on_gpu(facts) and "CUDAExecutionProvider" not in runtime.providers:
        yield Finding(
            "onnxruntime",
            bad,
            f"{package} runs on the CPU alone ({', '.join(runtime.providers)})",
            "`pip uninstall onnxruntime`, then `pip install onnxruntime-gpu`",
        )
    else:
        text = f"{package.version or 'of unknown version'}, {', '.join(runtime.providers)}"
        yield Finding("onnxruntime", "ok", text)


def _judge_numba(numba: Numba) -> Finding:
    package = numba.package
    if not package.installed or package.error:
        text = f"{package} does not import: {package.error}" if package.error else "absent"
        return Finding("numba", "problem", text, "install ensdistill again, with pip")
    if numba.cache is None:
        return Finding(
            "numba",
            "warning",
            f"{package.version}; cache: none; kernels are compiled anew in each process, about "
            f"{_COMPILING} s, since neither the installation nor the home has a folder for them "
            "that you can write to and others cannot",
            "set NUMBA_CACHE_DIR to a folder of your own",
        )
    return Finding("numba", "ok", f"{package.version}; cache: {numba.cache}")


def _on_gpu(facts: Facts) -> bool:
    """Whether networks are to run on a GPU."""
    if facts.experiment is None or facts.experiment.device == "auto":
        return bool(facts.torch.gpus)
    return facts.experiment.device.startswith("cuda")


def _judge_extras(facts: Facts) -> Iterator[Finding]:
    asked = () if facts.experiment is None else facts.experiment.packages
    for name, (extra, purpose) in EXTRAS.items():
        package, install = facts.package(name), f"`pip install 'ensdistill[{extra}]'`"
        if not package.installed:
            if name in asked:
                yield Finding(name, "problem", f"absent, and asked for: {purpose}", install)
            else:
                yield Finding(name, "ok", f"absent; only {purpose} needs it")
        elif name not in LOOKS:
            yield Finding(name, "ok", f"{package.version or 'of unknown version'}, for {purpose}")


def _judge_machine(facts: Facts) -> Iterator[Finding]:
    machine, experiment = facts.machine, facts.experiment
    text = f"{machine.usable} of {machine.cores} may be used"
    if experiment is not None and (experiment.threads or 0) > machine.usable:
        text += f", and `runtime: threads` is {experiment.threads}"
        remedy = f"`threads: {machine.usable}`, or none: more of them wait for each other"
        yield Finding("cores", "warning", text, remedy)
    else:
        yield Finding("cores", "ok", text)
    yield Finding("memory", "ok", f"{machine.memory / GIGABYTE:.1f} GB")
    workers = experiment is None or experiment.workers > 0
    if machine.shm is not None and machine.shm < GIGABYTE and workers:
        yield Finding(
            "/dev/shm",
            "warning",
            f"{machine.shm / GIGABYTE:.2f} GB; workers hand their batches over there, and die "
            "with `Bus error` when it is full",
            "`docker run --shm-size=8g`, or `runtime: {workers: 0}`",
        )
    elif machine.shm is not None:
        yield Finding("/dev/shm", "ok", f"{machine.shm / GIGABYTE:.1f} GB")
    if experiment is not None:
        level: Level = "warning" if experiment.free < GIGABYTE else "ok"
        text = f"{experiment.free / GIGABYTE:.1f} GB free at {experiment.workspace}"
        yield Finding("disk", level, text, "`ensdistill gc`" if level == "warning" else None)


def _judge_teacher(teacher: TeacherFacts, facts: Facts) -> Iterator[Finding]:
    about = f"teacher {teacher.name}"
    package = _package(teacher.kind)
    problems = [f"{n.key}: {n.path} is not there" for n in teacher.needs if not n.present]
    problems += [n.problem for n in teacher.needs if n.problem is not None]
    if package is not None:
        needed = facts.package(package)
        if not needed.installed or needed.error:
            how = "fails" if needed.error else "is absent"
            problems.append(f"{teacher.kind} needs {package}, which {how} here (see above)")
    if package == "transformers" and facts.torchvision.package.error:
        problems.append(
            f"{teacher.kind} needs transformers, whose models torchvision stops here (see above)"
        )
    if problems:
        yield from (Finding(about, "problem", text) for text in problems)
        return
    with_ = f" with {facts.package(package)}" if package else ""
    trust = ", trusted to run its code" if teacher.trusted else ""
    paths = ", ".join(dict.fromkeys(need.path for need in teacher.needs))
    yield Finding(about, "ok", f"{teacher.kind}{with_}{trust}: {paths}")


def _package(kind: str) -> str | None:
    """Return what runs a teacher's network; predictions in files (`labels`) need nothing."""
    return None if kind == "labels" else kind_of(kind).package


def _experiment(experiment: Experiment) -> ExperimentFacts:
    config = experiment.config
    folder = experiment.workspace.root
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    runtime = config.runtime
    teachers = tuple(_teacher(experiment, t) for t in experiment.teachers)
    wanted = {
        "tensorboard": runtime.tensorboard is not None,
        "distributed": runtime.scheduler is not None,
    } | {kind.package: any(t.kind == kind.key for t in teachers) for kind in KINDS if kind.extra}
    for section in sections(experiment):
        training: Training = getattr(config, section)
        name, begin = training.network.backbone, training.begins_with
        if name is not None and begin is not None and begin.file == "imagenet":
            wanted[str(BACKBONES[name].package)] = True
    return ExperimentFacts(
        workspace=str(folder),
        free=shutil.disk_usage(there).free,
        device=runtime.device,
        workers=runtime.workers,
        threads=runtime.threads,
        packages=tuple(name for name, asked in wanted.items() if asked),
        bfloat16=tuple(
            name for name in ("probe", "student") if getattr(config, name).precision == "bfloat16"
        ),
        teachers=teachers,
    )


def _teacher(experiment: Experiment, teacher: Teacher) -> TeacherFacts:
    network, where = teacher.network, f"teachers[{teacher.name}]"
    if network is None:
        kind = "labels"
        needs = [
            _labels(f"{where}.labels.{split}", experiment.folder(text))
            for split, text in (teacher.labels or {}).items()
        ]
    else:
        kind = network.kind
        where = f"{where}.network"
        try:
            source = experiment.teacher_source(teacher)
            path, needs = source.path, [_network(source)]
        except DataError:  # of a hub, and not downloaded: `check` will
            needs = [Need(f"{where}.{kind}", f"{network.path} at {network.revision}", False)]
        if network.factory is not None:
            module = network.factory.split(":")[0].split(".")[0]
            found = PathFinder.find_spec(module, [str(path)]) is not None
            needs.append(Need(f"{where}.factory", str(path / module), found))
        more = {f"files.{name}": text for name, text in network.files.items()}
        if network.state_dict is not None:
            more["state_dict"] = network.state_dict
        needs += [
            _need(f"{where}.{key}", experiment.folder(text), folder=False)
            for key, text in more.items()
        ]
    return TeacherFacts(teacher.name, kind, teacher.trust == "code", tuple(needs))


def _network(source: Source) -> Need:
    """Return the folder or file of a teacher's network, and what its files say against it."""
    kind = kind_of(source.kind)
    need = _need(source.key, source.path, folder=kind.folder)
    # whether a function's module is there is a need of its own
    if not need.present or need.problem is not None or source.function is not None:
        return need
    try:
        kind.inspect(source)
    except DataError as error:
        return replace(need, problem=str(error))
    return need


def _labels(key: str, folder: Path) -> Need:
    """Return a folder of label files, and what some of them are instead."""
    some = islice(folder.rglob("*.png"), _SOME) if folder.is_dir() else ()
    said = ((file, what_instead(file)) for file in some)
    problems = (f"{key}: {file}: {what}" for file, what in said if what is not None)
    return replace(_need(key, folder, folder=True), problem=next(problems, None))


def _need(key: str, path: Path, *, folder: bool) -> Need:
    """Return a folder, or a file and whether it is what its first and last bytes should be."""
    present = path.is_dir() if folder else path.is_file()
    problem = None
    if present and not folder and path.suffix in (*SAVED, ".onnx", ".pt2"):
        try:
            require_whole(path)
        except DataError as error:
            problem = f"{key}: {error}"
    return Need(key, str(path), present, problem)


def _machine() -> Machine:
    shm = Path("/dev/shm")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = os.cpu_count() or 1
    return Machine(
        cores=cores,
        usable=usable or cores,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shm=shutil.disk_usage(shm).total if shm.is_dir() else None,
        nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
    )
