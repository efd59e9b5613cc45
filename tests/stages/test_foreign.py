"""What networks in files of other libraries take."""

import pytest
import torch

from ensdistill.stages.networks.foreign import Fixed, run_as_fixed


def test_a_lack_of_memory_stays_what_it_is():
    def call(images):
        raise torch.OutOfMemoryError("no memory")

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
