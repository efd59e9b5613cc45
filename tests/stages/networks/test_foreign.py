"""What networks in files of other libraries take."""

import pytest
import torch

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.foreign import Fixed, blaming_device, run_as_fixed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("The following operation failed.\nRuntimeError: CUDA out of memory. Tried"),
    ],
)
def test_a_lack_of_memory_stays_what_it_is(error):
    def call(images):
        raise error

    with pytest.raises(torch.OutOfMemoryError):
        run_as_fixed(call, torch.zeros(2, 3, 4, 4), Fixed(), "net.pt")


@pytest.mark.parametrize("count", [1, 3])
def test_images_go_one_by_one_where_a_file_takes_but_one(count):
    seen = []

    def call(images):
        seen.append(len(images))
        return {"a": images, "b": (images[:, 0], [None, torch.tensor(7)])}

    images = torch.rand(count, 3, 4, 4)
    found = run_as_fixed(call, images, Fixed(batch=1), "net.pt")
    assert seen == [1] * count
    assert torch.equal(found["a"], images)
    first, (_, scalar) = found["b"].values() if count > 1 else found["b"]
    assert torch.equal(first, images[:, 0])
    assert (scalar if count == 1 else found["b"]["1"]["1"]) == 7


ASSERTED = (
    "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in https://docs.nvidia"
    "\nCUDA kernel errors might be asynchronously reported at some other API call"
)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (ASSERTED, ("(CUDA error: device-side assert triggered)", "CUDA_LAUNCH_BLOCKING=1")),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", ("FAILED)", "`runtime: {device: cpu}`")),
        ("Caught an error in thread 1\nE: CUDA error: lost", ("(CUDA error: lost), of this",)),
        ("CUDA error: out of memory\nSearch for", ("out of memory)", "`nvidia-smi`")),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`", ("`nvidia-smi`",)),
    ],
)
def test_what_a_gpu_reports_is_told_as_such(said, words):
    with pytest.raises(DataError) as caught, blaming_device("student: by step 20 "):
        raise RuntimeError(said)
    text = str(caught.value)
    assert text.startswith("student: by step 20 the GPU ")
    assert all(word in text for word in words)
    assert "Search" not in text


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("sizes"), RuntimeError()]
)
def test_what_no_gpu_reports_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, blaming_device():
        raise error
    assert caught.value is error
