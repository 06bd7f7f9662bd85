"""The embedded cohorts: phantom knees with known truth, written as real files with manifests.

Severity is drawn per patient and knee, findings follow from it, the KL grade follows from the findings by rules,
and a reader's label differs from the true grade by a neighbour at most.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import norm

from koa_lib import anatomy, manifests
from koa_lib.captions import caption
from koa_lib.grades import GRADES, NAMES
from koa_lib.radiograph import Findings, View, render

MIX_A = (0.394, 0.181, 0.263, 0.131, 0.031)  # Chen's 8,260 knees
MIX_B = (0.312, 0.289, 0.140, 0.134, 0.125)  # Gornale's 1,650 files, reader I
KNEE_CORRELATION = 0.6
SPREAD = 0.05  # of a finding around what the severity suggests
READER_NOISE = 0.17  # of a reader who over- or under-reads a whole picture: limits the quadratic kappa, see `noise_ceiling`
INVERTED = 0.015
# Cohort B in known number, as shares of its pictures.
SHARES_B = {"two_knees": 0.11, "sixteen_bit": 0.05, "colour": 0.01, "copies": 0.04}
DISPUTED_B = 1
SECOND_READER_CHANGES = 0.007


def kl_grade(findings):
    """KL grade 0-4 by rules that are nested, so that no finding can lower the grade when it grows.

    1: doubtful narrowing or possible lipping; 2: definite osteophytes; 3: with definite narrowing;
    4: with marked narrowing and severe sclerosis or deformed bone ends (Kellgren and Lawrence 1957).
    """
    doubtful = findings.osteophytes >= 0.16 or findings.jsn >= 0.22
    definite = findings.osteophytes >= 0.36
    narrowed = definite and findings.jsn >= 0.45
    marked = narrowed and findings.jsn >= 0.72 and max(findings.sclerosis, findings.deformity) >= 0.55
    return int(doubtful or definite) + int(definite) + int(narrowed) + int(marked)


def finding_grades(findings):
    """Semi-quantitative 0-3 grades of osteophytes, joint-space narrowing and sclerosis."""
    steps = {"osteophytes": (0.16, 0.36, 0.7), "jsn": (0.22, 0.45, 0.72), "sclerosis": (0.2, 0.4, 0.6)}
    return {name: int(np.searchsorted(limits, getattr(findings, name), side="right")) for name, limits in steps.items()}


def draw_findings(severity, mix, rng):
    """Findings of a knee of some severity (standard normal), so that grades come close to a mix."""
    share, (a, b, c, d) = norm.cdf(severity), np.cumsum(mix)[:4]
    curve = partial(np.interp, share)
    osteophytes = curve((0, a, b, c, 1), (0.0, 0.11, 0.39, 0.66, 1.0))
    narrowing = curve((0, a, b, c, d, 1), (0.0, 0.10, 0.25, 0.42, 0.68, 1.0))
    sclerosis, deformity = curve((0, b, c, d, 1), (0, 0.1, 0.33, 0.55, 1.0)), curve((0, c, d, 1), (0, 0.2, 0.5, 1.0))
    other = narrowing * rng.uniform(0, 0.7)
    medial, lateral = (narrowing, other) if rng.random() < 0.75 else (other, narrowing)
    values = np.array([medial, lateral, osteophytes, sclerosis, deformity])
    return Findings(*np.clip(values + rng.normal(0, SPREAD, 5) * (share > 0.05), 0, 1))


def read(findings, rng):
    """A reader's label: the rules on findings that are over- or under-read, at most one grade from the truth."""
    perceived = Findings(*np.clip(np.array(astuple(findings)) + rng.normal(0, READER_NOISE), 0, 1))
    truth = kl_grade(findings)
    return int(np.clip(kl_grade(perceived), truth - 1, truth + 1))


def noise_ceiling(mix=MIX_A, knees=20_000, seed=0):
    """Quadratic kappa between true grade and reader's label: what a perfect grader could reach (0.866 for cohort A)."""
    from koa_lib.metrics import confusion, from_confusion

    rng = np.random.default_rng(seed)
    drawn = [draw_findings(value, mix, rng) for value in rng.normal(size=knees)]
    cm = confusion([read(findings, rng) for findings in drawn], [kl_grade(findings) for findings in drawn])
    return float(from_confusion(cm)["qwk"])


