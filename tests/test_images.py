"""Reading pictures and fitting them into squares: the value a file stands for, or an error that helps."""

import hashlib
import io
import os
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
from conftest import write_easy_cohort
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydicom import uid
from scipy.special import expit

from koa_lib import cohort, predictions, profile
from koa_lib.data.manifest import read_manifest, write_manifest
from koa_lib.errors import StudyError
from koa_lib.images import joint, shape, to_uint8
from koa_lib.images.read import SUFFIXES, decode, describe, header, mislabelled, pixel_sha256, read, read_gray
from koa_lib.images.shape import EXPLORATORY, GEOMETRIES, INTENSITIES, LEVELS, adjust, mean_histogram
from koa_lib.settings import Cohort

SHAPE = (6, 10)
RAMP8, RAMP12, RAMP16 = (
    np.linspace(0, white, 60).round().astype(kind).reshape(SHAPE)
    for white, kind in ((255, "u1"), (4095, "u2"), (65535, "u2"))
)
RAMP = RAMP12 / 4095
GENERATOR = np.random.default_rng(1)
COLOUR, NOISE = (GENERATOR.integers(0, 256, size, dtype=np.uint8) for size in ((*SHAPE, 3), (60, 60)))


def saved(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def tiff(path, values, more=()):
    """A one-strip TIFF by the format's definition: Pillow writes no WhiteIsZero, 12 bits or signs."""
    order, data = ">" if values.dtype.str[0] == ">" else "<", values.tobytes()
    tags = {256: 10, 257: 6, 258: 8 * values.itemsize, 262: 1, 273: 8, 278: 6, 279: len(data), **dict(more)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


def png(path, values, kind, size=(10, 6)):
    """A PNG of 16 bits by the format's definition: Pillow writes only gray."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", *size, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks.items():
            PngImagePlugin.putchunk(file, name, data)
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
    """A modality or VOI LUT sequence; 65,536 entries are written as 0. Without entries an empty item."""
    item, empty = pydicom.Dataset(), entries is None
    item.add_new(
        "LUTDescriptor", "SS" if first < 0 else "US", None if empty else [len(entries) % 65536, first, bits]
    )
    item.add_new("LUTData", "OW", None if empty else np.asarray(entries).astype(kind).tobytes())
    return [item]


def linear(x, centre, width):
    """Standard PS3.3 C.11.2.1.2.1, output from 0 to 1."""
    return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


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


# PNG, WebP, JPEG, TIFF, BMP


PLAIN = [
    *[(f"x.{suffix}", RAMP8, {}) for suffix in ("png", "bmp", "tif")],
    *[("x.tif", values, {}) for values in (RAMP16.astype("i4"), RAMP16 / np.float32(65535))],
    *[("x.png", values, {}) for values in (RAMP16, RAMP16 // np.uint16(3))],
    ("x.webp", RAMP8, {"lossless": True}),
    ("x.tif", RAMP16, {"compression": "tiff_adobe_deflate"}),
    ("x.png", RAMP8, {"exif": b"Exif\0\0nonsense"}),
    ("x.tif", RAMP8, {"dpi": (300, 300)}),
    ("x.dcm", RAMP12, {"PixelSpacing": [0.1, 0.1004], "ImagerPixelSpacing": [1, 2]}),
    ("x.dcm", RAMP12, {"PixelSpacing": [0, 0], "ImagerPixelSpacing": None}),
]
DOUBTFUL = [
    *[(name, RAMP12, {}, "6 %") for name in ("x.png", "x.tif")],
    ("x.png", RAMP8, {"dpi": (300, 150)}, "square"),
    ("x.dcm", RAMP12, {"PixelAspectRatio": [2, 1]}, "square"),
    ("x.dcm", RAMP12, {"ImagerPixelSpacing": [0.2, 0.1]}, "square"),
    ("x.dcm", 4095 - RAMP12, {"PresentationLUTShape": "INVERSE"}, "INVERSE"),
]


@pytest.mark.parametrize("name, pixels, more, noted", [*[(*row, "") for row in PLAIN], *DOUBTFUL])
def test_gray_keeps_its_depth_and_a_doubt_is_said_with_the_name(tmp_path, name, pixels, more, noted):
    path = (dicom if name == "x.dcm" else saved)(tmp_path / name, pixels, **more)
    stored = (pixels * 65535).round() if pixels.dtype == np.float32 else pixels
    stored = stored.astype("u1" if pixels.dtype == np.uint8 else "u2")
    assert describe(path)["pixel_sha256"] == pixel_sha256(stored)
    assert header(path) == replace(header(path), width=10, height=6, frames=1)
    assert [noted in said for said in read(path).doubts] == [True] * bool(noted)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        white = 4095 if name == "x.dcm" else np.iinfo(stored.dtype).max
        shows(path, (4095 - stored if noted == "INVERSE" else stored) / white)
    assert [name in str(one.message) for one in caught] == [True] * bool(noted)


def test_hash_and_description_are_those_of_the_contract(tmp_path):
    path = saved(tmp_path / "x.png", COLOUR)
    deep = hashlib.sha256(b"6x10:uint16:" + RAMP16.tobytes()).hexdigest()
    assert pixel_sha256(RAMP16) == pixel_sha256(RAMP16.astype(">u2")) == deep
    sha256, pixels = (
        hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), b"6x10x3:uint8:" + COLOUR.tobytes())
    )
    told = {"width": 10, "height": 6, "bit_depth": 8, "channels": 3, "mode": "RGB"}
    assert describe(path) == {"sha256": sha256, "pixel_sha256": pixels, **told}
    assert to_uint8(np.float32([0, 0.5, 0.499 / 255, 1])).tolist() == [0, 128, 0, 255]


def test_channels_alpha_and_palette(tmp_path):
    path, paletted = tmp_path / "x.png", Image.fromarray(RAMP8 % 2).convert("P")
    paletted.putpalette([10, 20, 30, 200, 100, 0])
    for pixels, expected in (
        (np.dstack([RAMP8] * 3), RAMP8),
        (np.dstack([RAMP8, RAMP8 // 3]), RAMP8),
        (np.dstack([COLOUR, RAMP8]), COLOUR),
        (paletted, np.array([[10, 20, 30], [200, 100, 0]])[RAMP8 % 2]),
        (RAMP8 > 99, np.where(RAMP8 > 99, 255, 0)),
    ):
        saved(path, np.asarray(pixels)) if pixels is not paletted else paletted.save(path)
        assert np.array_equal(decode(path)[0], expected) and not read(path).doubts
        shows(path, (expected.mean(axis=2) if expected.ndim == 3 else expected) / 255)
        assert len(read(path).notes) == expected.ndim - 2


PACKED = np.packbits(np.unpackbits(RAMP12.astype(">u2").view("u1")).reshape(-1, 16)[:, 4:])
HALF = np.arange(60).reshape(SHAPE) > 30
TIFF = [  # values, tags, what is shown or why it is refused
    (PACKED, {258: 12}, RAMP),
    (RAMP12, {281: 4095}, RAMP),
    (RAMP12 // 2, {281: 3900}, RAMP12 // 2 / 4095),
    (RAMP16, {281: 4095}, RAMP16 / 65535),
    *[
        (
            values.astype(order + values.dtype.str[1:]),
            {262: 1 - white, 339: kind},
            np.abs(white - values / most),
        )
        for values, kind, most in ((RAMP8, 1, 255), (RAMP16, 1, 65535), (np.float32(RAMP), 3, 1))
        for order, white in (("<", 0), (">", 0), ("<", 1))
    ],
    (np.float32(RAMP).astype(">f4"), {262: 0, 339: 3}, 1 - RAMP),
    (RAMP16.astype(">u2"), {262: 0}, "PNG"),  # Pillow does not know it
    *[(np.dstack([RAMP16] * 3), {258: 16, 262: 2, 277: 3, 284: planes}, "16 bits") for planes in (1, 2)],
    (RAMP8 // 2, {339: 2}, RAMP8 // 2 / 255),
    (RAMP16 // 2, {339: 2}, RAMP16 // 2 / 65535),
    (RAMP8, {339: 2}, "-126"),
    (RAMP12 - np.uint16(5), {339: 2}, "-5"),
    (HALF * np.uint32(65536), {}, "65536"),
    *[(np.where(HALF, value, 0).astype("f4"), {339: 3}, str(value)) for value in (4095, -0.5, np.nan)],
]


@pytest.mark.parametrize("values, tags, expected", TIFF)
def test_depth_polarity_and_signs_of_tiff(tmp_path, values, tags, expected):
    path = tiff(tmp_path / "x.tif", values, tags)
    refused(path, expected) if isinstance(expected, str) else shows(path, expected)


@pytest.mark.parametrize(
    "bits, values, white", [(12, RAMP12, 4095), *[(bits, RAMP16, 65535) for bits in (12, 16, 0)]]
)
def test_significant_bits_of_png_are_obeyed_where_the_values_fit(tmp_path, bits, values, white):
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([bits]))
    shows(saved(tmp_path / "x.png", values, pnginfo=info), values / white)


@pytest.mark.parametrize("channels, kind", [(2, 4), (3, 2), (4, 6)])
def test_sixteen_bits_in_channels_are_refused(tmp_path, channels, kind):
    refused(png(tmp_path / "x", np.dstack([RAMP16] * channels), kind), "16 bits")


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("ink, gray", [((0, 0, 0, 0), 1), ((0, 0, 0, 255), 0), ((255, 0, 0, 0), 2 / 3)])
def test_cmyk_shows_paper_white_and_ink_dark(tmp_path, kind, ink, gray):
    Image.new("CMYK", (16, 16), ink).save(tmp_path / "x", kind)
    shows(tmp_path / "x", np.full((16, 16), gray), 0.01)


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.jpg", "x.tif"])
@pytest.mark.parametrize("code", range(10))
def test_orientation_is_obeyed(tmp_path, code, name):
    upright = np.kron(np.arange(6).reshape(2, 3) * 50, np.ones((16, 16))).astype(np.uint8)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's numbers of what undoes it
    path, stored, exif = tmp_path / name, Image.fromarray(upright), Image.Exif()
    stored, exif[274] = stored.transpose(back[code]) if code in back else stored, code
    stored.save(path, exif=exif, lossless=True)
    shows(path, upright / 255, 0.03)
    seen = upright if name == "x.tif" else np.asarray(stored)
    assert decode(path)[0].shape == seen.shape == (header(path).height, header(path).width)


def test_pictures_behind_the_first_are_noted(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(RAMP8).save(path, save_all=True, append_images=[Image.fromarray(255 - RAMP8)] * 2)
    assert header(path).frames == 3 and "3 pictures" in read(path).notes[0] and not read(path).doubts
    shows(path, RAMP8 / 255)


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
SHOWN = linear(RAMP12, 1000, 500)


def curve(length, bits):
    return np.round((np.arange(length) / (length - 1)) ** 2 * (2**bits - 1))


HEADERS = [
    ({"WindowCenter": 2000, "WindowWidth": 1}, RAMP12 > 1999.5),
    ({"WindowCenter": [1000, 3000], "WindowWidth": [500, 50]}, SHOWN),
    ({"WindowCenter": ["", 1000], "WindowWidth": ["", 500]}, SHOWN),
    ({"WindowCenter": None, "WindowWidth": None}, RAMP),
    ({"WindowCenter": 100, "PixelPaddingValue": None, "PixelPaddingRangeLimit": None}, RAMP),
    ({"RescaleSlope": 2, "RescaleIntercept": None, **GOOD}, linear(2.0 * RAMP12, 1000, 500)),
    ({"RescaleSlope": None, "RescaleIntercept": 9, **GOOD}, linear(RAMP12 + 9.0, 1000, 500)),
    *[({"VOILUTSequence": empty, "VOILUTFunction": None, **GOOD}, SHOWN) for empty in (table(None), [])],
    ({"VOILUTSequence": [pydicom.Dataset(), *table(np.arange(4096))], **GOOD}, RAMP),
    ({"ModalityLUTSequence": table(None), "RescaleSlope": 1, **GOOD}, SHOWN),
    (
        {"ModalityLUTSequence": table(curve(4096, 8), 0, 0, "u1"), **GOOD},
        linear(curve(4096, 8)[RAMP12], 1000, 500),
    ),
    ({"PresentationLUTShape": "IDENTITY"}, RAMP),
    *[({"PresentationLUTShape": look, **INVERTED}, 1 - RAMP) for look in ("IDENTITY", "INVERSE", None)],
    *[  # a table comes before the window and holds at its ends, with the bits that its entries need
        (
            {"VOILUTSequence": table(curve(length, bits), first, said, kind), "RescaleSlope": slope, **GOOD},
            curve(length, bits)[np.clip(np.round(RAMP12 * slope) - first, 0, length - 1).astype(int)]
            / (2**bits - 1),
        )
        for bits, kind, said in (
            (12, "<u2", 12),
            (12, "<u2", 16),
            (12, "<u2", 8),
            (8, "<u2", 0),
            (8, "u1", 10),
        )
        for length, first, slope in ((1024, 500, 1.0), (2000, -1000, -1.0), (65536, 0, 15.5))
    ],
]


@pytest.mark.parametrize("elements, expected", HEADERS)
def test_a_header_is_obeyed_and_its_empty_elements_are_as_absent(tmp_path, elements, expected):
    shows(dicom(tmp_path / "x.dcm", RAMP12, **elements), expected, 1e-5)


@pytest.mark.parametrize("more", [{}, INVERTED])
@pytest.mark.parametrize("signed, padding, limit", [(0, 0, None), (0, 0, 3), (0, 3, 0), (1, -2000, None)])
def test_padding_is_black_and_takes_no_part_in_the_range(tmp_path, more, signed, padding, limit):
    filled = np.full((6, 4), padding) + (0 if limit is None else np.sign(limit - padding) * np.arange(4))
    values = np.hstack([filled, RAMP12 + 1000])
    more = {**more, "PixelPaddingValue": padding, "PixelPaddingRangeLimit": limit}
    path = dicom(tmp_path / "x.dcm", values, 16, signed, **more)
    path.write_bytes(path.read_bytes().replace(b"SS\2\0", b"US\2\0"))  # as many write a negative one
    shows(path, np.pad(1 - RAMP if len(more) == 3 else RAMP, ((0, 0), (4, 0))))
    shows(dicom(path, np.full(SHAPE, padding), 16, signed, PixelPaddingValue=padding), np.zeros(SHAPE))


def test_dicom_without_suffix_preamble_or_file_header_large_or_big_endian(tmp_path):
    path = dicom(tmp_path / "001", RAMP12)
    (tmp_path / "old.dcm").write_bytes(path.read_bytes()[132:])
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    dataset.PixelData, dataset.VOILUTSequence = (
        RAMP12.astype(">u2").tobytes(),
        table(np.arange(4096), kind=">u2"),
    )
    pydicom.dcmwrite(tmp_path / "big.dcm", dataset, implicit_vr=False, little_endian=False)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta, dataset.preamble
    dataset.save_as(tmp_path / "bare.dcm", implicit_vr=True, little_endian=True)
    for name in ("001", "old.dcm", "bare.dcm", "big.dcm"):
        shows(tmp_path / name, RAMP12 / 4095)
    values = np.tile(RAMP12, (200, 100))  # more than a megabyte
    shows(dicom(path, values), values / 4095)


# Errors: they name the file, the cause and the remedy


def made(path):
    """A good picture in the format of the path's suffix."""
    return dicom(path, NOISE, 8) if path.suffix in (".dcm", ".dicom") else saved(path, NOISE)


def encoded(kind):
    """A stream of `NOISE` for a DICOM file."""
    buffer = io.BytesIO()
    if kind == uid.RLELossless:
        dataset = pydicom.dcmread(io.BytesIO(dicom(buffer, NOISE, 8).getvalue()))
        dataset.compress(kind)
        return pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    Image.fromarray(NOISE).save(buffer, "JPEG2000" if kind == uid.JPEG2000Lossless else "JPEG", quality=100)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_empty_and_text_files_are_named_and_right_suffixes_accepted(tmp_path, suffix):
    path = made(tmp_path / f"picture{suffix}")
    for name in (f"a{suffix}", f"a{suffix.upper()}"):
        assert mislabelled(shutil.copy(path, tmp_path / name)) == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path, "truncated")
    path.write_bytes(b"")
    refused(path, "0 bytes", readers=(decode, read, header, mislabelled))
    path.write_bytes(b"these are words, not pixels\n" * 20)
    refused(path, readers=(decode, read, header))


@settings(max_examples=200, deadline=None)
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
ALL, SHOWING = (decode, read_gray), (read_gray,)


@pytest.mark.parametrize(
    "more, word, readers",
    [
        ({"NumberOfFrames": 2, "PixelData": bytes(240)}, "2 frame", ALL),
        ({"PhotometricInterpretation": "RGB"}, "RGB", ALL),
        ({"BitsStored": 32}, "32 bits", ALL),
        *[(more, "damaged", ALL) for more in ({"PixelData": bytes(50)}, {"Rows": 3}, {"SamplesPerPixel": 2})],
        ({"Rows": 60000, "Columns": 60000}, "60,000", ALL),
        *[
            ({"syntax": kind, "bits": bits, "stream": encoded(uid.JPEGBaseline8Bit)}, "pip install", ALL)
            for kind, bits in ((uid.JPEGLosslessSV1, 12), (uid.JPEGExtended12Bit, 12), (uid.MPEG2MPML, 8))
        ],
        *[({**GOOD, "WindowWidth": width}, f"width {width}", SHOWING) for width in (0, -5)],
        ({"WindowCenter": 9, "WindowWidth": -5, "VOILUTFunction": "SIGMOID"}, "width -5", SHOWING),
        ({**GOOD, "VOILUTFunction": "MAGIC"}, "MAGIC", SHOWING),
        ({"VOILUTSequence": CUT}, "VOILUTSequence", SHOWING),
    ],
)
def test_dicom_that_cannot_be_shown_is_refused(tmp_path, more, word, readers):
    path = dicom(tmp_path / "x.dcm", RAMP12 // 16, **more)
    refused(path, word, readers=readers)
    if readers == SHOWING:
        assert np.array_equal(decode(path)[0], RAMP12 // 16)


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
    refused(path, os.strerror(2))


def test_no_other_program_or_decoder_runs(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("x.png", "x.dcm", "x.eps"):
        (tmp_path / name).write_bytes(eps)
        refused(tmp_path / name, readers=(decode, read_gray, header))
    assert not (tmp_path / "ran").exists()
    for kind in ("GIF", "JPEG2000"):
        refused(saved(tmp_path / "x.png", RAMP8, format=kind), readers=(decode, header, mislabelled))


def test_one_look_at_the_content_decides_for_size_and_pixels(tmp_path):
    path, both = tmp_path / "both.tif", tiff(tmp_path / "x.tif", RAMP8).read_bytes()[:128]
    path.write_bytes(both + dicom(tmp_path / "x.dcm", np.tile(RAMP12, (9, 9))).read_bytes()[128:])
    assert (header(path).width, decode(path)[0].shape) == (90, (54, 90)) and "DICOM" in mislabelled(path)


@pytest.mark.parametrize(
    "true, better", [(".jpg", "x.jpg"), (".webp", "x.webp"), (".dcm", "x.dcm"), (".tif", "x.tif")]
)
def test_wrong_suffix_is_named_with_the_right_one(tmp_path, true, better):
    for name in ("x.PNG", "x.bmp"):
        text = mislabelled(made(tmp_path / f"made{true}").rename(tmp_path / name))
        assert text.startswith(name) and f" {better}." in text
    assert "1.2.840.7.dcm" in mislabelled(dicom(tmp_path / "1.2.840.7", NOISE))


def memory(reader, path):
    """Megabytes that a process takes to read a file, and 1 when it refuses it."""
    if not (child := os.fork()):
        code = 2
        try:
            reader(path)
            code = 0
        except StudyError:
            code = 1
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


ONE = np.zeros((1, 1), np.uint8)


def sparse(path):
    """Colour pixels of a gigabyte, of which the disk holds nothing."""
    data = dicom(path, ONE, 8, PhotometricInterpretation="RGB").read_bytes()[:-6]
    path.write_bytes(data + struct.pack("<I", 10**9))
    os.truncate(path, len(data) + 4 + 10**9)


def lying(path):
    """A stream of many pixels under a header of few."""
    buffer = io.BytesIO()
    Image.new("L", (13000, 13000)).save(buffer, "JPEG")
    dicom(path, ONE, 8, syntax=uid.JPEGBaseline8Bit, stream=buffer.getvalue(), Rows=8, Columns=8)


RLE = {"syntax": uid.RLELossless, "stream": struct.pack("<16L", 2, 64, 70, *[0] * 13) + bytes(20)}
HUGE = {
    "png": lambda path: png(path, ONE, 0, (60000, 60000)),
    "sparse": sparse,
    "lying": lying,
    "rle": lambda path: dicom(path, ONE, 16, **RLE, Rows=13000, Columns=13000),
    "deflated": lambda path: dicom(
        path,
        ONE,
        syntax=uid.DeflatedExplicitVRLittleEndian,
        PixelData=bytes(3 * 10**8),
        Rows=15000,
        Columns=10000,
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_what_is_refused_costs_little_memory(tmp_path, name):
    path = tmp_path / "x"
    HUGE[name](path)
    assert path.stat().st_blocks * 512 < 3_000_000
    memory(read, path)
    base, _ = memory(str, path)
    for reader in (header, decode, read):
        cost, code = memory(reader, path)
        assert cost - base < 120 and (code == 1 or code == 0 and reader is header), (
            reader,
            cost - base,
            code,
        )


# Geometry


def square(image, geometry, size=64):
    """The one square of a picture of one knee."""
    (result,) = shape.squares(image, geometry, size)
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["stretch", "pad", "center_crop", "split"]), st.sampled_from(INTENSITIES),
    st.integers(1, 60), st.integers(1, 200), st.floats(0, 1), st.sampled_from([0, 0.1, 1]),
)  # fmt: skip
def test_any_picture_gives_squares_in_range(geometry, intensity, height, width, low, span):
    noise = np.random.default_rng(width).random((height, width))
    image, reference = (low + (1 - low) * span * noise).astype(np.float32), mean_histogram([noise])
    parts = [image] if width < 3 * height else [image[:, : width // 2], image[:, -(width // 2) :]]
    assert all(map(np.array_equal, shape.halves(image), parts))
    shown = shape.squares(image, geometry, 31)
    assert len(shown) == (len(parts) if geometry == "split" else 1) and (
        span or np.allclose(shown, low, atol=1e-5)
    )
    result = np.array([adjust(one, intensity, reference) for one in shown])
    assert result.shape[1:] == (31, 31) and 0 <= result.min() and result.max() <= 1


def test_geometries_keep_what_they_promise():
    def extent(image):
        return [(image > 0.5).any(axis=axis).sum() for axis in (1, 0)]

    y, x = np.mgrid[:100, :200]
    disc = (np.hypot(y - 50, x - 100) < 30).astype(np.float32)
    sizes = {
        "stretch": (128, 75, 38),
        "split": (128, 75, 38),
        "pad": (200, 59, 59),
        "center_crop": (82, 59, 59),
    }
    for geometry, (size, *expected) in sizes.items():
        assert np.abs(np.subtract(extent(square(disc, geometry, size)), expected)).max() <= 1
    framed = np.pad(np.ones((40, 90), np.float32), 5, constant_values=0.25)
    padded = square(framed, "pad", 100)
    assert (padded[[*range(25), *range(75, 100)]] == 0.25).all() and padded[50, 50] == 1
    for call in (lambda: square(disc, "squeeze"), lambda: adjust(disc, "squeeze")):
        with pytest.raises(StudyError, match="squeeze"):
            call()


@pytest.fixture(scope="module")
def films(cohort_b):
    """A few upright pictures of one knee, and of two, from a phantom cohort B."""
    folder, manifest = cohort_b
    rows = manifest.merge(
        pd.read_csv(folder / "truth.csv")[["image_id", "defect"]].fillna("one"), on="image_id"
    )
    return {
        name: [read_gray(folder / path) for path in part["path"][:4]] for name, part in rows.groupby("defect")
    }


def test_each_half_is_fitted_and_joint_crops_like_a_training_file(films):
    for image, count in ((films["two_knees"][0], 2), (films["one"][0], 1)):
        parts = shape.halves(image)
        assert np.array_equal(shape.squares(image, "split", 64), [square(part, "stretch") for part in parts])
        crops = [square(joint.crop(part, shape.FILE_SIDE), "center_crop") for part in parts]
        assert np.array_equal(shape.squares(image, "joint_crop", 64, "center_crop"), crops)
        assert len({crop.tobytes() for crop in crops}) == count
    shown = shape.views(films["two_knees"][0], 32, mean_histogram(films["one"]), "stretch")
    assert [name.replace(" ", "_") for name in shown][:6] == ["file", *GEOMETRIES]
    assert len({image.tobytes() for image in shown.values()}) == 8
    assert np.array_equal(shown["split"], shape.squares(films["two_knees"][0], "split", 32)[0])


# Intensity


def test_clahe_raises_local_contrast_and_none_changes_nothing(films):
    for image in films["one"]:
        pale = 0.45 + 0.15 * square(image, "stretch", 96).astype(float)
        before, after = (np.abs(np.diff(shown)).mean() for shown in (pale, adjust(pale, "clahe")))
        assert after > 1.5 * before and np.array_equal(adjust(pale, "none"), pale)


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
    matched = adjust(images[0], "match_train", mean)
    _, first, place = np.unique(images[0], return_index=True, return_inverse=True)
    kept = matched.ravel()[first]  # one value for each gray value, in its order
    assert np.array_equal(kept[place.ravel()], matched.ravel()) and (np.diff(kept) >= 0).all()


@pytest.mark.parametrize("values", [(100,), (60, 120), (60, 90, 120, 150)])
def test_few_gray_values_become_the_middle_quantiles_of_the_reference(values):
    image = np.repeat(np.array(values, dtype=np.float32) / 255, 64).reshape(-1, 8)
    reference = np.arange(1, LEVELS + 1) / LEVELS  # all gray values equally often: quantile q is q
    expected = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs(np.unique(adjust(image, "match_train", reference)) - expected).max() < 0.02


def test_what_external_labels_suggested_is_exploratory_and_no_profile_trains_with_it():
    assert EXPLORATORY == {"joint_crop", "match_train"}
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
        path = saved(films / rows["path"][k], np.hstack([one // 3, one // 3, one, one]))
        for column, value in describe(path).items():
            rows.loc[k, column] = value
    write_manifest(rows, lists / "films.csv")
    monkeypatch.setattr(cohort, "MANIFESTS", lists)
    settings = replace(easy_study.profile, external=Cohort("films", "folder", 0))
    return in_new_run(replace(easy_study, profile=settings), tmp_path / "run", external=str(films))


def in_new_run(study, folder, **inputs):
    """The study in an empty run folder, so that nothing is reused."""
    (folder / ".locks").mkdir(parents=True)
    return replace(study, run_dir=folder, inputs=replace(study.inputs, **inputs))


def test_a_picture_of_two_knees_has_two_rows_and_one_grade(mixed_study):
    whole = cohort.dataset(mixed_study, "external", "pad", "none", 32)
    data = cohort.dataset(mixed_study, "external", "split", "none", 32)
    ids = list(data.rows["image_id"])
    assert ids == list(whole.rows["image_id"].repeat([1, 2, 1, 1, 2, 1]))
    assert data.grades.tolist() == [0, 0, 0, 1, 1, 2, 2, 2] and len(whole.pixels) == 6
    image = read_gray(data.rows["file"][1])
    for got, part in zip(data.images([1, 2]), (image[:, :80], image[:, 80:]), strict=True):
        assert np.abs(got - square(part, "stretch", 32) * 255).max() <= 0.51
    # The worse knee counts with all its probabilities, and of equal ones the first.
    for names, answers, expected in (
        (ids, np.eye(5)[[0, 1, 3, 2, 3, 4, 0, 0]], np.eye(5)[[0, 3, 2, 3, 4, 0]]),
        (["a", "a"], [[0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0]], [[0.5, 0, 0, 0, 0.5]]),
    ):
        frame = predictions.frame(names, answers)
        assert list(frame["image_id"]) == list(dict.fromkeys(names))
        assert np.array_equal(frame[predictions.PROBABILITIES], expected)


def test_match_train_follows_the_training_pictures_and_reads_no_label(mixed_study, tmp_path):
    def matched(study):
        return np.array(cohort.dataset(study, "external", "stretch", "match_train", 24).pixels)

    before, data = matched(mixed_study), cohort.dataset(mixed_study, "training", "stretch", "none", 24)
    training = (
        data.images(np.flatnonzero(data.rows["split"] == "train")) / 255
    )  # the test split has no part in it
    assert np.allclose(cohort.training_histogram(mixed_study, 24), cumulative(training))
    for name in ("films", "easy_a"):
        path = cohort.MANIFESTS / f"{name}.csv"
        rows = read_manifest(path)
        write_manifest(rows.assign(kl_grade=(rows["kl_grade"].to_numpy()[::-1] + 2) % 5), path)
    assert np.array_equal(matched(in_new_run(mixed_study, tmp_path / "again")), before)
    darker = shutil.copytree(mixed_study.inputs.data, tmp_path / "darker")
    for file in darker.rglob("*.png"):
        saved(file, np.asarray(Image.open(file)) // 2)
    after = matched(in_new_run(mixed_study, tmp_path / "dark", data=str(darker), content="darker"))
    assert after.mean() < 0.7 * before.mean()
