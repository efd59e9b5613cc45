"""What fails in a network's own code while it is trained."""

import pytest
from worlds import TINY, World

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 19, 1)
        self.seen = 0

    def forward(self, images):
        if {when}:
            raise {error}
        self.seen += self.training and len(images) == 4
        return self.head(images)
"""


@pytest.fixture
def student(tmp_path):
    """Return what trains a student of which something fails."""
    world = World(tmp_path)
    world.settings["fusion"] = {"method": "majority"}
    network = {"factory": "nets:Net", "root": "code"}
    world.settings["student"] = TINY | {"trust": "code", "network": network, "batch_size": 4}
    world.settings["runtime"]["checkpoint_every"] = 1
    (tmp_path / "code").mkdir()

    def train(when, error, **settings):
        (tmp_path / "code" / "nets.py").write_text(CODE.format(when=when, error=error))
        world.settings["student"] |= settings
        world.write()
        world.call("fuse", "--upstream")
        return world.refuse("train-student"), world

    return train


def test_it_names_node_network_and_step_and_what_was_done_is_kept(student):
    text, world = student("self.seen == 2", 'RuntimeError("sizes of\\ntensors differ")')
    assert text == (
        f"DataError: student.network: nets:Net of {world.root / 'code'} fails at step 3 of 6 "
        "(RuntimeError: sizes of tensors differ); checkpoints are kept, `ensdistill -v` shows where"
    )
    [checkpoint, *_] = sorted(world.root.glob("work/student/*/draft-checkpoint-*"), reverse=True)
    assert checkpoint.name == "draft-checkpoint-00000002.pt"


def test_so_does_what_fails_where_a_split_is_watched(student):
    text, _ = student(
        "not self.training and self.seen", 'KeyError("a")', watch="val", watch_every=2
    )
    assert text.startswith(
        "DataError: student.watch: the network fails on images of 1x3x44x61 (KeyE"
    )


def test_want_of_memory_says_what_to_lower(student):
    text, _ = student("self.seen == 1", 'torch.OutOfMemoryError("CUDA out of memory")')
    assert text == (
        "DataError: student: there is no memory on cpu for step 2; lower `batch_size` or `crop`, "
        "or raise `accumulate`, which takes a batch in parts"
    )


def test_an_error_of_a_gpu_is_not_blamed_on_the_step_that_hears_of_it(student):
    text, _ = student("self.seen == 1", 'RuntimeError("CUDA error: an illegal access\\nSearch")')
    assert text.startswith("DataError: student: at step 2 the GPU reports an error (CUDA error: an")
    assert "CUDA_LAUNCH_BLOCKING=1" in text


def test_nor_is_one_that_a_watched_split_meets(student):
    error = 'RuntimeError("CUDA error: an illegal access\\nSearch")'
    text, _ = student("not self.training and self.seen", error, watch="val", watch_every=2)
    assert text.startswith("DataError: student.watch: the GPU reports an error (CUDA error: an")


def test_what_the_system_refuses_is_said_as_everywhere(student):
    text, _ = student("self.seen == 1", 'OSError(5, "Input/output error", "a.txt")')
    assert text == "OSError: [Errno 5] Input/output error: 'a.txt'"
