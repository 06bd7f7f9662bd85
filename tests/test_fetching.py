"""Fetching a cohort from a server on this machine: downloaded, unpacked and verified, or four steps that a person can follow."""

import hashlib
import io
import shlex
import shutil
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from koa_lib.data import cohorts, download, fetch
from koa_lib.errors import StudyError

PUBLISHED = "KneeXrayData/ClsKLData/kneeKL224"
NAME = "oai_chen2018"


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


def published(folder, manifest, changes=()):
    """The zip of a cohort as published: a zip in a zip, with pictures of another size and detector crops beside."""
    files = {f"{PUBLISHED}/{path}": (folder / path).read_bytes() for path in manifest["path"]} | dict(changes)
    files |= {f"{PUBLISHED[:-1]}9/{path}": b"another size" for path in manifest["path"]}
    files |= {f"{PUBLISHED}/auto_test/{path.partition('/')[2]}": b"a crop" for path in manifest["path"] if path.startswith("test/")}
    return zipped({"readme.txt": "by its author", f"{cohorts.facts(NAME).doi.split('/')[1]}/set.zip": zipped(files)})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        web = self.server
        web.requests.append(self.path)
        self.send_response(web.status)
        self.send_header("Content-Length", str(len(web.content)))
        self.end_headers()
        self.wfile.write(web.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(cohort_a, tmp_path, monkeypatch):
    """A server with a small published cohort, whose facts and manifest stand in for Chen's; `folder` is where it goes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.requests, server.content = 200, [], published(*cohort_a)
    address = f"http://127.0.0.1:{server.server_port}/56rmx5bjcr-1.zip"
    facts = {name: replace(cohorts.facts(name), **({"address": address} if name == NAME else {})) for name in cohorts.names()}
    lists = tmp_path / "lists"
    lists.mkdir()
    shutil.copyfile(cohort_a[0] / "manifest.csv", lists / f"{NAME}.csv")
    monkeypatch.setattr(cohorts, "_all", lambda: facts)
    monkeypatch.setattr(cohorts, "MANIFESTS", lists)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield SimpleNamespace(server=server, facts=facts, address=address, folder=tmp_path / "data" / "my knees")
    server.shutdown()
    server.server_close()


def pictures_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_cohort_is_downloaded_unpacked_and_verified(web, cohort_a, capsys):
    source, manifest = cohort_a
    fetch.fetch(NAME, web.folder)
    out = capsys.readouterr().out
    (root,) = web.folder.rglob("kneeKL224")
    assert all((root / path).read_bytes() == (source / path).read_bytes() for path in manifest["path"])
    assert len(web.server.requests) == 1 and web.address in out and f"{root} (Mendeley layout)" in out and "all 24 pictures are there and right" in out
    assert not list(web.folder.rglob("*.zip")) and not list(web.folder.parent.glob("*.part"))


def test_what_is_there_is_only_checked(web, capsys):
    fetch.fetch(NAME, web.folder)
    before = {path: path.stat().st_mtime_ns for path in web.folder.rglob("*")}
    web.server.requests.clear()
    capsys.readouterr()
    fetch.fetch(NAME, web.folder)
    out = capsys.readouterr().out
    assert web.server.requests == [] and "downloading" not in out and "all 24 pictures are there and right" in out
    assert before == {path: path.stat().st_mtime_ns for path in web.folder.rglob("*")}


def test_picture_lost_later_is_told_by_the_same_command(web, cohort_a, capsys):
    fetch.fetch(NAME, web.folder)
    path = cohort_a[1]["path"][3]
    next(web.folder.rglob("kneeKL224")).joinpath(path).unlink()
    capsys.readouterr()
    with pytest.raises(StudyError, match="1 of 24 files need attention") as error:
        fetch.fetch(NAME, web.folder)
    archive = web.folder.parent / web.facts[NAME].archive
    assert str(error.value).endswith(f"{web.folder} was not empty, so it was only checked. To fetch anew delete it and {archive}.")
    assert path in capsys.readouterr().out and len(web.server.requests) == 1


def test_mirror_is_used_where_one_is_given(web, cohort_a):
    web.facts[NAME] = replace(web.facts[NAME], address="http://127.0.0.1:9/gone.zip")
    fetch.fetch(NAME, web.folder, web.address)
    assert len(web.server.requests) == 1 and len(pictures_below(web.folder)) >= len(cohort_a[1])


def steps(error):
    """The four numbered lines of an error, without their numbers."""
    lines = str(error.value).splitlines()[-4:]
    assert [line[:3] for line in lines] == ["1. ", "2. ", "3. ", "4. "]
    return lines


def test_impossible_download_ends_in_four_steps(web):
    web.server.status = 404
    with pytest.raises(StudyError) as error:
        fetch.fetch(NAME, web.folder)
    first, facts = str(error.value).splitlines()[0], web.facts[NAME]
    where, save, unpack, check = steps(error)
    assert "404" in first and web.address in first
    assert facts.page in where and facts.doi in where and web.address in where
    assert str(web.folder.parent / facts.archive) in save and str(web.folder) in unpack
    assert f"koa data verify {NAME} {shlex.quote(str(web.folder))}" in check and "sha256" not in check
    assert not web.folder.exists() and not list(web.folder.parent.glob("*.zip"))


def test_known_hash_is_in_the_steps_and_another_file_refused(web):
    digest = hashlib.sha256(b"the real one").hexdigest()
    web.facts[NAME] = replace(web.facts[NAME], sha256=digest)
    with pytest.raises(StudyError, match="wrong content") as error:
        fetch.fetch(NAME, web.folder)
    assert f"must print {digest}" in steps(error)[3] and not web.folder.exists()


def test_server_that_is_not_there_ends_in_four_steps(web):
    with pytest.raises(StudyError, match="^No connection to 127.0.0.1:9") as error:
        fetch.fetch(NAME, web.folder, "http://127.0.0.1:9/set.zip")
    assert web.address in steps(error)[0] and "127.0.0.1:9/" not in steps(error)[0]  # the official address, not the mirror


def test_archive_that_is_there_is_used_and_told(web, capsys):
    archive = web.folder.parent / web.facts[NAME].archive
    archive.parent.mkdir()
    archive.write_bytes(web.server.content)
    fetch.fetch(NAME, web.folder)
    out = capsys.readouterr().out
    assert f"using {archive}, which is already there; delete it" in out and "downloading" not in out and web.server.requests == []
    assert "all 24 pictures are there and right" in out and archive.read_bytes() == web.server.content


def test_following_the_steps_by_hand_works_without_the_server(web, capsys):
    web.server.status = 404
    with pytest.raises(StudyError) as error:
        fetch.fetch(NAME, web.folder)
    Path(steps(error)[1].removeprefix("2. Save it as ").removesuffix(".")).write_bytes(web.server.content)
    web.server.requests.clear()
    fetch.fetch(NAME, web.folder)
    assert web.server.requests == [] and "all 24 pictures are there and right" in capsys.readouterr().out


def test_wrong_picture_in_the_archive_is_told_and_kept(web, cohort_a, capsys):
    wrong, lost = cohort_a[1]["path"][[2, 7]]
    buffer = io.BytesIO()
    Image.new("L", (224, 224), 90).save(buffer, "PNG")
    web.server.content = published(*cohort_a, {f"{PUBLISHED}/{wrong}": buffer.getvalue(), f"{PUBLISHED}/{lost}": b""})
    with pytest.raises(StudyError, match="2 of 24 files need attention") as error:
        fetch.fetch(NAME, web.folder)
    assert str(error.value).endswith(f"{web.folder} was unpacked from {web.folder.parent / web.facts[NAME].archive}.")
    out = capsys.readouterr().out
    assert wrong in out and lost in out and "changed pixels" in out and "unreadable" in out and "all 24" not in out
    assert any(path.endswith(wrong) for path in pictures_below(web.folder))


def test_page_instead_of_the_archive_is_told_and_the_next_try_can_work(web, capsys):
    right, web.server.content = web.server.content, b"<html>please log in</html>"
    with pytest.raises(StudyError, match="no zip, perhaps an error page of the server") as error:
        fetch.fetch(NAME, web.folder)
    archive = web.folder.parent / web.facts[NAME].archive
    assert f"Delete {archive} and download it again" in str(error.value) and not web.folder.exists()
    archive.unlink()
    web.server.content = right
    fetch.fetch(NAME, web.folder)
    assert "all 24 pictures are there and right" in capsys.readouterr().out


def test_archive_of_another_set_is_told(web, cohort_b):
    folder, rows = cohort_b
    web.server.content = zipped({path: (folder / path).read_bytes() for path in rows["path"]})
    with pytest.raises(StudyError, match="holds none of the 24 pictures"):
        fetch.fetch(NAME, web.folder)


@pytest.mark.parametrize("name, words", [("phantom_a", "make reproduce"), ("oai", "'oai' is unknown")])
def test_cohort_that_cannot_be_fetched(web, name, words):
    with pytest.raises(StudyError, match=words):
        fetch.fetch(name, web.folder)
    assert web.server.requests == [] and not web.folder.exists()


def test_folder_that_is_a_file_is_told_before_the_download(web):
    web.folder.parent.mkdir()
    web.folder.write_text("a file")
    with pytest.raises(StudyError, match="my knees"):
        fetch.fetch(NAME, web.folder)
    assert web.server.requests == []


def test_folder_below_a_file_is_told_in_a_sentence(web):
    web.folder.parent.write_text("a file")
    with pytest.raises(StudyError) as error:
        fetch.fetch(NAME, web.folder)
    assert str(web.folder.parent) in str(error.value) and "Errno" not in str(error.value)


# What verify prints


def test_folders_beside_the_cohort_are_counted_and_no_error_when_absent(web, cohort_a, tmp_path, capsys):
    folder = Path(shutil.copytree(cohort_a[0], tmp_path / "kaggle"))
    fetch.verify(NAME, folder)
    assert "auto_test: not there, which is no error" in capsys.readouterr().out
    shutil.copytree(folder / "test", folder / "auto_test")
    fetch.verify(NAME, folder)
    count = sum(path.startswith("test/") for path in cohort_a[1]["path"])
    out = capsys.readouterr().out
    assert f"auto_test: {count} pictures" in out and "(Kaggle layout)" in out


def test_whole_list_is_written_even_when_something_is_wrong(web, cohort_a, tmp_path, capsys):
    folder = Path(shutil.copytree(cohort_a[0], tmp_path / "kaggle"))
    for path in cohort_a[1]["path"][:15]:
        (folder / path).write_bytes(b"")
    with pytest.raises(StudyError, match=f"15 of 24 files need attention.*{tmp_path}/list.csv"):
        fetch.verify(NAME, folder, tmp_path / "list.csv")
    lines = (tmp_path / "list.csv").read_text().splitlines()
    assert len(lines) == 1 + 24 and all(any(path in line and "unreadable" in line for line in lines) for path in cohort_a[1]["path"][:15])
