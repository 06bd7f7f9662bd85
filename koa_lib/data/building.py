"""Building a cohort's manifest from its files, so that anyone can check that the committed one says the truth."""

import io
from pathlib import Path

import pandas as pd

from koa_lib.data import cohorts
from koa_lib.data.batch import attempt_all
from koa_lib.data.manifest import COLUMNS, locate, natural, validate
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES
from koa_lib.images.read import decoded_sha256, describe, is_picture, mislabelled

SECOND_READER = "MedicalExpert-II"


def build(name, folder, readers=None):
    """The manifest of the pictures of a cohort that lie in a folder.

    Split, grade, patient and side come from path and name; sizes and hashes from the pixels. Without patients a
    group is the pictures with equal pixels, named after the first of them in path order of the whole set, which is
    the committed manifest together with the folder.

    Parameters
    ----------
    name : str
        A cohort of `cohorts.yaml`.
    folder : Path
        Holds the cohort in any of its layouts, whole or in part.
    readers : Path, optional
        CSV with `pixel_sha256` (or, without it, `image_id`) and `kl_grade_reader2`. By default the second reader's grades are
        taken from the folder MedicalExpert-II where there is one; they stay empty without either.

    Returns
    -------
    DataFrame
        Manifest rows in natural order of their paths; `attrs["left_out"]` lists pictures whose path does not fit.

    Raises
    ------
    StudyError
        Unknown cohort, no picture, or pictures that cannot be read or are wrongly named: all of them are told.
    """
    known = cohorts.facts(name)
    root, files = locate(folder, known.pattern.fullmatch, known.layouts.values(), f"the pictures of {name}, which lie in folders {known.example}")
    below = Path(folder).resolve()  # a part of the cohort gives its rows
    files = [path for path in files if path.is_relative_to(below)]
    chosen = {path: match for path in files if is_picture(path)
              and (match := known.pattern.fullmatch(path.relative_to(root).with_suffix("").as_posix()))}
    second = _second_grades(root, readers)
    described = read_all(_describe, chosen, "reading pictures")
    rows = [_row(known, root, path, match, columns) for (path, match), columns in zip(chosen.items(), described, strict=True)]
    frame = pd.DataFrame(rows).astype({"kl_grade_reader2": "Int64"})
    if known.group != "patient":
        frame["group_id"] = frame["pixel_sha256"].map(_first_of_equal(name, frame))
    if second is not None:
        frame["kl_grade_reader2"] = second(frame)
    validate(frame, f"the manifest of {folder}")
    frame = frame[COLUMNS]
    frame.attrs["left_out"] = [path for path in files if is_picture(path) and path not in chosen and path.relative_to(root).parts[0] not in known.beside]
    return frame


def compare(built, name):
    """How the rows of a built manifest file compare with the committed one, byte for byte: a sentence."""
    committed = cohorts.MANIFESTS / f"{name}.csv"
    if not committed.is_file():
        return f"{name} has no committed manifest to compare with."
    ours, theirs = (Path(path).read_bytes().splitlines()[1:] for path in (built, committed))
    same = len(set(ours) & set(theirs))
    rest = _differing(built, committed) if same < len(ours) else ""
    return f"{same:,} of them equal the committed manifest byte for byte, which lists {len(theirs):,}.{rest}"


def _differing(built, committed):
    ours, theirs = (pd.read_csv(path, dtype=str, keep_default_na=False).set_index("image_id") for path in (built, committed))
    both = ours.merge(theirs, left_index=True, right_index=True, suffixes=("", " listed"))
    counts = {name: int((both[name] != both[f"{name} listed"]).sum()) for name in theirs}
    columns = ", ".join(f"{name} ({count:,})" for name, count in counts.items() if count)
    absent = len(ours) - len(both)
    hint = " Give --readers FILE for the second reader." if list(filter(counts.get, counts)) == ["kl_grade_reader2"] else " 'koa data verify' names the files."
    return (f" Rows differ in {columns}.{hint}" if columns else "") + (f" {absent:,} are not in it." if absent else "")


def read_all(read, files, label):
    """Call a function for each file; the files that fail are told together.

    Raises
    ------
    StudyError
        Names every file that could not be read.
    """
    outcomes = attempt_all(read, files, label)
    problems = [outcome for outcome in outcomes if isinstance(outcome, StudyError)]
    if problems:
        raise StudyError(f"{len(problems)} of {len(files)} files cannot be used:\n  " + "\n  ".join(map(str, problems)))
    return outcomes


