"""Fetching a cohort: a download that goes on, an archive that can do no harm, and four steps where it is
impossible.
"""

import hashlib
import io
import os
import re
import shutil
import stat
import struct
import sys
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
        rules.requests.append(self.headers)
        time.sleep(rules.delay)
        cut = rules.cuts.pop(0) if rules.cuts else None
        tags = {"ETag": rules.etag or f'"{sha256(content)}"'} if rules.tagged else {}
        asked = self.headers.get("Range", "")
        guarded = rules.ignore_if_range or self.headers.get("If-Range") == tags.get("ETag")
        start = 0 if rules.from_zero else int(re.sub("[^0-9]", "", asked) or 0)
        rest = content[start : start + rules.most]
        span = f"bytes {start}-{start + len(rest) - 1}/{len(content)}"
        if rules.status:
            self.answer(rules.status, {}, b"<html>sorry</html>", None)
        elif rules.ignore_range or not asked or not guarded:
            self.answer(200, tags, content, cut)
        elif rest:
            self.answer(206, {"Content-Range": span, **tags}, rest, cut)
        else:
            self.answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"", None)

    def answer(self, status, headers, body, cut):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.rules.announced:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.server.rules.served += len(body[:cut])  # before the client can see the end
        self.wfile.write(body[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server, its rules and the address of its one file."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.rules = SimpleNamespace(
        requests=[],
        served=0,
        cuts=[],
        status=None,
        tagged=True,
        etag=None,
        ignore_range=False,
        ignore_if_range=False,
        from_zero=False,
        most=10**9,
        announced=True,
        delay=0,
    )
    web.file, web.address = OLD, f"http://127.0.0.1:{web.server_port}/56rmx5bjcr-1.zip"
    web.handle_error = lambda *_: None  # a client that left
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSE", 0)
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


@pytest.fixture
def begun(server, tmp_path):
    """The target of a download of which about 1.2 MB are there."""
    target = tmp_path / "set.zip"
    server.rules.cuts = [1_200_000, 0, 0, 0]
    with pytest.raises(StudyError, match=r"1\.[12] MB in .*set\.zip\.part"):
        download.download(server.address, target)
    assert names(tmp_path) == ["set.zip.part", "set.zip.part.json"]
    server.rules.cuts, server.rules.requests, server.rules.served = [], [], 0
    return target


@pytest.mark.parametrize("rules", [{}, {"announced": False}, {"cuts": [700_000, 600_000, None]}])
def test_file_is_downloaded_also_when_cut_and_nothing_is_said(server, tmp_path, capfd, rules):
    vars(server.rules).update(rules)
    download.download(server.address, tmp_path / "new/set.zip", sha256(OLD))
    assert (tmp_path / "new/set.zip").read_bytes() == OLD and names(tmp_path) == ["new/set.zip"]
    assert server.rules.served <= SIZE + 2 * download.BLOCK and capfd.readouterr() == ("", "")


def test_next_command_fetches_the_rest_only(server, begun):
    have = begun.with_name("set.zip.part").stat().st_size
    server.rules.most = 500_000  # fewer bytes than asked for
    download.download(server.address, begun, sha256(OLD))
    assert (
        begun.read_bytes() == OLD
        and server.rules.served == SIZE - have
        and names(begun.parent) == ["set.zip"]
    )


@pytest.mark.parametrize("rule", ["none", "ignore_range", "ignore_if_range"])
def test_file_that_changed_meanwhile_is_never_mixed(server, begun, rule):
    server.file = NEW
    setattr(server.rules, rule, True)
    download.download(server.address, begun)
    assert begun.read_bytes() == NEW and names(begun.parent) == ["set.zip"]


@pytest.mark.parametrize(
    "rules", [{"ignore_range": True}, {"tagged": False}, {"etag": 'W/"weak"'}, {"from_zero": True}]
)
def test_server_that_cannot_resume_starts_again(server, tmp_path, rules):
    vars(server.rules).update(rules, cuts=[1_200_000, None])
    download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD


@pytest.mark.parametrize(
    "content, query, served", [(OLD, "", 0), (OLD + b"more", "", SIZE), (None, "?other", SIZE)]
)
def test_part_that_is_complete_too_long_or_of_another_address(server, begun, content, query, served):
    if content:
        begun.with_name("set.zip.part").write_bytes(content)
    download.download(server.address + query, begun, sha256(OLD))
    assert begun.read_bytes() == OLD and server.rules.served == served


def test_part_of_somebody_else_is_left_alone(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"a browser's")
    with pytest.raises(StudyError, match="set.zip.part"):
        download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip.part").read_bytes() == b"a browser's" and server.rules.requests == []


def test_wrong_hash_names_both_and_leaves_nothing(server, tmp_path):
    with pytest.raises(StudyError, match=f"{sha256(OLD)} instead of {sha256(NEW)}"):
        download.download(server.address, tmp_path / "set.zip", sha256(NEW))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "address, words",
    [
        ("http://127.0.0.1:9/set.zip", "Connection refused"),
        ("http://no-such-host.invalid/x", "attempts"),
        ("ftp://127.0.0.1/set.zip", "Correct the address"),
        ("set.zip", "Correct the address"),
        ("http://[half/set.zip", "Correct the address"),
    ],
)
def test_address_without_a_server(server, tmp_path, address, words):
    with pytest.raises(StudyError, match=f"^{re.escape(address)} .*{words}"):
        download.download(address, tmp_path / "set.zip")
    assert names(tmp_path) == []


