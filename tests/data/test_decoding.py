"""Reading photographs and label files: every mode, every encoding, every way to be torn."""

import ast
import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import EpsImagePlugin, Image

from ensdistill.data import decoding
from ensdistill.data.classes import TABLES
from ensdistill.data.decoding import (
    Decoder,
    image_size,
    inspect_confidence,
    inspect_image,
    inspect_values,
    read_confidence,
    read_image,
    read_values,
    values_size,
)
from ensdistill.pipeline.errors import DataError

quick = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
IDS = np.random.default_rng(1).integers(0, 19, (5, 7), np.uint8)


@pytest.fixture
def save(tmp_path):
    """Save an image, or bytes, and return the path."""

    def run(content, name="x.png", **more):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            if not isinstance(content, Image.Image):
                content = Image.fromarray(content)
            content.save(path, **more)
        return path

    return run


def encoded(array, form, **more):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **more)
    return buffer.getvalue()


def png(bits, colour_type, rows, width):
    """Return a PNG made by hand, for forms that Pillow does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def paletted(indices):
    """Return an image of palette indices."""
    image = Image.fromarray(indices).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([v for k in range(256) for v in (255 - k, k, (7 * k) % 256)])
    return image


def raw(path):
    return read_values(path, palette=False)


# photographs


def test_a_photograph_is_rgb(save):
    found = read_image(save(RGB))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, RGB)
    assert image_size(save(RGB)) == (5, 7)
    assert inspect_image(save(RGB)) == {"height": 5, "width": 7}


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_8_bit_photographs_become_rgb(save, mode):
    image = Image.fromarray(RGB).convert(mode)
    path = save(image, "x.png" if mode in ("L", "P", "RGBA") else "x.jpg")
    found = read_image(path)
    with Image.open(path) as opened:
        assert opened.mode in (mode, "RGB")
        np.testing.assert_array_equal(found, np.asarray(opened.convert("RGB")))
    assert (found.shape, found.dtype) == ((5, 7, 3), np.uint8)


def test_alpha_is_dropped(save):
    alpha = np.dstack([RGB, np.zeros((5, 7), np.uint8)])
    np.testing.assert_array_equal(read_image(save(alpha)), RGB)


DEEP = {
    "I;16B": png(16, 0, [struct.pack(">2H", 1, 65535)], 2),
    "RGB;16B": png(16, 2, [struct.pack(">6H", 1, 300, 65535, 0, 0, 0)], 2),
    "RGBA;16B": png(16, 6, [struct.pack(">4H", 1, 300, 65535, 0)], 1),
}


@pytest.mark.parametrize("mode", DEEP)
def test_a_photograph_of_16_bits_is_refused(save, mode):
    with pytest.raises(DataError, match=rf"x\.png: pixel mode {mode}; expected an 8-bit image"):
        read_image(save(DEEP[mode]))


@pytest.mark.parametrize("mode", ["1", "F", "I"])
def test_what_is_no_8_bit_photograph_is_refused(save, mode):
    with pytest.raises(DataError, match=rf"pixel mode {mode}\S*; expected an 8-bit image"):
        read_image(save(Image.new(mode, (3, 2)), "x.tif"))


def tagged(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB, form, exif=exif)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photograph_that_some_programs_turn_is_refused(save, form):
    for orientation in range(2, 9):
        for read in (read_image, inspect_image):
            path = save(tagged(orientation, form))
            with pytest.raises(
                DataError, match=rf"x\.png: EXIF orientation {orientation}; turn"
            ) as e:
                read(path)
            assert f"`mogrify -auto-orient {path}`" in str(e.value)
    for orientation in (0, 1, 9):
        assert read_image(save(tagged(orientation, form))).shape == RGB.shape


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_spoilt_exif_is_no_reason_to_fail(save, form):
    content = tagged(1, form)
    start = content.index(b"MM\0*")
    for position in range(start, start + 20):
        spoilt = bytearray(content)
        spoilt[position] ^= 0x81
        try:
            assert read_image(save(bytes(spoilt))).shape == RGB.shape
        except DataError as error:  # a PNG's checksum
            assert "x.png" in str(error)


# broken files

READERS = {
    "read_image": read_image,
    "read_values": raw,
    "read_palette": lambda path: read_values(path, palette=True),
    "inspect_image": inspect_image,
    "inspect_values": lambda path: inspect_values(path, palette=False),
    "read_confidence": lambda path: read_confidence(path, (5, 7)),
    "inspect_confidence": inspect_confidence,
    "image_size": image_size,
}
BROKEN = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
    "signature": b"\x89PNG\r\n\x1a\n",
    "half png": encoded(RGB, "PNG")[:80],
    "header jpeg": encoded(RGB, "JPEG")[:20],
    "cut jpeg": encoded(RGB, "JPEG")[:-30],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_by_name(save, kind, reader):
    if reader == "image_size" and kind in ("half png", "cut jpeg"):
        assert image_size(save(BROKEN[kind])) == (5, 7)  # only the header is read
        return
    text = "cannot be read as an image"
    if "jpeg" in kind and "image" not in reader:
        text = "its content is JPEG"  # broken or not
    with pytest.raises(DataError, match=rf"x\.png: {text}"):
        READERS[reader](save(BROKEN[kind]))


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path, reader):
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(DataError, match=rf"{path.name}: cannot be read as an image"):
            READERS[reader](path)


FILES = {
    "png": (encoded(RGB, "PNG"), read_image),
    "jpeg": (encoded(RGB, "JPEG"), read_image),
    "progressive": (encoded(RGB, "JPEG", progressive=True), read_image),
    "ids": (encoded(IDS, "PNG"), raw),
    "ids of 16 bits": (encoded(IDS.astype(np.uint16) * 300, "PNG"), raw),
}


@pytest.mark.parametrize("kind", FILES)
def test_wherever_a_file_is_torn_it_is_refused_or_whole(save, kind):
    content, read = FILES[kind]
    whole = read(save(content))
    lengths = {*range(0, len(content), 4), *range(len(content) - 40, len(content))}
    refused = 0
    for length in lengths:
        try:
            found = read(save(content[:length]))
        except DataError as error:
            assert "x.png" in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(found, whole)
    assert refused >= len(lengths) - 25  # a PNG may lack its end, which holds no pixels


@pytest.mark.parametrize("kind", FILES)
def test_whatever_byte_is_flipped_nothing_but_a_refusal_is_raised(save, kind):
    content, read = FILES[kind]
    for position in range(0, len(content), 2):
        spoilt = bytearray(content)
        spoilt[position] ^= 0x81
        try:
            read(save(bytes(spoilt)))
        except DataError as error:
            assert "x.png" in str(error)


def test_an_absurdly_large_header_is_refused(save):
    path = save(png(8, 0, [b"\0"], 1).replace(struct.pack(">I", 1), struct.pack(">I", 60000), 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="cannot be read as an image"):
            raw(path)


# label files


@pytest.mark.parametrize(
    ("image", "expected", "kind"),
    [
        (Image.fromarray(IDS), IDS, np.uint8),
        (paletted(IDS), IDS, np.uint8),
        (Image.fromarray(IDS.astype(np.uint16) * 300), IDS.astype(np.int64) * 300, np.int64),
        (Image.fromarray(IDS > 9), (IDS > 9).astype(np.int64), np.int64),
    ],
    ids=["L", "P", "I;16", "1"],
)
def test_one_channel_holds_ids(save, image, expected, kind):
    found = raw(save(image))
    assert found.dtype == kind
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palette_indices_are_ids(save, bits):
    ids = IDS % 2**bits
    path = save(paletted(ids), bits=bits)
    assert path.read_bytes()[24] == bits
    np.testing.assert_array_equal(raw(path), ids)


def test_ids_of_32_bits_are_read(save):
    ids = IDS.astype(np.int32) - 1
    np.testing.assert_array_equal(raw(save(ids, "x.tif")), ids)


@pytest.mark.parametrize(("bits", "row"), [(2, 0b00011011), (4, 0b00010010)])
def test_grey_that_pillow_would_stretch_is_refused(save, bits, row):
    path = save(png(bits, 0, [bytes([row])], 8 // bits))
    with pytest.raises(DataError, match=rf"x\.png: pixel mode L;{bits}, .*stretches.*of 8 or 16"):
        raw(path)
    assert read_image(path).shape == (1, 8 // bits, 3)  # of a photograph it is right


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("channel", range(3))
def test_colours_where_ids_are_expected_are_refused_with_the_remedy(save, mode, channel):
    pixels = np.dstack([IDS] * 3)
    pixels[2, 3] = pixels[4, 6] = 9
    pixels[2, 3, channel] = pixels[4, 6, channel] = 200
    path = save(Image.fromarray(pixels).convert(mode))
    for read in (raw, READERS["inspect_values"], Decoder({0: 0}, palette=False).read):
        with pytest.raises(
            DataError, match=rf"x\.png: pixel mode {mode}.*declare `ids: palette`"
        ) as e:
            read(path)
        assert f"the first {pixels[2, 3].tolist()[:-1]}"[:-1] in str(e.value)
        assert "row 2, column 3;" in str(e.value)
    read_values(path, palette=True)  # the remedy is one


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_colours_are_packed(save, mode):
    image = paletted(IDS) if mode == "P" else Image.fromarray(RGB).convert(mode)
    r, g, b = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
    found = read_values(save(image), palette=True)
    np.testing.assert_array_equal(found, r * 65536 + g * 256 + b)


@pytest.mark.parametrize("mode", DEEP)
def test_no_colours_of_16_bits_are_guessed_at(save, mode):
    with pytest.raises(DataError, match=rf"x\.png: pixel mode {mode} holds no 8-bit colours"):
        read_values(save(DEEP[mode]), palette=True)


# files are opened only as what they may be

GREY, COLOURED = Image.fromarray(IDS), Image.fromarray(RGB)
OTHERS = {  # as Pillow calls them
    "GIF": paletted(IDS),
    "JPEG2000": COLOURED,
    "AVIF": COLOURED,
    "EPS": COLOURED,
    "ICNS": COLOURED.resize((16, 16)),
    "ICO": COLOURED.resize((16, 16)),
    "PCX": COLOURED,
    "SGI": COLOURED,
    "DDS": COLOURED,
    "DIB": COLOURED,
}
PHOTOGRAPHS = ["JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "PPM"]
OF_VALUES = [reader for reader in READERS if "image" not in reader]
OF_PHOTOGRAPHS = [reader for reader in READERS if "image" in reader]


def made(image, form, **more):
    """Return an image as a file of a format."""
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("form", [*OTHERS, "JPEG", "MPO", "WEBP"])
def test_values_are_read_of_no_format_that_may_change_them(save, form):
    path = save(made(OTHERS.get(form, COLOURED), form))
    found = "JPEG" if form == "MPO" else form
    for reader in OF_VALUES:
        with pytest.raises(DataError, match=rf"x\.png: its content is {found};.*bring them back"):
            READERS[reader](path)


@pytest.mark.parametrize("form", OTHERS)
def test_photographs_are_read_of_no_other_format(save, monkeypatch, form):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # another program, never to be run
    for name in ("x.png", "x.jpg"):
        path = save(made(OTHERS[form], form), name)
        for reader in OF_PHOTOGRAPHS:
            with pytest.raises(DataError, match=rf"{name}: its content is {form}; expected JPEG, "):
                READERS[reader](path)


@pytest.mark.parametrize("form", PHOTOGRAPHS)
def test_photographs_are_read_whatever_their_names_say(save, form):
    content = made(COLOURED, form)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    for name in ("x.png", "x.jpg", "x"):
        np.testing.assert_array_equal(read_image(save(content, name)), expected)
        assert image_size(save(content, name)) == (5, 7)


def test_a_phones_jpeg_is_its_first_picture(save):
    second = Image.fromarray(RGB[::-1])
    content = made(COLOURED, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content)) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    np.testing.assert_array_equal(
        read_image(save(content)), read_image(save(encoded(RGB, "JPEG"), "y.png"))
    )
    assert image_size(save(content)) == (5, 7)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_of_several_images_none_is_guessed(save, form):
    second = Image.fromarray(RGB[::-1])
    path = save(made(COLOURED, form, save_all=True, append_images=[second]))
    for reader in OF_PHOTOGRAPHS if form == "WEBP" else READERS:
        with pytest.raises(DataError, match=r"x\.png: holds more than one image; save the one"):
            READERS[reader](path)


def test_an_unknown_kind_of_a_format_is_not_called_another_format(save):
    path = save(tiff([bytes(24)], (4, 3), {258: [13], 262: [1]}))
    for reader in READERS.values():
        with pytest.raises(DataError, match=r"cannot be read as an image \(.*TIFF, or an unknown"):
            reader(path)


def test_no_image_is_opened_without_saying_as_what():
    """Pillow would run Ghostscript for EPS, and open more than 40 formats."""
    opened = []
    for package in ("cli", "data", "pipeline", "stages"):
        for file in (Path(decoding.__file__).parents[1] / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                    opened.append(file.name)
                    assert "formats" in {k.arg for k in node.keywords}, f"{file}:{node.lineno}"
    assert "decoding.py" in opened


# ids are the numbers that were written


def tiff(planes, size, more):
    """Return a TIFF made by hand; `more` are tags with their values."""
    starts = np.cumsum([8, *(len(plane) for plane in planes[:-1])]).tolist()
    tags = {256: [size[0]], 257: [size[1]], 259: [1], 278: [size[1]], **more}
    tags |= {273: starts, 279: [len(plane) for plane in planes]}
    content, entries = bytes(8) + b"".join(planes), b""
    for number, values in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}H", *values)
        if len(value) > 4:
            value, content = struct.pack("<I", len(content)), content + value
        entries += struct.pack("<HHI", number, 3, len(values)) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", len(content))
    return head + content[8:] + struct.pack("<H", len(tags)) + entries + bytes(4)


def bmp(bits, greys, rows, width):
    """Return a BMP made by hand, with a palette of greys."""
    pixels = b"".join(row.ljust((width * bits + 31) // 32 * 4, b"\0") for row in reversed(rows))
    colours = b"".join(bytes([grey, grey, grey, 0]) for grey in greys)
    about = (40, width, len(rows), 1, bits, 0, len(pixels), 0, 0, len(greys), 0)
    start = 54 + len(colours)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", *about) + colours + pixels


def opaque(mode):
    return lambda: Image.merge(mode, [GREY] * (len(mode) - 1) + [Image.new("L", GREY.size, 255)])


DEFLATE, LZW = {"compression": "tiff_adobe_deflate"}, {"compression": "tiff_lzw"}
SIXTEEN = Image.fromarray(IDS.astype(np.uint16))
EQUAL = Image.merge("RGB", [GREY] * 3)
SAME_IDS = {  # every way to write them without a loss
    "grey": made(GREY, "PNG"),
    "grey with a colour profile": made(GREY, "PNG", icc_profile=bytes(200)),
    "grey of which a value is clear": made(GREY, "PNG", transparency=3),
    "grey of 16 bits": made(SIXTEEN, "PNG"),
    "palette": made(paletted(IDS), "PNG"),
    "palette with clear colours": made(paletted(IDS), "PNG", transparency=bytes(range(256))),
    "three channels": made(EQUAL, "PNG"),
    "three channels and alpha": made(opaque("RGBA")(), "PNG"),
    "grey and alpha": made(opaque("LA")(), "PNG"),
    "BMP": made(GREY, "BMP"),
    "BMP with a palette": made(paletted(IDS), "BMP"),
    "BMP of three channels": made(EQUAL, "BMP"),
    "BMP with few greys": bmp(8, range(19), [bytes(row) for row in IDS], 7),
    "PGM": made(GREY, "PPM"),
    "PGM of 16 bits": made(SIXTEEN, "PPM"),
    "plain PGM": b"P2 7 5 255\n" + b" ".join(b"%d" % v for v in IDS.ravel()) + b"\n",
    "PPM": made(EQUAL, "PPM"),
    "TIFF": made(GREY, "TIFF"),
    "TIFF of 16 bits": made(SIXTEEN, "TIFF"),
    "TIFF of 16 bits, big-endian": made(SIXTEEN, "TIFF", big_endian=True),
    "TIFF with a palette": made(paletted(IDS), "TIFF", **LZW),
    "TIFF of three channels": made(EQUAL, "TIFF", **DEFLATE),
    "TIFF of three planes": tiff(
        [IDS.tobytes()] * 3, (7, 5), {258: [8, 8, 8], 262: [2], 277: [3], 284: [2]}
    ),
    "TIFF with alpha": made(opaque("RGBA")(), "TIFF", **DEFLATE),
    **{
        f"TIFF, {name}": made(GREY, "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits")
    },
}


@pytest.mark.parametrize("way", SAME_IDS)
def test_ids_are_those_that_were_written(save, way):
    path = save(SAME_IDS[way])
    found = raw(path)
    np.testing.assert_array_equal(found, IDS)
    assert found.dtype == (np.int64 if "16" in way else np.uint8)
    decoder = Decoder({k: 18 - k for k in range(19)}, palette=False)
    np.testing.assert_array_equal(decoder.read(path), 18 - IDS)
    values, counts = np.unique(IDS, return_counts=True)
    expected = {str(v): n for v, n in zip(values.tolist(), counts.tolist(), strict=True)}
    assert inspect_values(path, palette=False)["values"] == expected


@pytest.mark.parametrize("compression", ["lzma", "zstd"])
def test_ids_are_read_of_what_some_tiff_libraries_write(save, compression):
    try:
        content = made(GREY, "TIFF", compression=compression)
    except OSError:
        pytest.skip(f"this libtiff writes no {compression}")
    np.testing.assert_array_equal(raw(save(content)), IDS)


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF"])
def test_one_bit_is_0_or_1(save, form):
    ids = IDS > 9
    for more in ({}, {"compression": "group4"}) if form == "TIFF" else ({},):
        np.testing.assert_array_equal(raw(save(made(Image.fromarray(ids), form, **more))), ids)


DEEP_RGB = tiff([struct.pack("<9H", *[7] * 9)], (3, 1), {258: [16] * 3, 262: [2], 277: [3]})
NOT_AS_WRITTEN = {  # a file, and what is said of it
    "grey TIFF of 4 bits": (tiff([b"\x12\x30"], (3, 1), {258: [4], 262: [1]}), "L;4, .*stretches"),
    "white is 0, 2 bits": (tiff([b"\x1b"], (4, 1), {258: [2], 262: [0]}), "L;2I, .*stretches"),
    "PGM to 18": (b"P5 3 2 18\n\0\1\2\3\4\22", r"L;0\.\.18, .*stretches"),
    "plain PGM to 18": (b"P2 3 2 18\n0 1 2 3 4 18\n", r"L;0\.\.18, .*stretches"),
    "PGM to 1000": (b"P5 2 1 1000\n\0\1\2\3", r"I;0\.\.1000, .*stretches"),
    "PPM to 18": (b"P6 1 2 18\n\1\1\1\2\2\2", r"RGB;0\.\.18, .*stretches"),
    "BMP of 4 bits, grey": (bmp(4, range(16), [b"\x12\x34"], 4), "BMP of samples"),
    "BMP of 8 bits, black and white": (bmp(8, (0, 255), [b"\0\1\1\0"], 4), "BMP of samples"),
    "PNG of 16 bits": (png(16, 2, [struct.pack(">3H", 7, 7, 7)], 1), "RGB;16B, .*upper 8 bits"),
    "grey and alpha of 16 bits": (png(16, 4, [struct.pack(">2H", 7, 65535)], 1), "LA;16B, .*upper"),
    "TIFF of 16 bits": (DEEP_RGB, "RGB;16L, .*upper 8 bits"),
    "TIFF of 16 bits, planes": (
        tiff([b"\7\0\7\0"] * 3, (2, 1), {258: [16] * 3, 262: [2], 277: [3], 284: [2]}),
        "TIFF of samples",
    ),
    "floats": (made(Image.fromarray(IDS.astype(np.float32)), "TIFF"), "F;32F; .*whole numbers"),
    "inks": (made(EQUAL.convert("CMYK"), "TIFF"), "CMYK; .*grey PNG"),
    "lightness": (made(Image.new("LAB", (3, 2)), "TIFF"), "LAB; .*grey PNG"),
    "JPEG in TIFF": (made(EQUAL, "TIFF", compression="jpeg"), "TIFF compressed as jpeg; .*back"),
}


@pytest.mark.parametrize("kind", NOT_AS_WRITTEN)
def test_ids_that_would_not_be_those_that_were_written_are_refused(save, kind):
    content, text = NOT_AS_WRITTEN[kind]
    for reader in ("read_values", "inspect_values"):
        with pytest.raises(DataError, match=rf"x\.png: .*{text}"):
            READERS[reader](save(content))


@pytest.mark.parametrize("kind", ["BMP of 4 bits, grey", "TIFF of 16 bits, planes"])
def test_what_pillow_reads_wrong_is_no_photograph_either(save, kind):
    with pytest.raises(DataError, match=r"x\.png: .* would not be read right; save it as PNG"):
        read_image(save(NOT_AS_WRITTEN[kind][0]))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("palette", [False, True])
def test_a_pixel_that_is_not_opaque_is_no_label(save, mode, palette):
    image = opaque(mode)()
    np.testing.assert_array_equal(
        read_values(save(image), palette=palette), IDS * np.int64(0x10101 if palette else 1)
    )
    alpha = np.full(IDS.shape, 255, np.uint8)
    alpha[3, 5:] = 254
    image.putalpha(Image.fromarray(alpha))
    with pytest.raises(
        DataError, match=rf"x\.png: pixel mode {mode} with alpha 254 of 255 at row 3, column 5: "
    ):
        read_values(save(image), palette=palette)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_values_that_some_programs_turn_are_refused(save, form):
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(made(GREY, form, exif=exif))
        for reader in ("read_values", "inspect_values", "read_palette", "inspect_confidence"):
            if orientation in (0, 1, 9):
                READERS[reader](path)
                continue
            with pytest.raises(DataError, match=rf"x\.png: EXIF orientation {orientation}; turn"):
                READERS[reader](path)


# decoding


def naive(values, legal):
    return np.array([[legal[int(v)] for v in row] for row in values], np.uint8)


@st.composite
def label_maps(draw, highest, dtype):
    """Return legal values with their train ids, and an array that holds no others."""
    keys = draw(st.lists(st.integers(0, highest), min_size=1, max_size=12, unique=True))
    legal = {k: draw(st.integers(0, 63) | st.just(255)) for k in keys}
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=6))
    return legal, draw(arrays.arrays(dtype, shape, elements=st.sampled_from(keys)))


def assert_counted(decoder, path, ids):
    same, counts = decoder.count(path)
    np.testing.assert_array_equal(same, ids)
    np.testing.assert_array_equal(counts, np.bincount(ids.ravel(), minlength=256))


@quick
@given(label_maps(255, np.uint8), st.booleans())
def test_decoding_8_bits_equals_a_loop(save, drawn, as_palette):
    legal, values = drawn
    path = save(paletted(values) if as_palette else values)
    decoder = Decoder(legal, palette=False)
    found = decoder.read(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, naive(values, legal))
    assert_counted(decoder, path, found)


@quick
@given(label_maps(65535, np.uint16))
def test_decoding_16_bits_equals_a_loop(save, drawn):
    legal, values = drawn
    decoder, path = Decoder(legal, palette=False), save(values)
    found = decoder.read(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, naive(values, legal))
    assert_counted(decoder, path, found)


@quick
@given(label_maps(0xFFFFFF, np.int64))
def test_decoding_colours_equals_a_loop(save, drawn):
    legal, values = drawn
    colours = np.dstack([values >> 16, values >> 8 & 255, values & 255]).astype(np.uint8)
    found = Decoder(legal, palette=True).read(save(colours))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, naive(values, legal))


@pytest.mark.parametrize("ids", ["label_ids", "palette"])
def test_cityscapes_is_decoded(save, ids):
    table = TABLES["cityscapes19"]
    if ids == "palette":
        values = np.array([[*table.colours, (0, 0, 0)]], np.uint8)
        expected = [[*range(19), 255]]
    else:
        values = np.array([[*range(34), 255]], np.uint8)
        expected = [[table.label_ids.get(int(v), 255) for v in values[0]]]
    decoder = Decoder(table.legal_values(ids), palette=ids == "palette")
    np.testing.assert_array_equal(decoder.read(save(values)), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [1, 3, 8, 254])
def test_an_illegal_value_is_refused_by_name(save, value, dtype):
    decoder = Decoder({0: 0, 2: 1, 7: 2, 255: 255}, palette=False)
    good = np.array([[0, 2], [7, 255]], dtype)
    np.testing.assert_array_equal(decoder.read(save(good)), [[0, 1], [2, 255]])
    good[1, 0] = value
    with pytest.raises(DataError, match=rf"x\.png: value {value} is outside"):
        decoder.read(save(good))


@pytest.mark.parametrize("value", [256, 65535])
def test_a_large_value_never_wraps_to_a_legal_one(save, value):
    decoder = Decoder({0: 0, 255: 255}, palette=False)
    with pytest.raises(DataError, match=f"value {value} is outside"):
        decoder.read(save(np.array([[0, value]], np.uint16)))


def test_an_illegal_colour_is_refused_as_a_colour(save):
    decoder = Decoder(TABLES["camvid11"].legal_values("palette"), palette=True)
    with pytest.raises(DataError, match=r"x\.png: colour #010203 is outside"):
        decoder.read(save(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8)))


@pytest.mark.parametrize(
    ("array", "palette", "values"),
    [
        (np.array([[0, 7, 7], [255, 7, 0]], np.uint8), False, {"0": 2, "7": 3, "255": 1}),
        (np.array([[0, 300, 7], [300, 7, 0]], np.uint16), False, {"0": 2, "7": 2, "300": 2}),
        (np.array([[[1, 2, 3], [0, 0, 0], [1, 2, 3]]], np.uint8), True, {"66051": 2, "0": 1}),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_values_are_counted(save, monkeypatch, array, palette, values, compiled):
    if not compiled:
        monkeypatch.delitem(sys.modules, "numba", raising=False)
    monkeypatch.setattr(decoding, "_LOADING", 0 if compiled else 1 << 26)
    found = inspect_values(save(array), palette=palette)
    assert found == {"height": array.shape[0], "width": 3, "values": values}
    assert all(type(v) is int for v in found["values"].values())


def test_a_turned_photograph_is_refused(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.new("RGB", (4, 6)).save(path, exif=exif)
    assert read_image(path).shape == (6, 4, 3)
    exif[0x0112] = 6
    Image.new("RGB", (4, 6)).save(path, exif=exif)
    with pytest.raises(DataError, match=r"turned\.jpg: EXIF orientation 6"):
        read_image(path)


# sizes


def bomb(height, width):
    """Return a PNG of a few bytes whose header speaks of as many pixels as it is told."""
    content = png(8, 0, [b"\0"], 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def test_a_file_of_more_pixels_than_may_be_is_refused_by_its_header(save):
    said = (
        r"x\.png: 100000x90000 pixels \(height x width\) are more than the limit of 7; if .* raise "
        r"the limit: `runtime: \{max_pixels: 9000000000\}`"
    )
    for size_of in (image_size, values_size):
        assert size_of(save(bomb(100_000, 90_000))) == (100_000, 90_000)
        with pytest.raises(DataError, match=said):
            size_of(save(bomb(100_000, 90_000)), 7)
        assert size_of(save(IDS), 35) == (5, 7)
        with pytest.raises(DataError, match=r"limit of 34; "):
            size_of(save(IDS), 34)


def test_another_size_than_the_images_is_refused_before_anything_is_decoded(save):
    path = save(bomb(100_000, 90_000))
    for read in (
        lambda: read_values(path, palette=False, size=(5, 7)),
        lambda: read_values(path, palette=True, size=(5, 7)),
        lambda: Decoder({0: 0}, palette=False).read(path, size=(5, 7)),
    ):
        with pytest.raises(DataError, match=r"x\.png: 100000x90000 .*, its image has 5x7; resize"):
            read()
    with pytest.raises(DataError, match=r"x\.png: 100000x90000 .*, its image has 5x7; expected"):
        read_confidence(path, (5, 7))
    assert read_values(save(IDS), palette=False, size=(5, 7)).shape == (5, 7)


def test_pillows_own_limit_says_nothing(save):
    """It would warn of 90 megapixels, and take twice as many for damage."""
    content = encoded(np.zeros((9_500, 9_500), np.uint8), "PNG", compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inspect_image(save(content)) == {"height": 9_500, "width": 9_500}
        found = inspect_values(save(content), palette=False)
    assert found["values"] == {"0": 9_500**2}


def test_images_of_one_pixel(save):
    path = save(np.full((1, 1), 7, np.uint8))
    assert read_image(path).tolist() == [[[7, 7, 7]]]
    assert read_values(path, palette=False, size=(1, 1)).tolist() == [[7]]
    assert image_size(path, 1) == values_size(path, 1) == (1, 1)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_never_waited_for(tmp_path, reader):
    pipe = tmp_path / "x.png"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"x\.png: cannot be read .*: it is a named pipe"):
        READERS[reader](pipe)
    pipe.unlink()
    pipe.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"x\.png: cannot be read .*: it is a device"):
        READERS[reader](pipe)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"\0" * 5000, "it begins with zeros only"),
    ],
)
def test_a_file_that_is_not_what_it_is_called_is_told_with_its_remedy(save, reader, content, said):
    with pytest.raises(DataError, match=rf"x\.png: cannot be read as an image: .*{said}"):
        READERS[reader](save(content))
