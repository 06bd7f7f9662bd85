"""Files against a manifest: build a cohort's manifest from its files, or verify a folder picture by picture.

Both look at every file once (`_look_at`); what a file is, its hashes say, never its name.
"""

import io
import re
from functools import partial
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from koa_lib.data import cohorts
from koa_lib.data.files import in_place, locate, locate_listed, place, walk
from koa_lib.data.manifest import COLUMNS, check_cells, digits, natural, tail, validate
from koa_lib.errors import StudyError
from koa_lib.images.read import describe, file_sha256, is_picture, mislabelled

SECOND_READER = "MedicalExpert-II"
# Statuses in the order of a report; the first three are good.
GOOD = {
    "as listed": "the same bytes",
    "changed bytes, same pixels": "written again without loss: accepted",
    "same pixels, other container": "another file format without loss: accepted",
}
BAD = {
    "re-encoded": "another file format with other pixels, e.g. lossy: "
    "the study runs on it and stamps the report",
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
LOOKED = ["sha256", "pixel_sha256", "width", "height", "bit_depth", "channels", "mode", "suffix", "problem"]
REPORT = ["status", "image_id", "listed", "found", "detail"]


def _look_at(files, label, listed=()):
    """What files are, one row each: `found` (their path), `image_id` by their name, and `LOOKED`.

    `suffix` and `problem` are empty, or say what is wrong with the suffix, and why the file cannot be read.
    A file with the bytes of a listed picture has the columns of its row; only others are decoded.
    """
    look = partial(_look, listed={row["sha256"]: row for row in listed})
    rows = thread_map(
        look, files.values(), max_workers=2, desc=label, unit="file", disable=None, tqdm_class=tqdm
    )
    looked = pd.DataFrame(rows, columns=LOOKED)
    return looked.assign(found=list(files), image_id=[_identity(name) for name in files])


def _look(file, listed):
    try:
        row = listed.get(file_sha256(file)) if listed else None
        # Right, whatever its publisher called it.
        as_published = row and PurePosixPath(row["path"]).suffix == file.suffix
        return {**(row or describe(file)), "suffix": "" if as_published else mislabelled(file), "problem": ""}
    except StudyError as error:
        problem = str(error).split(" cannot be read as a picture: ")[-1]
    except OSError as error:
        problem = f"the system says '{error.strerror}'"
    return dict.fromkeys(LOOKED, "") | {"problem": problem}


def _identity(name):
    return PurePosixPath(name).stem.replace(" ", "")


# Building


def build(name, folder, readers=None):
    """The manifest of the pictures of a cohort that lie in a folder.

    Split, grade, patient and side come from path and name; sizes and hashes from the pixels. Without
    patients a group is the pictures with equal pixels, named after the first of them in path order of the
    whole set, which is the committed manifest together with the folder.

    Parameters
    ----------
    name : str
        A cohort of `cohorts.yaml`.
    folder : Path
        Holds the cohort in any of its layouts, whole or in part.
    readers : Path, optional
        CSV with `pixel_sha256` (or, without it, `image_id`) and `kl_grade_reader2`. By default the second
        reader's grades are taken from the folder MedicalExpert-II where there is one; they stay empty
        without either.

    Returns
    -------
    DataFrame
        Manifest rows in natural order of their paths; `attrs["left_out"]` lists pictures whose path does not
        fit.

    Raises
    ------
    StudyError
        Unknown cohort, no picture, or pictures that cannot be read or are wrongly named: all of them are
        told.
    """
    known = cohorts.facts(name)
    expected = f"the pictures of {name}, which lie in folders like {known.example}"
    root, files = locate(folder, known.files.fullmatch, known.layouts.values(), expected)
    below = Path(folder).resolve()  # a part of the cohort gives its rows
    pictures = {name: file for name, file in files.items() if is_picture(name) and file.is_relative_to(below)}
    chosen = {name: file for name, file in pictures.items() if known.files.fullmatch(place(name))}
    # Before the pictures, because a wrong file is told at once.
    key, second = _from_file(Path(readers)) if readers else ("pixel_sha256", second_reader(root))
    looked = _look_at(chosen, "reading pictures")
    _refuse_unusable(looked, chosen)
    frame = looked.assign(path=looked["found"], split=next(iter(known.roles)), group_id="", side="")
    frame = frame.assign(**known.told(frame["path"])).astype({"kl_grade": int})
    if known.group != "patient":
        frame["group_id"] = frame["pixel_sha256"].map(_first_of_equal(name, frame))
    frame["kl_grade_reader2"] = nearest_grades(frame, second, key)
    if readers and second and frame["kl_grade_reader2"].isna().all():
        raise StudyError(f"{readers} grades none of the pictures. Check that it belongs to {name}.")
    frame = frame[COLUMNS]
    validate(frame, f"the manifest of {folder}")
    others = [name for name in pictures if name not in chosen and name.split("/")[0] not in known.beside]
    frame.attrs["left_out"] = [pictures[name] for name in others]
    return frame


def _refuse_unusable(looked, files):
    problems = [
        f"{files[row.found]}: {row.problem or row.suffix[:-1] + ', or fetch the published file again.'}"
        for row in looked.itertuples()
        if row.problem or row.suffix
    ]
    if problems:
        raise StudyError(f"{len(problems)} of {len(files)} files cannot be used:\n  " + "\n  ".join(problems))


def _first_of_equal(name, frame):
    # The folder may hold a part of the set, whose groups are named after pictures that are not there.
    committed = [cohorts.manifest(name)] if cohorts.committed(name).is_file() else []  # phantoms have none
    whole = pd.concat([*committed, frame])
    order = whole.sort_values("path", key=lambda paths: paths.map(natural), kind="stable")
    return order.drop_duplicates("pixel_sha256").set_index("pixel_sha256")["image_id"]


def compare(built, name):
    """How the rows of a built manifest file compare with the committed one, byte for byte: a sentence."""
    committed = cohorts.committed(name)
    if not committed.is_file():
        return f"The study has none of {name} yet: move it to {committed}."
    ours, theirs = (
        pd.read_csv(path, dtype=str, keep_default_na=False, index_col="image_id")
        for path in (built, committed)
    )
    shared = ours.loc[ours.index.isin(theirs.index)]
    differing = shared != theirs.loc[shared.index, shared.columns]
    same, absent = (~differing.any(axis=1)).sum(), len(ours) - len(shared)
    said = f"{same:,} of them equal the committed manifest byte for byte, which lists {len(theirs):,}."
    if same < len(shared):
        counts = differing.sum()[lambda count: count > 0]
        said += f" Rows differ in {', '.join(f'{name} ({count:,})' for name, count in counts.items())}."
        if [*counts.index] == ["kl_grade_reader2"]:
            said += " Give --readers FILE for the second reader."
    return f"{said} {absent:,} are not in it." if absent else said


# The second reader


def _from_file(readers):
    # What tells a picture, and pairs of it and the grade.
    try:
        text = readers.read_text(encoding="utf-8-sig")
        mark = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write any of them
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, sep=mark, index_col=False)
        key = "pixel_sha256" if "pixel_sha256" in table else "image_id"
        table = table[[key, "kl_grade_reader2"]]
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(
            f"{readers} is no table of a second reader ({error}). "
            "Give a CSV with kl_grade_reader2 and image_id or pixel_sha256."
        ) from error
    table[key] = table[key].str.replace(" ", "")
    table["kl_grade_reader2"] = digits(table["kl_grade_reader2"])
    check_cells(table.drop(columns="pixel_sha256", errors="ignore"), readers)
    graded = table[table["kl_grade_reader2"] != ""]
    return key, list(zip(graded[key], graded["kl_grade_reader2"].astype(int), strict=True))