def _row(known, root, path, match, described):
    named = match.groupdict()
    split = named.get("split") or next(iter(known.roles))
    return {"image_id": named["id"].replace(" ", ""), "path": path.relative_to(root).as_posix(), "split": split, "kl_grade": int(named["grade"]),
            "kl_grade_reader2": pd.NA, "group_id": named.get("group", ""), "side": named.get("side", ""), **described}


def _first_of_equal(name, frame):
    # The folder may hold a part of the set, whose groups are named after pictures that are not there.
    known, whole = ["image_id", "path", "pixel_sha256"], frame
    if (cohorts.MANIFESTS / f"{name}.csv").is_file():  # phantoms have none
        whole = pd.concat([cohorts.manifest(name)[known], frame[known]])
    order = whole.iloc[sorted(range(len(whole)), key=lambda k: natural(whole["path"].iloc[k]))]
    return order.drop_duplicates("pixel_sha256").set_index("pixel_sha256")["image_id"].to_dict()


def _describe(path):
    if problem := mislabelled(path):
        raise StudyError(f"{path}: {problem[:-1]}, or fetch the published file again.")
    return describe(path)


def _second_grades(root, readers):
    # A function from manifest rows to the second reader's grades, or None; made first, because a wrong file is told at once.
    if readers is not None:
        return _from_file(Path(readers))
    if (root / SECOND_READER).is_dir():
        second = second_reader(root)
        return lambda frame: nearest_grades(frame, second)
    return None


def _from_file(readers):
    try:
        text = readers.read_text(encoding="utf-8-sig")
        mark = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write any of them
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, sep=mark, index_col=False)
    except (OSError, ValueError) as error:
        raise StudyError(f"The readers file {readers} cannot be read ({error}). Give a CSV with pixel_sha256 and kl_grade_reader2.") from error
    key = next((column for column in ("pixel_sha256", "image_id") if column in table), None)
    if key is None or "kl_grade_reader2" not in table:
        raise StudyError(f"The readers file {readers} has the columns {', '.join(table)}. It needs kl_grade_reader2 and image_id or pixel_sha256.")
    table["kl_grade_reader2"] = table["kl_grade_reader2"].str.removesuffix(".0")  # pandas writes 1.0 where some are empty
    wrong = ~table["kl_grade_reader2"].isin([*map(str, GRADES), ""])
    if wrong.any():
        raise StudyError(f"{readers}, row {wrong.idxmax() + 2}: kl_grade_reader2 '{table['kl_grade_reader2'][wrong.idxmax()]}' is no KL grade. Use 0-4 or leave it empty.")
    if key == "image_id":
        table[key] = table[key].str.replace(" ", "")
        twice = table[key].duplicated()
        if twice.any():
            raise StudyError(f"{readers}, row {twice.idxmax() + 2}: image_id '{table[key][twice.idxmax()]}' is there twice. Keep one row per picture.")
        by_id = dict(zip(table[key], table["kl_grade_reader2"], strict=True))
        return lambda frame: _matched(frame["image_id"].map(by_id).replace("", pd.NA).astype("Int64"), by_id, readers)
    graded = table[table["kl_grade_reader2"] != ""]
    second = list(zip(graded[key], graded["kl_grade_reader2"].astype(int), strict=True))
    return lambda frame: _matched(nearest_grades(frame, second), dict(second), readers)


def _matched(grades, known, readers):
    if any(str(grade) for grade in known.values()) and grades.isna().all():
        raise StudyError(f"The readers file {readers} grades none of the {len(grades)} pictures. Check that it belongs to this cohort.")
    return grades


def second_reader(root):
    """Pixel hash and grade of every readable picture in the second reader's folder, whose names mean nothing."""
    files = [path for path in sorted((Path(root) / SECOND_READER).rglob("*")) if is_picture(path) and path.parent.name[:1] in "01234"]
    hashes = attempt_all(decoded_sha256, files, "second reader")
    return [(digest, int(path.parent.name[0])) for path, digest in zip(files, hashes, strict=True) if isinstance(digest, str)]


def nearest_grades(frame, second):
    """For each row the second reader's grade of the same pixels; of several, the one nearest to the row's own.

    Parameters
    ----------
    frame : DataFrame
        pixel_sha256, kl_grade.
    second : list of (pixel hash, grade)

    Returns
    -------
    Int64 Series, empty where the second reader has no such pixels
    """
    grades = {}
    for digest, grade in second:
        grades.setdefault(digest, []).append(grade)
    found = [min(grades.get(row.pixel_sha256, [pd.NA]), key=lambda grade, own=row.kl_grade: abs(grade - own) if grade is not pd.NA else 0) for row in frame.itertuples()]
    return pd.Series(found, frame.index, dtype="Int64")
