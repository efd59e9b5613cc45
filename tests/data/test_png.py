"""Label PNGs read past Pillow: what is read is what Pillow reads, and all else is left to it."""

import io
import itertools
import platform
import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ensdistill.data import decoding, png
from ensdistill.pipeline.errors import DataError

quick = settings(derandomize=True, deadline=None, max_examples=100)


@pytest.fixture(params=["isal", "zlib"], scope="module", autouse=True)
def inflate(request):
    """With ISA-L, and as where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "_zlib", zlib if request.param == "zlib" else png._zlib)
        yield request.param


def test_isal_is_what_reads_them(inflate):
    assert png._zlib.__name__.rpartition(".")[2] == {"isal": "isal_zlib"}.get(inflate, inflate)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def nearest(left, upper, before):
    """As the specification has it, 9.4."""
    guess = left + upper - before
    return min((abs(guess - v), k, v) for k, v in enumerate((left, upper, before)))[2]


def filtered(pixels, kinds):
    """Return the rows of an image, each as its kind tells it."""
    rows, above = [], [0] * pixels.shape[1]
    for kind, row in zip(kinds, pixels.tolist(), strict=True):
        told = [kind]
        for x, value in enumerate(row):
            left, before = (row[x - 1], above[x - 1]) if x else (0, 0)
            upper = above[x]
            less = (0, left, upper, (left + upper) // 2, nearest(left, upper, before))[kind % 5]
            told.append((value - less) % 256)
        rows.append(bytes(told))
        above = row
    return b"".join(rows)


PALETTE = bytes(range(255)) * 3


def written(
    pixels,
    kinds=None,
    *,
    colours=None,
    cuts=(),
    early=b"",
    late=b"",
    end=b"",
    rows=None,
    packed=None,
    form=None,
):
    """Return a PNG made by hand, grey or with a palette's `colours`."""
    height, width = pixels.shape
    form = bytes((8, 0 if colours is None else 3, 0, 0, 0)) if form is None else form
    rows = filtered(pixels, [0] * height if kinds is None else kinds) if rows is None else rows
    packed = zlib.compress(rows) if packed is None else packed
    at = [0, *sorted(c % (len(packed) + 1) for c in cuts), len(packed)]
    parts = [packed[a:b] for a, b in itertools.pairwise(at)]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">II", width, height) + form),
            early,
            b"" if colours is None else chunk(b"PLTE", colours),
            late,
            *(chunk(b"IDAT", part) for part in parts),
            end,
            chunk(b"IEND", b""),
        ]
    )


def read(content):
    """Return what is read past Pillow, None if nothing is."""
    found = png.unpack(content)
    return None if found is None else found.pixels()


def by_pillow(content):
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        return np.asarray(image)


