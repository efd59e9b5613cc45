"""The fusion kernels against the memory's speed, and against what people use elsewhere."""

import time
from functools import cache

import numba
import numpy as np
import torch

from ensdistill.stages.functional import _kernels
from ensdistill.stages.functional.fusion import channel_wise, majority

from . import maps
from .measure import figure, peers, turns

WINDOW = 35


@cache
def sets():
    """Return name to (7 or 6, H, W) label maps."""
    real = maps.camvid(6, images=1)
    found = {"easy": maps.street(0)[1], "hard": maps.street(0, hard=True)[1]}
    return found | ({"CamVid": real[0]} if real else {})


def highest(label_maps):
    """Return the yardstick: the largest label of each pixel, at the speed of memory."""
    out = np.empty_like(label_maps[0])

    def work():
        np.maximum(label_maps[0], label_maps[1], out=out)
        for plane in label_maps[2:]:
            np.maximum(out, plane, out=out)

    return work


def fuse(label_maps, owner, conflict, holes="ignore"):
    """Return a call of the kernel."""
    certainty = np.random.default_rng(0).random(len(owner))
    rules = {"conflict": conflict, "holes": holes, "certainty": certainty}
    return lambda: channel_wise(label_maps, owner, window=WINDOW, **rules)[0]


@numba.njit
def claims_of(label_maps, planes, classes, claims):
    """Write the plane of claims as the kernel does, without what it counts and notes of them."""
    for y in range(len(claims)):
        claims[y, :] = _kernels.NONE
        for k in range(len(planes)):
            a, b, c, d, e, f = classes[k]
            _kernels._claim(label_maps[planes[k], y], a, b, c, d, e, f, claims[y])


def claiming(label_maps, owner):
    """Return a call of it."""
    label_maps = label_maps.view()
    label_maps.flags.writeable = False
    planes, classes = [], []
    for t in range(len(label_maps)):
        mine = np.flatnonzero(owner == t)
        for k in range(0, len(mine), _kernels.SLOTS):
            planes.append(t)
            classes.append(np.full(_kernels.SLOTS, _kernels.PADDING, np.uint8))
            classes[-1][: len(mine[k : k + _kernels.SLOTS])] = mine[k : k + _kernels.SLOTS]
    claims = np.empty(label_maps.shape[1:], np.uint8)
    arguments = label_maps, np.array(planes), np.array(classes), claims

    def work():
        claims_of(*arguments)
        return claims

    return work


def rules(root):
    for name, label_maps in sets().items():
        planes = label_maps[:4]
        owner = maps.random_owner(0, len(planes))
        works = {f"rule {rule}": fuse(planes, owner, rule) for rule in ("ignore", "certainty")}
        claims = claiming(planes, owner)
        fused = np.where(claims() == _kernels.MANY, 255, claims())
        assert np.array_equal(fused, works["rule ignore"]())
        times = turns(works | {"claims": claims, "max": highest(planes)})
        for work in works:
            title = f"{work}, T=4, {name} / max of planes"
            yield figure(title, times.ratio(work, "max"), "x", 5, 2.5)
        note = "without what is counted and noted of them by class and by tile"
        title = f"claims alone, T=4, {name} / max of planes"
        yield figure(title, times.ratio("claims", "max"), note=note)


def window(root):
    for name, count, share, stretch in (
        ("easy", 4, 0.08, 10),
        ("hard", 7, 0.18, 12),
        ("CamVid", 4, 0.12, None),
    ):
        if name not in sets():
            continue
        planes = sets()[name][:count]
        owner = maps.owner_near(planes, share)
        times = turns({"ours": fuse(planes, owner, "window", "window"), "max": highest(planes)})
        title = f"rule window, T={count}, {name}, {maps.unresolved(planes, owner):.1%} unresolved"
        note = f"{times.median('ours') / planes[0].size * 1e9:.2f} ns/px"
        ratio = times.ratio("ours", "max")
        yield figure(f"{title} / max of planes", ratio, "x", 20, stretch, note=note)


def frames(root):
    """Whether small images, of CamVid's size, take longer for their pixels than large ones."""
    planes = sets()["easy"][:4]
    owner = maps.owner_near(planes, 0.08)
    parts = [
        np.ascontiguousarray(planes[:, y : y + 360, x : x + 480])
        for y in (0, 332, 664)
        for x in (0, 392, 784, 1176, 1568)
    ]
    small = [fuse(part, owner, "window", "window") for part in parts]
    large = fuse(planes, owner, "window", "window")
    times = turns({"small": lambda: [work() for work in small], "large": large})
    ratio = times.ratio("small", "large") * planes.size / sum(part.size for part in parts)
    title = "rule window, T=4, easy, a pixel of 360x480 / of 1024x2048"
    yield figure(title, ratio, "x", 1.5, 1.2)


