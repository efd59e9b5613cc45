"""`ensdistill status` on a large experiment."""

import resource

import pytest
from benchmarks.engine import experiment, shell


@pytest.mark.slow
def test_status_of_7_teachers_and_3000_images_answers_at_once(tmp_path):
    """The goal is half a second; the guard is loose, and of what the processor spent on it."""
    experiment(tmp_path)
    shell(tmp_path, "infer-teacher")
    assert min(spent(tmp_path, "status") for _ in range(5)) < 1.5


def spent(root, *arguments):
    """Return the seconds of processor time that a command takes, however busy the machine is."""

    def so_far():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    begin = so_far()
    shell(root, *arguments)
    return so_far() - begin
