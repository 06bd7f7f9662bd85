"""Fetching a cohort: a download that goes on, an archive that can do no harm, and steps by hand."""

import hashlib
import io
import os
import re
import shutil
import stat
import struct
import threading
import time
import zipfile
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koa_lib.data import archive, cohorts, download, fetch
from koa_lib.errors import StudyError

SIZE = 2_000_000
OLD, NEW = (np.random.default_rng(seed).bytes(SIZE) for seed in (1, 2))
PNG = b"\x89PNG not really"
PUBLISHED, NAME = "KneeXrayData/ClsKLData/kneeKL224", "oai_chen2018"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sha256(content):
    return hashlib.sha256(content).hexdigest()


# Downloading


class Handler(BaseHTTPRequestHandler):
    """Serves `server.file` as `server.rules` say and counts requests and bytes."""

    def do_GET(self):
        rules, content = self.server.rules, self.server.file
        rules.requests += 1
        time.sleep(rules.delay)
        etag, size = rules.etag.format(sha256(content)), len(content)
        start = int(re.sub("[^0-9]", "", self.headers.get("Range", "")) or 0)
        same = rules.ignore_if_range or self.headers.get("If-Range") == etag
        if rules.status:
            self.answer(rules.status, b"<html>sorry</html>")
        elif rules.ignore_range or not start or not same:
            self.answer(200, content, ETag=etag)
        elif start < size:
            span = f"bytes {start}-{size - 1}/{size}"
            self.answer(206, content[start:], **{"Content-Range": span, "ETag": etag})
        else:
            self.answer(416, b"", **{"Content-Range": f"bytes */{size}"})

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        rules = self.server.rules
        sent = body[: rules.cuts.pop(0) if rules.cuts else None]
        rules.served += len(sent)  # before the client can see the end
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server, its rules and the address of its one file."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.rules = SimpleNamespace(requests=0, served=0, cuts=[], status=None, etag='"{}"', delay=0)
    vars(web.rules).update(ignore_range=False, ignore_if_range=False)
    web.file, web.address = OLD, f"http://127.0.0.1:{web.server_port}/56rmx5bjcr-1.zip"
    web.handle_error = lambda *_: None  # a client that left
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSE", 0)
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


def test_a_second_download_of_the_same_file_is_refused_and_the_first_one_ends_well(server, tmp_path):
    server.rules.delay, target = 1, tmp_path / "set.zip"
    first = threading.Thread(target=download.download, args=(server.address, target, sha256(OLD)))
    first.start()
    while not server.rules.requests:
        time.sleep(0.01)
    with pytest.raises(StudyError, match="Another process downloads .*set.zip"):
        download.download(server.address, target)
    first.join()
    assert target.read_bytes() == OLD and names(tmp_path) == ["set.zip"]


@pytest.fixture
def begun(server, tmp_path):
    """The target of a download of which about 1.2 MB are there."""
    target = tmp_path / "set.zip"
    server.rules.cuts = [1_200_000, 0, 0, 0]
    with pytest.raises(StudyError, match=r"1\.[12] MB in .*set\.zip\.part"):
        download.download(server.address, target)
    server.rules.served = 0
    return target


@pytest.mark.parametrize("cuts", [[], [700_000, 600_000]])
def test_file_is_downloaded_also_when_cut_and_nothing_is_said(server, tmp_path, capfd, cuts):
    server.rules.cuts = cuts
    download.download(server.address, tmp_path / "new/set.zip", sha256(OLD))
    assert (tmp_path / "new/set.zip").read_bytes() == OLD and names(tmp_path) == ["new/set.zip"]
    assert server.rules.served <= SIZE + 2 * download.BLOCK and capfd.readouterr() == ("", "")


def test_next_command_fetches_the_rest_only(server, begun):
    have = begun.with_name("set.zip.part").stat().st_size
    download.download(server.address, begun, sha256(OLD))
    assert begun.read_bytes() == OLD and names(begun.parent) == ["set.zip"]
    assert server.rules.served == SIZE - have


@pytest.mark.parametrize("rule", ["status", "ignore_range", "ignore_if_range"])
def test_file_that_changed_meanwhile_is_never_mixed(server, begun, rule):
    server.file = NEW
    setattr(server.rules, rule, rule != "status")
    download.download(server.address, begun)
    assert begun.read_bytes() == NEW and names(begun.parent) == ["set.zip"]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_server_that_cannot_resume_starts_again(server, tmp_path, etag):
    vars(server.rules).update(etag=etag, cuts=[1_200_000])
    download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD


