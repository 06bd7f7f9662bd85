"""Files against a manifest: build a cohort's manifest from its files, or verify a folder picture by picture.

Both look at every file once (`_look_at`); what a file is, its hashes say, never its name.
"""

import io
import re
from functools import partial
from pathlib import Path, PurePosixPath

import pandas as pd

from koa_lib.data import cohorts
from koa_lib.data.files import attempt_all, in_place, locate, locate_listed, walk
from koa_lib.data.manifest import COLUMNS, check_cells, digits, natural, validate
from koa_lib.errors import StudyError
from koa_lib.images.read import decoded_sha256, describe, file_sha256, is_picture, mislabelled

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


def _look_at(files, label, manifest=None):
    """What files are, one row each: `found` (their path), the columns of `describe`, `suffix`, `problem`.

    The last two are empty, or say what is wrong with the suffix, and why the file cannot be read. A file with
    the bytes of a listed picture has the columns of its row; only others are decoded.
    """
    listed = {} if manifest is None else {row["sha256"]: row for row in manifest.to_dict("records")}
    rows = attempt_all(partial(_look, listed=listed), files.values(), label)
    return pd.DataFrame(
        [{"found": name, **row} for name, row in zip(files, rows, strict=True)], columns=["found", *LOOKED]
    )


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


def _place(name):
    return PurePosixPath(name).with_suffix("")


