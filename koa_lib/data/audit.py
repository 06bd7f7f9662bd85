"""Data audit: what repeats, contradicts, leaks or looks odd in a cohort, found in its files."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from koa_lib import metrics, splits
from koa_lib.data import duplicates, shortcut
from koa_lib.data.sets import SUBSETS, conflicting, subset, two_knees
from koa_lib.errors import StudyError

INVERTED = -0.5  # correlation with the cohort's median picture below which a picture is a negative
FOLDS = 5  # of the printed protocol
COLUMNS = ["finding", "cohort", "groups", "files", "detail"]
AFFECTED = ["finding", "cohort", "group", "image_id", "path"]


@dataclass(frozen=True)
class Audit:
    """The result of an audit, as four tables that are files of the run.

    Attributes
    ----------
    findings : DataFrame
        finding, cohort, groups, files, detail; zero counts are kept, because a clean result is a result.
    affected_files : DataFrame
        finding, cohort, group, image_id, path: every file behind every count.
    sets : DataFrame
        cohort, image_id, near_group, and for each derived set whether the picture belongs to it.
    format_shortcut : DataFrame
        cohort and the columns of `shortcut.predictability`.
    """

    findings: pd.DataFrame
    affected_files: pd.DataFrame
    sets: pd.DataFrame
    format_shortcut: pd.DataFrame

    def write(self, folder):
        """Write each table as CSV, e.g. findings.csv."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            getattr(self, field.name).to_csv(folder / f"{field.name}.csv", index=False, lineterminator="\n")


def audit_all(inspected, seed=42, draws=1000):
    """Audit cohorts one by one, and look in each later one for pictures of the first.

    Parameters
    ----------
    inspected : dict of str to DataFrame
        Cohort to its rows, see `audit`.

    Returns
    -------
    Audit
    """
    results = [audit(rows, name, seed, draws) for name, rows in inspected.items()]
    whole = Audit(*(pd.concat([getattr(result, field.name) for result in results], ignore_index=True) for field in fields(Audit)))
    (first, known), *later = inspected.items()
    shared = [_overlap(rows, known, name, first) for name, rows in later]
    findings, affected = ([pair[k] for pair in shared] for k in (0, 1))
    return replace(whole, findings=pd.concat([whole.findings, *findings], ignore_index=True),
                   affected_files=pd.concat([whole.affected_files, *affected], ignore_index=True))


def audit(inspected, cohort, seed=42, draws=1000):
    """Audit one cohort.

    Parameters
    ----------
    inspected : DataFrame
        Rows from `inspection.inspect`; `kl_grade_reader2` already matched by pixels.
    cohort : str
        Its name.
    seed, draws : int
        Of the folds and of the format shortcut's interval.

    Returns
    -------
    Audit

    Raises
    ------
    StudyError
        When no file can be read.
    """
    readable = inspected[inspected["readable"]]
    if readable.empty:
        raise StudyError(f"No file of {cohort} can be read; the first: {inspected['problem'].iloc[0]}")
    whole_numbers = dict.fromkeys(("width", "height", "bit_depth", "channels"), int)  # beside unreadable files they are floats
    readable = readable.astype(whole_numbers).assign(near_group=duplicates.near_groups(readable))
    unit = "group_id" if readable["side"].ne("").any() else "near_group"  # where a side is known, so is the patient
    betrayed = shortcut.predictability(readable, unit, seed, draws)
    found = [*_files(inspected), *_repeats(readable), *_readers(readable), *_leaks(readable, seed), *_looks(readable), *_shortcut(readable, betrayed)]
    findings = [(name, cohort, groups.nunique(), len(rows), detail) for name, rows, groups, detail in found]
    affected = [pd.DataFrame({"finding": name, "cohort": cohort, "group": groups, "image_id": rows["image_id"], "path": rows["path"]})
                for name, rows, groups, _ in found if name not in _WHOLE]
    sets = readable[["image_id", "near_group"]].assign(**{name: readable["image_id"].isin(subset(readable, name)) for name in SUBSETS})
    sets.insert(0, "cohort", cohort)
    betrayed.insert(0, "cohort", cohort)
    return Audit(pd.DataFrame(findings, columns=COLUMNS), pd.concat(affected)[AFFECTED], sets, betrayed)