def test_silent_server(server, tmp_path, monkeypatch):
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
    left_out = (
        "read.me __MACOSX/a/1.png a/._1.png .ipynb_checkpoints/1.png empty/ folder.png/ a/b/.png".split()
    )
    members = [(name, b"x" * (name[-1] != "/")) for name in left_out]
    members += [("a/b/1.png", PNG), ("./a//2.JPG", b""), (member("more\\c.dcm"), b"d" * 300_000)]
    inner = zipped((member("val\\0/1.png"), PNG), ("notes.txt", b"x"))
    assert unpack(zipped(*members, (member("set\\A.zip"), inner), ("set/B.ZIP", inner))) == 5
    knees = tmp_path / "data" / "knees"
    assert names(knees) == "a/2.JPG a/b/1.png more/c.dcm set/A/val/0/1.png set/B/val/0/1.png".split()
    assert (knees / "a/b/1.png").read_bytes() == PNG and (knees / "more/c.dcm").stat().st_size == 300_000
    (tmp_path / "made").mkdir()
    assert knees.stat().st_mode == (tmp_path / "made").stat().st_mode
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


def test_limits_hold_for_zips_inside_too(unpack, tmp_path, monkeypatch):
    content = zipped(("in.zip", zipped(("a.png", os.urandom(5000)), ("b.png", PNG))), ("c.png", PNG))
    for name, value in [("MAX_MEMBERS", 1), ("MAX_MEMBERS", 3), ("MAX_BYTES", 4000), ("MAX_BYTES", 8000)]:
        with monkeypatch.context() as patch, pytest.raises(StudyError, match="more than we unpack"):
            patch.setattr(archive, name, value)
            unpack(content)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(StudyError, match="disk is too full"):
        unpack(content)
    assert names(tmp_path) == ["set.zip"]
    monkeypatch.undo()
    monkeypatch.setattr(archive, "MAX_MEMBERS", 4)
    assert unpack(content) == 3


