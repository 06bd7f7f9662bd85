"""Reading pictures: every kind of file gives the values and the polarity that it stands for, or an error that helps."""

import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from koa_lib.errors import StudyError
from koa_lib.images.read import SUFFIXES, decode, describe, file_sha256, mislabelled, pixel_sha256, read_gray

SHAPE = (6, 10)
RAMP8 = np.linspace(0, 255, 60).round().astype(np.uint8).reshape(SHAPE)
RAMP16 = np.linspace(0, 65535, 60).round().astype(np.uint16).reshape(SHAPE)


def colour(shape=SHAPE):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def saved(path, pixels, mode=None, **options):
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def tiff(path, data, bits, order="<", photometric=1, sample_format=1, shape=SHAPE):
    """A one-strip TIFF written by the format's definition, as Pillow writes neither WhiteIsZero nor 12 bits."""
    height, width = shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
    return path


def dicom(path, values, photometric="MONOCHROME2", bits=12, signed=False, allocated=16, **header):
    """A DICOM file with values in the low `bits` of each word; the unused bits are 0, also below a minus sign."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = allocated, bits, bits - 1, int(signed)
    dataset.PixelData = (values.astype(np.int64) & (2**bits - 1)).astype(f"<u{allocated // 8}").tobytes()
    for name, value in header.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lookup_table(entries, first, bits):
    """One item of a modality or VOI LUT sequence; 65,536 entries are written as 0, as the standard says."""
    pydicom = pytest.importorskip("pydicom")
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", np.asarray(entries).astype("<u2").tobytes())
    return [item]


def full_range(bits, signed):
    """A picture that holds the lowest and the highest value that fits."""
    low = -(2 ** (bits - 1)) if signed else 0
    return np.linspace(low, low + 2**bits - 1, 60).round().astype(np.int64).reshape(SHAPE)


def linear(x, centre, width):
    """Standard PS3.3 C.11.2.1.2.1, output from 0 to 1, value by value."""
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return np.array([0 if v <= low else 1 if v > high else (v - (centre - 0.5)) / (width - 1) + 0.5 for v in x.ravel()]).reshape(x.shape)


def linear_exact(x, centre, width):
    """Standard PS3.3 C.11.2.1.3.2."""
    return np.clip((x - centre) / width + 0.5, 0, 1)


def sigmoid(x, centre, width):
    """Standard PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(-4 * (x - centre) / width))


# What the ordinary formats give


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_eight_bit_gray(tmp_path, suffix):
    path = saved(tmp_path / f"x{suffix}", RAMP8, **({"lossless": True} if suffix == ".webp" else {}))
    pixels, mode = decode(path)
    assert np.array_equal(pixels, RAMP8) and pixels.dtype == np.uint8 and mode == ("RGB" if suffix == ".webp" else "L")
    gray = read_gray(path)
    assert gray.dtype == np.float32 and gray.shape == SHAPE and np.allclose(gray, RAMP8 / 255, atol=1e-6)


def test_jpeg_gray_is_near(tmp_path):
    path = saved(tmp_path / "x.jpg", RAMP8, quality=95)
    assert decode(path)[1] == "L" and np.abs(read_gray(path) - RAMP8 / 255).max() < 0.03


@pytest.mark.parametrize("kind", ["png", "tif", "big_endian", "deflate"])
def test_sixteen_bit_gray_is_rescaled_not_clipped(tmp_path, kind):
    path = tmp_path / ("x.png" if kind == "png" else "x.tif")
    if kind == "big_endian":
        tiff(path, RAMP16.astype(">u2").tobytes(), 16, ">")
    else:
        saved(path, RAMP16, **({"compression": "tiff_adobe_deflate"} if kind == "deflate" else {}))
    pixels, mode = decode(path)
    assert np.array_equal(pixels, RAMP16) and pixels.dtype == np.dtype("uint16") and mode.startswith("I;16")
    assert np.allclose(read_gray(path), RAMP16 / 65535, atol=1e-6)


def test_a_picture_hashes_the_same_in_any_container(tmp_path):
    paths = [saved(tmp_path / "a.png", RAMP16), saved(tmp_path / "b.tif", RAMP16), tiff(tmp_path / "c.tif", RAMP16.astype(">u2").tobytes(), 16, ">")]
    assert {pixel_sha256(decode(path)[0]) for path in paths} == {describe(paths[0])["pixel_sha256"]}


