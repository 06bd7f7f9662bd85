"""Verification: is what lies in a folder what the manifest says, picture by picture?"""

from pathlib import Path

import pandas as pd

from koa_lib.data.batch import attempt, attempt_all
from koa_lib.data.manifest import locate_listed, tail
from koa_lib.errors import StudyError
from koa_lib.images.read import decoded_sha256, describe, file_sha256, is_picture, mislabelled

# Statuses in the order of a report; the first three are good.
GOOD = {
    "as listed": "the same bytes",
    "changed bytes, same pixels": "written again without loss: accepted",
    "same pixels, other container": "another file format without loss: accepted",
}
BAD = {
    "re-encoded": "another file format with other pixels, e.g. lossy: the study runs on it and stamps the report",
    "changed pixels": "not the published picture: fetch it again",
    "wrong grade folder": "lies under another grade or none: move it back, the folder is the label",
    "wrong split folder": "lies in another split: move it back",
    "wrong folder": "lies under the right grade in a folder of another name: move it back",
    "renamed": "a listed picture under another name: rename it",
    "wrong extension": "rename it, so that it is read",
    "unreadable": "fetch it again",
    "missing": "fetch it",
    "extra": "not in the manifest, ignored by the study: remove it",
}
COLUMNS = ["status", "image_id", "listed", "found", "detail"]


def verify(manifest, folder, layouts=(), beside=()):
    """Compare the files of a folder with a manifest.

    Bytes are compared first; only where they differ the picture is decoded and its pixels are compared.

    Parameters
    ----------
    manifest : DataFrame
        Manifest rows.
    folder : Path
        The cohort's root, or a folder above or below it.
    layouts : iterable of str
        See `locate`.
    beside : iterable of str
        Folders of the root that the manifest does not list; they are not looked at.

    Returns
    -------
    root : Path
    report : DataFrame
        One row per listed picture and per extra file: status (of `GOOD` or `BAD`), image_id, listed and found path
        below the root, detail.

    Raises
    ------
    StudyError
        The folder is missing or holds none of the pictures.
    """
    root, files = locate_listed(manifest, folder, layouts)
    found = {path.relative_to(root).as_posix(): path for path in files}
    found = {name: path for name, path in found.items() if name.split("/")[0] not in beside}
    pairs, missing, spare = _pair(manifest, found)
    holder = dict(zip(manifest["pixel_sha256"], manifest["path"], strict=True))
    rows = attempt_all(lambda pair: _compare(pair[0], found[pair[1]], pair[1], holder), pairs, "verifying")
    rows += _unpaired(missing, {name: found[name] for name in spare})
    order = {status: k for k, status in enumerate((*GOOD, *BAD))}
    return root, pd.DataFrame(rows, columns=COLUMNS).sort_values("status", key=lambda status: status.map(order), kind="stable", ignore_index=True)


def _pair(manifest, found):
    """Listed rows with the name of their file: by path, by the path in another container, by id and pixels elsewhere."""
    usable = [name for name in found if is_picture(name)]
    by_stem = {tail(name): name for name in reversed(usable)}
    pairs, left, taken = [], [], set()
    for row in manifest.itertuples():
        name = row.path if row.path in found else by_stem.get(tail(row.path))
        (left if name is None else pairs).append(row if name is None else (row, name))
        taken.add(name)
    elsewhere, missing = {}, []
    for name in usable:
        if name not in taken:
            elsewhere.setdefault(_identity(name), []).append(name)
    for row in left:  # a name alone proves nothing: another picture must not be moved to this place
        name = next((name for name in elsewhere.get(row.image_id, []) if _holds(found[name], row)), None)
        (missing if name is None else pairs).append(row if name is None else (row, name))
        taken.add(name)
    return pairs, missing, [name for name in found if name not in taken]


def _holds(file, row):
    return file.is_file() and (file_sha256(file) == row.sha256 or attempt(decoded_sha256, file) == row.pixel_sha256)


def _identity(name):
    return Path(name).stem.replace(" ", "")


