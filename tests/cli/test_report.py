"""The page of a report: complete in itself, safe, and it does what it says in a real browser."""

import dataclasses
import html
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from golden import make as golden

from ensdistill.cli.page.page import page as rendered
from ensdistill.stages.checks import labels
from ensdistill.stages.graph import load
from ensdistill.stages.reading.report import gather

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """The elements of a page, in order, each with its attributes and the text in it."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the golden experiment with its report."""
    from click.testing import CliRunner

    from ensdistill.cli.__main__ import cli

    copied = tmp_path_factory.mktemp("page") / "golden"
    shutil.copytree(golden.GOLDEN, copied, ignore=shutil.ignore_patterns("*.py", "*.md"))
    file = copied / "experiment.yaml"
    file.write_text(file.read_text() + "# </pre><script>alert(1)</script>\n")
    done = CliRunner().invoke(cli, ["report", "-c", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return copied


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "workspace" / "report.html").read_text()


def test_the_page_needs_nothing_else(text):
    page = Page(text)
    assert not page.all("link")
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert not re.findall(r"url\((?!data:)", text)
    assert not re.findall(r"@import|//[a-z]+\.[a-z]", text)
    assert "default-src 'none'" in text


def test_what_comes_from_files_is_text(text):
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert len(Page(text).all("script")) == 1


def test_every_picture_and_chart_has_a_text_alternative(text):
    page = Page(text)
    assert page.all("img")
    assert all(len(a["alt"]) > 10 for a in page.all("img"))
    charts = [a for a in page.all("img") if a.get("class") == "chart"]
    assert len(charts) == 5
    assert "own, certainty against IoU by class: cosine 0.83" in charts[-1]["alt"]
    # by hand: road 1, sky 1/2, car -1; the surest of road is the best, of the others it is not
    assert (
        "<li>certainty, between teachers: mean rank correlation 0.167 over 3 classes, at 1 of "
        "which the surest teacher is the best; a policy by it loses 46.2 points of IoU to the best "
        "teachers, on average over 5 classes</li>"
    ) in text
    photos = [a for a in page.all("span") if "photo" in (a.get("class") or "")]
    assert photos
    assert all(a["role"] == "img" and a["aria-label"] for a in photos)


def test_the_anchors_of_the_navigation_exist(text):
    page = Page(text)
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(set(ids)) == len(ids)
    anchors = {a["href"][1:] for a in page.all("a")}
    assert {"what", "policy", "conflicts", "gallery", "scores", "confusion", "cost"} <= anchors
    assert anchors <= set(ids)


def test_a_second_report_is_the_same_file(folder, text):
    from click.testing import CliRunner

    from ensdistill.cli.__main__ import cli

    out = folder / "again.html"
    arguments = ["report", "-c", str(folder / "experiment.yaml"), "-o", str(out), "--json"]
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    assert out.read_text() == text


def test_a_report_of_what_is_there_so_far(world):
    world.call("infer-teacher")
    world.call("report")
    page = (world.root / "work" / "report.html").read_text()
    assert "fusion is waiting" in page
    assert 'id="scores"' not in page
    assert "no evaluation is published" in page.lower()


@pytest.mark.parametrize("lacking", [["a"], ["a", "b"]])
def test_a_split_that_teachers_lack_is_shown_as_far_as_it_goes(world, lacking):
    world.settings["fusion"] = {"method": "majority"}
    world.settings["student"]["steps"] = 1
    for teacher in world.settings["teachers"]:
        if teacher["name"] in lacking:
            teacher["labels"].pop("val")
    world.write()
    world.call("run")
    world.call("report")
    page = (world.root / "work" / "report.html").read_text()
    assert f"without label maps on val: {', '.join(lacking)}" in page
    assert 'id="scores"' in page
    assert 'id="scored-gallery"' not in page
    ids = {a["id"] for _, a in Page(page).elements if a.get("id")}
    assert {a["href"][1:] for a in Page(page).all("a")} <= ids


NAMES = [
    b"stra\xdfe",
    "Straße 東京".encode(),
    b"<img src=x onerror=alert(1)>",
    b"\"' onmouseover='alert(1)",
    "\x1b[2J\u202egnp".encode(),
    b"a\nall is well",
    b"[red]{{ 1 + 1 }}",
]


def test_whatever_images_are_called_is_text(world):
    """As names of files may be: no UTF-8, markup, escapes, several lines."""
    pictures = sorted((world.root / "images/train").iterdir())
    for k, name in enumerate(NAMES):
        old, new = pictures[k % len(pictures)].stem, os.fsdecode(name).replace("/", "")
        for folder in ("images", "teachers/a", "teachers/b"):
            file = world.root / folder / "train" / f"{old}.png"
            file.with_name(f"{new}.png").write_bytes(file.read_bytes())
    for file in pictures:
        file.unlink()
    world.settings["fusion"] = {"method": "majority"}
    world.write()
    world.call("fuse", "--upstream")
    world.call("report")
    page = (world.root / "work" / "report.html").read_text("utf-8")
    text = html.unescape(page)
    for shown in (
        "stra\\xdfe",
        "Straße 東京",
        "<img src=x onerror=alert(1)>",
        "\"' onmouseover='alert(1)",
        "\\x1b[2J\\u202egnp",
        "[red]{{ 1 + 1 }}",
    ):
        assert shown in text, shown
    parsed = Page(page)
    assert not [a for _, a in parsed.elements if {"onerror", "onmouseover"} & a.keys()]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


def words(page):
    """Return what is to be read on a page, without its style and scripts."""
    text = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def fused(world, **teachers):
    """Fuse label maps that are made by rules of a map of 255, and return the words of the page."""
    world.settings["fusion"] = {"method": "majority"}
    world.settings["teachers"] = [world.entry(name) for name in teachers]
    for name, rule in teachers.items():
        world.teacher(name, lambda label, rule=rule: rule(np.full_like(label, 255)))
    world.write()
    world.call("infer-teacher")
    world.call("fuse")
    world.call("report")
    return words((world.root / "work" / "report.html").read_text())


def painted(**columns):
    """Return a rule that paints columns with classes, as `at_16=1`: class 1 from column 16 on."""

    def rule(label):
        for name, value in columns.items():
            label[:, int(name.removeprefix("at_")) :] = value
        return label

    return rule


def test_pixels_without_a_label_are_no_agreement(world):
    text = fused(world, a=painted(at_0=0, at_20=255), b=painted(at_16=1, at_32=255))
    assert "all teachers agree on 0.0 % of the pixels that any of them labels" in text
    assert re.search(r"no teacher labels 4\d\.\d % of the pixels", text)
    assert re.search(r"4\d\.\d % of the pixels have no label of any teacher", text)
    assert text.count("0.0 % of its labelled pixels unanimous; ") == 5


def test_the_page_where_one_teacher_labels_all(world):
    text = fused(world, a=painted(at_0=0, at_20=1), b=painted(at_0=0, at_10=1))
    assert re.search(r"all teachers agree on 8\d\.\d % of the pixels that any of them labels", text)
    assert "no teacher labels" not in text
    assert "0.0 % of the pixels have no label of any teacher" in text
    assert "without a label of any teacher" not in text


def test_one_teacher_agrees_with_nobody(world):
    text = fused(world, a=painted(at_0=0, at_20=255))
    assert "agree on" not in text
    assert re.search(r"no teacher labels 6\d\.\d % of the pixels", text)


def test_nothing_to_agree_on_is_no_share(world, monkeypatch):
    """Half of a pair labels nothing at all, and one class is in no map."""
    monkeypatch.setattr(labels, "without_label", lambda _: None)  # which `check` refuses
    text = fused(world, a=painted(at_0=0), b=painted(), c=painted())
    assert "all teachers agree on 0.0 %" in text
    assert "b labels 0.0% of the pixels, the others 50.0%" in text
    assert "labels no pixel that" not in text
    content = gather(load(world.file), None, lambda _: golden.Silent())
    assert content["agreement"]["pairs"]["b"] == {"a": 0.0, "b": None, "c": None}
    nothing = {"unanimous": None, "unlabelled": 1.0}
    shots = [dataclasses.replace(s, agreement=None, unlabelled=1.0) for s in content["gallery"]]
    text = words(
        rendered(content | {"agreement": content["agreement"] | nothing, "gallery": shots})
    )
    assert "agree on" not in text
    assert "100.0 % of the pixels have no label of any teacher" in text
    assert text.count("· no teacher labels any of it") == len(shots) == 5


def test_a_watched_split_is_warned_of_and_drawn(world):
    world.settings["fusion"] = {"method": "majority"}
    world.settings["student"] |= {
        "steps": 2,
        "watch": "val",
        "watch_every": 1,
        "checkpoint": "best",
    }
    world.write()
    world.call("train-student", "--upstream")
    world.call("report")
    page = (world.root / "work" / "report.html").read_text()
    assert "watching the ground truth of val; its best checkpoint there is the student" in page
    free, _, judged = page.partition('<div class="part truth">')
    assert "student: mIoU on the watched split (ground truth)" in judged
    assert "mIoU" not in free[free.index('<div class="part">') :]
    assert "student: loss" in free


def test_refusals(world):
    assert "ensdistill run" in world.refuse("report")
    world.call("infer-teacher")
    assert "is no folder" in world.refuse("report", "-o", str(world.root / "none" / "x.html"))
    assert "test" in world.refuse("report", "--split", "test")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("there is no chromium")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=quiet)
        yield found
        found.close()