def test_folders_in_use_and_of_others_are_left_alone(unpack, tmp_path):
    others = tmp_path / "data" / "knees.part"
    others.mkdir(parents=True)
    (tmp_path / "data" / "knees").mkdir()
    assert unpack(zipped(OTHER)) == 1  # it was empty
    (tmp_path / "data" / "knees" / "mine.png").write_bytes(b"mine")
    for folder in ("data/knees", "set.zip", "set.zip/below"):
        with pytest.raises(OSError):
            archive.unpack(tmp_path / "set.zip", tmp_path / folder)
    assert names(tmp_path) == ["data/knees/mine.png", "data/knees/ok.png", "set.zip"]
    assert {*others.parent.iterdir()} == {others, others.with_suffix("")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert archive.unpack(tmp_path / "set.zip", tmp_path / "link") == 1
    assert names(tmp_path / "empty") == ["ok.png"]


PIECES = st.sampled_from(
    ".. . / // \\ C: \0 a a.png .png .zip ..zip ~ CAGE __MACOSX \u2025 \uff0f".split(" ") + [" "]
)
NAMES = st.lists(
    PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=6
).map("".join)


@pytest.fixture(scope="module")
def cage(tmp_path_factory):
    return tmp_path_factory.mktemp("cage")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=150, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from(["", ".png", ".zip"]))
def test_no_name_makes_a_file_outside_the_folder(cage, parts, suffix):
    home = cage / "1" / "2"
    shutil.rmtree(cage, ignore_errors=True)
    home.mkdir(parents=True)
    parts = [part.replace("CAGE", str(cage)) for part in parts]
    inner = zipped(*((member(part + ".png"), PNG) for part in parts))
    content = inner if suffix == ".zip" else PNG
    (home / "set.zip").write_bytes(zipped(*((member(part + suffix), content) for part in parts), OTHER))
    try:
        count = archive.unpack(home / "set.zip", home / "knees")
    except (StudyError, OSError):
        count = 0
    written = names(cage)
    assert [name for name in written if not name.startswith("1/2/knees/")] == ["1/2/set.zip"]
    assert len(written) == 1 + count


# A cohort


def published(folder, manifest):
    """The zip of a cohort as published: a zip in a zip, with pictures of another size and detector crops
    beside.
    """
    files = {f"{PUBLISHED}/{path}": (folder / path).read_bytes() for path in manifest["path"]}
    files |= {f"{PUBLISHED[:-1]}9/{path}": b"another size" for path in manifest["path"]}
    files |= {
        f"{PUBLISHED}/auto_test/{path.partition('/')[2]}": b"a crop"
        for path in manifest["path"]
        if path.startswith("test/")
    }
    return zipped(("readme.txt", "by its author"), ("56rmx5bjcr/set.zip", zipped(*files.items())))


@pytest.fixture
def web(server, cohort_a, tmp_path, monkeypatch):
    """A server with a small published cohort, whose facts and manifest stand in for Chen's; `folder` is
    where it goes.
    """
    server.file, server.folder = published(*cohort_a), tmp_path / "data" / "my knees"
    server.zip = server.folder.parent / "56rmx5bjcr-1.zip"
    server.facts = {name: cohorts.facts(name) for name in cohorts.names()}
    server.facts[NAME] = replace(server.facts[NAME], address=server.address)
    (tmp_path / "lists").mkdir()
    shutil.copyfile(cohort_a[0] / "manifest.csv", tmp_path / "lists" / f"{NAME}.csv")
    monkeypatch.setattr(cohorts, "_all", lambda: server.facts)
    monkeypatch.setattr(cohorts, "MANIFESTS", tmp_path / "lists")
    return server


def test_cohort_is_downloaded_unpacked_and_verified_once_and_then_only_checked(web, cohort_a, capsys):
    source, manifest = cohort_a
    fetch.fetch(NAME, web.folder)
    out = capsys.readouterr().out
    (root,) = web.folder.rglob("kneeKL224")
    assert all((root / path).read_bytes() == (source / path).read_bytes() for path in manifest["path"])
    crops = sum(manifest["split"] == "test")
    said = (web.address, f"{root} (Mendeley layout)", f"auto_test: {crops} pictures", "all 24 pictures")
    assert all(words in out for words in said) and names(web.folder.parent).count(web.zip.name) == 1
    assert not [name for name in names(web.folder.parent) if "part" in name]
    fetch.fetch(NAME, web.folder)
    (root / manifest["path"][3]).unlink()
    with pytest.raises(StudyError, match=f"1 of 24 files.*{web.folder}.* {web.zip}"):
        fetch.fetch(NAME, web.folder)
    assert manifest["path"][3] in capsys.readouterr().out and len(web.rules.requests) == 1


