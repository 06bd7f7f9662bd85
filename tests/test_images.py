"""Reading pictures and fitting them into squares: the value a file stands for, or an error that helps."""

import hashlib
import io
import os
import shutil
import struct
import sys
import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from conftest import write_easy_cohort
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom import uid
from scipy.special import expit

from koa_lib import cohort, predictions, profile
from koa_lib.data.manifest import write_manifest
from koa_lib.errors import StudyError
from koa_lib.images import joint, shape, to_uint8
from koa_lib.images.read import SUFFIXES, decode, describe, header, mislabelled, pixel_sha256, read, read_gray
from koa_lib.images.shape import EXPLORATORY, INTENSITIES, LEVELS, adjust, mean_histogram
from koa_lib.settings import Cohort

SHAPE = (6, 10)
RAMP = np.linspace(0, 1, 60).reshape(SHAPE)
RAMP8, RAMP12, RAMP16 = (
    (RAMP * white).round().astype(kind) for white, kind in ((255, "u1"), (4095, "u2"), (65535, "u2"))
)
SHOWN12 = RAMP12 / 4095
GENERATOR = np.random.default_rng(1)
COLOUR, NOISE = (GENERATOR.integers(0, 256, size, dtype=np.uint8) for size in ((*SHAPE, 3), (60, 60)))


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def tiff(path, values, more=()):
    """A one-strip TIFF by the format's definition: Pillow writes no WhiteIsZero, 12 bits or signs."""
    order, data = ">" if values.dtype.str[0] == ">" else "<", values.tobytes()
    tags = {256: 10, 257: 6, 258: 8 * values.itemsize, 262: 1, 273: 8, 278: 6, 279: len(data), **dict(more)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


def dicom(path, values, bits=12, signed=False, syntax=uid.ExplicitVRLittleEndian, stream=None, **elements):
    """A DICOM file of values, or of a compressed stream."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    kind = f"{'i' if signed else 'u'}{-(-bits // 8)}"
    dataset.set_pixel_data(values.astype(kind), "MONOCHROME2", bits, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    if stream:
        dataset.PixelData = pydicom.encaps.encapsulate([stream])
        dataset["PixelData"].is_undefined_length = True
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def table(entries, first=0, bits=16, kind="<u2"):
    """A modality or VOI LUT sequence; 65,536 entries are written as 0."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries).astype(kind).tobytes())
    return [item]


def linear(x, centre, width):
    """Standard PS3.3 C.11.2.1.2.1, output from 0 to 1."""
    return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def shows(path, expected, atol=1e-6):
    gray = read_gray(path)
    assert gray.dtype == np.float32 and gray.shape == expected.shape and np.abs(gray - expected).max() <= atol


def refused(path, word="", readers=(decode, read_gray, describe)):
    """All readers give one message, of one line, that names the file and holds the word."""
    texts = set()
    for reader in readers:
        with pytest.raises(StudyError) as error:
            reader(path)
        texts.add(str(error.value))
    (text,) = texts
    assert text.startswith(str(path)) and "\n" not in text and word in text, text


# PNG, WebP, JPEG, TIFF, BMP


@pytest.mark.parametrize("name, pixels, more, doubt", [
    *[(name, RAMP8, {}, "") for name in ("x.png", "x.bmp", "x.tif")],
    ("x.webp", RAMP8, {"lossless": True}, ""),
    ("x.png", RAMP16, {}, ""),
    ("x.tif", np.float32(RAMP), {}, ""),
    ("x.png", RAMP8, {"exif": b"Exif\0\0nonsense"}, ""),
    ("x.dcm", RAMP12, {"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.1, 0.1004]}, ""),
    ("x.png", RAMP12, {}, "6 %"),
    ("x.png", RAMP8, {"dpi": (300, 150)}, "square"),
    ("x.dcm", RAMP12, {"ImagerPixelSpacing": [0.2, 0.1]}, "square"),
    ("x.dcm", 4095 - RAMP12, {"PresentationLUTShape": "INVERSE"}, "INVERSE"),
])  # fmt: skip
def test_gray_keeps_its_depth_and_a_doubt_is_said_with_the_name(tmp_path, name, pixels, more, doubt):
    path = (dicom if name == "x.dcm" else saved)(tmp_path / name, pixels, **more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        white = {"u1": 255, "f4": 1}.get(pixels.dtype.str[1:], 65535)
        shows(path, SHOWN12 if name == "x.dcm" else pixels / white)
    assert [name in str(one.message) and doubt in str(one.message) for one in caught] == [True] * bool(doubt)


def test_hash_and_description_are_those_of_the_contract(tmp_path):
    def digest(content):
        return hashlib.sha256(content).hexdigest()

    deep = digest(b"6x10:uint16:" + RAMP16.tobytes())
    for name, values in (("x.png", RAMP16), ("a.tif", RAMP16.astype("i4")), ("b.tif", np.float32(RAMP))):
        assert describe(saved(tmp_path / name, values))["pixel_sha256"] == deep
    assert pixel_sha256(RAMP16.astype(">u2")) == deep
    path = saved(tmp_path / "x.png", COLOUR)
    hashes = {
        "sha256": digest(path.read_bytes()),
        "pixel_sha256": digest(b"6x10x3:uint8:" + COLOUR.tobytes()),
    }
    told = {"width": 10, "height": 6, "bit_depth": 8, "channels": 3, "mode": "RGB"}
    assert describe(path) == hashes | told
    assert to_uint8(np.float32([0, 0.5, 0.499 / 255, 1])).tolist() == [0, 128, 0, 255]


HALF = RAMP > 0.5
TWO_COLOURS = np.where(HALF[..., None], [10, 20, 30], [200, 100, 0]).astype(np.uint8)


@pytest.mark.parametrize("picture, expected", [
    (Image.fromarray(np.dstack([RAMP8] * 3)), RAMP8),
    (Image.fromarray(np.dstack([RAMP8, RAMP8 // 3])), RAMP8),
    (Image.fromarray(np.dstack([COLOUR, RAMP8])), COLOUR),
    (Image.fromarray(TWO_COLOURS).quantize(2), TWO_COLOURS),
    (Image.fromarray(HALF), 255 * HALF),
])  # fmt: skip
def test_channels_are_averaged_when_they_differ_alpha_dropped_and_palettes_expanded(
    tmp_path, picture, expected
):
    path = tmp_path / "x.png"
    picture.save(path)
    assert np.array_equal(decode(path)[0], expected) and len(read(path).notes) == expected.ndim - 2
    shows(path, np.atleast_3d(expected).mean(axis=2) / 255)


PACKED = np.packbits(np.unpackbits(RAMP12.astype(">u2").view("u1")).reshape(-1, 16)[:, 4:])


@pytest.mark.parametrize("values, tags, expected", [  # what is shown, or a word of why it is refused
    (PACKED, {258: 12}, SHOWN12),
    (RAMP12, {281: 4095}, SHOWN12),
    (RAMP16, {281: 4095}, RAMP16 / 65535),
    *[(values.astype(order + values.dtype.str[1:]), {262: 1 - white, 339: kind}, np.abs(white - RAMP))
      for values, kind in ((RAMP8, 1), (RAMP16, 1), (np.float32(RAMP), 3))
      for order, white in (("<", 0), (">", 0), ("<", 1))],
    (RAMP16.astype(">u2"), {262: 0}, "PNG"),  # Pillow does not know it
    (np.dstack([RAMP16] * 3), {258: 16, 262: 2, 277: 3}, "16 bits"),
    (RAMP8 // 2, {339: 2}, RAMP8 // 2 / 255),
    (RAMP12 - np.uint16(5), {339: 2}, "-5"),
    (HALF * np.uint32(65536), {}, "65536"),
    *[(np.where(HALF, value, 0).astype("f4"), {339: 3}, str(value)) for value in (4095, -0.5, np.nan)],
])  # fmt: skip
def test_depth_polarity_and_signs_of_tiff(tmp_path, values, tags, expected):
    path = tiff(tmp_path / "x.tif", values, tags)
    refused(path, expected) if isinstance(expected, str) else shows(path, expected, 0.002)


@pytest.mark.parametrize("bits, white", [(12, 4095), (16, 65535), (0, 65535), (10, 65535)])
def test_significant_bits_of_png_are_obeyed_where_the_values_fit(tmp_path, bits, white):
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([bits]))
    shows(saved(tmp_path / "x.png", RAMP12, pnginfo=info), RAMP12 / white)


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.jpg", "x.tif"])
@pytest.mark.parametrize("code", range(10))
def test_orientation_is_obeyed(tmp_path, code, name):
    upright = np.kron(np.arange(6).reshape(2, 3) * 50, np.ones((16, 16))).astype(np.uint8)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's numbers of what undoes it
    path, stored, exif = tmp_path / name, Image.fromarray(upright), Image.Exif()
    stored, exif[274] = stored.transpose(back[code]) if code in back else stored, code
    stored.save(path, exif=exif, lossless=True)
    shows(path, upright / 255, 0.03)
    assert decode(path)[0].shape == (header(path).height, header(path).width)


# DICOM

FORMULAS = {
    "": lambda x, *_: (x - x.min()) / (x.max() - x.min()),
    "LINEAR": linear,
    "LINEAR_EXACT": lambda x, centre, width: np.clip((x - centre) / width + 0.5, 0, 1),
    "SIGMOID": lambda x, centre, width: expit(4 * (x - centre) / width),
}
INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from([8, 12, 16]), signed=st.booleans(), inverted=st.booleans(),
    slope=st.sampled_from([1, 2.5, 0.25, -1]), function=st.sampled_from(list(FORMULAS)),
    centre=st.integers(-70000, 70000), width=st.integers(2, 70000),
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_dicom_is_shown_as_the_standard_says(
    tmp_path_factory, bits, signed, inverted, slope, function, centre, width
):
    low, more = -(2 ** (bits - 1)) if signed else 0, {"RescaleSlope": slope, "RescaleIntercept": 37.5}
    values = np.random.default_rng(width).integers(low, low + 2**bits, SHAPE)
    if function:
        more |= {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
    if inverted:
        more |= INVERTED
    path = dicom(tmp_path_factory.getbasetemp() / "x.dcm", values, bits, signed, **more)
    expected = FORMULAS[function](values * slope + 37.5, centre, width)
    shows(path, 1 - expected if inverted else expected, 1e-5)
    pixels, mode = decode(path)  # window and polarity are no part of what is stored
    assert np.array_equal(pixels, values - low) and mode == f"MONOCHROME{2 - inverted}"
    assert pixels.itemsize == (1 if bits == 8 else 2)


GOOD = {"WindowCenter": 1000, "WindowWidth": 500}
WINDOWED = linear(RAMP12, 1000, 500)


def curve(length, bits):
    return np.round((np.arange(length) / (length - 1)) ** 2 * (2**bits - 1))


@pytest.mark.parametrize("elements, expected", [
    ({"WindowCenter": 2000, "WindowWidth": 1}, RAMP12 > 1999.5),
    ({"WindowCenter": [1000, 3000], "WindowWidth": [500, 50]}, WINDOWED),
    ({"RescaleSlope": None, "RescaleIntercept": 9, **GOOD}, linear(RAMP12 + 9.0, 1000, 500)),
    ({"VOILUTSequence": [pydicom.Dataset(), *table(np.arange(4096))], **GOOD}, SHOWN12),
    ({"ModalityLUTSequence": [pydicom.Dataset()], **GOOD}, WINDOWED),
    ({"ModalityLUTSequence": table(curve(4096, 8), 0, 0, "u1"), **GOOD},
     linear(curve(4096, 8)[RAMP12], 1000, 500)),
    *[({"PresentationLUTShape": look, **INVERTED}, 1 - SHOWN12) for look in ("IDENTITY", "INVERSE", None)],
    *[  # a table comes before the window and holds at its ends, with the bits that its entries need
        ({"VOILUTSequence": table(curve(length, bits), first, said, kind), "RescaleSlope": slope, **GOOD},
         curve(length, bits)[np.clip(np.round(RAMP12 * slope) - first, 0, length - 1).astype(int)]
         / (2**bits - 1))
        for bits, kind, said in ((12, "<u2", 12), (12, "<u2", 8), (8, "<u2", 0), (8, "u1", 10))
        for length, first, slope in ((1024, 500, 1.0), (2000, -1000, -1.0), (65536, 0, 15.5))],
])  # fmt: skip
def test_a_header_is_obeyed_and_its_empty_elements_are_as_absent(tmp_path, elements, expected):
    shows(dicom(tmp_path / "x.dcm", RAMP12, **elements), expected, 1e-5)


@given(share=st.floats(0.3, 0.95), seed=st.integers(0, 2**32 - 1))
def test_a_jpeg_that_is_closed_early_is_doubted_and_a_whole_one_is_not(tmp_path_factory, share, seed):
    made, path = io.BytesIO(), tmp_path_factory.getbasetemp() / "closed.jpg"
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40)).astype(np.uint8)
    Image.fromarray(noise).resize((160, 160)).save(made, "JPEG", quality=90)
    whole = made.getvalue()
    for content, doubted in ((whole, False), (whole[: int(share * len(whole))] + b"\xff\xd9", True)):
        path.write_bytes(content)
        assert any("end early" in doubt for doubt in read(path).doubts) == doubted


@pytest.mark.parametrize("inverted", [{}, INVERTED])
@pytest.mark.parametrize("signed, filled, limit", [(0, 0, None), (0, 3, 0), (1, -2000, None)])
def test_padding_is_black_and_takes_no_part_in_the_range(tmp_path, inverted, signed, filled, limit):
    values = np.pad(RAMP12 + 1000, 4, constant_values=filled)
    more = {"PixelPaddingValue": filled, "PixelPaddingRangeLimit": limit, **inverted}
    path = dicom(tmp_path / "x.dcm", values, 16, signed, **more)
    path.write_bytes(path.read_bytes().replace(b"SS\2\0", b"US\2\0"))  # as many write a negative one
    shows(path, np.pad(1 - SHOWN12 if inverted else SHOWN12, 4))


def test_dicom_without_suffix_preamble_or_file_header_and_a_large_one(tmp_path):
    path = dicom(tmp_path / "001", RAMP12)
    (tmp_path / "old.dcm").write_bytes(path.read_bytes()[132:])
    dataset = pydicom.dcmread(path)
    del dataset.file_meta, dataset.preamble
    dataset.save_as(tmp_path / "bare.dcm", implicit_vr=True, little_endian=True)
    for name in ("001", "old.dcm", "bare.dcm"):
        shows(tmp_path / name, SHOWN12)
    shows(dicom(path, np.tile(RAMP12, (200, 100))), np.tile(SHOWN12, (200, 100)))  # more than a megabyte


# Errors: they name the file, the cause and the remedy


def made(path):
    """A good picture in the format of the path's suffix."""
    return dicom(path, NOISE, 8) if path.suffix in (".dcm", ".dicom") else saved(path, NOISE)


def encoded(kind, pixels=NOISE):
    """A compressed stream for a DICOM file."""
    buffer = io.BytesIO()
    if kind == uid.RLELossless:
        dataset = pydicom.dcmread(io.BytesIO(dicom(buffer, pixels, 8).getvalue()))
        dataset.compress(kind)
        return pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    Image.fromarray(pixels).save(buffer, "JPEG2000" if kind == uid.JPEG2000Lossless else "JPEG", quality=100)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_empty_and_text_files_are_named(tmp_path, suffix):
    path = made(tmp_path / f"a{suffix}")
    assert mislabelled(path) == ""
    content = path.read_bytes()
    for bad, word in ((content[: len(content) // 2], "truncated"), (b"", "0 bytes"), (b"words" * 99, "")):
        path.write_bytes(bad)
        refused(path, word, readers=(decode, read, describe))


@settings(max_examples=150, deadline=None)
@given(suffix=st.sampled_from(SUFFIXES), seed=st.integers(0, 10**6))
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_refused_or_still_a_picture(tmp_path_factory, suffix, seed):
    path, generator = made(tmp_path_factory.getbasetemp() / f"damaged{suffix}"), np.random.default_rng(seed)
    content = np.fromfile(path, np.uint8)
    content[generator.integers(0, min(600, len(content)), seed % 4)] = generator.integers(256)
    content[: generator.choice([len(content), generator.integers(len(content))])].tofile(path)
    try:
        gray = read(path).gray
    except StudyError as error:
        assert str(error).startswith(str(path))
    else:
        assert gray.ndim == 2 and gray.dtype == np.float32 and 0 <= gray.min() and gray.max() <= 1


@pytest.mark.parametrize(
    "kind", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000Lossless, uid.RLELossless]
)
def test_compressed_dicom_is_whole_or_refused_as_damaged(tmp_path, kind):
    stream, path = encoded(kind), tmp_path / "x.dcm"
    more = {"syntax": kind, "WindowCenter": 128, "WindowWidth": 256}
    shows(dicom(path, NOISE, 8, stream=stream, **more), NOISE / 255, 0.02)
    for share in (0.03, 0.3, 0.7, 0.99):
        refused(dicom(path, NOISE, 8, stream=stream[: int(share * len(stream))], **more), "damaged")
    refused(dicom(path, np.pad(NOISE, 30), 8, stream=stream, **more), "damaged")


CUT = table(np.arange(4096))
CUT[0].LUTData = CUT[0].LUTData[:6000]


UNREADABLE = [
    ({"NumberOfFrames": 2, "PixelData": bytes(240)}, "2 frame"),
    ({"PhotometricInterpretation": "RGB"}, "RGB"),
    ({"BitsStored": 32}, "32 bits"),
    ({"PixelData": bytes(50)}, "damaged"),
    ({"Rows": 60000, "Columns": 60000}, "60,000"),
    ({"syntax": uid.DeflatedExplicitVRLittleEndian}, "deflated"),  # may inflate without any bound
    *[({"syntax": kind, "bits": bits, "stream": encoded(uid.JPEGBaseline8Bit)}, "pip install")
      for kind, bits in ((uid.JPEGLosslessSV1, 12), (uid.JPEGExtended12Bit, 12), (uid.MPEG2MPML, 8))],
]  # fmt: skip
UNSHOWABLE = [
    *[({**GOOD, "WindowWidth": width}, f"width {width}") for width in (0, -5)],
    ({**GOOD, "WindowWidth": -5, "VOILUTFunction": "SIGMOID"}, "width -5"),
    *[({**GOOD, name: "NaN"}, "nan") for name in ("WindowCenter", "WindowWidth", "RescaleSlope")],
    ({**GOOD, "VOILUTFunction": "MAGIC"}, "MAGIC"),
    ({"VOILUTSequence": CUT}, "VOILUTSequence"),
]


@pytest.mark.parametrize("more, word, readers", [
    *[(*case, (decode, read_gray)) for case in UNREADABLE], *[(*case, [read_gray]) for case in UNSHOWABLE],
])  # fmt: skip
def test_dicom_that_cannot_be_read_or_shown_is_refused(tmp_path, more, word, readers):
    refused(dicom(tmp_path / "x.dcm", RAMP12 // 16, **more), word, readers)


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    refused(tmp_path, "folder", readers=(decode, read_gray, describe, header, mislabelled))
    refused(tmp_path / "gone.png", "no such file")
    path = dicom(tmp_path / "x.dcm", RAMP12)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(path, "pip install pydicom", readers=(decode, read_gray, header))


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "EPS", "PPM"])
def test_no_other_decoder_or_program_runs_whatever_the_suffix_says(tmp_path, kind):
    refused(saved(tmp_path / "x.png", RAMP8, format=kind), readers=(decode, read, header, mislabelled))


def memory(reader, path):
    """Megabytes that a process takes to read a file or to refuse it."""
    if not (child := os.fork()):
        try:
            with suppress(StudyError):
                reader(path)
        finally:
            os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss / 1024


def test_dicom_with_many_pixels_under_a_header_of_few_is_refused_before_it_fills_the_memory(tmp_path):
    stream = encoded(uid.JPEGBaseline8Bit, np.zeros((10_000, 10_000), np.uint8))
    path = dicom(tmp_path / "x", NOISE, 8, syntax=uid.JPEGBaseline8Bit, stream=stream)
    refused(path, "damaged")
    assert memory(read, path) - memory(str, path) < 80


# Geometry


def square(image, geometry, size=64):
    """The one square of a picture of one knee."""
    (result,) = shape.squares(image, geometry, size)
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["stretch", "pad", "center_crop", "split"]), st.sampled_from(INTENSITIES),
    st.integers(1, 60), st.integers(1, 200), st.sampled_from([0, 0.1, 1]),
)  # fmt: skip
def test_any_picture_gives_squares_in_range_one_for_each_knee(geometry, intensity, height, width, span):
    image = span * np.random.default_rng(width).random((height, width), dtype=np.float32)
    shown = shape.squares(image, geometry, 31)
    assert len(shown) == 1 + (geometry == "split" and width >= 3 * height)
    for one in shown:
        changed = adjust(one, intensity, mean_histogram([image]))
        assert changed.shape == (31, 31) and 0 <= changed.min() and changed.max() <= 1


@pytest.mark.parametrize("geometry, size, high, wide", [
    ("stretch", 128, 75, 38), ("split", 128, 75, 38), ("pad", 200, 59, 59), ("center_crop", 82, 59, 59),
])  # fmt: skip
def test_geometries_keep_what_they_promise(geometry, size, high, wide):
    y, x = np.mgrid[:100, :200]
    shown = square((np.hypot(y - 50, x - 100) < 30).astype(np.float32), geometry, size) > 0.5
    assert abs(shown.any(axis=1).sum() - high) <= 1 and abs(shown.any(axis=0).sum() - wide) <= 1


def test_a_picture_is_filled_up_with_the_gray_of_its_border_and_an_unknown_way_is_named():
    framed = np.pad(np.ones((40, 90), np.float32), 5, constant_values=0.25)
    padded = square(framed, "pad", 100)
    assert (padded[[*range(25), *range(75, 100)]] == 0.25).all() and padded[50, 50] == 1
    for change in (square, adjust):
        with pytest.raises(StudyError, match="squeeze"):
            change(framed, "squeeze")


def test_each_half_is_fitted_and_joint_crops_like_a_training_file():
    image = np.random.default_rng(0).random((60, 201), dtype=np.float32)
    halves = image[:, :100], image[:, 101:]
    assert np.array_equal(shape.squares(image, "split", 64), [square(half, "stretch") for half in halves])
    crops = [square(joint.crop(half, shape.FILE_SIDE), "center_crop") for half in halves]
    assert np.array_equal(shape.squares(image, "joint_crop", 64, "center_crop"), crops)


# Intensity


def cumulative(images):
    """Mean share of the pixels below each upper edge of the levels; the last level holds 1, too."""
    edges = [*np.arange(1, LEVELS) / LEVELS, 2]
    return np.mean([[(image < edge).mean() for edge in edges] for image in images], axis=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0.3, 3), levels=st.sampled_from([2, 5, 40, 256]))
def test_histograms_weigh_pictures_alike_and_matching_keeps_the_order(seed, gamma, levels):
    generator = np.random.default_rng(seed)
    images = [(generator.integers(0, levels, size) / (levels - 1)) ** gamma for size in ((24, 24), (3, 5))]
    mean = mean_histogram(iter(images))
    assert np.allclose(mean, cumulative(images))
    before, after = images[0].ravel(), adjust(images[0], "match_train", mean).ravel()
    order = np.argsort(before, kind="stable")
    risen, matched = np.diff(before[order]), np.diff(after[order])
    assert (matched >= 0).all() and (matched[risen == 0] == 0).all()  # equal ones stay equal


@pytest.mark.parametrize("number", [1, 2, 4])
def test_few_gray_values_become_the_middle_quantiles_of_the_reference(number):
    image = np.repeat(np.arange(number) / 9, 64).reshape(-1, 8)
    reference = np.arange(1, LEVELS + 1) / LEVELS  # all gray values equally often: quantile q is q
    expected = (np.arange(number) + 0.5) / number
    assert np.unique(adjust(image, "match_train", reference)) == pytest.approx(expected, abs=0.02)


def test_no_profile_trains_with_what_external_labels_suggested():
    for shipped in map(profile.load, profile.names()):
        for recipe in filter(None, (shipped.as_printed, shipped.our_protocol)):
            assert not EXPLORATORY & {recipe.geometry, recipe.intensity}


# In a study


@pytest.fixture
def mixed_study(easy_study, tmp_path, monkeypatch):
    """The easy study in a run folder of its own, with six external pictures, two of them of two knees."""
    films, lists = tmp_path / "films", shutil.copytree(cohort.MANIFESTS, tmp_path / "lists")
    rows = write_easy_cohort(films, 3, ("external",), 9)
    for k in (1, 4):
        one = np.asarray(Image.open(films / rows["path"][k]))
        saved(films / rows["path"][k], np.hstack([one // 3, one // 3, one, one]))
    write_manifest(rows, lists / "films.csv")
    monkeypatch.setattr(cohort, "MANIFESTS", lists)
    (tmp_path / "run" / ".locks").mkdir(parents=True)
    inputs = replace(easy_study.inputs, external=str(films))
    chosen = replace(easy_study.profile, external=Cohort("films", "folder", 0))
    return replace(easy_study, profile=chosen, inputs=inputs, run_dir=tmp_path / "run")


def test_a_picture_of_two_knees_has_two_rows_and_one_grade(mixed_study):
    data = cohort.dataset(mixed_study, "external", "split", "none", 32)
    whole = cohort.dataset(mixed_study, "external", "pad", "none", 32)
    assert list(data.rows["image_id"]) == list(whole.rows["image_id"].repeat([1, 2, 1, 1, 2, 1]))
    assert data.grades.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    image = read_gray(data.rows["file"][1])
    for got, part in zip(data.images([1, 2]), (image[:, :80], image[:, 80:]), strict=True):
        assert np.abs(got - square(part, "stretch", 32) * 255).max() <= 0.51


def test_the_worse_knee_counts_with_all_its_probabilities_and_of_equal_ones_the_first():
    equal = [0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0]
    frame = predictions.frame(list("abbcc"), [*np.eye(5)[[0, 1, 3]], *equal])
    assert list(frame["image_id"]) == list("abc")
    assert np.array_equal(frame[predictions.PROBABILITIES], [*np.eye(5)[[0, 3]], equal[0]])


def test_match_train_gives_external_pictures_the_gray_values_of_the_training_split_alone(mixed_study):
    training = cohort.dataset(mixed_study, "training", "stretch", "none", 24)
    fitted = training.images(np.flatnonzero(training.rows["split"] == "train")) / 255
    plain, matched = (
        np.array(cohort.dataset(mixed_study, "external", "stretch", name, 24).pixels)
        for name in ("none", "match_train")
    )
    assert np.allclose(cohort.training_histogram(mixed_study, 24), cumulative(fitted))
    expected = [adjust(picture / 255, "match_train", cumulative(fitted)) for picture in plain]
    assert np.abs(matched / 255 - expected).max() < 0.003