def test_twelve_bit_tiff_reaches_white(tmp_path):
    values = np.linspace(0, 4095, 60).round().astype(int).reshape(SHAPE)
    first, second = values.ravel()[::2], values.ravel()[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    path = tiff(tmp_path / "x.tif", packed.tobytes(), 12)
    assert np.array_equal(decode(path)[0], values) and np.allclose(read_gray(path), values / 4095, atol=1e-6)


def test_equal_channels_count_as_one(tmp_path):
    path = saved(tmp_path / "x.png", np.repeat(RAMP8[..., None], 3, axis=2))
    pixels, mode = decode(path)
    assert np.array_equal(pixels, RAMP8) and mode == "RGB" and describe(path)["channels"] == 1


def test_unequal_channels_are_kept_and_averaged(tmp_path):
    path = saved(tmp_path / "x.png", colour())
    pixels, mode = decode(path)
    assert np.array_equal(pixels, colour()) and mode == "RGB" and describe(path)["channels"] == 3
    assert np.allclose(read_gray(path), colour().mean(axis=2) / 255, atol=1e-6)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped(tmp_path, mode):
    below = RAMP8 if mode == "LA" else colour()
    path = saved(tmp_path / "x.png", np.dstack([below, RAMP8[::-1]]))
    pixels, found = decode(path)
    assert np.array_equal(pixels, below) and found == mode


def test_palette_is_expanded(tmp_path):
    picture = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(SHAPE) % 4).convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 0, 255, 255, 255, 7, 7, 7])
    picture.save(tmp_path / "x.png")
    pixels, mode = decode(tmp_path / "x.png")
    assert mode == "P" and pixels[0, :4].tolist() == [[10, 20, 30], [200, 100, 0], [255, 255, 255], [7, 7, 7]]
    assert np.allclose(read_gray(tmp_path / "x.png")[0, :3], [20 / 255, 100 / 255, 1], atol=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_bit_is_black_and_white(tmp_path, suffix):
    bits = RAMP8 > 99
    path = saved(tmp_path / f"x{suffix}", bits)
    assert decode(path)[1] == "1" and np.array_equal(read_gray(path), bits.astype(np.float32))


@pytest.mark.parametrize("marker", [True, False])
@pytest.mark.parametrize("ink, gray", [((0, 0, 0, 0), 1.0), ((0, 0, 0, 255), 0.0), ((0, 0, 0, 51), 0.8), ((255, 0, 0, 0), 2 / 3)])
def test_cmyk_jpeg_shows_paper_white_and_ink_dark(tmp_path, marker, ink, gray):
    # A file without Adobe's marker is read in Adobe's polarity too, as browsers do.
    buffer = io.BytesIO()
    Image.new("CMYK", (16, 16), ink).save(buffer, "JPEG", quality=100)
    data = buffer.getvalue()
    start = data.index(b"\xff\xee\x00\x0eAdobe")
    path = tmp_path / "x.jpg"
    path.write_bytes(data if marker else data[:start] + data[start + 16 :])
    assert ("adobe" in Image.open(path).info) == marker and decode(path)[1] == "CMYK"
    assert np.allclose(read_gray(path), gray, atol=0.01)


def test_cmyk_tiff_shows_paper_white(tmp_path):
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "x.tif")
    assert np.all(read_gray(tmp_path / "x.tif") == 1)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("order, dtype", [("<", "u1"), (">", "u1"), ("<", "u2"), ("<", "f4"), (">", "f4")])  # (">", "u2"): next test
def test_tiff_in_which_zero_is_white_has_the_right_polarity(tmp_path, photometric, order, dtype):
    values = {"u1": RAMP8, "u2": RAMP16, "f4": RAMP16 / 65535}[dtype]
    path = tiff(tmp_path / "x.tif", values.astype(order + dtype).tobytes(), 8 * int(dtype[1]), order, photometric, 3 if dtype == "f4" else 1)
    bright = RAMP16 / 65535 if photometric else 1 - RAMP16 / 65535
    assert np.allclose(read_gray(path), bright, atol=1 / 255 if dtype == "u1" else 1e-6)


