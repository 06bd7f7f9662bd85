"""Reading pictures and fitting them into squares: the value a file stands for, or an error that helps."""

import io
import os
import resource
import shutil
import struct
import sys
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import easy_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from scipy.ndimage import uniform_filter

from koa_lib import datasets, predictions, profile
from koa_lib.data.manifest import read_manifest, write_manifest
from koa_lib.errors import StudyError
from koa_lib.images import joint, shape, to_uint8
from koa_lib.images.read import SUFFIXES, decode, describe, header, mislabelled, pixel_sha256, read, read_gray
from koa_lib.images.shape import EXPLORATORY, GEOMETRIES, INTENSITIES, LEVELS, adjust, mean_histogram
from koa_lib.settings import Cohort

SHAPE = (6, 10)
RAMP8 = np.linspace(0, 255, 60).round().astype(np.uint8).reshape(SHAPE)
RAMP16 = np.linspace(0, 65535, 60).round().astype(np.uint16).reshape(SHAPE)
RAMP12 = np.linspace(0, 4095, 60).round().astype(int).reshape(SHAPE)
COLOUR = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def tiff(path, data, bits, order="<", shape=SHAPE, **tags):
    """A one-strip TIFF by the format's definition: Pillow writes no WhiteIsZero, 12 bits or signs."""
    height, width = shape
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: len(data),
        **{int(tag[1:]): value for tag, value in tags.items()},
    }
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


def png(path, values, depth, kind, extra=b"", size=None):
    """A PNG by the format's definition: Pillow writes no 16 bits but gray, and no sBIT."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = size or values.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    extra = chunk(b"sBIT", extra) if extra else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def dicom(
    path,
    values,
    photometric="MONOCHROME2",
    bits=12,
    signed=False,
    syntax=uid.ExplicitVRLittleEndian,
    stream=None,
    **elements,
):
    """A DICOM file with values in the low `bits` of each word, or with a compressed stream."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
    dataset.BitsAllocated = 8 * -(-bits // 8)
    words = (values.astype(np.int64) & (2**bits - 1)).astype(f"<u{dataset.BitsAllocated // 8}")
    dataset.PixelData = pydicom.encaps.encapsulate([stream]) if stream else words.tobytes()
    dataset["PixelData"].is_undefined_length = bool(stream)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def table(entries, first=0, bits=16, kind="<u2"):
    """A modality or VOI LUT sequence; 65,536 entries are written as 0. Without entries an empty item."""
    item = pydicom.Dataset()
    described = None if entries is None else [len(entries) % 65536, first, bits]
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", described)
    item.add_new("LUTData", "OW", None if entries is None else np.asarray(entries).astype(kind).tobytes())
    return [item]


def full_range(bits, signed=False):
    low = -(2 ** (bits - 1)) if signed else 0
    return np.linspace(low, low + 2**bits - 1, 60).round().astype(np.int64).reshape(SHAPE)


def linear(x, centre, width):
    """Standard PS3.3 C.11.2.1.2.1, output from 0 to 1, value by value."""
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    shown = [
        0 if v <= low else 1 if v > high else (v - (centre - 0.5)) / (width - 1) + 0.5 for v in x.ravel()
    ]
    return np.reshape(shown, x.shape)


def linear_exact(x, centre, width):
    return np.clip((x - centre) / width + 0.5, 0, 1)


def sigmoid(x, centre, width):
    return 1 / (1 + np.exp(-4 * (x - centre) / width))


def shows(path, expected, atol=1e-6):
    gray = read_gray(path)
    assert gray.dtype == np.float32 and gray.shape == expected.shape and np.abs(gray - expected).max() <= atol


def refused(path, *words, readers=(decode, read_gray, describe)):
    """All readers give one message, of one line, that names the file and holds the words."""
    texts = set()
    for reader in readers:
        with pytest.raises(StudyError) as error:
            reader(path)
        texts.add(str(error.value))
    (text,) = texts
    assert text.startswith(str(path)) and "\n" not in text and all(word in text for word in words), text


# Ordinary formats


@pytest.mark.parametrize(
    "name, pixels, options",
    [
        ("x.png", RAMP8, {}),
        ("x.bmp", RAMP8, {}),
        ("x.tif", RAMP8, {}),
        ("x.webp", RAMP8, {"lossless": True}),
        ("x.png", RAMP16, {}),
        ("x.tif", RAMP16, {}),
        ("x.tif", RAMP16, {"compression": "tiff_adobe_deflate"}),
        ("x.tif", RAMP16.astype(np.int32), {}),
    ],
)
def test_gray_is_kept_in_its_depth(tmp_path, name, pixels, options):
    path = saved(tmp_path / name, pixels, **options)
    deep = pixels.dtype != np.uint8
    assert np.array_equal(decode(path)[0], pixels) and decode(path)[0].dtype == (
        np.uint16 if deep else np.uint8
    )
    assert describe(path)["pixel_sha256"] == pixel_sha256(pixels.astype(np.uint16) if deep else pixels)
    shows(path, pixels / (65535 if deep else 255))
    assert (header(path).width, header(path).height, header(path).frames) == (10, 6, 1) and read(
        path
    ).notes == ()


def test_hash_and_description_are_those_of_the_contract(tmp_path):
    import hashlib

    path = saved(tmp_path / "x.png", COLOUR)
    expected = hashlib.sha256(b"6x10x3:uint8:" + COLOUR.tobytes()).hexdigest()
    assert (
        pixel_sha256(RAMP16)
        == pixel_sha256(RAMP16.astype(">u2"))
        == hashlib.sha256(b"6x10:uint16:" + RAMP16.tobytes()).hexdigest()
    )
    assert describe(path) == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "pixel_sha256": expected,
        "width": 10,
        "height": 6,
        "bit_depth": 8,
        "channels": 3,
        "mode": "RGB",
    }


