"""The experiment that a command works on: the file, and the folder that it speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ensdistill.data import classes as tables
from ensdistill.data import splits
from ensdistill.data.classes import ClassTable
from ensdistill.data.splits import Picture
from ensdistill.pipeline.config import read_model, read_yaml
from ensdistill.pipeline.errors import ConfigError, EnsdistillError, raise_all, shortened
from ensdistill.pipeline.files import FileCache
from ensdistill.pipeline.manifest import Form
from ensdistill.pipeline.opening import real_path
from ensdistill.pipeline.workspace import Workspace
from ensdistill.stages.experiment.networks import Built
from ensdistill.stages.experiment.schema import NAME, TRAIN, Config, Teacher
from ensdistill.stages.functional import MAX_FUSED
from ensdistill.stages.local import FEATURES, PIXELS
from ensdistill.stages.networks.files import Source
from ensdistill.stages.networks.hub import hub_folder


@dataclass(frozen=True)
class Experiment:
    """An experiment file together with the folder it speaks of.

    `files` are digests of input files, kept in the workspace; `forms` is stage to what its results
    and records are.
    """

    path: Path
    config: Config
    files: FileCache
    forms: Mapping[str, Form]
    _tables: dict[str, ClassTable] = field(default_factory=dict, init=False, repr=False)
    _pictures: dict[str, list[Picture]] = field(default_factory=dict, init=False, repr=False)

    @property
    def base(self) -> Path:
        """The folder that relative paths of the file start from."""
        return self.path.parent

    @cached_property
    def workspace(self) -> Workspace:
        """The folder of artifacts."""
        return Workspace(self.folder(self.config.workspace), forms=self.forms)

    @property
    def pixels(self) -> Path | None:
        """The folder of decoded images; None where they are not kept."""
        return self.workspace.root / PIXELS if self.config.runtime.cache else None

    @property
    def features(self) -> Path:
        """The folder of what frozen backbones make of images."""
        return self.workspace.root / FEATURES

    @cached_property
    def classes(self) -> ClassTable:
        """The class table of the experiment."""
        return self.table(self.config.classes.table)

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """All teachers, sorted by name: their order in the file means nothing."""
        return tuple(sorted(self.config.teachers, key=lambda t: t.name))

    @property
    def labelled(self) -> tuple[str, ...]:
        """Names of the splits, other than train, that declare ground truth."""
        return tuple(
            name
            for name in self.config.target
            if name != TRAIN and self.pictures(name)[0].labels is not None
        )

    def table(self, name: str) -> ClassTable:
        """Return a built-in class table or one from a YAML file."""
        if name not in self._tables:
            file = tables.table_file(name, self.base)
            self._tables[name] = (
                tables.TABLES[name]
                if file is None
                else tables.parse_table(str(file), read_yaml(file))
            )
        return self._tables[name]

    def pictures(self, split: str) -> list[Picture]:
        """Return the images of a split, sorted by id."""
        if split not in self._pictures:
            declared, where = self.config.target[split], f"target.{split}"
            if declared.images is not None:
                found = splits.from_globs(declared.images, declared.labels, self.base, where)
            elif declared.cityscapes is not None:
                name = declared.split or split
                found = splits.from_cityscapes(declared.cityscapes, name, self.base, where)
            else:
                found = splits.from_list(declared.list or "", self.base, where)
            self._pictures[split] = found
        return self._pictures[split]

    def overlap(self, split: str) -> list[tuple[Path, Path]]:
        """Return the images of a split that are trained on too, each with its like in ``train``.

        By what the files hold: a copy under another name is the same image.

        Raises
        ------
        DataError
            If a file cannot be read.
        """
        trained, found = ([str(p.image) for p in self.pictures(s)] for s in (TRAIN, split))
        by_digest = dict(zip(self.files.digests(trained), trained, strict=True))
        pairs = zip(found, self.files.digests(found), strict=True)
        return [(Path(f), Path(by_digest[sha256])) for f, sha256 in pairs if sha256 in by_digest]

    def folder(self, text: str) -> Path:
        """Return a path of the file, relative to the file's folder unless absolute."""
        return self.base / splits.expanded(text)

    def named_paths(self) -> list[Path]:
        """Return the networks and weights that the file names: they may lie in a workspace."""
        config = self.config
        trainings = (config.probe, config.student)
        built: list[Built] = [t.network for t in config.teachers if t.network is not None]
        built += [t.network for t in trainings]
        texts = [path for network in built for path in network.paths]
        texts += [t.init.path for t in trainings if t.init is not None and t.init.path is not None]
        return [self.folder(text) for text in texts]

    def source(self, network: Built, where: str) -> Source:
        """Return what a network is made from; `where` is its key in the file."""
        return Source(
            where,
            network.kind,
            self.folder(network.path),
            network.factory,
            network.kwargs,
            {key: self.folder(text) for key, text in network.files.items()},
        )

    def teacher_source(self, teacher: Teacher) -> Source:
        """Return what a teacher's network is made from.

        Raises
        ------
        DataError
            If it is on a hub and was not downloaded yet.
        """
        network = teacher.network
        assert network is not None
        weights, path = network.state_dict, self.folder(network.path)
        if network.revision is not None:
            path = hub_folder(network.path, network.revision, download=False)
        return replace(
            self.source(network, f"teachers[{teacher.name}].network"),
            path=path,
            state_dict=None if weights is None else self.folder(weights),
            trusted=teacher.trust == "code",
            void_channels=network.void_channels,
            preprocess=teacher.preprocess.model_dump(exclude_none=True),
        )

    def teacher_table(self, teacher: Teacher) -> ClassTable:
        """Return a teacher's own classes (the experiment's, unless it declares others)."""
        return self.classes if teacher.classes is None else self.table(teacher.classes)

    def teacher_map(self, teacher: Teacher) -> dict[str, str | None]:
        """Return where each class of a teacher goes, by name."""
        where = f"teachers[{teacher.name}]"
        return tables.class_map(self.teacher_table(teacher), self.classes, teacher.map, where)