@pytest.mark.parametrize(
    "content, query, served", [(OLD, "", 0), (OLD + b"more", "", SIZE), (OLD[:9], "?other", SIZE)]
)
def test_part_that_is_complete_too_long_or_of_another_address(server, begun, content, query, served):
    begun.with_name("set.zip.part").write_bytes(content)
    download.download(server.address + query, begun, sha256(OLD))
    assert begun.read_bytes() == OLD and server.rules.served == served


def test_part_of_somebody_else_is_left_alone(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"a browser's")
    with pytest.raises(StudyError, match="set.zip.part"):
        download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip.part").read_bytes() == b"a browser's" and not server.rules.requests


def test_wrong_hash_names_both_and_leaves_nothing(server, tmp_path):
    with pytest.raises(StudyError, match=f"{sha256(OLD)}.*{sha256(NEW)}"):
        download.download(server.address, tmp_path / "set.zip", sha256(NEW))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x", "http://no-such-host.invalid/x", "ftp://a/x", "x", "http://[half/x"]
)
def test_address_without_a_server_is_named(server, tmp_path, address):
    with pytest.raises(StudyError, match=f"^{re.escape(address)} "):
        download.download(address, tmp_path / "set.zip")
    assert names(tmp_path) == []


def test_silent_server_is_waited_for_no_longer_than_promised(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUTS", (1, 0.05))
    server.rules.delay = 0.3
    with pytest.raises(StudyError, match="timed out"):
        download.download(server.address, tmp_path / "set.zip")


# Unpacking


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    """The bytes of a zip of (name or ZipInfo, content) pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as bundle:
        for name, content in members:
            bundle.writestr(name, content)
    return buffer.getvalue()


def member(name, mode=0):
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr = name, mode << 16
    return info


def patched(content, offset, format, value):
    """Change a field of the second entry of the central directory."""
    content = bytearray(content)
    place = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    struct.pack_into(format, content, place + offset, value)
    return bytes(content)


@pytest.fixture
def unpack(tmp_path):
    """A function from the bytes of a zip to the number of files unpacked into `tmp_path/data/knees`."""

    def run(content):
        (tmp_path / "set.zip").write_bytes(content)
        return archive.unpack(tmp_path / "set.zip", tmp_path / "data" / "knees")

    return run


def test_pictures_are_unpacked_and_the_rest_left_out(unpack, tmp_path, capfd):
    left_out = "read.me __MACOSX/a/1.png a/._1.png .ipynb_checkpoints/1.png empty/ a/b/.png".split()
    members = [(name, b"x" * (name[-1] != "/")) for name in left_out]
    members += [("a/b/1.png", PNG), ("./a//2.JPG", b""), (member("more\\c.dcm"), b"d" * 300_000)]
    inner = zipped((member("val\\0/1.png"), PNG), ("notes.txt", b"x"))
    assert unpack(zipped(*members, (member("set\\A.zip"), inner), ("set/B.ZIP", inner))) == 5
    knees = tmp_path / "data" / "knees"
    assert names(knees) == "a/2.JPG a/b/1.png more/c.dcm set/A/val/0/1.png set/B/val/0/1.png".split()
    assert (knees / "a/b/1.png").read_bytes() == PNG and (knees / "more/c.dcm").stat().st_size == 300_000
    assert list(knees.parent.iterdir()) == [knees] and capfd.readouterr() == ("", "")


BOMB = zipped(("ok.png", PNG), ("bomb.png", bytes(50_000_000)))
OTHER = ("ok.png", PNG)
LEADING_OUT = ["../evil.png", "a/../../evil.png", "../evil.txt", "a/.. /evil.png", "a\\..\\..\\evil.png"]
ABSOLUTE = ["/evil.png", "\\evil.png", "C:evil.png", "C:\\evil.png", "evil.png\0.txt"]
REFUSED = {name: (zipped(OTHER, (member(name), PNG)), "evil") for name in LEADING_OUT + ABSOLUTE}
EVIL = zipped(OTHER, ("evil.png", PNG))
REFUSED |= {
    "symbolic link": (zipped(OTHER, (member("evil.png", stat.S_IFLNK | 0o777), "/etc")), "'evil.png'.*link"),
    "device": (zipped(OTHER, (member("evil.png", stat.S_IFCHR | 0o666), b"")), "evil"),
    "encrypted": (patched(EVIL, 8, "<H", 1), "'evil.png'.*encrypted"),
    "ratio": (BOMB, "200 times"),
    "ratio of all": (zipped(*((f"{i}.png", bytes(900_000)) for i in range(3))), "200 times"),
    "ratio of a zip inside": (zipped(OTHER, ("in.zip", BOMB)), "'in.zip'.*200 times"),
    "twice": (zipped(OTHER, ("./ok.png", PNG)), "'./ok.png'.*twice"),
    "below a file": (zipped(OTHER, ("ok.png/evil.png", PNG)), "'ok.png/evil.png'"),
    "above a file": (zipped(("ok.png/evil.png", PNG), OTHER), "'ok.png'.*twice"),
    "same bytes": (patched(EVIL, 42, "<I", 0), "shares its bytes"),
    "method": (zipped(OTHER, ("evil.png", PNG), method=zipfile.ZIP_BZIP2), "method 12"),
    "zip three deep": (zipped(("a.zip", zipped(("b.zip", zipped(OTHER))))), "'a.zip'.*'b.zip'.*one level"),
    "link inside": (
        zipped(OTHER, ("in.zip", zipped((member("evil.png", stat.S_IFLNK), "/etc")))),
        "'in.zip'.*'evil.png'.*link",
    ),
    "twice by a zip inside": (
        zipped(("a/ok.png", PNG), ("a.zip", zipped(OTHER))),
        "'a.zip'.*'ok.png'.*twice",
    ),
    "wrong checksum": (
        zipped(("evil.png", PNG), method=zipfile.ZIP_STORED).replace(PNG, PNG.lower()),
        "'evil.png'.*CRC",
    ),
    "more bytes than announced": (patched(EVIL, 24, "<I", 5), "evil"),
    "fewer bytes than announced": (patched(EVIL, 24, "<I", 500), "evil.* 500 bytes"),
    "other local name": (EVIL.replace(b"evil.png", b"good.png", 1), "evil"),
    "web page": (b"<!DOCTYPE html><title>Sorry</title>", "no zip"),
    "empty file": (b"", "no zip"),
    "cut off": (EVIL[:-40], "no zip"),
    "no zip inside": (zipped(OTHER, ("in.zip", b"<html>")), "'in.zip'.*no zip"),
    "no pictures": (zipped(("a.txt", PNG)), "no pictures"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_archive_is_refused_and_leaves_nothing(unpack, tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(StudyError, match=message) as error:
        unpack(content)
    assert f"{tmp_path}/set.zip" in str(error.value) and names(tmp_path) == ["set.zip"]
    assert not any(tmp_path.glob("data/*"))


@pytest.mark.parametrize(
    "limit, value", [("MAX_MEMBERS", 1), ("MAX_MEMBERS", 3), ("MAX_BYTES", 4000), ("MAX_BYTES", 5004)]
)
def test_limits_hold_for_zips_inside_too(unpack, tmp_path, monkeypatch, limit, value):
    content = zipped(("in.zip", zipped(("a.png", os.urandom(5000)), ("b.png", PNG))), ("c.png", PNG))
    with monkeypatch.context() as patch, pytest.raises(StudyError, match="set.zip"):
        patch.setattr(archive, limit, value)
        unpack(content)
    with monkeypatch.context() as patch, pytest.raises(StudyError, match="disk"):
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
        unpack(content)
    assert names(tmp_path) == ["set.zip"] and unpack(content) == 3


def test_folders_in_use_and_of_others_are_left_alone(unpack, tmp_path):
    knees, others = tmp_path / "data" / "knees", tmp_path / "data" / "knees.part"
    knees.mkdir(parents=True)
    others.mkdir()
    assert unpack(zipped(OTHER)) == 1  # it was empty
    (knees / "mine.png").write_bytes(b"mine")
    with pytest.raises(OSError):
        unpack(zipped(("new.png", PNG)))
    assert names(knees) == ["mine.png", "ok.png"] and {*knees.parent.iterdir()} == {knees, others}


PIECES = st.sampled_from(
    ".. . / // \\ C: \0 a a.png .png .zip ..zip ~ CAGE __MACOSX \u2025 \uff0f".split(" ") + [" "]
)
NAMES = st.lists(
    PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=6
).map("".join)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(["", ".png", ".zip"]))
def test_no_name_makes_a_file_outside_the_folder(tmp_path_factory, parts, suffix):
    cage = tmp_path_factory.getbasetemp() / "cage"
    shutil.rmtree(cage, ignore_errors=True)
    home = cage / "1" / "2"
    home.mkdir(parents=True)
    parts = [part.replace("CAGE", str(cage)) for part in parts]
    inner = zipped(*((member(part + ".png"), PNG) for part in parts))
    content = inner if suffix == ".zip" else PNG
    (home / "set.zip").write_bytes(zipped(*((member(part + suffix), content) for part in parts), OTHER))
    count = 0
    with suppress(StudyError, OSError):
        count = archive.unpack(home / "set.zip", home / "knees")
    outside = [name for name in names(cage) if not name.startswith("1/2/knees/")]
    assert outside == ["1/2/set.zip"] and len(names(cage)) == 1 + count


# A cohort


def published(folder, manifest):
    """The zip of a cohort as published: a zip in a zip, with another size and detector crops beside."""
    files = {f"{PUBLISHED}/{path}": (folder / path).read_bytes() for path in manifest["path"]}
    files |= {f"{PUBLISHED[:-1]}9/{path}": b"another size" for path in manifest["path"]}
    files |= {f"{PUBLISHED}/auto_test/{path}": b"a crop" for path in manifest["path"]}
    return zipped(("readme.txt", "by its author"), ("56rmx5bjcr/set.zip", zipped(*files.items())))


@pytest.fixture
def web(server, cohort_a, tmp_path, monkeypatch):
    """A server with a small published cohort that stands in for Chen's; `folder` is where it goes."""
    server.file, server.folder = published(*cohort_a), tmp_path / "data" / "my knees"
    server.zip = server.folder.parent / "56rmx5bjcr-1.zip"
    server.facts = {name: cohorts.facts(name) for name in cohorts.names()}
    server.facts[NAME] = replace(server.facts[NAME], address=server.address, sha256=None)
    (tmp_path / "lists").mkdir()
    shutil.copyfile(cohort_a[0] / "manifest.csv", tmp_path / "lists" / f"{NAME}.csv")
    monkeypatch.setattr(cohorts, "_all", lambda: server.facts)
    monkeypatch.setattr(cohorts, "MANIFESTS", tmp_path / "lists")
    return server


def test_cohort_is_downloaded_unpacked_and_verified_once_and_then_only_checked(web, cohort_a, capsys):
    source, manifest = cohort_a
    fetch.fetch(NAME, web.folder)
    (root,) = web.folder.rglob("kneeKL224")
    assert all((root / path).read_bytes() == (source / path).read_bytes() for path in manifest["path"])
    out = capsys.readouterr().out
    assert str(root) in out and "Mendeley" in out and "24 pictures" in out and "auto_test" in out
    assert not [name for name in names(web.folder.parent) if "part" in name] and web.zip.is_file()
    (root / manifest["path"][3]).unlink()
    with pytest.raises(StudyError, match=f"1 of 24 .*{web.folder}.*{web.zip}"):
        fetch.fetch(NAME, web.folder)
    assert manifest["path"][3] in capsys.readouterr().out and web.rules.requests == 1


@pytest.mark.parametrize("fault", ["404", "refused", sha256(b"other")])
def test_impossible_download_ends_in_four_steps_that_work_by_hand(web, fault):
    facts = web.facts[NAME] = replace(web.facts[NAME], sha256=fault if len(fault) == 64 else None)
    web.rules.status = 404 if fault == "404" else None
    with pytest.raises(StudyError, match=fault) as error:
        fetch.fetch(NAME, web.folder, "http://127.0.0.1:9/mirror.zip" if fault == "refused" else "")
    steps = "".join(str(error.value).splitlines()[-4:])
    said = facts.page, facts.doi, web.address, str(web.zip), facts.sha256 or "", f"{NAME} '{web.folder}'"
    assert all(words in steps for words in said) and not web.folder.exists() and not web.zip.exists()
    web.zip.write_bytes(web.file)
    web.rules.requests = 0
    fetch.fetch(NAME, web.folder)
    assert not web.rules.requests and list(web.folder.rglob("*.png"))


def test_mirror_is_used_where_one_is_given(web):
    web.facts[NAME] = replace(web.facts[NAME], address="http://127.0.0.1:9/56rmx5bjcr-1.zip")
    fetch.fetch(NAME, web.folder, web.address)
    assert web.rules.requests == 1


@pytest.mark.parametrize("content, place", [(b"<html>please log in", "zip"), (zipped(OTHER), "folder")])
def test_page_instead_of_the_archive_and_archive_of_another_set_are_named(web, content, place):
    web.file = content
    with pytest.raises(StudyError, match=str(getattr(web, place))):
        fetch.fetch(NAME, web.folder)


@pytest.mark.parametrize(
    "name, file", [("phantom_a", "other"), ("oai", "other"), (NAME, "my knees"), (NAME, "")]
)
def test_cohort_that_cannot_be_fetched_is_told_before_the_download(web, name, file):
    place = web.folder.parent / file
    place.parent.mkdir(exist_ok=True)
    place.write_text("a file")
    with pytest.raises(StudyError, match=f"{place} is a file" if name == NAME else name):
        fetch.fetch(name, web.folder)
    assert not web.rules.requests