def _identity(name):
    return _place(name).name.replace(" ", "")


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
        Manifest rows in natural order of their paths; `attrs["left_out"]` lists pictures whose path does
        not fit.

    Raises
    ------
    StudyError
        Unknown cohort, no picture, or pictures that cannot be read or are wrongly named: all of them are
        told.
    """
    known = cohorts.facts(name)
    expected = f"the pictures of {name}, which lie in folders {known.example}"
    root, files = locate(folder, known.files.fullmatch, known.layouts.values(), expected)
    below = Path(folder).resolve()  # a part of the cohort gives its rows
    pictures = {name: file for name, file in files.items() if is_picture(name) and file.is_relative_to(below)}
    chosen = {name: file for name, file in pictures.items() if known.files.fullmatch(_place(name).as_posix())}
    second = _second_grades(root, readers)
    looked = _look_at(chosen, "reading pictures")
    _refuse_unusable(looked, chosen)
    nothing = {"split": next(iter(known.roles)), "group_id": "", "side": "", "kl_grade_reader2": ""}
    told = known.told(looked["found"])
    frame = looked.assign(**nothing).assign(**told, path=looked["found"])
    frame["kl_grade"] = frame["kl_grade"].astype(int)
    if known.group != "patient":
        frame["group_id"] = frame["pixel_sha256"].map(_first_of_equal(name, frame))
    frame["kl_grade_reader2"] = second(frame)
    frame = frame[COLUMNS]
    validate(frame, f"the manifest of {folder}")
    others = [name for name in pictures if name not in chosen and name.split("/")[0] not in known.beside]
    frame.attrs["left_out"] = [pictures[name] for name in others]
    return frame


def _refuse_unusable(looked, files):
    problems = [
        f"{files[row.found]} cannot be read as a picture: {row.problem}"
        if row.problem
        else f"{files[row.found]}: {row.suffix[:-1]}, or fetch the published file again."
        for row in looked.itertuples()
        if row.problem or row.suffix
    ]
    if problems:
        raise StudyError(f"{len(problems)} of {len(files)} files cannot be used:\n  " + "\n  ".join(problems))


def _first_of_equal(name, frame):
    # The folder may hold a part of the set, whose groups are named after pictures that are not there.
    known, whole = ["image_id", "path", "pixel_sha256"], frame
    if (cohorts.MANIFESTS / f"{name}.csv").is_file():  # phantoms have none
        whole = pd.concat([cohorts.manifest(name)[known], frame[known]])
    order = whole.sort_values("path", key=lambda paths: paths.map(natural), kind="stable")
    return order.drop_duplicates("pixel_sha256").set_index("pixel_sha256")["image_id"]


def compare(built, name):
    """How the rows of a built manifest file compare with the committed one, byte for byte: a sentence."""
    committed = cohorts.MANIFESTS / f"{name}.csv"
    if not committed.is_file():
        return f"{name} has no committed manifest to compare with."
    ours, theirs = (
        pd.read_csv(path, dtype=str, keep_default_na=False, index_col="image_id")
        for path in (built, committed)
    )
    shared = ours.index.intersection(theirs.index, sort=False)
    differing = ours.loc[shared] != theirs.loc[shared, ours.columns]
    counts, absent = differing.sum(), len(ours) - len(shared)
    same = (~differing.any(axis=1)).sum()
    said = [f"{same:,} of them equal the committed manifest byte for byte, which lists {len(theirs):,}."]
    if counts.any():
        only_reader = set(counts.index[counts > 0]) == {"kl_grade_reader2"}
        columns = ", ".join(f"{name} ({count:,})" for name, count in counts[counts > 0].items())
        said.append(f"Rows differ in {columns}.")
        said.append(
            "Give --readers FILE for the second reader."
            if only_reader
            else "'koa data verify' names the files."
        )
    return " ".join([*said, *[f"{absent:,} are not in it."] * bool(absent)])


# The second reader


def _second_grades(root, readers):
    # A function from manifest rows to the second reader's grades; made first, because a wrong file is told
    # at once.
    if readers is None:
        return partial(nearest_grades, second=second_reader(root))
    return _from_file(Path(readers))


def _from_file(readers):
    try:
        text = readers.read_text(encoding="utf-8-sig")
        mark = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write any of them
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, sep=mark, index_col=False)
    except (OSError, ValueError) as error:
        raise StudyError(
            f"The readers file {readers} cannot be read ({error}). "
            "Give a CSV with pixel_sha256 and kl_grade_reader2."
        ) from error
    key = next((name for name in ("pixel_sha256", "image_id") if name in table), None)
    if key is None or "kl_grade_reader2" not in table:
        raise StudyError(
            f"The readers file {readers} has the columns {', '.join(table)}. "
            "It needs kl_grade_reader2 and image_id or pixel_sha256."
        )
    table = table.assign(
        **{key: table[key].str.replace(" ", ""), "kl_grade_reader2": digits(table["kl_grade_reader2"])}
    )
    check_cells(
        table[["image_id", "kl_grade_reader2"] if key == "image_id" else ["kl_grade_reader2"]], readers
    )
    graded = table[table["kl_grade_reader2"] != ""]
    second = list(zip(graded[key], graded["kl_grade_reader2"].astype(int), strict=True))

    def grades_of(frame):
        found = nearest_grades(frame, second, key)
        if second and found.isna().all():
            raise StudyError(
                f"The readers file {readers} grades none of the {len(frame)} pictures. "
                "Check that it belongs to this cohort."
            )
        return found

    return grades_of


def second_reader(root):
    """Pixel hash and grade of every readable picture in the second reader's folder; names say nothing."""
    files = [
        file
        for file in sorted(walk(Path(root) / SECOND_READER))
        if is_picture(file) and file.parent.name[:1] in "01234"
    ]
    hashes = attempt_all(decoded_sha256, files, "second reader")
    return [
        (digest, int(file.parent.name[0]))
        for file, digest in zip(files, hashes, strict=True)
        if isinstance(digest, str)
    ]


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
    grades = {}
    for name, grade in second:
        grades.setdefault(name, []).append(grade)
    found = [
        min(grades.get(name, ()), key=lambda grade, own=own: abs(grade - own), default=pd.NA)
        for name, own in zip(frame[key], frame["kl_grade"], strict=True)
    ]
    return pd.Series(found, frame.index, dtype="Int64")


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
    files = {name: file for name, file in files.items() if name.split("/")[0] not in beside}
    rows = manifest.assign(found=in_place(manifest["path"], files))
    rows["in_place"] = rows["found"].notna()
    wanted = rows[~rows["in_place"]].set_index("image_id")["path"].to_dict()
    near = {
        *rows["found"],
        *filter(is_picture, files),
        *(name for name in files if _identity(name) in wanted),
    }
    looked = _look_at({name: file for name, file in files.items() if name in near}, "verifying", manifest)
    rows, known = _find_elsewhere(rows, looked), looked.set_index("found", drop=False).to_dict("index")
    holder = dict(zip(manifest["pixel_sha256"], manifest["path"], strict=True))
    told = [
        (row.image_id, row.path, row.found, *_judge(row, known.get(row.found), holder))
        for row in rows.itertuples()
    ]
    spare = set(filter(is_picture, known)).difference(rows["found"])
    told += [("", "", name, *_judge_spare(known[name], wanted)) for name in known if name in spare]
    report = pd.DataFrame(told, columns=["image_id", "listed", "found", "status", "detail"]).fillna("")
    order = [*GOOD, *BAD].index
    report = report.sort_values("status", key=lambda status: status.map(order), kind="stable")
    return root, report[REPORT].reset_index(drop=True)


