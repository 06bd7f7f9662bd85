"""One published zip: pictures come out, a bad archive is refused whole, and no member writes outside its folder."""

import io
import os
import shutil
import stat
import struct
import zipfile
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib.data import archive
from koa_lib.errors import StudyError

PNG = b"\x89PNG not really"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    """The bytes of a zip of (name or ZipInfo, content) pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as bundle:
        for name, content in members:
            bundle.writestr(name, content)
    return buffer.getvalue()


def member(name, mode=0, flags=0):
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr, info.flag_bits = name, mode << 16, flags
    return info


def patched(content, offset, format, value, nth=0):
    """Change a field of the nth entry of the central directory."""
    content, place = bytearray(content), -1
    for _ in range(nth + 1):
        place = content.index(b"PK\x01\x02", place + 1)
    struct.pack_into(format, content, place + offset, value)
    return bytes(content)


@pytest.fixture
def unpack(tmp_path):
    """A function from the bytes of a zip to the number of files unpacked into `tmp_path/data/knees`."""

    def run(content, **limits):
        (tmp_path / "set.zip").write_bytes(content)
        return archive.unpack(tmp_path / "set.zip", tmp_path / "data" / "knees", **limits)

    return run


def test_pictures_are_unpacked_and_the_rest_left_out(unpack, tmp_path, capfd):
    members = [("a/b/1.png", PNG), ("./a//2.JPG", b""), ("scan.dcm", b"d" * 300_000), ("read.me", b"x"), ("__MACOSX/a/b/1.png", b"x"), ("a/._1.png", b"x"), ("empty/", b""), ("folder.png/", b""),
               ("a/b/.png", b"x")]
    assert unpack(zipped(*members)) == 3
    assert names(tmp_path / "data") == ["knees/a/2.JPG", "knees/a/b/1.png", "knees/scan.dcm"]
    assert (tmp_path / "data" / "knees" / "a" / "b" / "1.png").read_bytes() == PNG and (tmp_path / "data" / "knees" / "scan.dcm").stat().st_size == 300_000
    assert capfd.readouterr() == ("", "")


def test_a_zip_inside_becomes_a_folder(unpack, tmp_path):
    inner = zipped(("val/0/1.png", PNG), ("notes.txt", b"x"))
    assert unpack(zipped(("set/A.zip", inner), ("set/B.ZIP", inner), ("2.png", PNG), method=zipfile.ZIP_STORED)) == 3
    assert names(tmp_path / "data" / "knees") == ["2.png", "set/A/val/0/1.png", "set/B/val/0/1.png"]


ZEROS = bytes(50_000_000)
BOMB = zipped(("ok.png", PNG), ("bomb.png", ZEROS))
OTHER = ("ok.png", PNG)
MILD = [(f"{i}.png", bytes(900_000)) for i in range(3)]
REFUSED = {
    "parent": (zipped(OTHER, ("../evil.png", PNG)), r"member '\.\./evil\.png' leads out"),
    "parent inside": (zipped(OTHER, ("a/../../evil.png", PNG)), r"leads out"),
    "parent of a skipped file": (zipped(OTHER, ("../evil.txt", PNG)), r"member '\.\./evil\.txt' leads out"),
    "parent for Windows": (zipped(OTHER, ("a/.. /evil.png", PNG)), r"leads out"),
    "parent by a suffix": (zipped(OTHER, ("...zip", zipped(OTHER))), r"member '\.\.\.zip' leads out"),
    "absolute": (zipped(OTHER, (member("/evil.png"), PNG)), r"member '/evil\.png' has an absolute path"),
    "drive": (zipped(OTHER, ("C:evil.png", PNG)), r"member 'C:evil\.png' has .*a drive letter"),
    "backslash": (zipped(OTHER, ("..\\evil.png", PNG)), r"backslash"),
    "zero byte": (zipped(OTHER, (member("evil.png\0.txt"), PNG)), r"control characters"),
    "symbolic link": (zipped(OTHER, (member("evil.png", stat.S_IFLNK | 0o777), "/etc")), r"member 'evil\.png' is a symbolic link"),
    "device": (zipped(OTHER, (member("evil.png", stat.S_IFCHR | 0o666), b"")), r"special file"),
    "encrypted": (patched(zipped(OTHER, ("evil.png", PNG)), 8, "<H", 1, nth=1), r"member 'evil\.png' is encrypted"),
    "ratio": (BOMB, r"member 'bomb\.png' unpacks to more than 200 times"),
    "ratio of all": (zipped(*MILD), r"set\.zip has members that unpack to more than 200 times"),
    "ratio of a zip inside": (zipped(OTHER, ("in.zip", BOMB)), r"zip 'in\.zip': member 'bomb\.png' unpacks to more than 200 times"),
    "twice": (zipped(OTHER, ("./ok.png", PNG)), r"member '\./ok\.png' is there twice"),
    "below a file": (zipped(("ok.png/evil.png", PNG), OTHER), r"member 'ok\.png/evil\.png' lies below"),
    "same bytes": (patched(zipped(OTHER, ("evil.png", PNG)), 42, "<I", 0, nth=1), r"member 'evil\.png' shares its bytes"),
    "method": (zipped(OTHER, ("b.png", PNG), method=zipfile.ZIP_BZIP2), r"packed with method 12"),
    "zip three deep": (zipped(("a.zip", zipped(("b.zip", zipped(OTHER))))), r"zip 'a\.zip': member 'b\.zip' is a zip inside a zip inside"),
    "link in a zip inside": (zipped(OTHER, ("in.zip", zipped((member("evil.png", stat.S_IFLNK), "/etc")))), r"zip 'in\.zip': member 'evil\.png' is a symbolic"),
    "twice by a zip inside": (zipped(("a/ok.png", PNG), ("a.zip", zipped(OTHER))), r"zip 'a\.zip': member 'ok\.png' is there twice"),
    "wrong checksum": (zipped(OTHER, ("evil.png", PNG), method=zipfile.ZIP_STORED).replace(b"evil.png" + PNG, b"evil.png" + PNG.lower()), r"member 'evil\.png' is damaged .*CRC"),
    "more bytes than announced": (patched(zipped(OTHER, ("evil.png", PNG)), 24, "<I", 5, nth=1), r"member 'evil\.png' is damaged"),
    "fewer bytes than announced": (patched(zipped(OTHER, ("evil.png", PNG)), 24, "<I", 500, nth=1), r"'evil\.png' does not have the 500 bytes"),
    "other local name": (zipped(OTHER, ("evil.png", PNG)).replace(b"evil.png", b"good.png", 1), r"is damaged"),
    "web page": (b"<!DOCTYPE html><title>Sorry</title>", r"set\.zip is no zip, perhaps an error page.*Delete .*set\.zip and"),
    "empty file": (b"", r"set\.zip is no zip"),
    "cut off": (zipped(OTHER, ("1.png", PNG))[:-40], r"set\.zip is a cut off or damaged zip"),
    "no zip inside": (zipped(OTHER, ("in.zip", b"<html>")), r"zip 'in\.zip' is no zip.*Delete .*set\.zip and"),
    "no pictures": (zipped(("a.txt", PNG)), r"holds no pictures"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_archive_is_refused_and_leaves_nothing(unpack, tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(StudyError, match=message):
        unpack(content)
    assert names(tmp_path) == ["set.zip"] and not any(tmp_path.glob("data/*"))


def test_limits_hold_for_zips_inside_too(unpack, tmp_path):
    inner = zipped(("a.png", os.urandom(5000)), ("b.png", PNG))
    content = zipped(("in.zip", inner), ("c.png", PNG))
    assert unpack(zipped(*((f"{i}.png", PNG) for i in range(4))), max_members=4, max_bytes=4 * len(PNG)) == 4
    shutil.rmtree(tmp_path / "data")
    for limits, message in (({"max_members": 1}, "set.zip has 2 members, 1 over"), ({"max_members": 3}, "zip 'in.zip' has 2 members, 1 over the limit"),
                            ({"max_bytes": 4000}, "set.zip has 0.0 MB unpacked, .* MB over the limit"), ({"max_bytes": 8000}, "zip 'in.zip' has 0.0 MB unpacked")):
        with pytest.raises(StudyError, match=message):
            unpack(content, **limits)
        assert names(tmp_path) == ["set.zip"]
    assert unpack(content, max_members=4, max_bytes=12_000) == 3


def test_a_member_that_never_ends_is_stopped(unpack, tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: reads.append(n) or b"z" * 1000)
    with pytest.raises(StudyError, match="member 'ok.png' does not have the 15 bytes"):
        unpack(zipped(OTHER))
    assert names(tmp_path) == ["set.zip"] and len(reads) == 1


def test_a_full_disk_is_noticed_before_writing(unpack, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(StudyError, match=r"too full to unpack .*set\.zip \(3\.0 MB\): 2\.0 MB are missing"):
        unpack(zipped(("a.png", os.urandom(3_000_000))))
    assert not (tmp_path / "data").exists()


def test_a_folder_in_use_is_left_alone(unpack, tmp_path):
    (tmp_path / "data" / "knees").mkdir(parents=True)
    assert unpack(zipped(OTHER)) == 1  # it was empty
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert archive.unpack(tmp_path / "set.zip", tmp_path / "link") == 1 and names(tmp_path / "empty") == ["ok.png"]
    with pytest.raises(StudyError, match="knees exists already and is not empty"):
        unpack(zipped(("2.png", PNG)))
    assert names(tmp_path / "data") == ["knees/ok.png"]
    with pytest.raises(StudyError, match="set.zip exists already"):
        archive.unpack(tmp_path / "set.zip", tmp_path / "set.zip")
    with pytest.raises(StudyError, match="none.zip does not exist"):
        archive.unpack(tmp_path / "none.zip", tmp_path / "new")


def test_the_rest_of_a_killed_run_is_removed(unpack, tmp_path):
    (tmp_path / "data" / "knees.part" / "old").mkdir(parents=True)
    (tmp_path / "data" / "knees.part" / "old" / "half.png").write_bytes(b"half")
    assert unpack(zipped(OTHER)) == 1 and names(tmp_path / "data") == ["knees/ok.png"]


def test_a_folder_that_cannot_be_written(unpack, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StudyError, match="cannot be written"):
        unpack(zipped(OTHER))
    (tmp_path / "data").unlink()
    with pytest.raises(StudyError, match="member 'aaa.* cannot be written .*too long"):
        unpack(zipped(OTHER, ("a" * 300 + ".png", PNG)))
    assert names(tmp_path) == ["set.zip"]


@pytest.fixture(scope="module")
def cage(tmp_path_factory):
    return tmp_path_factory.mktemp("cage")


PIECES = st.sampled_from(["..", ".", "/", "//", "\\", "C:", " ", "\0", "a", "a.png", ".png", ".zip", "..zip", "~", "CAGE", "__MACOSX", "\u2025", "\uff0f"])
NAMES = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=6).map("".join)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=150, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(["", ".png", ".zip"]))
def test_no_name_makes_a_file_outside_the_folder(cage, parts, suffix):
    home = cage / "1" / "2"
    shutil.rmtree(cage, ignore_errors=True)
    home.mkdir(parents=True)
    inner = zipped(*((member(part.replace("CAGE", str(cage)) + ".png"), PNG) for part in parts))
    content = zipped(*((member(part.replace("CAGE", str(cage)) + suffix), inner if suffix == ".zip" else PNG) for part in parts), OTHER)
    (home / "set.zip").write_bytes(content)
    try:
        count = archive.unpack(home / "set.zip", home / "knees")
    except StudyError:
        count = 0
    written = names(cage)
    assert [name for name in written if not name.startswith("1/2/knees/")] == ["1/2/set.zip"] and len(written) == 1 + count