@st.composite
def images(draw):
    """Draw pixels in areas, as labels are, or noise; and by what each row is told."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 41))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    pixels = random.integers(0, 256, (height, width), np.uint8)
    if draw(st.booleans()):
        side = draw(st.integers(2, 16))
        pixels = pixels[::side, ::side].repeat(side, 0).repeat(side, 1)[:height, :width]
        pixels = np.where(random.random(pixels.shape) < 0.02, np.uint8(7), pixels)
    kinds = draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    return np.ascontiguousarray(pixels), kinds


@st.composite
def files(draw):
    """Draw the content of a usual file."""
    pixels, kinds = draw(images())
    idle = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
    early, late = (
        b"".join(chunk(k, bytes(idle[k])) for k in draw(st.lists(st.sampled_from(list(idle)))))
        for _ in range(2)
    )
    colours = PALETTE[: 3 * draw(st.integers(1, 255))] if draw(st.booleans()) else None
    cuts = draw(st.lists(st.integers(0, 1000), max_size=4))
    return written(pixels, kinds, colours=colours, cuts=cuts, early=early, late=late)


def test_codes_with_unused_words_are_read_as_written_or_left_to_pillow(inflate):
    """zlib refuses them; ISA-L does not, and the checksum says that it reads what was written."""
    row = bytes.fromhex("01010101010001000000010000")
    told = bytes.fromhex("05c101010000008090fc3f5d402a35")
    packed = b"\x78\x9c" + told + zlib.adler32(row).to_bytes(4, "big")
    content = written(np.empty((1, 12), np.uint8), packed=packed)
    with pytest.raises(OSError, match="broken data stream"):
        by_pillow(content)
    found = read(content)
    if inflate == "zlib":
        assert found is None
    else:
        assert found.tolist() == [np.cumsum(list(row[1:])).tolist()]


@quick
@given(images(), st.booleans(), st.lists(st.integers(0, 1000), max_size=4))
def test_all_rows_are_told_right(drawn, palette, cuts):
    pixels, kinds = drawn
    content = written(pixels, kinds, colours=PALETTE[:30] if palette else None, cuts=cuts)
    found = read(content)
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == np.uint8 and found.flags.c_contiguous and found.flags.aligned
    np.testing.assert_array_equal(by_pillow(content), pixels)


@quick
@given(files())
def test_usual_files_are_read_as_by_pillow(content):
    np.testing.assert_array_equal(read(content), by_pillow(content))


@pytest.mark.parametrize("kind", range(5))
def test_each_kind_of_row_holds_areas_and_edges(kind):
    pixels = np.asarray(Image.radial_gradient("L"))[:, :250] // 8
    np.testing.assert_array_equal(read(written(pixels, [kind] * 256)), pixels)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_what_pillow_writes_is_read(mode):
    image = Image.radial_gradient("L").point(lambda v: v // 16)
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(read(buffer.getvalue()), np.asarray(image))


IDS = np.arange(60, dtype=np.uint8).reshape(6, 10)
ROWS = filtered(IDS, [4] * 6)
GOOD = written(IDS)
PACKED = zlib.compress(ROWS)
UNUSUAL = {
    "nothing": b"",
    "no PNG": b"GIF89a",
    "another signature": GOOD.replace(b"PNG\r\n", b"PNG\n\n"),
    "no end": GOOD[:-12],
    "half an end": GOOD[:-6],
    "more after its end": GOOD + b"\0",
    "an end with content": GOOD[:-12] + chunk(b"IEND", b"\0"),
    "a wrong checksum of the header": GOOD[:29] + b"\0" + GOOD[30:],
    "a wrong checksum of pixels": GOOD[:-13] + bytes((GOOD[-13] ^ 1,)) + GOOD[-12:],
    "a length beyond the file": GOOD[:8] + b"\xff\xff\xff\xff" + GOOD[12:],
    "16 bits": written(IDS[:, :5], packed=PACKED, form=bytes((16, 0, 0, 0, 0))),
    "4 bits": written(IDS, rows=b"\0" * 36, form=bytes((4, 0, 0, 0, 0))),
    "colours": written(IDS[:, :3], rows=b"\0" * 60, form=bytes((8, 2, 0, 0, 0))),
    "grey and alpha": written(IDS[:, :5], packed=PACKED, form=bytes((8, 4, 0, 0, 0))),
    "interlaced": written(IDS, form=bytes((8, 0, 0, 0, 1))),
    "another filtering": written(IDS, form=bytes((8, 0, 0, 1, 0))),
    "another compression": written(IDS, form=bytes((8, 0, 1, 0, 0))),
    "a long header": GOOD[:8] + chunk(b"IHDR", GOOD[16:29] + b"\0") + GOOD[33:],
    "no height": written(IDS[:0], packed=PACKED),
    "no width": written(IDS[:, :0], packed=PACKED),
    "a grey with a palette": written(IDS, colours=PALETTE[:30], form=bytes((8, 0, 0, 0, 0))),
    "indices without a palette": written(IDS, form=bytes((8, 3, 0, 0, 0))),
    "an empty palette": written(IDS, colours=b""),
    "a palette of halves": written(IDS, colours=PALETTE[:31]),
    "a palette of 257": written(IDS, colours=bytes(771)),
    "two palettes": written(IDS, colours=PALETTE[:30], late=chunk(b"PLTE", PALETTE[:30])),
    "a transparent value": written(IDS, early=chunk(b"tRNS", b"\0\7")),
    "transparent colours": written(IDS, colours=PALETTE[:30], late=chunk(b"tRNS", b"\0\7")),
    "a turned image": written(
        IDS, early=chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    ),
    "a text": written(IDS, early=chunk(b"tEXt", b"Software\0x")),
    "a text at the end": written(IDS, end=chunk(b"tEXt", b"Software\0x")),
    "several frames": written(IDS, early=chunk(b"acTL", struct.pack(">II", 2, 0))),
    "a broken gamma": written(IDS, early=chunk(b"gAMA", b"\0")),
    "an unknown critical chunk": written(IDS, early=chunk(b"ABCD", b"\0")),
    "an unknown chunk": written(IDS, early=chunk(b"abCd", b"\0")),
    "no pixels": GOOD[:33] + GOOD[-12:],
    "pixels in two places": GOOD[:-12] + chunk(b"tIME", bytes(7)) + GOOD[33:],
    "an unknown kind of row": written(IDS, [0, 1, 2, 5, 3, 4]),
    "a row too few": written(IDS, rows=ROWS[:-11]),
    "a byte too few": written(IDS, rows=ROWS[:-1]),
    "a byte too many": written(IDS, rows=ROWS + b"\0"),
    "a bomb": written(IDS, rows=bytes(10_000_000)),
    "nothing compressed": written(IDS, packed=b""),
    "a stream that ends early": written(IDS, packed=PACKED[:-4]),
    "a stream and more": written(IDS, packed=PACKED + b"\0"),
    "a wrong checksum of rows": written(IDS, packed=PACKED[:-1] + bytes((PACKED[-1] ^ 1,))),
    "no stream": written(IDS, packed=b"x\x9c" + b"\xff" * 30),
    "an unknown window": written(IDS, packed=b"\x88\x1c" + PACKED[2:]),
    "a dictionary": written(IDS, packed=b"x " + PACKED[2:]),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_unusual_is_left_to_pillow(tmp_path, monkeypatch, kind):
    assert read(UNUSUAL[kind]) is None
    assert outcome(tmp_path, UNUSUAL[kind]) == outcome(tmp_path, UNUSUAL[kind], monkeypatch)


def test_a_header_asks_for_no_memory():
    """That a few bytes cannot fill: 4.6e18 of it would raise."""
    content = written(IDS).replace(struct.pack(">II", 10, 6), struct.pack(">II", 2**31 - 1, 2**31))
    header = content[12:29]
    assert read(content[:29] + struct.pack(">I", zlib.crc32(header)) + content[33:]) is None


def outcome(folder, content, monkeypatch=None):
    """Return what comes of reading ids, by Pillow alone with a `monkeypatch`; never a warning."""
    path = folder / "x.png"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        if monkeypatch is not None:
            patch.setattr(png, "unpack", lambda content: None)
        try:
            found = decoding.read_values(path, palette=False)
        except DataError as error:
            return str(error)
    return found.shape, found.dtype, found.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("spoilt")


@pytest.mark.filterwarnings("ignore:Invalid APNG")
@settings(quick, max_examples=300)
@given(files(), st.data())
def test_spoilt_files_are_read_or_refused_as_by_pillow(folder, content, data):
    spoilt = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        way = data.draw(st.sampled_from(["byte", "byte", "byte", "cut", "more", "less"]))
        if way == "byte":
            spoilt[at] = data.draw(st.integers(0, 255))
        elif way == "more":
            spoilt.insert(at, data.draw(st.integers(0, 255)))
        elif way == "less" and len(spoilt) > 1:
            del spoilt[at]
        elif way == "cut" and at:
            del spoilt[at:]
    if data.draw(st.booleans()):
        spoilt = healed(bytes(spoilt))
    assert outcome(folder, spoilt) == outcome(folder, spoilt, monkeypatch=True)


def healed(content):
    """Return a file with checksums that hold, as far as its chunks go."""
    whole, at = bytearray(content), 8
    while at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = zlib.crc32(whole[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(whole)


START = """
import sys
from ensdistill.data import decoding
decoding._LOADING = int(sys.argv[2])
for _ in range(3):
    decoding.inspect_values(sys.argv[1], palette=False)
    print("numba" in sys.modules)
"""


@pytest.mark.parametrize(
    ("worth", "loaded"), [(1 << 26, [False, False, False]), (2 * IDS.size, [False, False, True])]
)
def test_numba_is_not_loaded_for_a_small_file_alone(tmp_path, python, worth, loaded):
    (tmp_path / "x.png").write_bytes(GOOD)
    told = python(START, tmp_path / "x.png", worth).split()
    assert [word == "True" for word in told] == loaded


AGAIN = """
import resource, sys
from ensdistill.data import decoding
decoding._LOADING = 0
read = lambda: decoding.read_values(sys.argv[1], palette=False)
read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    read()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 8)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep memory")
def test_images_are_read_into_the_same_memory(tmp_path, python):
    labels = np.zeros((1024, 2048), np.uint8)
    Image.fromarray(labels).save(tmp_path / "x.png")
    pages = labels.size / resource.getpagesize()
    assert float(python(AGAIN, tmp_path / "x.png")) < pages / 4
