"""Getting a cohort: download, unpack, verify; and what a person does where a download is impossible."""

import shlex
import shutil
from pathlib import Path

from koa_lib.data import check, cohorts
from koa_lib.data.archive import unpack
from koa_lib.data.download import download
from koa_lib.data.files import walk
from koa_lib.errors import StudyError, printable
from koa_lib.images.read import is_picture
from koa_lib.store import write_table


def fetch(name, folder, address=""):
    """Download a cohort into a folder and check every picture; what is already there is only checked.

    Parameters
    ----------
    name : str
        A cohort with an address in `cohorts.yaml`.
    folder : Path
        Where the pictures go; the archive is kept beside it until the pictures are verified.
    address : str
        Another address of the same archive.

    Raises
    ------
    StudyError
        Unknown cohort, a download that is impossible (with the manual steps), a bad archive, wrong pictures.
    """
    known, folder = cohorts.facts(name), Path(folder).absolute()
    if not known.address:
        raise StudyError(f"{name} is made, not downloaded: run 'make reproduce'.")
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if existing.is_file():
        raise StudyError(f"{existing} is a file. Give another folder.")
    zipped = folder.parent / known.archive
    fetched = existing != folder or not any(folder.iterdir())
    if fetched:
        if zipped.is_file():
            print(f"using {zipped}, which is already there; delete it to download it again", flush=True)
        else:
            free = shutil.disk_usage(existing).free / 1e9
            print(f"downloading {address or known.address} to {zipped} ({free:.0f} GB free)", flush=True)
            _download(known, address or known.address, zipped, folder)
        print(f"unpacking {zipped.name} to {folder}", flush=True)
        print(f"{unpack(zipped, folder):,} pictures unpacked", flush=True)
    try:
        verify(name, folder)
    except StudyError as error:
        done = "unpacked from" if fetched else "there already. To fetch it anew delete it and"
        raise StudyError(f"{error} {folder} was {done} {zipped}.") from error
    if fetched:
        print(f"{zipped} is no longer needed")


def _download(known, address, zipped, folder):
    try:
        download(address, zipped, known.sha256)
    except StudyError as error:
        raise StudyError(
            f"{error}\nIf it stays impossible, do it by hand:\n"
            f"1. Open {known.page} (doi:{known.doi}) in a browser and download {known.address}.\n"
            f"2. Save it as {zipped}{f' (SHA-256 {known.sha256})' if known.sha256 else ''}.\n"
            f"3. Run the same command again, or unpack it, and any zip inside it, into {folder}.\n"
            f"4. Check: `koa data verify {known.name} {shlex.quote(str(folder))}` must find the pictures."
        ) from error


def verify(name, folder, out=""):
    """Compare a folder with a cohort's manifest and print what was found.

    Raises
    ------
    StudyError
        When a picture is missing, wrong or extra: after everything was compared.
    """
    known, manifest = cohorts.facts(name), cohorts.manifest(name, folder)
    root, report = check.verify(manifest, folder, known.layouts.values(), known.beside)
    print(f"{name} in {root} ({known.layout(root)} layout): {len(manifest):,} pictures listed")
    print(*printable(check.summary(report).split("\n")), sep="\n")
    for beside, meaning in known.beside.items():
        count = sum(map(is_picture, walk(root / beside)))
        found = f"{count:,} pictures, {meaning}; not listed and not checked"
        print(f"  {beside}: {found if count else f'not there, which is no error ({meaning})'}")
    if out:
        write_table(out, report, "backslashreplace")
    wrong = check.problems(report)
    if len(wrong):
        listed = (
            f"the whole list is in {out}" if out else "'koa data verify ... --out FILE' writes the whole list"
        )
        raise StudyError(f"{len(wrong):,} of {len(report):,} files need attention, see above; {listed}.")
    print(f"all {len(manifest):,} pictures are there and right")