def test_jpeg_is_near_and_float_is_rounded_to_eight_bits(tmp_path):
    shows(saved(tmp_path / "x.jpg", RAMP8, quality=95), RAMP8 / 255, 0.03)
    assert (
        np.array_equal(to_uint8(np.float32([0, 0.5, 0.499 / 255, 1])), [0, 128, 0, 255])
        and to_uint8(np.ones(1)).dtype == np.uint8
    )


def test_channels_alpha_and_palette(tmp_path):
    equal = saved(tmp_path / "equal.png", np.dstack([RAMP8] * 3))
    assert (
        np.array_equal(decode(equal)[0], RAMP8)
        and describe(equal)["channels"] == 1
        and read(equal).notes == ()
    )
    for below in (RAMP8, COLOUR):
        assert np.array_equal(decode(saved(tmp_path / "a.png", np.dstack([below, RAMP8])))[0], below)
    unequal = saved(tmp_path / "unequal.png", COLOUR)
    shows(unequal, COLOUR.mean(axis=2) / 255)
    assert decode(unequal)[1] == "RGB" and "colour" in read(unequal).notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a note on what was done is no doubt about the values
        read_gray(unequal)
    picture = Image.fromarray(RAMP8 % 2).convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.save(tmp_path / "p.png")
    assert np.array_equal(decode(tmp_path / "p.png")[0], np.array([[10, 20, 30], [200, 100, 0]])[RAMP8 % 2])
    shows(saved(tmp_path / "one.png", RAMP8 > 99), RAMP8 > 99)


@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
@pytest.mark.parametrize("ink, gray", [((0, 0, 0, 0), 1.0), ((0, 0, 0, 255), 0.0), ((255, 0, 0, 0), 2 / 3)])
def test_cmyk_shows_paper_white_and_ink_dark(tmp_path, name, ink, gray):
    Image.new("CMYK", (16, 16), ink).save(tmp_path / name)
    shows(tmp_path / name, np.full((16, 16), gray), 0.01)


@pytest.mark.parametrize("white_is_zero", [0, 1])
@pytest.mark.parametrize(
    "order, dtype", [("<", "u1"), (">", "u1"), ("<", "u2"), (">", "u2"), ("<", "f4"), (">", "f4")]
)
def test_polarity_of_tiff(tmp_path, white_is_zero, order, dtype):
    values = {"u1": RAMP8, "u2": RAMP16, "f4": RAMP16 / 65535}[dtype]
    path = tiff(
        tmp_path / "x.tif",
        values.astype(order + dtype).tobytes(),
        8 * int(dtype[1]),
        order,
        t262=1 - white_is_zero,
        t339=3 if dtype == "f4" else 1,
    )
    if white_is_zero and order + dtype == ">u2":  # Pillow does not know it
        return refused(path, "Pillow", "PNG")
    shows(path, 1 - RAMP16 / 65535 if white_is_zero else RAMP16 / 65535, 1 / 255 if dtype == "u1" else 1e-6)


@pytest.mark.parametrize("low, high", [(0, 4095), (-0.5, 1), (0, float("nan"))])
def test_values_that_no_depth_holds_are_refused(tmp_path, low, high):
    values = np.full(SHAPE, low, np.float32)
    values[2, 3] = high
    refused(saved(tmp_path / "x.tif", values), f"{high:g}", "0 to 1")
    shows(saved(tmp_path / "y.tif", RAMP16 / np.float32(65535)), RAMP16 / 65535)
    assert np.array_equal(decode(tmp_path / "y.tif")[0], RAMP16)
    refused(saved(tmp_path / "z.tif", np.where(RAMP16 > 60000, 65536, RAMP16.astype(np.int32))), "65536")


# What a raster file says of its values and its place


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.jpg", "x.tif"])
@pytest.mark.parametrize("code", range(10))
def test_orientation_is_obeyed(tmp_path, code, name):
    upright = np.kron(np.arange(6).reshape(2, 3) * 50, np.ones((16, 16))).astype(np.uint8)
    T = Image.Transpose
    undo = {
        2: T.FLIP_LEFT_RIGHT,
        3: T.ROTATE_180,
        4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE,
        6: T.ROTATE_90,
        7: T.TRANSVERSE,
        8: T.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    stored = stored.transpose(undo[code]) if code in undo else stored
    exif = Image.Exif()
    exif[274] = code
    stored.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "x.webp" else {}))
    shows(tmp_path / name, upright / 255, 0.02)
    seen = upright.shape if name == "x.tif" else np.asarray(stored).shape
    assert (
        decode(tmp_path / name)[0].shape
        == seen
        == (header(tmp_path / name).height, header(tmp_path / name).width)
    )


def test_unreadable_exif_turns_nothing(tmp_path):
    shows(saved(tmp_path / "x.png", RAMP8, exif=b"Exif\0\0nonsense"), RAMP8 / 255)