def crop_view(rng, side):
    """Placement like OAI's automatic crops: 224 x 224, the joint line near the middle."""
    centre = (112 + rng.normal(0, 3), 122 + rng.normal(0, 4))
    return View(224, 224, rng.uniform(80, 90), centre, rng.normal(0, 2.5), side)


def wide_view(rng, side, width=300, height=162):
    """Placement like the external set: a wide strip with the limb's edges and a smaller knee."""
    centre = (width / 2 + rng.normal(0, 14), height / 2 + rng.normal(0, 10))
    return View(height, width, rng.uniform(52, 78), centre, rng.normal(0, 4), side)


def write_cohort_a(folder, patients, seed, workers=2):
    """Write cohort A: two knees per patient in OAI's layout ``<split>/<grade>/<7 digits><L|R>.png``.

    Returns
    -------
    DataFrame
        The manifest, also written as `manifest.csv`; the truth is in `truth.csv`, which only checks read.
    """
    folder = Path(folder)
    numbers = 9_000_000 + np.random.default_rng(seed).choice(999_999, patients, replace=False)
    order = np.random.default_rng([seed, 1]).permutation(patients)
    splits = np.array(["train"] * patients, dtype=object)
    splits[order[: round(0.1 * patients)]], splits[order[round(0.1 * patients) : round(0.3 * patients)]] = "val", "test"
    jobs = [(folder, int(number), split, [seed, 2, k]) for k, (number, split) in enumerate(zip(numbers, splits, strict=True))]
    return _finish(folder, [row for rows in _spread_out(_write_patient, jobs, workers) for row in rows])


def _write_patient(job):
    folder, number, split, seed = job
    rng = np.random.default_rng(seed)
    common, rows = rng.normal(), []
    for side in "LR":
        severity = np.sqrt(KNEE_CORRELATION) * common + np.sqrt(1 - KNEE_CORRELATION) * rng.normal()
        findings = draw_findings(severity, MIX_A, rng)
        image = render(findings, crop_view(rng, side), rng)
        inverted = rng.random() < INVERTED
        label = read(findings, rng)
        path = folder / split / str(label) / f"{number}{side}.png"
        _save(path, 1 - image if inverted else image, "L")
        row = _row(path, folder, findings, split=split, kl_grade=label, kl_grade_reader2=pd.NA, group_id=str(number), side=side)
        rows.append({**row, "inverted": inverted})
    return rows


def write_cohort_b(folder, pictures, seed, workers=2):
    """Write cohort B: the external look, layout ``MedicalExpert-I/<n><Name>/<Name>G<n> (<i>).png`` and its known defects.

    Two-knee pictures, 16-bit files, unequal colour channels, copies and one pair of equal pictures under two
    grades come in the numbers of `defects_b`; the second reader changes 0 and 1 in 0.7 % of the pictures.

    Returns
    -------
    DataFrame
        The manifest, also written as `manifest.csv`.
    """
    folder, known = Path(folder), defects_b(pictures)
    kinds = np.array(["plain"] * pictures, dtype=object)
    order, start = np.random.default_rng([seed, 3]).permutation(pictures), 0
    for kind, count in known.items():
        kinds[order[start : start + count]] = kind
        start += count
    originals = order[start : start + known["copies"] + known["disputed"]]
    jobs = [(folder, k, kinds[k], [seed, 4, k], "") for k in range(pictures) if kinds[k] not in ("copies", "disputed")]
    jobs += [(folder, int(k), kinds[k], [seed, 4, int(source)], kinds[k]) for k, source in zip(order[start - len(originals) : start], originals, strict=True)]
    rows = sorted(_spread_out(_write_external, jobs, workers), key=lambda row: row["path"])
    first = {}
    for row in rows:
        row["group_id"] = first.setdefault(row["pixel_sha256"], row["image_id"])
    return _finish(folder, rows)


def defects_b(pictures):
    """Number of pictures with each built-in defect; 'copies' and 'disputed' repeat another picture's pixels."""
    return {**{kind: max(1, round(share * pictures)) for kind, share in SHARES_B.items()}, "disputed": DISPUTED_B}


