"""The data cards of a run: what its cohorts and the published ones hold, from manifests and the audit."""

from pathlib import Path

from koa_lib.data import cohorts, sets
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.report import words
from reports import provenance


def cards(run):
    """One card for each cohort that the run read, then one for each published cohort that it did not.

    Returns
    -------
    list of dict
        name, title, read (was it), drawn (is it phantoms), facts (name-value pairs), counts (rows of split
        and pictures per grade), sets, problems, clean.
    """
    read = [getattr(run.settings, role).name for role in ("training", "external")
            if role in provenance.note(run.folder / "data.json", {})]
    return [_data_card(run, name, name in read) for name in dict.fromkeys([*read, *cohorts.PUBLISHED])]


def _data_card(run, name, read):
    known, rows = cohorts.facts(name), _rows(run, name)
    findings = _found(run, name) if read else _listed_problems(rows)
    seen = provenance.note(run.folder / "data.json", {})
    role = next((role for role in ("training", "external") if getattr(run.settings, role).name == name), None)
    facts = [("What", known.about), ("Citation", known.citation), ("DOI", known.doi or "none"),
             ("Licence", known.licence),
             ("Used for",
              "; ".join(f"{words.people(split)}: {words.USES[use]}"
                        for split, use in known.uses(run.settings.our_protocol.folds).items())),
             *_amounts(rows, known), ("Readers", _readers(rows))]
    if read:
        facts += [("Read in this run",
                   f"{seen[role]['pictures']:,} pictures, data hash {seen[role]['hash']}"),
                  ("Files not as listed", f"{seen[role]['not_as_listed']:,}")]
    found = [bool(int(row["files"] or 0)) for row in findings]
    return {
        "name": name, "title": known.title, "doi": known.doi, "read": read,
        "drawn": "phantoms" in known.layouts, "facts": facts, "beside": list(known.beside.items()),
        "grades": [f"KL {grade} {word}" for grade, word in zip(GRADES, NAMES, strict=True)],
        "counts": _counts(rows), "sets": _sets(rows),
        "problems": [row for row, there in zip(findings, found, strict=True) if there],
        "clean": [row["finding"] for row, there in zip(findings, found, strict=True) if not there],
    }


def _found(run, name):
    # Of the audit's table that has a cohort's columns beside those of the others; an empty cell is none of
    # its checks.
    table = provenance.table(run, "findings")
    return [{"finding": row["finding"]}
            | {part: row[f"{name} {part}"] for part in ("groups", "files", "detail")}
            for row in table if row.get(f"{name} files")]


def _rows(run, name):
    try:
        return provenance.manifest(run, name)
    except (StudyError, FileNotFoundError):
        if (Path(run.folder) / "data" / name).exists():
            raise
        return None


def _amounts(rows, known):
    if rows is None:
        return []
    patients = known.group == "patient"
    groups = f"{rows['group_id'].nunique():,}"
    return [("Listed pictures", f"{len(rows):,}"),
            ("Patients", groups if patients else f"not known; {groups} groups of equal pixels")]


def _readers(rows):
    if rows is None or rows["kl_grade_reader2"].isna().all():
        return "one; the reference"
    both = rows.dropna(subset=["kl_grade_reader2"])
    return ("two; the first is the reference; they differ on "
            f"{(both['kl_grade'] != both['kl_grade_reader2']).sum():,} of {len(both):,} pictures")


def _counts(rows):
    if rows is None:
        return []
    parts = sets.counts(rows, "").groupby("split", sort=False)["n"]
    return [(words.people(split), [f"{n:,}" for n in counts], f"{counts.sum():,}")
            for split, counts in parts]


def _listed_problems(rows):
    # What a manifest alone tells; the audit of files that were read knows more.
    if rows is None:
        return []
    equal, conflict = rows[rows.duplicated("pixel_sha256", keep=False)], rows[sets.conflicting(rows)]
    both = rows.dropna(subset=["kl_grade_reader2"])
    found = {"equal pixels": (equal, "pixel_sha256",
                              f"{rows['pixel_sha256'].nunique():,} unique pictures of {len(rows):,}"),
             "equal pixels under different grades": (conflict, "pixel_sha256",
                                                     "left out of the deduplicated set"),
             "readers disagree": (both[both["kl_grade"] != both["kl_grade_reader2"]], "image_id",
                                  f"of {len(both):,} pictures with two grades"),
             "two knees in one picture": (rows[sets.two_knees(rows)], "image_id", "told by their width"),
             "16-bit pictures": (rows[rows["bit_depth"] == 16], "image_id", "rescaled when read")}
    return [{"finding": finding, "groups": f"{part[group].nunique():,}", "files": str(len(part)),
             "detail": detail} for finding, (part, group, detail) in found.items()]


def _sets(rows):
    return [] if rows is None else [(name.replace("_", " "), f"{len(sets.subset(rows, name)):,}")
                                    for name in sets.SUBSETS]
