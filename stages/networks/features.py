"""What a frozen backbone makes of each image: computed once, kept, and read by memory map.

A cache below the workspace, shared by all trainings (`train: decoder`) whose backbone is the same:
features enter no fingerprint, and what is missing or not whole is computed. Always by one thread
an image and rounded to float16, so that neither who computes them nor when changes a bit.
"""

from __future__ import annotations

import copy
import hashlib
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensdistill.data.cached import Cache, Content
from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import UInt8, image_size
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.fingerprint import Json, canonical_json
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.opening import read_json
from ensdistill.pipeline.ownership import is_own, require_no_link
from ensdistill.stages.functional.unify import View, whole
from ensdistill.stages.local import FEATURES_MARK, Running
from ensdistill.stages.networks.backbones import ARCHITECTURES, STRIDES
from ensdistill.stages.networks.deeplab import Backbone, EncoderDecoder
from ensdistill.stages.networks.folders import read_description
from ensdistill.stages.networks.frozen import (
    FrozenNetwork,
    load_student,
    pick_device,
    platform_facts,
    set_threads,
)
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.stream import Request
from ensdistill.stages.work.caching import opened, whole_of

Half = npt.NDArray[np.float16]

_VERSION: Final = 1  # of how features are computed and kept
_SHARE: Final = 0.9  # of the free disk that may be filled: the node writes as well
ABOUT: Final = "about.json"  # what a folder's features are of
_MOST_ABOUT: Final = 100_000  # bytes of it
_WAYS: Final = (
    "make room, or name a `workspace` elsewhere; a smaller `input_size` takes less, and `train: "
    "all` keeps no features. What is there is used"
)


class Seen(NamedTuple):
    """The features of an image, or of it mirrored, as they lie on a GPU channels-last.

    Attributes
    ----------
    low, high : (h, w, C) float16
        At strides 4 and 16.
    """

    low: Half
    high: Half


class Stored(NamedTuple):
    """What is kept of a photograph.

    Attributes
    ----------
    size : (int, int)
        Its own height and width in pixels.
    plain, mirrored : Seen
        Features of the photograph as it is, and of it mirrored left-right.
    """

    size: tuple[int, int]
    plain: Seen
    mirrored: Seen


class FeatureCache(Cache[Stored]):
    """Features of photographs; the folder is named by the digest of what they are of."""

    suffix = ".f16"
    form = b"ensdistill ft 1\n"
    sizes = 8  # of the photograph H, W; of low and of high h, w, C
    foreign = "it is of another backbone, or of other inputs"

    @property
    def maker(self) -> bytes:
        """What the features are of."""
        return bytes.fromhex(self.folder.name)

    def length(self, sizes: Sequence[int]) -> int:
        """Return how many bytes features of these sizes take."""
        return 4 * sum(_counts(sizes))

    def view(self, content: Content, start: int, sizes: Sequence[int]) -> Stored:
        """Return them as arrays."""
        found = []
        for shape, count in zip((sizes[2:5], sizes[5:8]) * 2, _counts(sizes) * 2, strict=True):
            found.append(np.frombuffer(content, "<f2", count, start).reshape(shape))
            start += 2 * count
        return Stored((sizes[0], sizes[1]), Seen(*found[:2]), Seen(*found[2:]))

    def write(self, sha256: str, encode: Callable[[], Stored]) -> None:
        """Keep features, computed unless they are there whole, in one atomic write.

        Raises
        ------
        DataError
            As `encode`.
        OSError
            If they cannot be written.
        """
        if self.fault(sha256) is None:  # another process was faster
            return
        found = encode()
        shapes = (size for part in found.plain for size in part.shape)
        self.keep(sha256, [*found.size, *shapes], [*found.plain, *found.mirrored])


@dataclass(frozen=True)
class FeatureStore:
    """What reads features that `prepare_features` saw to be whole, in any process."""

    folder: Path

    def read(self, sha256: str) -> Stored:
        """Return what is kept of a photograph, mapped.

        Raises
        ------
        DataError
            If it is there no more.
        """
        found = FeatureCache(self.folder).map(sha256)
        if found is None:
            raise DataError(
                f"{FeatureCache(self.folder).file(sha256)}: stored features were there when this "
                "began and are gone, or others; run again: they are computed anew, and what is "
                "done is kept"
            )
        return found


