"""One file from a web server: cut off, resumed, changed, refused. Every test has a server of its own on this machine."""

import hashlib
import io
import logging
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pooch
import pytest

from koa_lib.data import download
from koa_lib.errors import StudyError

SIZE = 2_000_000
OLD, NEW = (np.random.default_rng(seed).bytes(SIZE) for seed in (1, 2))


class Handler(BaseHTTPRequestHandler):
    """Serves `server.file` as `server.rules` say and counts requests and bytes."""

    def do_GET(self):
        rules, content = self.server.rules, self.server.file
        rules.requests.append(dict(self.headers))
        time.sleep(rules.delay)
        cut = rules.cuts.pop(0) if rules.cuts else None
        tags = {"ETag": rules.etag or f'"{hashlib.md5(content).hexdigest()}"'} if rules.tagged else {}
        if rules.status:
            return self.answer(rules.status, {}, b"<html>sorry</html>", None)
        start = self.start(tags, rules)
        if start is None:
            return self.answer(200, tags, content, cut)
        if start >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"", None)
        start = 0 if rules.from_zero else start
        rest = content[start : start + rules.most]
        return self.answer(206, {"Content-Range": f"bytes {start}-{start + len(rest) - 1}/{len(content)}", **tags}, rest, cut)

    def start(self, tags, rules):
        asked, guard = self.headers.get("Range"), self.headers.get("If-Range")
        if rules.ignore_range or not asked or not (rules.ignore_if_range or guard == tags.get("ETag")):
            return None
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def answer(self, status, headers, body, cut):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.rules.announced:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[:cut]
        self.server.rules.served += len(body)  # before the client can see the end
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local server, its rules and the address of its one file."""
    rules = SimpleNamespace(requests=[], served=0, cuts=[], status=None, tagged=True, etag=None, ignore_range=False, ignore_if_range=False,
                            from_zero=False, most=SIZE, announced=True, delay=0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)
    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.rules, web.file, web.address = rules, OLD, f"http://127.0.0.1:{web.server_port}/set.zip"
    web.handle_error = lambda *_: None  # a client that left
    threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def interrupted(server, target, cut=1_200_000):
    """Leave a `.part` of about `cut` bytes behind: the server cuts the first answer there and the next ones at once."""
    server.rules.cuts = [cut, 0, 0, 0]
    with pytest.raises(StudyError, match="running the same command again goes on"):
        download.download(server.address, target)
    server.rules.cuts, server.rules.requests, server.rules.served = [], [], 0
    return target.with_name("set.zip.part").stat().st_size


def test_downloads_once_and_says_nothing(server, tmp_path, capfd):
    target = tmp_path / "new" / "set.zip"
    assert download.download(server.address, target, sha256(OLD)) == target
    assert target.read_bytes() == OLD and names(tmp_path) == ["new/set.zip"] and server.rules.served == SIZE
    for digest in (None, sha256(OLD), sha256(OLD).upper()):
        download.download(server.address, target, digest)
    assert len(server.rules.requests) == 1 and "Range" not in server.rules.requests[0]
    assert not pooch.get_logger().isEnabledFor(logging.WARNING)
    assert capfd.readouterr() == ("", "")


def test_a_relative_target_is_taken_literally(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download.download(server.address, "~/set.zip") == tmp_path / "~" / "set.zip" and names(tmp_path) == ["~/set.zip"]


def test_an_existing_file_with_another_hash_is_replaced(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"old")
    download.download(server.address, tmp_path / "set.zip", sha256(OLD))
    assert (tmp_path / "set.zip").read_bytes() == OLD


def test_a_cut_download_goes_on_by_itself(server, tmp_path):
    server.rules.cuts = [700_000, 600_000, None]
    download.download(server.address, tmp_path / "set.zip", sha256(OLD))
    assert (tmp_path / "set.zip").read_bytes() == OLD and names(tmp_path) == ["set.zip"]
    assert len(server.rules.requests) == 3 and SIZE <= server.rules.served <= SIZE + 2 * download.BLOCK


def test_a_download_cut_every_time_is_finished_by_the_next_command(server, tmp_path):
    target = tmp_path / "set.zip"
    server.rules.cuts = [300_000] * 4
    with pytest.raises(StudyError, match=r"^The connection to 127.* was cut .*1\.[0-9] of 2\.0 MB are in .*set\.zip\.part: running the same command again goes on"):
        download.download(server.address, target)
    assert names(tmp_path) == ["set.zip.part", "set.zip.part.json"] and len(server.rules.requests) == 4
    download.download(server.address, target, sha256(OLD))
    assert target.read_bytes() == OLD and names(tmp_path) == ["set.zip"]
    assert SIZE <= server.rules.served <= SIZE + 4 * download.BLOCK


def test_another_process_goes_on_with_the_rest_only(server, tmp_path):
    have = interrupted(server, tmp_path / "set.zip")
    download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD and server.rules.served == SIZE - have < SIZE / 2
    assert server.rules.requests[0]["Range"] == f"bytes={have}-"


@pytest.mark.parametrize("rule", ["none", "ignore_range", "ignore_if_range"])
def test_a_file_that_changed_meanwhile_is_never_mixed(server, tmp_path, rule):
    interrupted(server, tmp_path / "set.zip")
    server.file = NEW
    setattr(server.rules, rule, True)
    download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == NEW and names(tmp_path) == ["set.zip"]


def test_ranges_that_were_not_asked_for(server, tmp_path):
    have = interrupted(server, tmp_path / "one" / "set.zip")
    server.rules.most = 500_000
    download.download(server.address, tmp_path / "one" / "set.zip")
    assert (tmp_path / "one" / "set.zip").read_bytes() == OLD and server.rules.served == SIZE - have
    server.rules.most, server.rules.from_zero = SIZE - interrupted(server, tmp_path / "set.zip"), True
    download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD


def test_a_part_of_another_address_is_not_used(server, tmp_path):
    interrupted(server, tmp_path / "set.zip")
    download.download(server.address + "?other", tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD and "Range" not in server.rules.requests[0]


@pytest.mark.parametrize("rules", [{"ignore_range": True}, {"tagged": False}, {"etag": 'W/"weak"'}])
def test_a_server_that_cannot_resume_starts_again(server, tmp_path, rules):
    vars(server.rules).update(rules, cuts=[1_200_000, None])
    download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD and server.rules.served == 1_200_000 + SIZE


def test_a_complete_part_is_taken_as_it_is(server, tmp_path):
    interrupted(server, tmp_path / "set.zip")
    (tmp_path / "set.zip.part").write_bytes(OLD)  # killed after the last byte
    download.download(server.address, tmp_path / "set.zip", sha256(OLD))
    assert (tmp_path / "set.zip").read_bytes() == OLD and (len(server.rules.requests), server.rules.served) == (1, 0)


def test_a_part_longer_than_the_file_starts_again(server, tmp_path):
    interrupted(server, tmp_path / "set.zip")
    (tmp_path / "set.zip.part").write_bytes(OLD + b"more")
    download.download(server.address, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == OLD


def test_a_server_that_announces_no_length_is_accepted(server, tmp_path):
    server.rules.announced = False
    download.download(server.address, tmp_path / "set.zip", sha256(OLD))
    assert (tmp_path / "set.zip").read_bytes() == OLD


def test_a_wrong_hash_names_both_and_leaves_nothing(server, tmp_path):
    with pytest.raises(StudyError, match=f"set.zip has the wrong content: SHA-256 {sha256(NEW)} was expected, {sha256(OLD)} was found"):
        download.download(server.address, tmp_path / "set.zip", sha256(NEW))
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_of_the_server_is_told_at_once(server, tmp_path, status):
    server.rules.status = status
    with pytest.raises(StudyError, match=f"^The server answers {status} .*{server.address}"):
        download.download(server.address, tmp_path / "set.zip")
    assert len(server.rules.requests) == 1 and names(tmp_path) == []


@pytest.mark.parametrize("address, start", [
    ("http://127.0.0.1:9/set.zip", "^No connection to 127.0.0.1:9: .*refused"),
    ("http://no-such-host.invalid/set.zip", "^No connection to no-such-host.invalid: "),
    ("ftp://127.0.0.1/set.zip", "^ftp://127.0.0.1/set.zip cannot be downloaded"),
    ("set.zip", "^set.zip cannot be downloaded"),
    ("http://[half/set.zip", "cannot be downloaded"),
])
def test_an_address_without_a_server(server, tmp_path, monkeypatch, address, start):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(StudyError, match=start) as caught:
        download.download(address, tmp_path / "set.zip")
    assert " at 0x" not in str(caught.value) and names(tmp_path) == []


def test_a_silent_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUTS", (1, 0.05))
    server.rules.delay = 0.3
    with pytest.raises(StudyError, match="^127.* sent nothing for 0.05 s"):
        download.download(server.address, tmp_path / "set.zip")


def test_a_target_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StudyError, match="cannot be written"):
        download.download(server.address, tmp_path / "file" / "set.zip")


def test_progress_is_shown_on_a_terminal(server, tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    download.download(server.address, tmp_path / "set.zip")
    assert "set.zip: 100%" in screen.getvalue() and "2.00M/2.00M" in screen.getvalue()


def test_manual_steps_name_everything():
    lines = download.manual_steps("gornale", "https://doi.org/10/x", "https://a.b/set.zip", "data/set.zip", "data/knee x", "abc").splitlines()
    assert [line[:2] for line in lines] == ["1.", "2.", "3.", "4."]
    assert "https://doi.org/10/x" in lines[0] and "https://a.b/set.zip" in lines[0] and "data/set.zip" in lines[1] and "data/knee x" in lines[2]
    assert "`sha256sum data/set.zip` must print abc" in lines[3] and "`koa data verify gornale 'data/knee x'`" in lines[3]
    assert "sha256sum" not in download.manual_steps("g", "p", "a", "t", "f")