_WHOLE = ("size and depth predict the grade", "gray values predict the grade")  # about the cohort, not about single files
MEANING = {
    "unreadable files": "cannot be opened as pictures",
    "suffix and content differ": "for example a JPEG file called .png",
    "pixels differ from the manifest": "re-encoded or changed copies of the published files",
    "equal pixels": "the same picture in several files",
    "equal pixels under different grades": "the same picture with two grades: both can't be right",
    "near-duplicates": "other pixels, but alike to a perceptual hash",
    "near-duplicates under different grades": "pictures that look alike with different grades",
    "readers disagree": "the second reader gave the same pixels another grade",
    "inverted pictures": "negatives: bone is dark",
    "two knees in one picture": "which knee the grade belongs to is not known",
    "other sizes": "one knee in a picture of unusual size",
    "16-bit pictures": "65,536 gray levels instead of 256",
    "colour pictures": "the three colour channels differ; lossy compression alone can do that",
    "size and depth predict the grade": "whether width, height, bit depth and channels tell the grade",
    "gray values predict the grade": "whether mean and quantiles of the gray values tell the grade",
}


def meaning(finding):
    """What a finding says, in a few plain words."""
    across = "belong together and lie in several parts" if " across " in finding else "equal to, or alike, a picture of the other cohort"
    return MEANING.get(finding, across)


def _finding(name, rows, groups, detail):
    return name, rows, rows[groups] if isinstance(groups, str) else groups, detail


def _files(rows):
    unreadable, misnamed = rows[~rows["readable"]], rows[rows["readable"] & (rows["problem"] != "")]
    other = rows[rows["readable"] & ~rows["as_in_manifest"]]
    return [
        _finding("unreadable files", unreadable, "image_id", "left out of the rest of the audit"),
        _finding("suffix and content differ", misnamed, "image_id", "read by their content"),
        _finding("pixels differ from the manifest", other, "image_id", "re-encoded or changed copies; 'koa data verify' tells which"),
    ]


def _repeats(rows):
    equal = rows[rows.duplicated("pixel_sha256", keep=False)]
    # A near-duplicate group counts when it holds more than copies of one picture.
    near = rows[conflicting(rows, "near_group", "pixel_sha256")]
    rule = f"perceptual hashes differ in at most {duplicates.THRESHOLD} of 256 bits"
    return [
        _finding("equal pixels", equal, "pixel_sha256", f"{rows['pixel_sha256'].nunique():,} unique pictures of {len(rows):,}"),
        _finding("equal pixels under different grades", equal[conflicting(equal)], "pixel_sha256", "left out of the deduplicated set"),
        _finding("near-duplicates", near, "near_group", f"{rule}, pixels not equal; {rows['near_group'].nunique():,} groups remain"),
        _finding("near-duplicates under different grades", near[conflicting(near, "near_group")], "near_group", "kept in the sets, resampled together"),
    ]


def _readers(rows):
    second = rows[rows["kl_grade_reader2"].notna()]
    agreement = reader_agreement(second)
    detail = "one reader only"
    if agreement:
        detail = f"of {len(second)} pictures with two grades: kappa {agreement['kappa']:.3f}, linear {agreement['linear_kappa']:.3f}, quadratic {agreement['quadratic_kappa']:.3f}"
    return [_finding("readers disagree", second[second["kl_grade"] != second["kl_grade_reader2"]], "image_id", detail)]


def _leaks(rows, seed):
    # Folds are made here over all pictures, as the printed protocol does, whatever the profile trains.
    official = [("official split", "split")] if rows["split"].nunique() > 1 else []
    folds = [("image-level folds, as printed", "image_fold"), ("patient folds, our protocol", "patient_fold")] if official else []
    try:
        rows = rows.assign(**_folds(rows, seed)) if folds else rows
    except StudyError:  # a part of a cohort may hold too few pictures of a grade
        folds = []
    units = (("group_id", "patients"), ("pixel_sha256", "equal pixels"), ("near_group", "near-duplicates"))
    found = []
    for place, column in official + folds:
        for group, what in units:
            across = rows[conflicting(rows, group, column)]
            found.append(_finding(f"{what} across {place}", across, group, f"in more than one of {rows[column].nunique()} parts, of {rows[group].nunique():,} {what} in all"))
    return found


def _folds(rows, seed):
    made = {"image_fold": splits.image_folds(rows, FOLDS, seed), "patient_fold": splits.patient_folds(rows, FOLDS, seed)}
    labels = {name: np.zeros(len(rows), dtype=int) for name in made}
    for name, pairs in made.items():
        for number, (_, out) in enumerate(pairs):
            labels[name][out] = number
    return labels