def _compare(row, file, name, holder):
    report = {"image_id": row.image_id, "listed": row.path, "found": name}
    try:
        same_bytes = file_sha256(file) == row.sha256
        described = None if same_bytes else describe(file)
        same_pixels = same_bytes or described["pixel_sha256"] == row.pixel_sha256
        untouched = same_bytes and Path(row.path).suffix == file.suffix  # whatever its publisher called it
        detail = "" if untouched else mislabelled(file)
    except StudyError as error:
        return {**report, "status": "unreadable", "detail": str(error).split(" cannot be read as a picture: ")[-1]}
    except OSError as error:
        return {**report, "status": "unreadable", "detail": f"the system says '{error.strerror}'"}
    misplaced = _misplaced(row.path.split("/"), name.split("/"))
    if misplaced:
        return {**report, "status": misplaced, "detail": f"listed as {row.path}; {'bytes' if same_bytes else 'pixels'} as listed"}
    if same_pixels and detail:
        return {**report, "status": "wrong extension", "detail": detail}
    if not same_pixels:
        detail = _difference(row, described, holder) + detail.partition(" Rename")[0].partition(" Save")[0]  # a wrong picture is not mended by another name
    swapped = not same_pixels and described["pixel_sha256"] in holder
    return {**report, "status": _status(row, file, same_bytes, same_pixels, swapped), "detail": detail.strip()}


def _misplaced(place, other):
    """What is wrong with the place of a picture, '' when nothing is; both as the parts of a path."""
    if place[:-1] == other[:-1]:
        return "" if Path(place[-1]).stem == Path(other[-1]).stem else "renamed"
    if place[-2][:1] != other[-2:][0][:1]:  # published grade folders begin with the grade
        return "wrong grade folder"
    return "wrong split folder" if place[-2] == other[-2] and place[-3:-2] != other[-3:-2] else "wrong folder"


def _difference(row, described, holder):
    if described["pixel_sha256"] in holder:
        return f"holds the picture of {holder[described['pixel_sha256']]}. "
    units = {"width": "pixels wide", "height": "pixels high", "bit_depth": "bits"}
    listed = {name: getattr(row, name) for name in units}
    changes = [f"{described[name]} instead of {listed[name]} {unit}" for name, unit in units.items() if described[name] != listed[name]]
    return f"{', '.join(changes)}. " if changes else ""


def _status(row, file, same_bytes, same_pixels, swapped):
    same_container = Path(row.path).suffix.lower() == file.suffix.lower()
    if same_bytes:
        return "as listed"
    if same_pixels:
        return "changed bytes, same pixels" if same_container else "same pixels, other container"
    return "changed pixels" if same_container or swapped else "re-encoded"


def _unpaired(missing, spare):
    """Reports on listed pictures without a file and files without a row, which may be each other's."""
    hashes = {name: attempt(decoded_sha256, path) for name, path in spare.items() if is_picture(name)}
    same_pixels = {}
    for name, digest in reversed(hashes.items()):
        same_pixels.setdefault(str(digest), []).append(name)
    wanted = {row.image_id: row.path for row in missing}
    others = {_identity(name): name for name, path in spare.items()
              if name not in hashes and _identity(name) in wanted and isinstance(attempt(decoded_sha256, path), str)}
    rows, used = [], set()
    for row in missing:
        report = {"image_id": row.image_id, "listed": row.path}
        renamed, other = same_pixels.get(row.pixel_sha256), others.get(row.image_id)
        renamed = renamed.pop() if renamed else None
        if renamed or other:
            used.add(renamed or other)
            detail = f"rename it to {row.path}"
            rows.append({**report, "status": "renamed" if renamed else "wrong extension", "found": renamed or other, "detail": detail})
        else:
            rows.append({**report, "status": "missing", "found": "", "detail": ""})
    for name, digest in hashes.items():
        if name not in used:
            like = wanted.get(_identity(name))
            namesake = f"named like {like}, with other pixels: fetch that one" if like else ""
            failed = isinstance(digest, StudyError)
            rows.append({"status": "unreadable" if failed else "extra", "image_id": "", "listed": "", "found": name, "detail": "not listed: remove it" if failed else namesake})
    return rows


def problems(report):
    """The rows of a report that are not good."""
    return report[report["status"].isin(BAD)]


def summary(report, most=20):
    """A report for the terminal: one line per status with its meaning, and the first files of each bad one."""
    lines = []
    for status, meaning in {**GOOD, **BAD}.items():
        rows = report[report["status"] == status]
        if rows.empty:
            continue
        lines.append(f"  {status:<29}{len(rows):>6,}  {meaning}")
        if status in BAD:
            shown = rows.head(most)
            lines += [f"      {row.found or row.listed}{f': {row.detail}' if row.detail else ''}" for row in shown.itertuples()]
            lines += [f"      and {len(rows) - len(shown):,} more"] if len(rows) > len(shown) else []
    return "\n".join(lines)


def count_pictures(folder):
    """Number of picture files below a folder, 0 when it is absent."""
    return sum(is_picture(path) for path in folder.rglob("*")) if folder.is_dir() else 0