def _find_elsewhere(rows, looked):
    # By id and pixels, then by pixels: a name alone proves nothing, and another picture must not be moved
    # to this place.
    files = looked.assign(image_id=looked["found"].map(_identity))[["found", "image_id", "pixel_sha256"]]
    for keys in (["image_id", "pixel_sha256"], ["pixel_sha256"]):
        lost, spare = rows[rows["found"].isna()], files[~files["found"].isin(rows["found"])]
        # Each file for one row only.
        lost, spare = (table.assign(nth=table.groupby(keys).cumcount()) for table in (lost, spare))
        both = lost.reset_index().merge(spare, on=[*keys, "nth"], suffixes=("_lost", ""))
        rows.loc[both["index"], "found"] = both["found"].to_numpy()
    return rows


def _judge(row, file, holder):
    """Status and detail of a listed picture, by what `_look_at` tells of its file (None without one)."""
    if file is None:
        return "missing", ""
    if file["problem"]:
        return "unreadable", file["problem"]
    same_bytes, same_pixels = file["sha256"] == row.sha256, file["pixel_sha256"] == row.pixel_sha256
    if not row.in_place:
        if not is_picture(row.found) or _identity(row.found) != row.image_id:
            return "renamed" if is_picture(row.found) else "wrong extension", f"rename it to {row.path}"
        state = f"listed as {row.path}; {'bytes' if same_bytes else 'pixels'} as listed"
        return _misplaced(row.path.split("/"), row.found.split("/")), state
    if same_pixels and file["suffix"]:
        return "wrong extension", file["suffix"]
    if same_bytes:
        return "as listed", ""
    same_container = Path(row.path).suffix.lower() == Path(row.found).suffix.lower()
    if same_pixels:
        return "changed bytes, same pixels" if same_container else "same pixels, other container", ""
    swapped = holder.get(file["pixel_sha256"])
    difference = f"holds the picture of {swapped}." if swapped else _difference(row, file)
    suffix = re.sub(" (Rename|Save).*", "", file["suffix"])  # a wrong picture is not mended by another name
    return "changed pixels" if same_container or swapped else "re-encoded", f"{difference} {suffix}".strip()


def _misplaced(place, other):
    # Both as the parts of a path. Published grade folders begin with the grade.
    if place[:-1] == other[:-1]:
        return "renamed"
    if place[-2][:1] != other[-2:][0][:1]:
        return "wrong grade folder"
    return "wrong split folder" if place[-2] == other[-2] and place[-3:-2] != other[-3:-2] else "wrong folder"


def _difference(row, file):
    units = {"width": "pixels wide", "height": "pixels high", "bit_depth": "bits"}
    changes = [
        f"{file[name]} instead of {getattr(row, name)} {unit}"
        for name, unit in units.items()
        if file[name] != getattr(row, name)
    ]
    return f"{', '.join(changes)}." if changes else ""


def _judge_spare(file, wanted):
    """Status and detail of a picture without a row; `wanted`: listed paths without a file in place, by
    image id.
    """
    if file["problem"]:
        return "unreadable", file["problem"] if "the system says" in file[
            "problem"
        ] else "not listed: remove it"
    like = wanted.get(_identity(file["found"]))
    return "extra", f"named like {like}, with other pixels: fetch that one" if like else ""


def problems(report):
    """The rows of a report that are not good."""
    return report[report["status"].isin(BAD)]


def summary(report, most=20):
    """A report for the terminal: one line per status with its meaning, and the first bad files."""
    lines = []
    for status, meaning in {**GOOD, **BAD}.items():
        rows = report[report["status"] == status]
        if len(rows):
            lines.append(f"  {status:<29}{len(rows):>6,}  {meaning}")
        if status in BAD:
            lines += [
                f"      {row.found or row.listed}{row.detail and f': {row.detail}'}"
                for row in rows.head(most).itertuples()
            ]
            lines += [f"      and {len(rows) - most:,} more"] * (len(rows) > most)
    return "\n".join(lines)