def _looks(rows):
    sizes = rows.groupby(["width", "height"]).size().sort_values(ascending=False)
    usual, double = sizes.index[0], two_knees(rows)
    odd = rows[((rows["width"] != usual[0]) | (rows["height"] != usual[1])) & ~double]
    modes = rows["mode"].value_counts()
    deep, colour, inverted = rows["bit_depth"] == 16, rows["channels"] == 3, rows["polarity"] < INVERTED
    return [
        _finding("inverted pictures", rows[inverted], "near_group", f"correlation with the cohort's median picture below {INVERTED:g}"),
        _finding("two knees in one picture", rows[double], "near_group", "width at least 3 times the height"),
        _finding("other sizes", odd, "near_group", f"one knee, not {usual[0]} x {usual[1]}; all sizes: " + "; ".join(f"{w} x {h}: {n:,}" for (w, h), n in sizes.head(4).items())),
        _finding("16-bit pictures", rows[deep], "near_group", "file modes: " + ", ".join(f"{mode} {n:,}" for mode, n in modes.items())),
        _finding("colour pictures", rows[colour], "near_group", "averaged when read"),
    ]


def _shortcut(rows, betrayed):
    found = []
    for name, features in zip(_WHOLE, shortcut.FEATURES, strict=False):
        row = next(betrayed[betrayed["features"] == features].itertuples(), None)
        if row is None:
            detail = "too few pictures of a grade to tell"
        elif pd.isna(row.balanced_accuracy):
            detail = "all files are alike"
        else:
            detail = f"balanced accuracy {row.balanced_accuracy:.2f} ({row.ci_low:.2f} to {row.ci_high:.2f}), chance {row.chance:.2f}"
        told = row is not None and row.above_chance
        found.append(_finding(name, rows if told else rows.iloc[:0], "near_group", detail))
    return found


def in_words(result):
    """What an audit found about folds and near-duplicates, in sentences."""
    found, sentences = result.findings.set_index("finding"), []
    parted, alike, shared = (found[found.index.str.contains(text)] for text in ("patients across image-level", "^near-duplicates$", "^also in"))
    for row in parted.itertuples():
        sentences.append(f"Five folds over single pictures, as printed, would part the knees of {row.groups:,} patients of {row.cohort}; folds over patients keep them whole.")
    sentences += [f"Groups of near-duplicates in {row.cohort}: {row.groups:,}." for row in alike[alike["groups"] > 0].itertuples()]
    sentences += [f"Pictures of {row.cohort} that are {row.Index}: {row.files:,}." for row in shared.itertuples()]
    return " ".join(sentences)


def one_of_each_oddity(result):
    """The first file of each kind of odd picture, at most five: finding, short (for a title), cohort, image_id."""
    short = {"inverted pictures": "inverted", "two knees in one picture": "two knees", "other sizes": "other size", "16-bit pictures": "16 bits", "colour pictures": "colour"}
    odd = result.affected_files[result.affected_files["finding"].isin(short)].drop_duplicates("finding")
    return odd.assign(short=odd["finding"].map(short)).reset_index(drop=True)


def as_text(result):
    """Findings and sets for the terminal."""
    lines = [f"  {row.finding:<54}{row.groups:>7,}{row.files:>7,}  {row.detail}" for row in result.findings.itertuples()]
    sets = ", ".join(f"{name.replace('_', ' ')} {result.sets[name].sum():,}" for name in SUBSETS)
    return "\n".join([f"  {'finding':<54}{'groups':>7}{'files':>7}", *lines, f"derived sets: {sets}"])


def _overlap(inspected, other, cohort, name):
    """Pictures of a cohort whose equal or near-duplicate lies in another cohort: a row of findings, and the files of both."""
    both = pd.concat([inspected[inspected["readable"]].assign(origin=cohort), other[other["readable"]].assign(origin=name)], ignore_index=True)
    both["near_group"] = duplicates.near_groups(both)
    shared = both[conflicting(both, "near_group", "origin")]
    own, finding = shared[shared["origin"] == cohort], f"also in {name}"
    row = (finding, cohort, own["near_group"].nunique(), len(own), f"equal or at most {duplicates.THRESHOLD} of 256 bits apart")
    affected = pd.DataFrame({"finding": finding, "cohort": shared["origin"], "group": shared["near_group"], "image_id": shared["image_id"], "path": shared["path"]})
    return pd.DataFrame([row], columns=COLUMNS), affected


def reader_agreement(rows):
    """Agreement of two readers on the same pixels: pictures, share, kappas, confusion matrix; None with one reader."""
    both = rows[rows["kl_grade_reader2"].notna()]
    if both.empty:
        return None
    cm = metrics.confusion(both["kl_grade"].to_numpy(), both["kl_grade_reader2"].to_numpy(dtype=int))
    values = metrics.from_confusion(cm)
    return {"pictures": len(both), "agreement": float(values["accuracy"]), "kappa": float(values["kappa"]),
            "quadratic_kappa": float(values["qwk"]), "linear_kappa": float(values["linear_kappa"]), "confusion": cm}
