"""What a report shows is what was published."""

import dataclasses
import datetime
import io
import shutil

import numpy as np
import pytest
from golden import make as golden
from PIL import Image
from worlds import World

from ensdistill.data.decoding import read_image
from ensdistill.pipeline import provenance
from ensdistill.pipeline.errors import CorruptError, NotReadyError
from ensdistill.pipeline.plan import plan
from ensdistill.stages.functional.agreement import Agreement
from ensdistill.stages.graph import build, load
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.reading import gallery, report


def gathered(file, split="val"):
    return report.gather(load(file), split, lambda _: golden.Silent())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the golden experiment, which is finished, and what a report shows of it."""
    folder = tmp_path_factory.mktemp("report") / "golden"
    shutil.copytree(golden.GOLDEN, folder, ignore=shutil.ignore_patterns("*.py", "*.md"))
    file = folder / "experiment.yaml"
    experiment = load(file)
    nodes = build(experiment, opens=golden.OPENS)
    decisions = plan(nodes, experiment.workspace.scan())
    maps = {n: LabelMaps(d.artifact) for n, d in decisions.items() if "infer[" in n or "fus" in n}
    return gathered(file), maps, experiment


def pixels(drawn):
    """Return the indices of a palette PNG and the opacity of each."""
    with Image.open(io.BytesIO(drawn.content)) as image:
        assert image.mode == "P"
        return np.asarray(image), np.frombuffer(image.info["transparency"], np.uint8)


def test_it_tells_what_was_run(finished):
    found, _, experiment = finished
    assert found["about"]["file"] == experiment.path.read_text()
    assert [t["name"] for t in found["teachers"]] == ["mapped", "own", "segformer"]
    assert [(s["name"], s["images"], s["labelled"]) for s in found["splits"]] == [
        ("train", 3, False),
        ("val", 2, True),
    ]
    assert found["policy"].strategy == "certainty"
    assert set(found["certainty"]) == {"mapped", "own", "segformer"}
    assert found["warnings"] == [w for w in found["warnings"] if "is stale" not in w]
    assert {c["node"] for c in found["curves"]} == {
        "probe[mapped]",
        "probe[own]",
        "probe[segformer]",
        "student",
    }
    assert all(c["loss"] for c in found["curves"])


def test_scores_are_those_of_the_evaluation(finished):
    found, _, experiment = finished
    evaluation = experiment.workspace.root.glob("evaluation/val-*/manifest.json")
    assert len(list(evaluation)) == 1
    for method in found["scores"]["methods"]:
        matrix = np.array(method["confmat"])
        hits = np.diagonal(matrix)
        union = matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0) - hits
        for c, name in enumerate(found["scores"]["classes"]):
            expected = None if union[c] == 0 else pytest.approx(100 * hits[c] / union[c])
            assert method["iou"][name] == expected


def test_agreement_is_that_of_the_stored_label_maps(finished):
    found, maps, _ = finished
    same, labelled, one, either, total = 0, 0, 0, 0, 0
    for image_id in maps["fusion"]:
        a, b, c = (maps[f"infer[{t}]"].read(image_id) for t in ("mapped", "own", "segformer"))
        same += np.count_nonzero((a == b) & (b == c) & (a != 255))
        labelled += np.count_nonzero((a != 255) | (b != 255) | (c != 255))
        one += np.count_nonzero((a == b) & (a != 255))
        either += np.count_nonzero((a != 255) | (b != 255))
        total += a.size
    shown = found["agreement"]
    assert shown["unanimous"] == pytest.approx(same / labelled)
    assert shown["unlabelled"] == pytest.approx(1 - labelled / total)
    assert shown["pairs"]["mapped"]["own"] == pytest.approx(one / either)
    assert shown["pairs"]["own"]["mapped"] == shown["pairs"]["mapped"]["own"]


def test_pictures_hold_the_stored_labels(finished):
    found, maps, experiment = finished
    assert len(found["gallery"]) == 3
    for shot in found["gallery"]:
        photo, *rest = shot.drawn
        image = read_image(next(p.image for p in experiment.pictures("train") if p.id == shot.id))
        assert (photo.kind, (shot.height, shot.width)) == ("photo", image.shape[:2])
        shown = {d.title: d for d in rest}
        assert list(shown) == [
            "mapped",
            "own",
            "segformer",
            "fused (channel)",
            "conflicts and holes",
        ]
        for title, node in (
            *((t, f"infer[{t}]") for t in ("mapped", "own", "segformer")),
            ("fused (channel)", "fusion"),
        ):
            labels, opacity = pixels(shown[title])
            np.testing.assert_array_equal(labels, maps[node].read(shot.id))
            assert (opacity == 255).all()
            assert shown[title].text.startswith(f"{title}: ")
    conflicts = sum(np.count_nonzero(pixels(shot.drawn[-1])[0] > 1) for shot in found["gallery"])
    sizes = sum(shot.width * shot.height for shot in found["gallery"])
    assert conflicts / sizes == pytest.approx(found["fused"]["conflict"])


def test_ground_truth_is_shown_only_beside_scores(finished):
    found, maps, experiment = finished
    assert len(found["scored_gallery"]) == 2
    for shot in found["scored_gallery"]:
        shown = {d.title: d for d in shot.drawn}
        truth, _ = pixels(shown["ground truth"])
        wrong, opacity = pixels(shown["errors of the fused labels"])
        fused = maps["fusion[channel]@val"].read(shot.id)
        np.testing.assert_array_equal(wrong, (fused != truth) & (truth != 255))
        assert (opacity[0], opacity[1] > 0) == (0, True)
        assert "student" in shown
    without = gathered(experiment.path, split=None)
    assert without["scores"] is None
    assert without["scored_gallery"] == []
    titles = {d.title for shot in without["gallery"] for d in shot.drawn}
    assert not titles & {"ground truth", "errors of the fused labels", "student"}


def test_what_is_missing_is_left_out(world):
    with pytest.raises(NotReadyError, match="ensdistill run"):
        gathered(world.file)
    world.call("infer-teacher")
    found = gathered(world.file)
    assert (found["fused"], found["policy"], found["gallery"]) == (None, None, [])
    assert found["scores"] is None
    assert any(w.startswith("fusion is waiting") for w in found["warnings"])


def quick(world, **more):
    """Let nothing be trained before the labels are fused."""
    world.settings["fusion"] = {"method": "majority"}
    world.settings |= more
    world.write()
    world.call("infer-teacher")
    world.call("fuse")
    return world


def test_what_the_last_command_found_in_the_cache(world, monkeypatch):
    quick(world)
    first = gathered(world.file)["cost"]
    assert (first["made"], first["cached"]) == (["fusion", "infer[a]", "infer[b]"], [])
    world.add_teacher("c", np.zeros_like)
    monkeypatch.setattr(provenance, "_BEGUN", datetime.datetime.now(datetime.UTC))  # a new process
    world.call("fuse", "--upstream")
    cost = gathered(world.file)["cost"]
    assert cost["made"] == ["fusion", "infer[c]"]
    assert cost["cached"] == ["infer[a]", "infer[b]"]
    assert cost["seconds"] == pytest.approx(cost["made_seconds"] + cost["cached_seconds"])


def test_two_teachers_that_are_one_are_warned_of(world):
    world.teacher("c", lambda label: np.where(label % 2 == 0, label, 0))
    world.settings["teachers"].append(world.entry("c"))
    found = gathered(quick(world).file)
    assert [w for w in found["warnings"] if "two votes" in w] == [
        "a says the same as c on 100.00% of the pixels that either labels: two votes of one opinion"
    ]


def test_messages_are_kept(world):
    quick(world)
    world.settings["target"]["train"] = {"images": "images/train/train_00000[0-3]*.png"}
    world.write()
    world.call("infer-teacher")
    messages = gathered(world.file)["messages"]
    assert {"node": "infer[a]", "text": "4 of 4 are taken from other artifacts"} in messages


def test_what_was_made_before_commands_were_dated_is_shown(world):
    quick(world)
    for artifact in world.artifacts():
        about = {k: v for k, v in artifact.manifest.provenance.items() if k != "begun"}
        about.pop("messages")
        file = artifact.path / "manifest.json"
        file.chmod(0o644)
        file.write_bytes(dataclasses.replace(artifact.manifest, provenance=about).to_bytes())
    found = gathered(world.file)
    assert found["cost"]["command"] is None
    assert found["messages"] == []


def test_damage_is_refused(world):
    world.settings["fusion"] = {"method": "majority"}
    world.settings["student"]["steps"] = 1
    world.write()
    world.call("train-student", "--upstream")
    [curve] = (world.root / "work" / "student").glob("*/metrics.jsonl")
    curve.chmod(0o644)
    curve.write_text(curve.read_text().replace("loss", "gain"))
    with pytest.raises(CorruptError, match=r"metrics\.jsonl.*verify --repair"):
        gathered(world.file)


def test_scores_stand_where_a_fusion_is_gone(finished, tmp_path):
    _, _, experiment = finished
    folder = tmp_path / "less"
    shutil.copytree(experiment.base, folder)
    [gone] = (folder / "workspace" / "fusion").glob("majority-val-*")
    shutil.rmtree(gone)
    found = gathered(folder / "experiment.yaml")["scores"]
    assert "majority" in {m["name"] for m in found["methods"]}
    assert "majority" not in found["conflict"]


def counted(unanimous, labelled=100):
    none = np.zeros(1, np.int64)
    of_pairs = np.zeros((1, 1), np.int64)
    return Agreement(100, labelled, unanimous, of_pairs, of_pairs, none, none)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 8, 9, 10, 40])
def test_images_are_chosen_by_agreement_and_each_once(images):
    found = {f"i{k:02}": counted((7 * k) % 41) for k in range(images)}
    chosen = gallery.choose(found)
    assert len(chosen) == min(images, 9)
    assert len({i for i, _ in chosen}) == len(chosen)
    shares = {
        rank: [found[i].unanimous for i, r in chosen if r == rank]
        for rank in ("most", "median", "least")
    }
    order = [u for rank in shares for u in shares[rank]]
    assert order == sorted(order, reverse=True)
    assert max(a.unanimous for a in found.values()) in shares["most"]
    if images > 9:
        assert min(a.unanimous for a in found.values()) in shares["least"]
        below = sum(a.unanimous < min(shares["median"]) for a in found.values())
        above = sum(a.unanimous > max(shares["median"]) for a in found.values())
        assert abs(below - above) <= 1


def test_images_are_ranked_by_what_is_labelled_and_those_without_labels_come_last():
    found = {
        "half, all of it agreed": counted(50, 50),
        "full, nearly all of it agreed": counted(90),
        "nothing": counted(0, 0),
        "another nothing": counted(0, 0),
        "one in ten pixels, none agreed": counted(0, 10),
    }
    assert [i for i, _ in gallery.choose(found)] == [
        "half, all of it agreed",
        "full, nearly all of it agreed",
        "one in ten pixels, none agreed",
        "another nothing",
        "nothing",
    ]


def holes(world, **rules):
    """Give teachers labels by a rule of the map that is 255 everywhere, and fuse them."""
    for name, rule in rules.items():
        world.teacher(name, lambda label, rule=rule: rule(np.full_like(label, 255)))
        if name not in "ab":
            world.settings["teachers"].append(world.entry(name))
    return gathered(quick(world).file)


def painted(columns, value):
    def rule(label):
        label[:, columns] = value
        return label

    return rule


def test_pixels_without_a_label_are_named_apart_and_never_agreed_on(world):
    found = holes(world, a=painted(slice(0, 20), 0), b=painted(slice(16, 32), 1))
    labelled = sum(32 * s.height for s in found["gallery"])
    pixels = sum(s.width * s.height for s in found["gallery"])
    assert found["agreement"]["unanimous"] == 0
    assert found["agreement"]["unlabelled"] == pytest.approx(1 - labelled / pixels)
    assert found["agreement"]["pairs"]["a"] == {"a": 1.0, "b": 0.0}
    assert {s.agreement for s in found["gallery"]} == {0.0}
    assert not any("two votes" in w for w in found["warnings"])


def test_one_teacher_that_labels_hardly_anything(world):
    found = holes(world, c=painted(slice(0, 1), 0))
    assert found["agreement"]["unlabelled"] == 0
    labels = 5 * 48 - 4
    pixels = sum(s.width * s.height for s in found["gallery"])
    assert [w for w in found["warnings"] if w.startswith("c labels")] == [
        f"c labels {labels / pixels:.1%} of the pixels, the others 100.0%: are its ids, its "
        "classes and where they go as declared?"
    ]


def test_a_teacher_whose_classes_are_in_another_order_is_named(world):
    world.teacher("a", lambda label: label)
    world.teacher("b", lambda label: np.where(label == 8, 9, label))
    world.add_teacher("c", lambda label: (label + 7) % 19)
    warnings = [w for w in gathered(quick(world).file)["warnings"] if "chance" in w]
    assert len(warnings) == 1
    assert warnings[0].startswith("c agrees with the others no better than chance (kappa ")


def test_an_image_that_no_teacher_labels_is_shown_last_and_said_so(world):
    for teacher in ("a", "b"):
        world.save(f"teachers/{teacher}", "train", "train_000002_000019", np.full((48, 64), 255))
    last = gathered(quick(world).file)["gallery"][-1]
    assert (last.id, last.agreement, last.unlabelled) == ("train_000002_000019", None, 1.0)
    assert all("no label 100%" in d.text for d in last.drawn if d.kind == "labels")


def test_pictures_get_smaller_where_they_would_take_too_much_room(tmp_path, monkeypatch):
    world = quick(World(tmp_path, train=3, val=1, size=(200, 700)))
    assert {s.width for s in gathered(world.file)["gallery"]} == {640}
    monkeypatch.setattr(gallery, "_BYTES", 20_000)
    small = gathered(world.file)["gallery"]
    assert {s.width for s in small} < {480, 360, 240}
    labels, _ = pixels(small[0].drawn[1])
    assert labels.shape == (small[0].height, small[0].width)
