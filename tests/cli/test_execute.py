"""What commands have in common: a workspace is read once, and after something was made."""

import pytest

from ensdistill.pipeline.workspace import Workspace


@pytest.fixture
def scans(world, monkeypatch):
    """Run a command, and return how many times it read the workspace."""
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "b"}}
    world.write()
    scan, calls = Workspace.scan, []
    monkeypatch.setattr(Workspace, "scan", lambda self: calls.append(self) or scan(self))

    def count(*command):
        calls.clear()
        world.call(*command)
        return len(calls)

    return count


def test_the_workspace_is_read_once_and_after_each_node_that_was_made(world, scans):
    looks = [
        ("status",),
        ("check",),
        ("explain", "fusion"),
        ("run", "--dry-run"),
        ("evaluate", "--dry-run", "--upstream"),
        ("fuse", "--dry-run", "--upstream"),
    ]
    assert {command: scans(*command) for command in looks} == dict.fromkeys(looks, 1)
    # before it; once it is said what is needed; after each
    assert scans("run") == 2 + len(world.artifacts())
    made = [("run",), ("evaluate",), ("report",), ("verify",)]
    assert {command: scans(*command) for command in made} == dict.fromkeys(made, 1)
    world.settings["fusion"]["window"] = 3
    world.write()
    assert {command: scans(*command) for command in looks} == dict.fromkeys(looks, 1)
    assert scans("fuse") == 3