def opened(browser, file, complaints, **more):
    page = browser.new_page(**more)
    page.on("console", lambda m: complaints.append(m.text))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on(
        "request",
        lambda r: None if r.url.startswith(("data:", "blob:")) else complaints.append(r.url),
    )
    page.goto(file.as_uri())
    complaints.remove(file.as_uri())  # the one request there may be
    return page


COLOURS = """image => {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const found = {};
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let k = 0; k < data.length; k += 4) {
    const key = data[k + 3] ? [data[k], data[k + 1], data[k + 2]].join() : "clear";
    found[key] = (found[key] ?? 0) + 1;
  }
  return found;
}"""


def colours(image):
    """Return the pixels of each colour of a loaded picture."""
    image.evaluate("image => image.decode()")
    return image.evaluate(COLOURS)


def test_toggles_hide_a_class_in_every_label_map(browser, folder):
    complaints = []
    page = opened(browser, folder / "workspace" / "report.html", complaints)
    gallery = page.locator(".gallery").first
    images = gallery.locator(".labels img").all()
    before = [colours(image) for image in images]
    table = yaml.safe_load((folder / "classes.yaml").read_text())["classes"]
    hidden = next(k for k, c in enumerate(table) if ",".join(map(str, c["colour"])) in before[0])
    key = ",".join(map(str, table[hidden]["colour"]))
    button = gallery.locator(f"button[data-class='{hidden}']")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    for image, old in zip(images, before, strict=True):
        expected = {k: n for k, n in old.items() if k != key}
        if key in old:
            expected["clear"] = old[key]
        assert colours(image) == expected
    gallery.locator("[data-none]").click()
    assert all(set(colours(image)) <= {"clear", "0,0,0"} for image in images)
    gallery.locator("[data-all]").click()
    assert [colours(image) for image in images] == before
    assert button.get_attribute("aria-pressed") == "true"
    assert not complaints
    page.close()