@pytest.mark.parametrize("fault", ["status", "gone", "hash"])
def test_impossible_download_ends_in_four_steps_that_work_by_hand(web, fault, capsys):
    facts = web.facts[NAME] = replace(web.facts[NAME], sha256=sha256(b"other") if fault == "hash" else None)
    web.rules.status = 404 if fault == "status" else None
    with pytest.raises(StudyError) as error:
        fetch.fetch(NAME, web.folder, "http://127.0.0.1:9/mirror.zip" if fault == "gone" else "")
    steps = str(error.value).splitlines()[-4:]
    assert {"status": "404", "gone": "refused", "hash": sha256(b"other")}[fault] in str(error.value)
    said = (facts.page, facts.doi, web.address, f"{web.zip}", facts.sha256 or "", f"{NAME} '{web.folder}'")
    assert all(words in "\n".join(steps) for words in said)
    assert not web.folder.exists() and not web.zip.exists()
    web.zip.write_bytes(web.file)
    requests = len(web.rules.requests)
    fetch.fetch(NAME, web.folder)
    out = capsys.readouterr().out
    assert len(web.rules.requests) == requests and f"using {web.zip}" in out and "all 24" in out
    assert web.zip.is_file()


def test_mirror_is_used_where_one_is_given(web):
    web.facts[NAME] = replace(web.facts[NAME], address="http://127.0.0.1:9/56rmx5bjcr-1.zip")
    fetch.fetch(NAME, web.folder, web.address)
    assert len(web.rules.requests) == 1


def test_page_instead_of_the_archive_and_archive_of_another_set(web, cohort_b):
    other = zipped(*((path, (cohort_b[0] / path).read_bytes()) for path in cohort_b[1]["path"]))
    for content, words in (
        (b"<html>please log in", f"{web.zip}.*web page"),
        (other, "none of the 24 pictures"),
    ):
        web.file = content
        with pytest.raises(StudyError, match=words):
            fetch.fetch(NAME, web.folder)
        web.zip.unlink()


@pytest.mark.parametrize(
    "name, place, words",
    [
        ("phantom_a", None, "make reproduce"),
        ("oai", None, "'oai' is unknown"),
        (NAME, "folder", "my knees is a file"),
        (NAME, "parent", "data is a file"),
    ],
)
def test_cohort_that_cannot_be_fetched_is_told_before_the_download(web, name, place, words):
    if place == "parent":
        web.folder.parent.write_text("a file")
    elif place:
        web.folder.parent.mkdir()
        web.folder.write_text("a file")
    with pytest.raises(StudyError, match=re.escape(words)):
        fetch.fetch(name, web.folder)
    assert web.rules.requests == []


def test_verify_tells_of_folders_beside_and_writes_the_whole_list(web, cohort_a, tmp_path, capsys):
    folder = Path(shutil.copytree(cohort_a[0], tmp_path / "kaggle"))
    (folder / "train/0/knee\udce9.png").write_bytes(b"")  # a name that is no UTF-8
    for path in cohort_a[1]["path"][:15]:
        (folder / path).write_bytes(b"")
    sys.stdout.reconfigure(errors="backslashreplace")  # as `koa` does
    with pytest.raises(StudyError, match=f"16 of 25 files need attention.*{tmp_path}/list.csv"):
        fetch.verify(NAME, folder, tmp_path / "list.csv")
    listed = (tmp_path / "list.csv").read_text()
    assert listed.count("\n") == 1 + 25 and listed.count("unreadable") == 16 and "udce9" in listed
    out = capsys.readouterr().out
    assert "auto_test: not there, which is no error" in out and "(Kaggle layout)" in out
