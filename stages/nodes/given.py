"""What nodes are planned from: the experiment, and which ground truth may be opened.

Roles of teachers are numbered in the order that is meant, so that no name enters a key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ensdistill.data.splits import predictions
from ensdistill.pipeline.config import Section
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.node import Command, Item, Items, NodeId, Upstream
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN, Teacher
from ensdistill.stages.fusions import FusionMethod, method_called
from ensdistill.stages.local import LabelFiles, Local

EVALUATE: Final = Command("evaluate")
ALL_FUSIONS: Final = Command("evaluate", "--fusions all")
FUSE: Final = Command("fuse")
INFER: Final = Command("infer-teacher")
SELECT_POLICY: Final = Command("select-policy")

# Of label maps of street scenes with 11 to 19 classes: 0.014 to 0.048, the more the worse the map.
BYTES_PER_PIXEL: Final = 0.03
BYTES_PER_RECORD: Final = 700


@dataclass(frozen=True)
class Given:
    """An experiment, and for the sake of which stages ground truth may be read (`graph.build`)."""

    experiment: Experiment
    opens: Collection[str] = ()

    @property
    def names(self) -> list[str]:
        """The teachers, sorted."""
        return [t.name for t in self.experiment.teachers]

    @property
    def classes(self) -> tuple[str, ...]:
        """The experiment's classes."""
        return self.experiment.classes.classes

    @property
    def weighted(self) -> bool:
        """Whether the student weighs its pixels."""
        return self.experiment.config.student.pixel_weights == "posterior"

    def covering(self, split: str) -> list[str]:
        """Return the teachers that can label a split."""
        return [t.name for t in self.experiment.teachers if covers(t, split)]

    def reached(self, teacher: Teacher) -> tuple[str, ...]:
        """Return the classes that a teacher can call a pixel."""
        goals = self.experiment.teacher_map(teacher).values()
        return tuple(c for c in self.classes if c in goals)

    @property
    def method(self) -> FusionMethod:
        """The experiment's own fusion."""
        return method_called(self.experiment.config.fusion.method)

    @property
    def before_policy(self) -> Command:
        """What makes the policy, and what it is chosen by."""
        return SELECT_POLICY if self.method.policy is not None else ALL_FUSIONS

    @property
    def before_model(self) -> Command:
        """What makes the label model of the training images."""
        chosen_by_it = self.experiment.config.policy.strategy == "reliability"
        asks = self.method.needs_model or (self.method.policy is not None and chosen_by_it)
        return SELECT_POLICY if asks or self.weighted else ALL_FUSIONS

    def items(self, split: str, upstream: Upstream) -> Items:
        """Return the images of a split as items."""
        files = self.experiment.files

        def find() -> Items:
            pictures = self.experiment.pictures(split)
            digests = files.digests([str(p.image) for p in pictures])
            pairs = zip(pictures, digests, strict=True)
            return Items(Item(p.id, {"image": found}) for p, found in pairs)

        return upstream.once(("items", split), find)

    def pngs(
        self, folder: str, split: str, where: str, key: str, upstream: Upstream
    ) -> tuple[Items, LabelFiles]:
        """Return items that are also made from a PNG of a folder, and what reading these needs."""
        items = self.items(split, upstream)
        found = predictions(self.experiment.folder(folder), [item.id for item in items], where)
        digests = self.experiment.files.digests(list(found.values()))
        pairs = zip(items, digests, strict=True)
        local = self.local(split, upstream, dict(zip(found.values(), digests, strict=True)))
        return (
            Items(Item(item.id, {**item.made_from, key: sha256}) for item, sha256 in pairs),
            LabelFiles(**vars(local), predictions=found),
        )

    def local(
        self,
        split: str,
        upstream: Upstream,
        more_digests: Mapping[str, str] | None = None,
    ) -> Local:
        """Return what every stage needs."""
        runtime = self.experiment.config.runtime
        pictures = self.experiment.pictures(split)

        def find() -> dict[str, str]:
            pairs = zip(pictures, self.items(split, upstream), strict=True)
            return {str(p.image): item.made_from["image"] for p, item in pairs}

        return Local(
            pictures=tuple(pictures),
            classes=self.experiment.classes,
            device=runtime.device,
            batch_size=runtime.batch_size,
            channels_last=runtime.channels_last,
            max_pixels=runtime.max_pixels,
            workers=runtime.workers,
            threads=runtime.threads,
            pixels=self.experiment.pixels if self._is_read_again(split) else None,
            digests={**upstream.once(("digests", split), find), **(more_digests or {})},
        )

    def _is_read_again(self, split: str) -> bool:
        """Whether more than the student reads the photographs of a split: then they are kept."""
        networks = (t.network is not None for t in self.experiment.teachers)
        return split == TRAIN or any(networks)

    def map_bytes(self, split: str, per_pixel: float = BYTES_PER_PIXEL) -> Callable[[], int]:
        """Return what tells about how much a map of a split takes on disk."""

        def find() -> int:
            from ensdistill.data.decoding import image_size

            height, width = image_size(self.experiment.pictures(split)[0].image)
            return round(per_pixel * height * width) + BYTES_PER_RECORD

        return find

    def runtime(self) -> dict[str, Json]:
        """Return the runtime as it is recorded."""
        return self.experiment.config.runtime.model_dump(mode="json")


def covers(teacher: Teacher, split: str) -> bool:
    """Whether a teacher can label a split."""
    return teacher.network is not None or split in (teacher.labels or {})


def numbered(role: str, nodes: Iterable[NodeId]) -> dict[str, NodeId]:
    """Return ``role00``, ``role01``, ... to nodes, whose order is part of a key."""
    return {f"{role}{k:02}": node_id for k, node_id in enumerate(nodes)}


def called(uses: Mapping[str, NodeId]) -> dict[str, str]:
    """Return role to the teacher whose labels it stands for."""
    return {role: node_id.of for role, node_id in uses.items() if node_id.of is not None}


def settings_of(section: Section) -> dict[str, Json]:
    """Return the fields of a section that were set."""
    return section.model_dump(mode="json", exclude_none=True)