def second_reader(root):
    """Pixel hash and grade of every readable picture in the second reader's folder; names say nothing."""
    inside = sorted(walk(root / SECOND_READER))
    files = {file: file for file in inside if is_picture(file) and file.parent.name[:1] in "01234"}
    looked = _look_at(files, "second reader").query("problem == ''")
    return [(row.pixel_sha256, int(row.found.parent.name[0])) for row in looked.itertuples()]


def nearest_grades(frame, second, key="pixel_sha256"):
    """For each row the second reader's grade of the same picture; of several, the nearest to its own.

    Parameters
    ----------
    frame : DataFrame
        kl_grade and `key`.
    second : list of (value of `key`, grade)
    key : str
        What tells a picture.

    Returns
    -------
    Int64 Series, empty where the second reader has no such picture
    """
    own = frame[[key, "kl_grade"]].assign(row=frame.index)
    pairs = pd.DataFrame(second, columns=[key, "grade"]).merge(own, on=key)
    pairs["gap"] = (pairs["grade"] - pairs["kl_grade"]).abs()
    nearest = pairs.sort_values("gap", kind="stable").drop_duplicates("row").set_index("row")
    return nearest["grade"].reindex(frame.index).astype("Int64")


# Verifying


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
        One row per listed picture and per extra file: status (of `GOOD` or `BAD`), image_id, listed and
        found path below the root, detail.

    Raises
    ------
    StudyError
        The folder is missing or holds none of the pictures.
    """
    root, files = locate_listed(manifest, folder, layouts)
    ids = set(manifest["image_id"])
    files = {
        name: file
        for name, file in files.items()
        if (is_picture(name) or _identity(name) in ids) and name.split("/")[0] not in beside
    }
    looked = _look_at(files, "verifying", manifest.to_dict("records"))
    rows = manifest.assign(found=in_place(manifest["path"], files))
    wanted = rows[rows["found"].isna()].set_index("image_id")["path"]
    rows = _find_elsewhere(rows, looked)
    known = looked.set_index("found", drop=False).to_dict("index")
    holder = dict(zip(manifest["pixel_sha256"], manifest["path"], strict=True))
    told = [
        (*_judge(row, known.get(row.found), holder), row.image_id, row.path, row.found)
        for row in rows.itertuples()
    ]
    spare = filter(is_picture, known.keys() - set(rows["found"]))
    told += [(*_judge_spare(known[name], wanted), "", "", name) for name in sorted(spare, key=natural)]
    told.sort(key=lambda line: [*GOOD, *BAD].index(line[0]))
    report = pd.DataFrame(told, columns=["status", "detail", "image_id", "listed", "found"])
    return root, report[REPORT].fillna("")


def _find_elsewhere(rows, looked):
    # By id and pixels, then by pixels: a name alone proves nothing, and another picture must not be moved to
    # this place. Each file stands for one row only.
    for keys in (["image_id", "pixel_sha256"], ["pixel_sha256"]):
        lost, spare = rows[rows["found"].isna()], looked[~looked["found"].isin(rows["found"])]
        lost, spare = (
            table.set_index([*keys, table.groupby(keys).cumcount()])["found"] for table in (lost, spare)
        )
        rows.loc[rows["found"].isna(), "found"] = spare.reindex(lost.index).to_numpy()
    return rows


def _judge(row, file, holder):
    """Status and detail of a listed picture, by what `_look_at` tells of its file (None without one)."""
    if file is None:
        return "missing", ""
    if file["problem"]:
        return "unreadable", file["problem"]
    same_bytes, same_pixels = file["sha256"] == row.sha256, file["pixel_sha256"] == row.pixel_sha256
    same_container = Path(row.path).suffix.lower() == Path(row.found).suffix.lower()
    if not is_picture(row.found):
        return "wrong extension", f"rename it to {row.path}"
    if file["image_id"] != row.image_id:
        return "renamed", f"rename it to {row.path}"
    if place(row.found) != tail(row.path):
        state = f"listed as {row.path}; {'bytes' if same_bytes else 'pixels'} as listed"
        return _misplaced(PurePosixPath(row.path).parent, PurePosixPath(row.found).parent), state
    if same_pixels and file["suffix"]:
        return "wrong extension", file["suffix"]
    if same_bytes:
        return "as listed", ""
    if same_pixels:
        return "changed bytes, same pixels" if same_container else "same pixels, other container", ""
    swapped = holder.get(file["pixel_sha256"])
    difference = f"holds the picture of {swapped}." if swapped else _difference(row, file)
    suffix = re.sub(" (Rename|Save).*", "", file["suffix"])  # a wrong picture is not mended by another name
    return "changed pixels" if same_container or swapped else "re-encoded", f"{difference} {suffix}".strip()


def _misplaced(listed, found):
    # Both are grade folders. The names of published ones begin with the grade.
    if found == listed:
        return "renamed"
    if found.name[:1] != listed.name[:1]:
        return "wrong grade folder"
    other_split = found.name == listed.name and found.parent.name != listed.parent.name
    return "wrong split folder" if other_split else "wrong folder"


def _difference(row, file):
    units = {"width": "pixels wide", "height": "pixels high", "bit_depth": "bits"}
    changes = [
        f"{file[name]} instead of {getattr(row, name)} {unit}"
        for name, unit in units.items()
        if file[name] != getattr(row, name)
    ]
    return f"{', '.join(changes)}." if changes else ""


def _judge_spare(file, wanted):
    """Status and detail of a picture without a row; `wanted`: listed paths without a file in place, by image
    id.
    """
    if file["problem"]:
        foreign = "the system says" not in file["problem"]
        return "unreadable", "not listed: remove it" if foreign else file["problem"]
    like = wanted.get(file["image_id"])
    return "extra", f"named like {like}, with other pixels: fetch that one" if like else ""


def problems(report):
    """The rows of a report that are not good."""
    return report[report["status"].isin(BAD)]


def summary(report, most=20):
    """A report for the terminal: one line per status with its meaning, and the first bad files."""
    lines = []
    for status, rows in report.groupby("status", sort=False):
        lines.append(f"  {status:<29}{len(rows):>6,}  {(GOOD | BAD)[status]}")
        if status in BAD:
            lines += [
                f"      {row.found or row.listed}{row.detail and f': {row.detail}'}"
                for row in rows.head(most).itertuples()
            ]
            lines += [f"      and {len(rows) - most:,} more"] * (len(rows) > most)
    return "\n".join(lines)