def test_tiff_that_pillow_does_not_know_is_an_error(tmp_path):
    path = tiff(tmp_path / "x.tif", RAMP16.astype(">u2").tobytes(), 16, ">", photometric=0)
    with pytest.raises(StudyError, match="of a kind that Pillow does not know. Fetch it again or save it as PNG."):
        read_gray(path)


def test_float_tiff_in_zero_to_one_is_taken_as_it_is(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    values = ((every + np.where(every < 65535, 0.3, 0)) / 65535).astype(np.float32)
    values[0, 1] = 0.6 / 65535
    path = saved(tmp_path / "x.tif", values)
    assert np.array_equal(read_gray(path), values)
    pixels, mode = decode(path)
    assert np.array_equal(pixels, every) and pixels.dtype == np.uint16 and mode == "F"


@pytest.mark.parametrize("low, high", [(0, 4095), (-0.5, 1), (0, float("nan"))])
def test_float_outside_zero_to_one_names_range_and_remedy(tmp_path, low, high):
    values = np.full(SHAPE, low, dtype=np.float32)
    values[2, 3] = high
    path = saved(tmp_path / "x.tif", values)
    for read in (read_gray, decode):
        with pytest.raises(StudyError, match="float values run from .* instead of 0 to 1. Rescale it or save it as 16-bit gray."):
            read(path)


def test_wide_integers_are_taken_when_they_fit_and_refused_when_not(tmp_path):
    path = saved(tmp_path / "x.tif", RAMP16.astype(np.int32))
    assert np.array_equal(decode(path)[0], RAMP16) and np.allclose(read_gray(path), RAMP16 / 65535, atol=1e-6)
    for extra in (-1, 65536):
        wide = RAMP16.astype(np.int32)
        wide[1, 1] = extra
        with pytest.raises(StudyError, match="outside 16 bits .*Convert it to 16-bit gray"):
            decode(saved(path, wide))


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.integers(0, 65535), min_size=1, max_size=20), deep=st.booleans())
def test_brighter_stored_values_are_never_darker(tmp_path_factory, values, deep):
    pixels = np.sort(np.array([values], dtype=np.uint16) if deep else (np.array([values]) >> 8).astype(np.uint8))
    gray = read_gray(saved(tmp_path_factory.getbasetemp() / "ordered.png", pixels))
    assert (np.diff(gray) >= 0).all() and (np.diff(gray) > 0).sum() == (np.diff(pixels.astype(int)) > 0).sum()
    assert 0 <= gray.min() and gray.max() <= 1


def test_describe_holds_what_the_file_determines(tmp_path):
    path = saved(tmp_path / "x.png", RAMP16)
    assert describe(path) == {"sha256": file_sha256(path), "pixel_sha256": pixel_sha256(RAMP16),
                                       "width": 10, "height": 6, "bit_depth": 16, "channels": 1, "mode": "I;16"}


# DICOM


@pytest.mark.parametrize("rescale", [None, (2.5, -300), (-1, 4000)])
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_is_shown_as_the_standard_says(tmp_path, photometric, signed, bits, window, rescale):
    values = full_range(bits, signed)
    slope, intercept = rescale or (1, 0)
    x = values * slope + intercept
    header = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescale else {}
    expected = (x - x.min()) / (x.max() - x.min())
    if window:
        centre, width = float(np.median(x).round() + 7), float(2 ** (bits - 1))
        header.update(WindowCenter=centre, WindowWidth=width)
        expected = linear(x, centre, width)
        assert (expected == 0).any() and (expected == 1).any()
    gray = read_gray(dicom(tmp_path / "x.dcm", values, photometric, bits, signed, **header))
    assert gray.dtype == np.float32 and gray.shape == SHAPE
    assert np.allclose(gray, 1 - expected if photometric == "MONOCHROME1" else expected, atol=1e-5)


