"""Files whose reading runs code, one of each kind that may hold a network."""

import os
import pickle
import warnings
import zipfile

import torch

from ensdistill.stages.networks.students import Tiny


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def script(module, file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(module.eval(), torch.zeros(1, 3, 16, 16)), file)


def program(module, file):
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(1, 3, 16, 16),)), file)


def evil_checkpoint(file, touched):
    torch.save({"state_dict": Tiny(3).state_dict(), "args": Touch(touched)}, file)


def evil_old_checkpoint(file, touched):
    content = {"state_dict": Tiny(3).state_dict(), "args": Touch(touched)}
    torch.save(content, file, _use_new_zipfile_serialization=False)


def evil_pickle(file, touched):
    file.write_bytes(pickle.dumps(Touch(touched), protocol=2))


def evil_new_pickle(file, touched):
    file.write_bytes(pickle.dumps(Touch(touched)))


def replaced(file, end, content):
    """Replace one record of an archive."""
    records = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            records[name] = content if name.endswith(end) else archive.read(name)
    assert content in records.values()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def evil_script(file, touched):
    script(Tiny(3), file)
    replaced(file, "constants.pkl", pickle.dumps(Touch(touched), protocol=2))


def evil_program(file, touched):
    program(Tiny(3), file)
    inputs = file.with_suffix(".inputs")
    torch.save(((Touch(touched),), {}), inputs)
    replaced(file, "sample_inputs/model.pt", inputs.read_bytes())


EVIL = [
    evil_checkpoint,
    evil_old_checkpoint,
    evil_pickle,
    evil_new_pickle,
    evil_script,
    evil_program,
]