def pooling(root):
    """Against the form of the method's published code, on a part of an image: it is slow."""
    planes = np.ascontiguousarray(sets()["easy"][:4, 384:640, 512:1536])
    owner = maps.owner_near(planes, 0.08)
    ours = fuse(planes, owner, "window", "window")
    owners = torch.from_numpy(owner)
    pool = torch.nn.AvgPool2d(WINDOW, stride=1, padding=WINDOW // 2)

    def theirs():
        labels = torch.from_numpy(planes)
        classes = torch.arange(len(owners))[:, None, None]
        claims = (labels[owners] == classes).float()
        counts = pool(claims[None])[0]
        return torch.where(claims.sum(0) == 1, claims.argmax(0), counts.argmax(0)).numpy()

    torch.set_num_threads(2)
    try:
        fused = ours()
        assert np.array_equal(theirs()[fused != 255], fused[fused != 255])
        times = turns({"theirs": theirs, "ours": ours}, clock=time.perf_counter)
    finally:
        torch.set_num_threads(1)
    title = "one-hot AvgPool2d(35) on 2 threads / rule window, 256x1024, wall"
    yield figure(title, times.ratio("theirs", "ours"), "x", 1000, 2500, better="more")


def votes(root):
    for name, label_maps in sets().items():
        planes = label_maps[:4]
        times = turns({"majority": vote(planes), "max": highest(planes)})
        title = f"majority, T=4, {name} / max of planes"
        yield figure(title, times.ratio("majority", "max"), "x", 2, 1.2)
    planes = sets()["easy"]
    times = turns({"majority": vote(planes), "max": highest(planes)})
    title = "majority, T=7, easy / max of planes"
    yield figure(title, times.ratio("majority", "max"), "x", 6, 4)
    for count, goal in ((4, 3), (7, 2)):
        weights = np.arange(1, count + 1, dtype=np.uint16)
        works = {"weighted": vote(planes[:count], weights), "majority": vote(planes[:count])}
        ratio = turns(works).ratio("weighted", "majority")
        yield figure(f"weighted majority, T={count}, easy / unweighted", ratio, "x", goal)


def vote(label_maps, weights=None):
    """Return a call of the kernel."""
    return lambda: majority(label_maps, maps.CLASSES, weights=weights)


def voters(root):
    planes = sets()["easy"][:4]
    works, missing = peers(
        {
            "torch.mode": lambda: lambda: torch.mode(torch.from_numpy(planes), dim=0).values,
            "scipy.stats.mode": lambda: scipy_mode(planes),
            "SimpleITK LabelVoting": lambda: label_voting(planes),
            "crowd-kit SegmentationMajorityVote": lambda: crowd(planes),
        }
    )
    times = turns(works | {"ours": vote(planes)})
    notes = {"SimpleITK LabelVoting": "CPU time, on its default number of threads"}
    goals = {"torch": 20, "SimpleITK": 300, "crowd-kit": 400}
    for peer in (*works, *missing):
        goal = goals.get(peer.split()[0].split(".")[0])
        value = None if peer in missing else times.ratio(peer, "ours")
        note = "peer not installed" if peer in missing else notes.get(peer)
        yield figure(f"{peer} / majority, T=4", value, "x", goal, better="more", note=note)


def scipy_mode(planes):
    from scipy.stats import mode

    return lambda: mode(planes, axis=0)


def label_voting(planes):
    import SimpleITK

    images = [SimpleITK.GetImageFromArray(plane) for plane in planes]
    return lambda: SimpleITK.LabelVoting(images, 255)


def crowd(planes):
    """It knows one class against all others, so there is one run for each class."""
    import pandas
    from crowdkit.aggregation import SegmentationMajorityVote

    rows = [(c, t, plane == c) for c in range(maps.CLASSES) for t, plane in enumerate(planes)]
    data = pandas.DataFrame(rows, columns=["task", "worker", "segmentation"])
    return lambda: SegmentationMajorityVote().fit_predict(data)


MEASURES = (rules, window, frames, pooling, votes, voters)