def read(path: Path, forms: Mapping[str, Form], *, rehash: bool = False) -> Experiment:
    """Read an experiment file and refuse what can be seen to be wrong without opening data.

    Raises
    ------
    ConfigError
        With all problems found.
    """
    path = real_path(path)
    config = read_model(path, Config)
    workspace = path.parent / splits.expanded(config.workspace)
    files = FileCache(workspace / "files.json", rehash=rehash)
    experiment = Experiment(path, config, files, forms)
    problems = _problems(experiment)
    raise_all([f"{path}: {shortened(p)}" for p in problems], ConfigError)
    return experiment


def _problems(experiment: Experiment) -> list[str]:
    config, problems = experiment.config, []
    if TRAIN not in config.target:
        problems.append("target.train is missing: the images to make pseudo-labels for")
    for split, declared in config.target.items():
        if not NAME.fullmatch(split):
            problems.append(f"target: {split!r} cannot name a split")
        if declared.overlap and split == TRAIN:
            problems.append("target.train.overlap: is for splits that are scored")
    names = [t.name for t in config.teachers]
    for name in sorted({n for n in names if names.count(n) > 1}):
        problems.append(f"teachers: two of them are named {name!r}; names must be unique")
    try:
        table = experiment.classes
    except EnsdistillError as error:
        return [*problems, f"classes.table: {error}"]
    if len(table) > MAX_FUSED:
        problems.append(
            f"classes.table: {table.name} has {len(table)} classes; expected at most {MAX_FUSED} "
            "(a teacher's own table may have more)"
        )
    for teacher in config.teachers:
        where = f"teachers[{teacher.name}]"
        try:
            mapping = experiment.teacher_map(teacher)
            experiment.teacher_table(teacher).legal_values(teacher.ids)
        except EnsdistillError as error:
            problems.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
            continue
        if all(goal is None for goal in mapping.values()):
            problems.append(
                f"{where}: none of its classes has a place in {table.name}; name them in `map`"
            )
        if teacher.labels is not None and TRAIN not in teacher.labels:
            problems.append(f"{where}.labels.train is missing")
        if teacher.confidence is not None and TRAIN not in teacher.confidence:
            problems.append(f"{where}.confidence.train is missing")
        for key in ("labels", "confidence"):
            for split in getattr(teacher, key) or {}:
                if split not in config.target:
                    problems.append(f"{where}.{key}.{split}: target declares no such split")
    for class_name, name in (config.policy.assign or {}).items():
        try:
            tables.require_class(class_name, table.classes, "policy.assign")
        except ConfigError as error:
            problems.append(str(error))
        if name not in names:
            problems.append(f"policy.assign.{class_name}: no teacher is named {name!r}")
    watch = config.student.watch
    if watch is not None and watch not in config.target:
        problems.append(f"student.watch: target declares no split {watch!r}")
    if config.fusion.conflict == "certainty" and config.policy.strategy == "manual":
        problems.append("fusion.conflict: certainty needs another policy.strategy than manual")
    return problems