def test_pictures_enlarge_and_the_keyboard_goes_through_them(browser, folder):
    complaints = []
    page = opened(browser, folder / "workspace" / "report.html", complaints)
    dialog = page.locator("dialog")
    assert not dialog.is_visible()
    small = page.locator(".zoom").nth(1)
    small.click()
    title = dialog.locator("[data-title]")
    assert title.text_content().startswith("mapped")
    large = dialog.locator(".picture").bounding_box()
    assert large["width"] > 2 * small.bounding_box()["width"]
    page.keyboard.press("ArrowRight")
    assert title.text_content().startswith("own")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert title.text_content().startswith("photograph")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert not complaints
    page.close()


def test_one_confusion_matrix_is_shown_at_a_time(browser, folder):
    complaints = []
    page = opened(browser, folder / "workspace" / "report.html", complaints)
    shown = page.locator(".confusion:visible caption")
    assert shown.count() == 1
    assert "fusion channel" in shown.text_content()
    page.locator("[data-confusion]").select_option(label="teacher own")
    assert shown.count() == 1
    assert "teacher own" in shown.text_content()
    assert not complaints
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_can_be_read_in_both_themes(browser, folder, theme, width):
    complaints = []
    page = opened(
        browser,
        folder / "workspace" / "report.html",
        complaints,
        viewport={"width": width, "height": 900},
        color_scheme=theme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    worst = page.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst
    assert not complaints
    page.close()


def test_without_scripts_all_is_there(browser, folder):
    page = browser.new_page(java_script_enabled=False)
    page.goto((folder / "workspace" / "report.html").as_uri())
    methods = len(re.findall(r'class="scroll confusion"', page.content()))
    assert page.locator(".confusion:visible").count() == methods > 3
    assert page.locator(".toolbar:visible").count() == 0
    page.close()


# The lowest contrast (WCAG 2) of a text and what lies behind it.
CONTRAST = """() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgb = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => {
    const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = c.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let worst = { ratio: 21 };
  for (const node of document.querySelectorAll("main *, header *, nav *, footer *")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("svg")) continue;
    const behind = [];
    for (let e = node; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const back = rgb(["white", ...behind]);
    const front = rgb([...["white", ...behind], getComputedStyle(node).color]);
    const [a, b] = [light(back), light(front)].sort();
    const ratio = (b + 0.05) / (a + 0.05);
    if (ratio < worst.ratio) worst = { ratio, text: node.textContent.trim(), back, front };
  }
  return worst;
}"""


@pytest.mark.parametrize("name", ["results.json", "report.html"])
def test_a_file_of_the_users_in_the_workspace_is_not_overwritten(world, name):
    file = world.root / "work" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"mine": 1}')
    world.call("run", "--no-evaluate")
    command = ["evaluate"] if name == "results.json" else ["report"]
    assert "was not written by ensdistill" in world.refuse(*command)
    assert file.read_text() == '{"mine": 1}'
    file.unlink()
    world.call(*command)
    world.call(*command)