@pytest.mark.parametrize("function, formula", [("LINEAR", linear), ("LINEAR_EXACT", linear_exact), ("SIGMOID", sigmoid)])
@pytest.mark.parametrize("signed", [False, True])
def test_each_window_function(tmp_path, function, formula, signed):
    values = full_range(12, signed)
    centre = 900.0 - 2048 * signed
    path = dicom(tmp_path / "x.dcm", values, signed=signed, WindowCenter=centre, WindowWidth=300, VOILUTFunction=function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gray = read_gray(path)
    assert np.allclose(gray, formula(values, centre, 300), atol=1e-5)


def test_narrowest_window_is_a_threshold(tmp_path):
    values = full_range(12, False)
    gray = read_gray(dicom(tmp_path / "x.dcm", values, WindowCenter=2000, WindowWidth=1))
    assert np.array_equal(gray, (values > 1999.5).astype(np.float32))


def test_first_of_several_windows_counts(tmp_path):
    values = full_range(12, False)
    gray = read_gray(dicom(tmp_path / "x.dcm", values, WindowCenter=[1000, 3000], WindowWidth=[500, 50]))
    assert np.allclose(gray, linear(values, 1000, 500), atol=1e-6)


@pytest.mark.parametrize("header", [{"WindowCenter": None, "WindowWidth": None}, {"WindowCenter": 100}])
def test_empty_or_half_window_counts_as_none(tmp_path, header):
    values = full_range(12, False) // 3 + 50
    gray = read_gray(dicom(tmp_path / "x.dcm", values, **header))
    assert np.allclose(gray, (values - values.min()) / np.ptp(values), atol=1e-6)


@pytest.mark.parametrize("bits, length, first, rescale", [
    (16, 4096, 0, None), (12, 1024, 500, None), (8, 4096, 0, None), (12, 2000, -1000, (1, -1000)), (8, 256, 100, (2.5, 0.3)), (16, 65536, 0, (30.5, 0))])
def test_voi_table_comes_before_the_window(tmp_path, bits, length, first, rescale):
    values = full_range(12, False)
    table = np.round((np.arange(length) / (length - 1)) ** 2 * (2**bits - 1))
    slope, intercept = rescale or (1, 0)
    header = {"RescaleSlope": slope, "RescaleIntercept": intercept} if rescale else {}
    path = dicom(tmp_path / "x.dcm", values, WindowCenter=5, WindowWidth=2, VOILUTSequence=lookup_table(table, first, bits), **header)
    index = np.clip(np.round(values * slope + intercept) - first, 0, length - 1).astype(int)
    assert np.allclose(read_gray(path), table[index] / (2**bits - 1), atol=1e-6)


def test_voi_table_above_its_own_depth_stays_white(tmp_path):
    values = full_range(12, False)
    gray = read_gray(dicom(tmp_path / "x.dcm", values, VOILUTSequence=lookup_table(np.arange(4096), 0, 10)))
    assert np.allclose(gray, np.minimum(values / 1023, 1), atol=1e-6)


@pytest.mark.parametrize("window", [False, True])
def test_modality_table_comes_before_the_window(tmp_path, window):
    values = full_range(12, False)
    table = np.arange(4096) // 2 + 1000
    header = {"WindowCenter": 2000, "WindowWidth": 800} if window else {}
    x = table[values]
    expected = linear(x, 2000, 800) if window else (x - 1000) / 2047
    gray = read_gray(dicom(tmp_path / "x.dcm", values, ModalityLUTSequence=lookup_table(table, 0, 16), **header))
    assert np.allclose(gray, expected, atol=1e-5)


def test_modality_table_of_all_signed_values(tmp_path):
    values = full_range(16, True)
    gray = read_gray(dicom(tmp_path / "x.dcm", values, bits=16, signed=True, ModalityLUTSequence=lookup_table(np.arange(65536) // 2, -32768, 16)))
    assert np.allclose(gray, (values + 32768) // 2 / 32767, atol=1e-6)


def test_dicom_of_one_value_is_flat(tmp_path):
    path = dicom(tmp_path / "x.dcm", np.full(SHAPE, 700))
    assert np.array_equal(read_gray(path), np.zeros(SHAPE))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), bits=st.sampled_from([8, 10, 12, 14, 16]), signed=st.booleans(), inverted=st.booleans(), slope=st.sampled_from([None, 0.25, 1, 3.7, -2]),
       function=st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]), centre=st.integers(-70000, 70000), width=st.integers(1, 70000))
def test_dicom_keeps_order_and_range(tmp_path_factory, data, bits, signed, inverted, slope, function, centre, width):
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.sort(data.draw(st.lists(st.integers(low, low + 2**bits - 1), min_size=2, max_size=20)))[None]
    header = {"RescaleSlope": slope, "RescaleIntercept": -17} if slope else {}
    if function:
        header.update(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    path = tmp_path_factory.getbasetemp() / "ordered.dcm"
    gray = read_gray(dicom(path, values, "MONOCHROME1" if inverted else "MONOCHROME2", bits, signed, **header))
    assert 0 <= gray.min() and gray.max() <= 1
    rising = inverted == (slope is not None and slope < 0)
    assert (np.diff(gray) >= 0).all() if rising else (np.diff(gray) <= 0).all()
    if not function and values.min() < values.max():
        assert (gray[0, -1] - gray[0, 0]) == (1 if rising else -1)


@pytest.mark.parametrize("signed, bits", [(False, 12), (True, 12), (True, 16)])
def test_stored_dicom_values_are_what_is_hashed(tmp_path, signed, bits):
    values = full_range(bits, signed)
    path = dicom(tmp_path / "x.dcm", values, "MONOCHROME1", bits, signed, WindowCenter=3, WindowWidth=9, RescaleSlope=2, RescaleIntercept=1)
    pixels, mode = decode(path)
    assert pixels.dtype == np.uint16 and mode == "MONOCHROME1" and np.array_equal(pixels, values + (2 ** (bits - 1) if signed else 0))
    assert describe(path)["pixel_sha256"] == describe(saved(tmp_path / "x.png", pixels))["pixel_sha256"]


def test_eight_bit_dicom_hashes_like_eight_bit_png(tmp_path):
    one, two = dicom(tmp_path / "x.dcm", RAMP8, bits=8, allocated=8), saved(tmp_path / "x.png", RAMP8)
    assert describe(one)["pixel_sha256"] == describe(two)["pixel_sha256"] and describe(one)["bit_depth"] == 8


def test_compressed_dicom_reads_like_plain_where_a_decoder_is_there(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    plain = dicom(tmp_path / "x.dcm", full_range(12, True), signed=True)
    dataset = pydicom.dcmread(plain)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(tmp_path / "y.dcm")
    assert np.array_equal(read_gray(plain), read_gray(tmp_path / "y.dcm"))
    assert describe(plain)["pixel_sha256"] == describe(tmp_path / "y.dcm")["pixel_sha256"]


def test_dicom_is_known_by_content_without_a_suffix_and_by_suffix_without_a_preamble(tmp_path):
    values = full_range(12, False)
    path = dicom(tmp_path / "001", values)
    expected = values / 4095
    assert np.allclose(read_gray(path), expected, atol=1e-6)
    (tmp_path / "old.dcm").write_bytes(path.read_bytes()[132:])
    assert np.allclose(read_gray(tmp_path / "old.dcm"), expected, atol=1e-6)


def test_dicom_without_any_file_header_is_read(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(dicom(tmp_path / "x.dcm", full_range(12, False)))
    del dataset.file_meta, dataset.preamble
    dataset.save_as(tmp_path / "bare.dcm", implicit_vr=True, little_endian=True)
    assert np.array_equal(decode(tmp_path / "bare.dcm")[0], full_range(12, False))


# Errors: one or two short sentences that name the file, the cause and the remedy


def message(path, *readers):
    """The one message that all readers give."""
    texts = set()
    for read in readers or (decode, read_gray, describe):
        with pytest.raises(StudyError) as error:
            read(path)
        texts.add(str(error.value))
    (text,) = texts
    assert text.startswith(f"{path} cannot be read as a picture: ") and text.endswith(".") and "\n" not in text
    return text


def made(path):
    """A good picture in the format of the path's suffix."""
    pixels = np.random.default_rng(7).integers(0, 256, (60, 60), dtype=np.uint8)
    return dicom(path, pixels) if path.suffix == ".dcm" else saved(path, pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".dcm"])
def test_empty_text_and_half_files_are_named(tmp_path, suffix):
    path = made(tmp_path / f"picture{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "truncated" in message(path)
    path.write_bytes(b"")
    assert message(path).endswith("it is empty (0 bytes). Fetch it again or replace it.")
    path.write_bytes(b"these are words, not pixels\n" * 20)
    assert "no picture" in message(path) if suffix != ".dcm" else "no DICOM picture" in message(path)


def test_half_a_deep_picture_is_named(tmp_path):
    path = saved(tmp_path / "x.png", np.random.default_rng(2).integers(0, 65536, (60, 60), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:3000])
    assert "truncated" in message(path)


def test_folder_and_missing_file_are_named(tmp_path):
    (tmp_path / "x.png").mkdir()
    assert "it is a folder. Correct the path." in message(tmp_path / "x.png", decode, read_gray, describe, mislabelled)
    assert "there is no such file. Correct the path." in message(tmp_path / "gone.png")


def test_what_the_system_refuses_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("koa_lib.images.read.open", refuse, raising=False)
    assert "the system says 'Permission denied'" in message(saved(tmp_path / "x.png", RAMP8))


def test_decompression_bomb_is_refused(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""))
    assert "it claims more than 178,956,970 pixels. Replace it by a smaller picture." in message(path)


def test_dicom_without_pydicom_says_how_to_install_it(tmp_path, monkeypatch):
    path = tmp_path / "x.dcm"
    path.write_bytes(bytes(128) + b"DICM" + bytes(20))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "pydicom is not installed. Run: pip install pydicom (our extra 'dicom')." in message(path)


@pytest.mark.parametrize("change, expected", [
    ({"NumberOfFrames": 2, "PixelData": bytes(240)}, "with 2 frames. Export the frame"),
    ({"photometric": "PALETTE COLOR"}, "in colour (PALETTE COLOR). Export it as gray"),
    ({"photometric": "RGB"}, "in colour (RGB). Export it as gray"),
    ({"bits": 32, "allocated": 32}, "32 bits per pixel. Export it with at most 16 bits"),
    ({"PixelData": bytes(50)}, "truncated or damaged")])
def test_dicom_that_is_no_gray_picture_is_refused(tmp_path, change, expected):
    path = dicom(tmp_path / "x.dcm", full_range(12, False), **change)
    assert expected in message(path)


@pytest.mark.parametrize("header", [{"WindowCenter": 100, "WindowWidth": 0}, {"WindowCenter": 100, "WindowWidth": 9, "VOILUTFunction": "MAGIC"}])
def test_impossible_window_is_named_and_does_not_touch_the_hash(tmp_path, header):
    path = dicom(tmp_path / "x.dcm", full_range(12, False), **header)
    assert "its window or table cannot be applied" in message(path, read_gray)
    assert np.array_equal(decode(path)[0], full_range(12, False))


def test_compressed_dicom_without_a_decoder_is_refused(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(dicom(tmp_path / "x.dcm", full_range(12, False)))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    dataset.save_as(tmp_path / "x.dcm")
    text = message(tmp_path / "x.dcm")
    assert "no installed decoder reads its compressed pixels (JPEG Lossless" in text and "pip install 'pylibjpeg[all]'" in text


# Names


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_right_suffix_is_accepted_in_any_case(tmp_path, suffix):
    path = made(tmp_path / ("picture" + {".dicom": ".dcm"}.get(suffix, suffix)))
    assert mislabelled(path.rename(tmp_path / f"picture{suffix}")) == ""
    assert mislabelled((tmp_path / f"picture{suffix}").rename(tmp_path / f"picture{suffix.upper()}")) == ""


@pytest.mark.parametrize("true, name, expected", [
    (".jpg", "x.png", "x.png is a JPEG file. Rename it to x.jpg."), (".png", "x.dcm", "x.dcm is a PNG file. Rename it to x.png."),
    (".dcm", "x.png", "x.png is a DICOM file. Rename it to x.dcm."), (".webp", "a b.v2.TIF", "a b.v2.TIF is a WEBP file. Rename it to a b.v2.webp."),
    (".dcm", "1.2.840.7", "1.2.840.7 is a DICOM file. Rename it to 1.2.840.7.dcm."), (".gif", "x.png", "x.png is a GIF file. Save it as PNG.")])
def test_wrong_suffix_is_named_with_the_true_format(tmp_path, true, name, expected):
    path = made(tmp_path / f"made{true}")
    pixels = decode(path)[0]
    path = path.rename(tmp_path / name)
    assert mislabelled(path) == expected and np.array_equal(decode(path)[0], pixels)


def test_wrong_suffix_of_no_picture_is_an_error(tmp_path):
    (tmp_path / "x.png").write_bytes(b"words")
    assert "no picture" in message(tmp_path / "x.png", mislabelled)