def test_declared_bits_are_obeyed_where_the_values_fit(tmp_path):
    first, second = RAMP12.ravel()[::2], RAMP12.ravel()[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    shows(tiff(tmp_path / "packed.tif", packed.tobytes(), 12), RAMP12 / 4095)
    for highest, values, white in (
        (4095, RAMP12, 4095),
        (3900, RAMP12 // 2, 4095),
        (4095, RAMP16, 65535),
        (65535, RAMP16, 65535),
    ):
        shows(tiff(tmp_path / "x.tif", values.astype("<u2").tobytes(), 16, t281=highest), values / white)
    for bits, values, white in (
        (12, RAMP12, 4095),
        (12, RAMP16, 65535),
        (16, RAMP16, 65535),
        (0, RAMP16, 65535),
    ):
        shows(png(tmp_path / "x.png", values, 16, 0, bytes([bits])), values / white)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_a_small_part_of_the_range_is_said_with_the_name(tmp_path, name):
    path = saved(tmp_path / name, RAMP12.astype(np.uint16))
    assert read(path).notes == read(path).doubts == ("uses 6 % of its range",)
    with pytest.warns(UserWarning, match=f"{name}.* 6 %"):
        shows(path, RAMP12 / 65535)
    assert (
        not read(saved(path, (RAMP16 // 3).astype(np.uint16))).notes
        and not read(saved(path, RAMP8 // 99)).notes
    )


def test_signs_and_sixteen_bits_in_channels_are_right_or_refused(tmp_path):
    path = tmp_path / "x.tif"
    refused(tiff(path, RAMP8.tobytes(), 8, t339=2), "signed", "-126")
    shows(tiff(path, (RAMP8 // 2).tobytes(), 8, t339=2), RAMP8 // 2 / 255)
    refused(tiff(path, (RAMP12 - 5).astype("<i2").tobytes(), 16, t339=2), "signed", "-5")
    shows(tiff(path, (RAMP16 // 2).astype("<i2").tobytes(), 16, t339=2), RAMP16 // 2 / 65535)
    alpha = np.dstack([RAMP16, RAMP16])
    for kind, values in ((4, alpha), (2, np.dstack([RAMP16] * 3)), (6, np.dstack([alpha, alpha]))):
        refused(png(tmp_path / "x.png", values, 16, kind), "16 bits")
    tifffile = pytest.importorskip("tifffile")
    for values, planes in ((np.dstack([RAMP16] * 3), "contig"), (np.stack([RAMP16] * 3), "separate")):
        tifffile.imwrite(path, values, photometric="rgb", planarconfig=planes)
        refused(path, "16 bits")


def test_pictures_behind_the_first_and_oblong_pixels_are_noted(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(RAMP8).save(path, save_all=True, append_images=[Image.fromarray(255 - RAMP8)] * 2)
    assert header(path).frames == 3 and "3 pictures" in read(path).notes[0] and not read(path).doubts
    shows(path, RAMP8 / 255)
    assert (
        "square" in read(saved(tmp_path / "x.png", RAMP8, dpi=(300, 150))).doubts[0]
        and not read(saved(path, RAMP8, dpi=(300, 300))).notes
    )


# DICOM


@pytest.mark.parametrize("rescale", [None, (2.5, -300), (-1, 4000)])
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_is_shown_as_the_standard_says(tmp_path, photometric, signed, bits, window, rescale):
    values = full_range(bits, signed)
    slope, intercept = rescale or (1, 0)
    x = values * slope + intercept
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescale else {}
    expected = (x - x.min()) / (x.max() - x.min())
    if window:
        centre, width = float(np.median(x).round() + 7), float(2 ** (bits - 1))
        elements.update(WindowCenter=centre, WindowWidth=width)
        expected = linear(x, centre, width)
    path = dicom(tmp_path / "x.dcm", values, photometric, bits, signed, **elements)
    shows(path, 1 - expected if photometric == "MONOCHROME1" else expected, 1e-5)
    pixels, mode = decode(path)  # window and polarity are no part of what is stored
    assert mode == photometric and np.array_equal(pixels, values - values.min())
    assert describe(path)["pixel_sha256"] == describe(saved(tmp_path / "x.png", pixels))["pixel_sha256"]
    assert (header(path).kind, header(path).width, header(path).height) == ("DICOM", 10, 6)


@pytest.mark.parametrize(
    "function, formula",
    [("LINEAR", linear), ("LINEAR_EXACT", linear_exact), ("SIGMOID", sigmoid), (None, linear)],
)
@pytest.mark.parametrize("signed", [False, True])
def test_each_window_function(tmp_path, function, formula, signed):
    values, centre = full_range(12, signed), 900 - 2048 * signed
    path = dicom(
        tmp_path / "x.dcm",
        values,
        signed=signed,
        WindowCenter=centre,
        WindowWidth=300,
        VOILUTFunction=function,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shows(path, formula(values, centre, 300), 1e-5)


GOOD = {"WindowCenter": 1000, "WindowWidth": 500}


@pytest.mark.parametrize(
    "elements, expected",
    [
        ({"WindowCenter": 2000, "WindowWidth": 1}, RAMP12 > 1999.5),
        ({"WindowCenter": [1000, 3000], "WindowWidth": [500, 50]}, linear(RAMP12, 1000, 500)),
        ({"WindowCenter": ["", 1000], "WindowWidth": ["", 500]}, linear(RAMP12, 1000, 500)),
        ({"WindowCenter": None, "WindowWidth": None}, RAMP12 / 4095),
        ({"WindowCenter": 100}, RAMP12 / 4095),
        ({"RescaleSlope": None, "RescaleIntercept": None, **GOOD}, linear(RAMP12, 1000, 500)),
        ({"RescaleSlope": 2, "RescaleIntercept": None, **GOOD}, linear(2 * RAMP12, 1000, 500)),
        ({"RescaleSlope": None, "RescaleIntercept": 9, **GOOD}, linear(RAMP12 + 9, 1000, 500)),
        ({"VOILUTSequence": table(None), **GOOD}, linear(RAMP12, 1000, 500)),
        ({"VOILUTSequence": [pydicom.Dataset()], **GOOD}, linear(RAMP12, 1000, 500)),
        ({"VOILUTSequence": [], **GOOD}, linear(RAMP12, 1000, 500)),
        ({"VOILUTSequence": table(None) + table(np.arange(4096)), **GOOD}, RAMP12 / 4095),
        (
            {"ModalityLUTSequence": table(None), "RescaleSlope": 2, "RescaleIntercept": 1, **GOOD},
            linear(2 * RAMP12 + 1, 1000, 500),
        ),
        (
            {"PixelPaddingValue": None, "PixelPaddingRangeLimit": None, "PresentationLUTShape": None},
            RAMP12 / 4095,
        ),
    ],
)
def test_the_first_whole_window_counts_and_empty_elements_are_as_absent(tmp_path, elements, expected):
    shows(dicom(tmp_path / "x.dcm", RAMP12, **elements), expected, 1e-5)


@pytest.mark.parametrize(
    "bits, length, first, rescale",
    [
        (16, 4096, 0, None),
        (12, 1024, 500, None),
        (8, 4096, 0, None),
        (12, 2000, -1000, (1, -1000)),
        (8, 256, 100, (2.5, 0.3)),
        (16, 65536, 0, (30.5, 0)),
    ],
)
def test_voi_table_comes_before_the_window(tmp_path, bits, length, first, rescale):
    entries = np.round((np.arange(length) / (length - 1)) ** 2 * (2**bits - 1))
    slope, intercept = rescale or (1, 0)
    elements = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescale else {}
    path = dicom(
        tmp_path / "x.dcm",
        RAMP12,
        WindowCenter=5,
        WindowWidth=2,
        VOILUTSequence=table(entries, first, bits),
        **elements,
    )
    index = np.clip(np.round(RAMP12 * slope + intercept) - first, 0, length - 1).astype(int)
    shows(path, entries[index] / (2**bits - 1))


@pytest.mark.parametrize("called", [8, 10, 12, 16, 0])
@pytest.mark.parametrize("needed, kind", [(12, "<u2"), (16, "<u2"), (8, "<u2"), (8, "u1")])
def test_a_table_has_the_bits_that_its_entries_need(tmp_path, called, needed, kind):
    entries = np.round((np.arange(4096) / 4095) ** 0.9 * (2**needed - 1))
    shows(
        dicom(tmp_path / "x.dcm", RAMP12, VOILUTSequence=table(entries, 0, called, kind)),
        entries[RAMP12] / entries.max(),
    )
    path = dicom(
        tmp_path / "y.dcm",
        RAMP12,
        ModalityLUTSequence=table(entries, 0, called, kind),
        WindowCenter=2 ** (needed - 1),
        WindowWidth=2**needed,
    )
    shows(path, linear(entries[RAMP12], 2 ** (needed - 1), 2**needed), 1e-5)


def test_modality_table_of_signed_values_and_one_that_is_cut(tmp_path):
    values = full_range(16, True)
    path = dicom(
        tmp_path / "x.dcm",
        values,
        bits=16,
        signed=True,
        ModalityLUTSequence=table(np.arange(65536) // 2, -32768),
    )
    shows(path, (values + 32768) // 2 / 32767)
    cut = table(np.arange(4096))
    cut[0].LUTData = cut[0].LUTData[:6000]
    refused(dicom(path, RAMP12, VOILUTSequence=cut), "table", readers=[read_gray])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "signed, padding, limit",
    [(False, 0, None), (False, 0, 3), (False, 3, 0), (True, -2000, None), (False, 4095, None)],
)
def test_padding_is_black_and_takes_no_part_in_the_range(tmp_path, photometric, signed, padding, limit):
    inside = np.arange(1000, 1060).reshape(SHAPE)
    values = np.hstack([np.full((6, 4), padding), inside])
    elements = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    values[0, :4] += 0 if limit is None else np.sign(limit - padding) * np.arange(4)
    path = dicom(
        tmp_path / "x.dcm", values, photometric, signed=signed, PixelPaddingValue=padding, **elements
    )
    path.write_bytes(path.read_bytes().replace(b"SS\2\0", b"US\2\0"))  # as many write a negative one
    expected = (inside - 1000) / 59
    shows(path, np.hstack([np.zeros((6, 4)), 1 - expected if photometric == "MONOCHROME1" else expected]))


@pytest.mark.parametrize("elements", [{}, {"PixelPaddingValue": 700}])
def test_dicom_of_one_value_is_black(tmp_path, elements):
    shows(dicom(tmp_path / "x.dcm", np.full(SHAPE, 700), **elements), np.zeros(SHAPE))


@pytest.mark.parametrize(
    "photometric, look, inverted",
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_presentation_shape_is_obeyed_and_a_contradiction_said(tmp_path, photometric, look, inverted):
    path = dicom(tmp_path / "x.dcm", RAMP12, photometric, PresentationLUTShape=look)
    odd = (photometric, look) == ("MONOCHROME2", "INVERSE")
    assert ["INVERSE" in doubt for doubt in read(path).doubts] == [True] * odd
    shows(path, 1 - RAMP12 / 4095 if inverted else RAMP12 / 4095)


@pytest.mark.parametrize(
    "element, value, noted",
    [
        ("PixelAspectRatio", [2, 1], True),
        ("PixelAspectRatio", [1, 1], False),
        ("PixelSpacing", [0.1, 0.2], True),
        ("ImagerPixelSpacing", [0.2, 0.1], True),
        ("PixelSpacing", [0.1, 0.1004], False),
        ("PixelSpacing", None, False),
        ("PixelSpacing", [0, 0], False),
    ],
)
def test_oblong_pixels_are_said_with_the_name(tmp_path, element, value, noted):
    path = dicom(tmp_path / "oblong.dcm", RAMP12, **{element: value})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_gray(path)
    assert ["oblong.dcm" in str(one.message) for one in caught] == [True] * noted


@settings(max_examples=50, deadline=None)
@given(
    data=st.data(),
    bits=st.sampled_from([8, 12, 16]),
    signed=st.booleans(),
    inverted=st.booleans(),
    slope=st.sampled_from([None, 0.25, 3.7, -2]),
    function=st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    centre=st.integers(-70000, 70000),
    width=st.integers(1, 70000),
)
def test_dicom_keeps_order_and_range(
    tmp_path_factory, data, bits, signed, inverted, slope, function, centre, width
):
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.sort(data.draw(st.lists(st.integers(low, low + 2**bits - 1), min_size=2, max_size=20)))[None]
    elements = {"RescaleSlope": slope, "RescaleIntercept": -17} if slope else {}
    if function:
        elements.update(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    path = dicom(
        tmp_path_factory.getbasetemp() / "ordered.dcm",
        values,
        "MONOCHROME1" if inverted else "MONOCHROME2",
        bits,
        signed,
        **elements,
    )
    gray, rising = read(path).gray, inverted == (slope is not None and slope < 0)
    assert 0 <= gray.min() and gray.max() <= 1 and (np.diff(gray if rising else -gray) >= 0).all()
    if not function and values.min() < values.max():
        assert abs(gray[0, -1] - gray[0, 0]) == 1


def test_dicom_is_known_without_suffix_without_preamble_and_without_file_header(tmp_path):
    path = dicom(tmp_path / "001", RAMP12)
    (tmp_path / "old.dcm").write_bytes(path.read_bytes()[132:])
    dataset = pydicom.dcmread(path)
    del dataset.file_meta, dataset.preamble
    dataset.save_as(tmp_path / "bare.dcm", implicit_vr=True, little_endian=True)
    for name in ("001", "old.dcm", "bare.dcm"):
        shows(tmp_path / name, RAMP12 / 4095)


def test_large_elements_and_big_endian_are_read(tmp_path):
    values = np.tile(RAMP12, (200, 100))  # more than a megabyte
    shows(dicom(tmp_path / "x.dcm", values), values / 4095)
    dataset = pydicom.dcmread(dicom(tmp_path / "x.dcm", RAMP12))
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    dataset.PixelData = RAMP12.astype(">u2").tobytes()
    dataset.VOILUTSequence = table(np.arange(4096), kind=">u2")
    pydicom.dcmwrite(tmp_path / "big.dcm", dataset, implicit_vr=False, little_endian=False)
    shows(tmp_path / "big.dcm", RAMP12 / 4095)


# Errors: they name the file, the cause and the remedy


NOISE = np.random.default_rng(7).integers(0, 256, (60, 60), dtype=np.uint8)


def made(path):
    """A good picture in the format of the path's suffix."""
    return dicom(path, NOISE, bits=8) if path.suffix == ".dcm" else saved(path, NOISE)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".dcm"])
def test_empty_text_and_half_files_are_named(tmp_path, suffix):
    path = made(tmp_path / f"picture{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "truncated")
    path.write_bytes(b"")
    refused(path, "empty (0 bytes)", readers=(decode, read, header, mislabelled))
    path.write_bytes(b"these are words, not pixels\n" * 20)
    refused(path, "picture", readers=(decode, read, header))


def encoded(kind):
    """A stream of `NOISE` for a DICOM file."""
    if kind == uid.RLELossless:
        buffer = dicom(io.BytesIO(), NOISE, bits=8)
        buffer.seek(0)
        dataset = pydicom.dcmread(buffer)
        dataset.compress(kind)
        return pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG2000" if kind == uid.JPEG2000Lossless else "JPEG", quality=100)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEG2000Lossless, uid.RLELossless]
)
def test_compressed_dicom_is_whole_or_refused_as_damaged(tmp_path, kind):
    stream, path = encoded(kind), tmp_path / "x.dcm"
    shows(
        dicom(path, NOISE, bits=8, syntax=kind, stream=stream, WindowCenter=128, WindowWidth=256),
        NOISE / 255,
        0.02,
    )
    for share in (0.03, 0.3, 0.7, 0.99):
        refused(
            dicom(path, NOISE, bits=8, syntax=kind, stream=stream[: int(share * len(stream))]),
            "truncated or damaged",
        )
    refused(dicom(path, np.pad(NOISE, 30), bits=8, syntax=kind, stream=stream), "truncated or damaged")


@pytest.mark.parametrize(
    "kind, bits", [(uid.JPEGLosslessSV1, 12), (uid.JPEGExtended12Bit, 12), (uid.MPEG2MPML, 8)]
)
def test_a_missing_decoder_is_named(tmp_path, kind, bits):
    refused(
        dicom(tmp_path / "x.dcm", RAMP12, bits=bits, syntax=kind, stream=encoded(uid.JPEGBaseline8Bit)),
        "no installed decoder",
        "pip install",
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"NumberOfFrames": 2, "PixelData": bytes(240)}, "2 frames"),
        ({"photometric": "RGB"}, "colour (RGB)"),
        ({"bits": 32}, "32 bits"),
        ({"PixelData": bytes(50)}, "truncated or damaged"),
        ({"Rows": 3}, "truncated or damaged"),
        ({"SamplesPerPixel": 2}, "truncated or damaged"),
        ({"Rows": 60000, "Columns": 60000}, "60,000 x 60,000"),
    ],
)
def test_dicom_that_is_no_gray_picture_is_refused(tmp_path, change, words):
    refused(dicom(tmp_path / "x.dcm", RAMP12, **change), words)


@pytest.mark.parametrize("elements", [{"WindowWidth": 0}, {"WindowWidth": -5}, {"VOILUTFunction": "MAGIC"}])
def test_impossible_window_is_named_and_does_not_touch_the_hash(tmp_path, elements):
    path = dicom(tmp_path / "x.dcm", RAMP12, **{**GOOD, **elements})
    refused(path, "window", readers=[read_gray])
    assert np.array_equal(decode(path)[0], RAMP12)


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.png").mkdir()
    refused(tmp_path / "x.png", "folder", readers=(decode, read_gray, describe, header, mislabelled))
    refused(tmp_path / "gone.png", "no such file")
    path = dicom(tmp_path / "x.dcm", RAMP12)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(path, "pip install pydicom", readers=(decode, read_gray, header))
    monkeypatch.setattr(
        "koa_lib.images.read.open", lambda *_: os.open("/nowhere", os.O_RDONLY), raising=False
    )
    refused(path, "system says")


def test_no_other_program_or_decoder_runs(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("x.png", "x.dcm", "x.eps"):
        (tmp_path / name).write_bytes(eps)
        refused(tmp_path / name, "picture", readers=(decode, read_gray, header))
    assert not (tmp_path / "ran").exists()
    for suffix in ("gif", "jp2"):
        refused(
            saved(tmp_path / f"x.{suffix}", RAMP8).rename(tmp_path / "other.png"),
            "PNG",
            readers=(decode, header, mislabelled),
        )


def test_one_look_at_the_content_decides_for_size_and_pixels(tmp_path):
    both = bytearray(tiff(tmp_path / "x.tif", bytes(60), 8).read_bytes().ljust(132))
    both[128:132] = b"DICM"
    hidden = dicom(tmp_path / "x.dcm", np.tile(RAMP12, (9, 9))).read_bytes()
    (tmp_path / "both.tif").write_bytes(both[:132] + hidden[132:])
    assert (header(tmp_path / "both.tif").width, decode(tmp_path / "both.tif")[0].shape) == (90, (54, 90))
    assert "DICOM" in mislabelled(tmp_path / "both.tif")


def memory(path, reader):
    """Megabytes that reading a file takes in a process of its own, and whether it was refused."""
    end, start = os.pipe()
    if not (child := os.fork()):
        before, done = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "read"
        try:
            reader(path)
        except StudyError:
            done = "refused"
        os.write(
            start, f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024} {done}".encode()
        )
        os._exit(0)
    os.waitpid(child, 0)
    os.close(start)
    with os.fdopen(end) as told:
        cost, done = told.read().split()
    return float(cost), done


def huge(folder, name):
    """A small file that would take a gigabyte if it were believed."""
    path, one = folder / name, np.zeros((1, 1), np.uint8)
    if name.endswith("png"):
        return png(path, one, 16, 0, size=(60000, 60000))
    if name.endswith("tif"):
        return tiff(path, b"\0", 8, shape=(60000, 60000))
    if name == "deflated.dcm":
        whole = dicom(path, one, syntax=uid.DeflatedExplicitVRLittleEndian).read_bytes()
        body = zlib.compressobj(9, zlib.DEFLATED, -15)
        length = struct.unpack("<I", whole[140:144])[0]
        data = dicom(path, one, Rows=20000, Columns=30000).read_bytes()
        first, end = 144 + struct.unpack("<I", data[140:144])[0], len(data) - 6
        bomb = b"".join(
            body.compress(part)
            for part in (data[first:end], struct.pack("<I", 6 * 10**8), *[bytes(10**7)] * 60)
        )
        path.write_bytes(whole[: 144 + length] + bomb + body.flush())
        return path
    if name == "sparse.dcm":
        data = dicom(path, one, "RGB", bits=8).read_bytes()[:-6]
        path.write_bytes(data + struct.pack("<I", 10**9))
        os.truncate(path, len(data) + 4 + 10**9)
        return path
    if name == "rle.dcm":
        stream = struct.pack("<16L", 2, 64, 70, *[0] * 13) + bytes(20)
        return dicom(path, one, bits=16, syntax=uid.RLELossless, stream=stream, Rows=13000, Columns=13000)
    buffer = io.BytesIO()
    Image.new("L", (13000, 13000)).save(buffer, "JPEG")
    return dicom(path, one, bits=8, syntax=uid.JPEGBaseline8Bit, stream=buffer.getvalue(), Rows=8, Columns=8)


HUGE = ("huge.png", "huge.tif", "deflated.dcm", "sparse.dcm", "lying.dcm", "rle.dcm")


@pytest.mark.parametrize("name", HUGE)
def test_what_is_refused_costs_little_memory(tmp_path, name):
    path = huge(tmp_path, name)
    assert path.stat().st_blocks * 512 < 3_000_000
    memory(path, read)  # imports are paid
    for reader in (header, decode, read):
        cost, done = memory(path, reader)
        assert cost < 150 and (done == "refused" or reader is header), (reader, cost, done)
    if name.startswith("huge"):
        assert (header(path).width, header(path).height) == (60000, 60000)


# Names


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_right_suffix_is_accepted_in_any_case(tmp_path, suffix):
    path = made(tmp_path / ("picture" + {".dicom": ".dcm"}.get(suffix, suffix)))
    for name in (f"a{suffix}", f"a{suffix.upper()}"):
        assert mislabelled(shutil.copy(path, tmp_path / name)) == ""


@pytest.mark.parametrize(
    "true, name, better",
    [
        (".jpg", "x.png", "x.jpg"),
        (".png", "x.dcm", "x.png"),
        (".dcm", "x.png", "x.dcm"),
        (".webp", "a b.v2.TIF", "a b.v2.webp"),
        (".dcm", "1.2.840.7", "1.2.840.7.dcm"),
    ],
)
def test_wrong_suffix_is_named_with_the_right_one(tmp_path, true, name, better):
    path = made(tmp_path / f"made{true}")
    pixels = decode(path)[0]
    path = path.rename(tmp_path / name)
    assert (
        mislabelled(path).startswith(f"{name} is a ")
        and mislabelled(path).endswith(f" {better}.")
        and np.array_equal(decode(path)[0], pixels)
    )


# Geometry


def square(image, geometry, size=64):
    """The one square of a picture of one knee."""
    (result,) = shape.squares(image, geometry, size)
    return result


@pytest.fixture(scope="module")
def films(cohort_b):
    """A few upright pictures of one knee, and of two, from a phantom cohort B."""
    folder, manifest = cohort_b
    truth = pd.read_csv(folder / "truth.csv").set_index("image_id")["defect"].fillna("")
    defect = manifest["image_id"].map(truth)
    return {
        kind: [read_gray(folder / path) for path in manifest.loc[defect == name, "path"]][:4]
        for kind, name in (("one", ""), ("two", "two_knees"))
    }


@settings(max_examples=40, deadline=None)
@given(
    geometry=st.sampled_from(["stretch", "pad", "center_crop", "split"]),
    intensity=st.sampled_from(INTENSITIES),
    height=st.integers(1, 60),
    width=st.integers(1, 200),
    size=st.sampled_from([8, 31, 48]),
    low=st.floats(0, 1),
    span=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_picture_gives_squares_in_range(geometry, intensity, height, width, size, low, span, seed):
    generator = np.random.default_rng(seed)
    image = (low + (1 - low) * span * generator.random((height, width))).astype(np.float32)
    shown, reference = shape.squares(image, geometry, size), mean_histogram([generator.random((9, 9))])
    assert len(shown) == 1 + (geometry == "split" and width >= 3 * height)
    if span == 0:
        assert np.allclose(shown, low, atol=1e-5)
    for result in (adjust(one, intensity, reference) for one in shown):
        assert (
            result.shape == (size, size)
            and np.isfinite(result).all()
            and 0 <= result.min()
            and result.max() <= 1
        )


def test_geometries_keep_what_they_promise():
    def extent(image):
        bright = image > 0.5
        return bright.any(axis=1).sum(), bright.any(axis=0).sum()

    y, x = np.mgrid[:100, :200]
    disc = (np.hypot(y - 50, x - 100) < 30).astype(np.float32)
    for geometry, ratio in (("stretch", 2), ("pad", 1), ("center_crop", 1), ("split", 2)):
        tall, broad = extent(square(disc, geometry, 128))
        assert tall / broad == pytest.approx(ratio, rel=0.08)
    assert (
        extent(square(disc, "pad", 200))[0] == 60 - 1 and extent(square(disc, "center_crop", 82))[0] == 60 - 1
    )
    edges = np.zeros((100, 200), np.float32)
    edges[:, :20] = edges[:, -20:] = 1
    assert square(edges, "center_crop").max() == 0 and extent(square(edges, "pad"))[1] > 0
    framed = np.pad(np.ones((40, 90), np.float32), 5, constant_values=0.25)
    padded = square(framed, "pad", 100)
    assert np.all(padded[:25] == 0.25) and np.all(padded[-25:] == 0.25) and padded[50, 50] == 1


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 50), width=st.integers(1, 220), seed=st.integers(0, 1000))
def test_only_pictures_of_two_knees_are_parted(height, width, seed):
    image = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    parts = shape.halves(image)
    expected = [image] if width < 3 * height else [image[:, : width // 2], image[:, -(width // 2) :]]
    assert all(np.array_equal(part, one) for part, one in zip(parts, expected, strict=True))


@pytest.mark.parametrize("trained", ["stretch", "center_crop"])
def test_split_and_joint_crop_take_each_half_and_fit_it_like_a_training_file(films, trained):
    for image, count in ((films["two"][0], 2), (films["one"][0], 1)):
        parts = shape.halves(image)
        expected = [square(joint.crop(part, shape.FILE_SIDE), trained) for part in parts]
        assert np.array_equal(shape.squares(image, "joint_crop", 64, trained), expected)
        assert np.array_equal(shape.squares(image, "split", 64), [square(part, "stretch") for part in parts])
        assert len({one.tobytes() for one in expected}) == len(parts) == count


def test_views_show_every_named_way(films):
    shown = shape.views(films["two"][0], 32, mean_histogram(films["one"]), "stretch")
    assert {name.replace(" ", "_") for name in shown} >= {*GEOMETRIES, "file"}
    assert (
        len(shown) == len(GEOMETRIES) + len(INTENSITIES) == len({image.tobytes() for image in shown.values()})
    )
    assert np.array_equal(shown["split"], shape.squares(films["two"][0], "split", 32)[0])


@pytest.mark.parametrize(
    "call", [lambda image: shape.squares(image, "squeeze", 9), lambda image: adjust(image, "brighter")]
)
def test_unknown_names_are_refused(call):
    with pytest.raises(StudyError, match="squeeze|brighter"):
        call(np.zeros(SHAPE, np.float32))


# Intensity


def test_clahe_raises_local_contrast_and_none_changes_nothing(films):
    def contrast(image):
        return np.sqrt(np.clip(uniform_filter(image**2, 7) - uniform_filter(image, 7) ** 2, 0, None)).mean()

    for image in films["one"]:
        pale = 0.45 + 0.15 * square(image, "stretch", 96).astype(float)
        assert contrast(adjust(pale, "clahe")) > 1.5 * contrast(pale) and np.array_equal(
            adjust(pale, "none"), pale
        )


def cumulative(image):
    """Share of the pixels below each upper edge of the levels; the last level holds 1, too."""
    return np.array([(image < edge / LEVELS).mean() for edge in range(1, LEVELS)] + [1.0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.floats(0.3, 3), levels=st.sampled_from([2, 5, 40, 256]))
def test_histograms_weigh_pictures_alike_and_matching_keeps_the_order(seed, gamma, levels):
    generator = np.random.default_rng(seed)
    images = [(generator.integers(0, levels, size) / (levels - 1)) ** gamma for size in ((24, 24), (3, 5))]
    mean = mean_histogram(iter(images))
    assert np.allclose(mean, np.mean([cumulative(image) for image in images], axis=0))
    matched = adjust(images[0], "match_train", mean)
    order = np.argsort(images[0], axis=None, kind="stable")
    values, result = images[0].ravel()[order], matched.ravel()[order]
    assert (np.diff(result) >= 0).all() and (np.diff(result)[np.diff(values) == 0] == 0).all()
    assert 0 <= matched.min() and matched.max() <= 1


@pytest.mark.parametrize("values", [(100,), (60, 120), (60, 90, 120, 150)])
def test_few_gray_values_become_the_middle_quantiles_of_the_reference(values):
    image = np.repeat(np.array(values, dtype=np.float32) / 255, 64).reshape(-1, 8)
    reference = mean_histogram(
        [np.linspace(0, 1, 4096).reshape(64, 64)]
    )  # all gray values equally often: quantile q is q
    expected = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(np.unique(adjust(image, "match_train", reference)) - expected).max() < 0.02


def test_what_external_labels_suggested_is_exploratory_and_no_profile_trains_with_it():
    assert EXPLORATORY == {"joint_crop", "match_train"}
    for shipped in map(profile.load, profile.names()):
        recipes = [recipe for recipe in (shipped.as_printed, shipped.our_protocol) if recipe is not None]
        assert recipes and not EXPLORATORY & {
            choice for recipe in recipes for choice in (recipe.geometry, recipe.intensity)
        }


# In a study


@pytest.fixture
def mixed_study(easy_study, tmp_path, monkeypatch):
    """The easy study in a run folder of its own, with six external pictures, two of them of two knees."""
    generator, rows = np.random.default_rng(11), []
    for k, name in enumerate(("one0", "two1", "one2", "one3", "two4", "one5")):
        path, one = tmp_path / "films" / "all" / str(k % 5) / f"{name}.png", easy_image(k % 5, generator)
        path.parent.mkdir(parents=True, exist_ok=True)
        saved(path, np.hstack([one // 3, one // 3, one, one]) if name.startswith("two") else one)
        rows.append(
            {
                "image_id": name,
                "path": f"all/{k % 5}/{name}.png",
                "split": "external",
                "kl_grade": k % 5,
                "kl_grade_reader2": pd.NA,
                "group_id": name,
                "side": "",
                **describe(path),
            }
        )
    lists = tmp_path / "lists"
    lists.mkdir()
    write_manifest(pd.DataFrame(rows).astype({"kl_grade_reader2": "Int64"}), lists / "films.csv")
    shutil.copy(datasets.MANIFESTS / "easy_a.csv", lists)
    monkeypatch.setattr(datasets, "MANIFESTS", lists)
    settings = replace(easy_study.profile, external=Cohort("films", "folder", 0))
    return in_new_run(
        replace(easy_study, profile=settings), tmp_path / "run", external=str(tmp_path / "films")
    )


def in_new_run(study, folder, **inputs):
    """The study in an empty run folder, so that nothing is reused."""
    (folder / ".locks").mkdir(parents=True)
    return replace(study, run_dir=folder, inputs=replace(study.inputs, **inputs))


def test_a_picture_of_two_knees_has_two_rows_and_one_grade(mixed_study):
    data = datasets.dataset(mixed_study, "external", "split", "none", 32)
    ids = list(data.rows["image_id"])
    assert ids == [
        "one0",
        "two1",
        "two1",
        "one2",
        "one3",
        "two4",
        "two4",
        "one5",
    ] and data.grades.tolist() == [0, 1, 1, 2, 3, 4, 4, 0]
    image = read_gray(data.rows["file"][1])
    for got, part in zip(data.images([1, 2]), (image[:, :80], image[:, 80:]), strict=True):
        assert np.abs(got - square(part, "stretch", 32) * 255).max() <= 0.51
    whole = datasets.dataset(mixed_study, "external", "pad", "none", 32)
    assert whole.rows["image_id"].is_unique and len(whole.pixels) == 6
    probabilities = np.full((8, 5), 0.05)
    probabilities[np.arange(8), [0, 1, 3, 2, 3, 4, 0, 0]] = 0.8
    frame = predictions.frame(data.rows["image_id"], probabilities)
    assert list(frame["image_id"]) == ["one0", "two1", "one2", "one3", "two4", "one5"]
    assert frame[predictions.PROBABILITIES].to_numpy().argmax(axis=1).tolist() == [0, 3, 2, 3, 4, 0]
    tie = predictions.frame(["a", "a"], [[0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0]])
    assert tie[predictions.PROBABILITIES].to_numpy().tolist() == [[0.5, 0, 0, 0, 0.5]]


def test_match_train_follows_the_training_pictures_and_reads_no_label(mixed_study, tmp_path):
    def matched(study):
        return np.array(datasets.dataset(study, "external", "stretch", "match_train", 24).pixels)

    before, data = matched(mixed_study), datasets.dataset(mixed_study, "training", "stretch", "none", 24)
    training = (
        data.images(np.flatnonzero(data.rows["split"] == "train")) / 255
    )  # the test split has no part in it
    assert np.allclose(
        datasets.training_histogram(mixed_study, 24),
        np.mean([cumulative(image) for image in training], axis=0),
    )
    for name in ("films", "easy_a"):
        path = datasets.MANIFESTS / f"{name}.csv"
        rows = read_manifest(path)
        write_manifest(rows.assign(kl_grade=(rows["kl_grade"].to_numpy()[::-1] + 2) % 5), path)
    assert np.array_equal(matched(in_new_run(mixed_study, tmp_path / "again")), before)
    darker = tmp_path / "darker"
    shutil.copytree(mixed_study.inputs.data, darker)
    for file in darker.rglob("*.png"):
        saved(file, np.asarray(Image.open(file)) // 2)
    after = matched(in_new_run(mixed_study, tmp_path / "dark", data=str(darker), content="darker"))
    assert after.mean() < 0.7 * before.mean()