@dataclass(frozen=True)
class Encoder:
    """A frozen backbone, and what it wants to see.

    Attributes
    ----------
    name : str
        The backbone's.
    backbone : Backbone
        In evaluation mode, on `device`.
    """

    name: str
    backbone: Backbone
    preprocessing: Preprocessing
    device: torch.device

    @classmethod
    def of(
        cls,
        network: EncoderDecoder,
        architecture: str,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> Encoder:
        """Return that of a network, which stays as it is, laid out in one way."""
        backbone = copy.deepcopy(network.backbone).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(ARCHITECTURES[architecture][1], backbone.eval(), preprocessing, device)

    def about(self) -> dict[str, Json]:
        """Return what decides its features, but for their last bits."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            weights.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode())
            weights.update(plain.numpy())
        return {
            "version": _VERSION,
            "backbone": self.name,
            "weights": weights.hexdigest(),
            "preprocess": _plain(asdict(self.preprocessing)),
        }

    def described(self) -> bytes:
        """Return what decides its features to the last bit, as their folder has it."""
        facts = platform_facts(self.device)
        platform: list[Json] = [self.device.type, facts["hardware"], facts["torch"]]
        return canonical_json(self.about() | {"platform": platform})

    def cache(self, root: Path) -> FeatureCache:
        """Return that of its features, below a workspace's folder of features."""
        return FeatureCache(root / hashlib.sha256(self.described()).hexdigest())

    @torch.inference_mode()
    def encode(self, image: str, photograph: UInt8) -> Stored:
        """Return the features of an (H, W, 3) uint8 photograph.

        Raises
        ------
        DataError
            If they are no numbers of float16; `image` is what they are of.
        """
        [resized] = self.preprocessing.resize(photograph)
        pixels = torch.tensor(resized, device=self.device).permute(2, 0, 1)[None]
        inputs = self.preprocessing.normalise(pixels)
        plain, mirrored = (self._seen(image, x) for x in (inputs, inputs.flip(3)))
        return Stored(photograph.shape[:2], plain, mirrored)

    def _seen(self, image: str, inputs: Tensor) -> Seen:
        laid = inputs.contiguous(memory_format=torch.channels_last)
        found = [x[0].permute(1, 2, 0).to(torch.float16) for x in self.backbone(laid)]
        if not all(bool(x.isfinite().all()) for x in found):
            raise DataError(
                f"{image}: its features are not finite, or too large for float16 (65504 at most), "
                "as which they are kept; with other first weights (`init`), or `train: all`, "
                "nothing is kept"
            )
        low, high = (np.ascontiguousarray(x.cpu().numpy()) for x in found)
        return Seen(low, high)


def bytes_of(size: tuple[int, int], channels: tuple[int, int]) -> int:
    """Return the bytes that features of so many channels take, of a photograph seen at (H, W)."""
    grids = (prod(ceil(side / stride) for side in size) for stride in STRIDES)
    return FeatureCache.start() + 4 * sum(n * c for n, c in zip(grids, channels, strict=True))


def require_room(folder: Path, images: int, need: int, name: str) -> str:
    """Say what features of so many images take, and refuse what the disk has no room for.

    Parameters
    ----------
    folder : Path
        Where they are going to lie; it need not be there yet.
    need : int
        The bytes that they take.
    name : str
        What needs them, for the message.

    Raises
    ------
    DataError
        If that is more than nine tenths of what is free.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    takes = f"the features of {images} images take {need / 1e9:.3g} GB"
    if need > _SHARE * free:
        raise DataError(
            f"{name}: {takes} of the {free / 1e9:.3g} GB that are free where {folder} is: too "
            f"much; {_WAYS}"
        )
    return f"{takes} in {folder} ({free / 1e9:.3g} GB are free)"


def prepare_features(
    encoder: Encoder, local: Running, pixels: Pixels, name: str, progress: Progress
) -> FeatureStore:
    """Check what is kept of a node's images, compute the rest, and return what reads it.

    Parameters
    ----------
    pixels : Pixels
        What reads the images.
    name : str
        The node's, for messages.

    Raises
    ------
    DataError
        If an image is unreadable or another one than was planned for, its features are no numbers
        of float16, the disk has no room for them, or the cache's folder is a link.
    """
    assert local.features is not None
    cache = encoder.cache(local.features)
    paths = {local.digests[path]: path for path in (str(p.image) for p in local.pictures)}

    def say(text: str) -> None:
        progress.message(f"{name}: {text}")

    try:
        require_no_link(local.features)
        present = sorted(opened(cache, FEATURES_MARK) & paths.keys())
        if not (cache.folder / ABOUT).exists():
            atomic.write_bytes(cache.folder / ABOUT, encoder.described())
        found: set[str] = set()
        if present:
            what, again = "stored features", "computing them again"
            found = whole_of(cache, present, local.workers, progress, say, what, again)
        missing = [(path, sha256) for sha256, path in paths.items() if sha256 not in found]
        if missing:
            sizes = [encoder.preprocessing.size or image_size(Path(path)) for path, _ in missing]
            need = sum(bytes_of(size, encoder.backbone.channels) for size in sizes)
            say(require_room(cache.folder, len(missing), need, name))
            _fill(cache, encoder, missing, pixels, progress)
    except OSError as error:
        raise DataError(
            f"{name}: {cache.folder} cannot hold the features of its {len(paths)} images "
            f"({error}); {_WAYS}"
        ) from error
    return FeatureStore(cache.folder)


def _fill(
    cache: FeatureCache,
    encoder: Encoder,
    missing: Sequence[tuple[str, str]],
    pixels: Pixels,
    progress: Progress,
) -> None:
    """Compute what is missing, as many images at a time as there are threads."""

    def keep(path: str, sha256: str) -> None:
        cache.write(sha256, lambda: encoder.encode(path, pixels.read(path, sha256)))

    order = random.Random().sample(missing, len(missing))  # so that trainings share the work
    progress.start(len(order), 0, "images")
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    search = cudnn.benchmark, cudnn.deterministic
    # a search for the fastest way would choose another one each time
    cudnn.benchmark, cudnn.deterministic = False, True
    at_once = threads if encoder.device.type == "cpu" else 1
    pool = ThreadPoolExecutor(at_once, "encode", torch.set_num_threads, (1,))
    try:
        for done in [pool.submit(keep, *image) for image in order]:
            done.result()
            progress.advance()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # which those of new threads follow
        cudnn.benchmark, cudnn.deterministic = search


class OnFeatures(FrozenNetwork):
    """A network whose backbone has seen all photographs before: only its decoder runs."""

    def __init__(
        self, network: EncoderDecoder, features: FeatureStore, *seeing: Any, **runtime: Any
    ):
        super().__init__(network.decoder, *seeing, **runtime)
        self._decoder = network.decoder
        self._features = features

    def read(self, pixels: Pixels, request: Request) -> tuple[tuple[int, int], list[Tensor]]:
        """Return the size of a photograph, and its features."""
        found = self._features.read(request.sha256)
        return found.size, [torch.from_numpy(x) for x in found.plain]

    @torch.inference_mode()
    def _views(self, inputs: Sequence[Tensor]) -> list[list[View]]:
        """Return what was said of each photograph."""
        laid = [x.float().contiguous(memory_format=self._layout) for x in inputs]
        return [[whole(one) for one in self._decoder(*laid)]]


def open_on_features(
    folder: Path, local: Running, pixels: Pixels, name: str, progress: Progress
) -> OnFeatures:
    """Open a network that was trained with `train: decoder`, for the images of a node.

    Raises
    ------
    DataError
        As `prepare_features`.
    """
    local.require_weights()
    device = pick_device(local.device)
    set_threads(local.threads)
    network, declared = load_student(folder, {}, local)
    assert isinstance(network, EncoderDecoder)
    preprocessing = Preprocessing.from_settings(declared)
    architecture = read_description(folder)["architecture"]
    encoder = Encoder.of(network, architecture, preprocessing, device)
    store = prepare_features(encoder, local, pixels, name, progress)
    runtime = {"channels_last": local.channels_last, "workers": local.workers}
    return OnFeatures(network, store, preprocessing, device, **runtime)


def feature_folders(root: Path) -> dict[Path, dict[str, Json]]:
    """Return the folders of features below a workspace's, and what each is of (see `about`).

    Nothing is said of one that does not tell, or that another version of torch has computed: nobody
    here reads it. Another device or processor may.
    """
    found: dict[Path, dict[str, Json]] = {}
    if not root.is_dir() or root.is_symlink():
        return found
    for folder in sorted(root.iterdir()):
        if is_own(folder, FEATURES_MARK):
            try:
                about = read_json(folder / ABOUT, _MOST_ABOUT)
            except (OSError, ValueError):
                about = None
            platform = about.pop("platform", None) if isinstance(about, dict) else None
            ours = isinstance(platform, list) and torch.__version__ in platform
            found[folder] = about if ours else {}
    return found


def _counts(sizes: Sequence[int]) -> list[int]:
    """Return how many numbers low and high features have."""
    return [h * w * c for h, w, c in (sizes[2:5], sizes[5:8])]


def _plain(given: Mapping[str, Any]) -> dict[str, Json]:
    """Return settings as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