def _write_external(job):
    folder, number, kind, seed, repeat = job
    rng = np.random.default_rng(seed)
    findings = draw_findings(rng.normal(), MIX_B, rng)
    label, side = read(findings, rng), "LR"[int(rng.random() < 0.5)]
    if kind == "two_knees":
        halves = [render(findings, wide_view(rng, s, 320, 161), rng, wide=True) for s in "RL"]
        image = np.concatenate(halves, axis=1)
    else:
        image = render(findings, wide_view(rng, side), rng, wide=True)
    if repeat == "disputed":
        label = label + 1 if label < 4 else 3
    second = 1 - label if label < 2 and np.random.default_rng([*seed, 1]).random() < SECOND_READER_CHANGES / 0.6 else label
    path = folder / "MedicalExpert-I" / f"{label}{NAMES[label]}" / f"{NAMES[label]}G{label} ({number + 1}).png"
    _save(path, image, {"sixteen_bit": "I;16", "colour": "RGB"}.get(kind, "L" if number % 2 else "RGB-equal"))
    row = _row(path, folder, findings, split="external", kl_grade=label, kl_grade_reader2=second, group_id="", side="")
    return {**row, "image_id": path.stem.replace(" ", ""), "defect": kind}


def _save(path, image, mode):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(np.round(image * 65535).astype(np.uint16)).save(path)
        return
    gray = np.round(image * 255).astype(np.uint8)
    if mode != "L":
        gray = np.repeat(gray[..., None], 3, axis=2)
        if mode == "RGB":
            gray[..., 2] = np.clip(gray[..., 2].astype(int) - 9, 0, 255)
    Image.fromarray(gray).save(path)


def _row(path, folder, findings, **columns):
    return {"image_id": path.stem, "path": path.relative_to(folder).as_posix(), **columns, **manifests.describe_picture(path),
            **finding_grades(findings), "true_grade": kl_grade(findings), **{f"latent_{k}": v for k, v in asdict(findings).items()}}


def _finish(folder, rows):
    frame = pd.DataFrame(rows).sort_values("path", ignore_index=True)
    frame["kl_grade_reader2"] = frame["kl_grade_reader2"].astype("Int64")
    truth = ["image_id", "true_grade", *(name for name in frame if name.startswith("latent_") or name in ("inverted", "defect"))]
    frame[truth].to_csv(folder / "truth.csv", index=False, lineterminator="\n", float_format="%.4f")
    manifests.write_manifest(frame, folder / "manifest.csv")
    return manifests.read_manifest(folder / "manifest.csv")


def _spread_out(function, jobs, workers):
    # Each job carries its own seed: the number of workers cannot change a byte.
    if workers == 1:
        return [function(job) for job in jobs]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(function, jobs, chunksize=max(1, len(jobs) // (8 * workers))))


def captioned(count, seed, size, workers=2):
    """Pictures with captions for contrastive pre-training: broad severities, and 15 % hands, hips and chests.

    Returns
    -------
    images : uint8 array (count, size, size)
    captions : list of str
    kinds : list of str
        'knee', 'hand', 'hip' or 'chest'.
    """
    jobs = [([seed, 5, k], size) for k in range(count)]
    images, captions, kinds = zip(*_spread_out(_captioned_one, jobs, workers), strict=True)
    return np.stack(images), list(captions), list(kinds)


def _captioned_one(job):
    seed, size = job
    rng = np.random.default_rng(seed)
    if rng.random() < 0.15:
        kind = str(rng.choice(anatomy.KINDS))
        return np.round(anatomy.render(kind, size, rng) * 255).astype(np.uint8), caption(kind, None, "", rng), kind
    side = "LR"[int(rng.random() < 0.5)]
    findings = draw_findings(norm.ppf(rng.uniform(0.02, 0.98)), (0.25, 0.15, 0.25, 0.2, 0.15), rng)
    image = Image.fromarray(np.round(render(findings, crop_view(rng, side), rng) * 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)), caption("knee", findings, side, rng), "knee"


__all__ = ["GRADES", "captioned", "defects_b", "draw_findings", "finding_grades", "kl_grade", "noise_ceiling", "read", "write_cohort_a", "write_cohort_b"]
