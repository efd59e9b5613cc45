"""Label maps are read only from files below their artifact."""

import hashlib
import os

import numpy as np
import pytest

from ensdistill.data.store import LabelStore
from ensdistill.pipeline.errors import CorruptError
from ensdistill.stages.labelmaps import STORE, LabelReader, Stored


@pytest.fixture
def reader(tmp_path):
    """A reader of an artifact of one label map, and where that lies."""
    folder = tmp_path / "artifact"
    store = LabelStore.create(folder / STORE, 1, 4, 6)
    store.write(0, np.full((4, 6), 3, np.uint8))
    return LabelReader(folder, LabelStore(folder / STORE))


def stored(reader, name=f"{STORE}/c.0.0.0"):
    content = (reader.folder / STORE / "c.0.0.0").read_bytes()
    return Stored("a", name, hashlib.sha256(content).hexdigest(), (4, 6))


def test_a_label_map_is_read(reader):
    assert (reader(stored(reader)) == 3).all()


@pytest.mark.parametrize("spoil", ["up", "absolute", "link", "pipe", "device"])
def test_a_file_that_is_none_or_lies_outside_is_never_read(reader, tmp_path, spoil):
    record = stored(reader)
    file, outside = reader.folder / record.file, tmp_path / "c.0.0.0"
    outside.write_bytes(file.read_bytes())  # so that nothing but its place is wrong
    if spoil in ("up", "absolute"):
        record = stored(reader, "../c.0.0.0" if spoil == "up" else str(outside))
    else:
        file.unlink()
        if spoil == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(outside if spoil == "link" else "/dev/zero")
    with pytest.raises(CorruptError, match=r"c\.0\.0\.0: is not what was written for a"):
        reader(record)
