"""Getting a cohort: download, unpack, verify; and what a person does where a download is impossible."""

import shutil
from pathlib import Path

from koa_lib.data import cohorts, download, verification
from koa_lib.data.archive import unpack
from koa_lib.errors import StudyError


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
        raise StudyError(f"The cohort {name} is made, not downloaded: 'make reproduce' leaves it in reports/_build/demo/data.")
    blocking = next((place for place in (folder, *folder.parents) if place.is_file()), None)
    if blocking:
        raise StudyError(f"{blocking} is a file, so {folder} can be no folder. Give another folder.")
    fetched = not (folder.is_dir() and any(folder.iterdir()))
    zipped = folder.parent / known.archive
    if fetched:
        if zipped.is_file():
            print(f"using {zipped}, which is already there; delete it to download it again", flush=True)
        else:
            _download(known, address or known.address, zipped, folder)
        print(f"unpacking {zipped.name} to {folder}", flush=True)
        print(f"{unpack(zipped, folder):,} pictures unpacked", flush=True)
    try:
        verify(name, folder)
    except StudyError as error:
        done = "was unpacked from" if fetched else "was not empty, so it was only checked. To fetch anew delete it and"
        raise StudyError(f"{error} {folder} {done} {zipped}.") from error
    if fetched:
        print(f"{zipped} is no longer needed")


def _download(known, address, zipped, folder):
    try:
        free = shutil.disk_usage(_existing(folder)).free
        print(f"downloading {address} to {zipped} ({free / 1e9:.0f} GB free)", flush=True)
        zipped.parent.mkdir(parents=True, exist_ok=True)
        download.download(address, zipped, known.sha256)
    except (StudyError, OSError) as error:
        steps = download.manual_steps(known.name, f"{known.page} (doi:{known.doi})", known.address, zipped, folder, known.sha256)
        raise StudyError(f"{error}\nIf it stays impossible, do it by hand:\n{steps}") from error


def _existing(folder):
    return next(place for place in (folder, *folder.parents) if place.exists())


def verify(name, folder, out=""):
    """Compare a folder with a cohort's manifest and print what was found.

    Raises
    ------
    StudyError
        When a picture is missing, wrong or extra: after everything was compared.
    """
    known, manifest = cohorts.facts(name), cohorts.manifest(name, folder)
    root, report = verification.verify(manifest, folder, known.layouts.values(), known.beside)
    print(f"{name} in {root} ({known.layout(root)} layout): {len(manifest):,} pictures listed")
    print(verification.summary(report))
    for beside, meaning in known.beside.items():
        count = verification.count_pictures(root / beside)
        print(f"  {beside}: {f'{count:,} pictures, {meaning}; not listed and not checked' if count else f'not there, which is no error ({meaning})'}")
    if out:
        report.to_csv(out, index=False, lineterminator="\n", errors="backslashreplace")
    wrong = verification.problems(report)
    if len(wrong):
        listed = f"the whole list is in {out}" if out else "'koa data verify ... --out FILE' writes the whole list"
        raise StudyError(f"{len(wrong):,} of {len(report):,} files need attention, see above; {listed}.")
    print(f"all {len(manifest):,} pictures are there and right")
