"""Values of every wrong type in every place of a value of JSON or YAML."""

import copy

from ensdistill.pipeline.errors import EnsdistillError

WRONG = (
    None,
    True,
    0,
    -1,
    1e9,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    [],
    [1],
    ["x", "x"],
    [[]],
    {},
    {"x": 1},
    {"preset": []},
)


def places(value, at=()):
    """Yield the way to each value within a value, itself first."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def mutants(value, wrong=WRONG):
    """Yield copies of a value in which one place holds something else, or nothing any more."""
    for at in places(value):
        for new in wrong:
            yield at, new, changed(value, at, new)
        if at:
            yield at, "(gone)", changed(value, at)


def changed(value, at, *new):
    """Return a copy in which a place holds something else, or without it."""
    if not at:
        return new[0]
    found = copy.deepcopy(value)
    inside = found
    for key in at[:-1]:
        inside = inside[key]
    if new:
        inside[at[-1]] = new[0]
    else:
        del inside[at[-1]]
    return found


def outcome(call, *names):
    """Return the refusal's text, empty where there is none; it names one of `names`."""
    try:
        call()
    except EnsdistillError as error:
        assert any(str(name) in str(error) for name in names), error
        assert len(str(error)) < 20_000, error
        return str(error)
    return ""
