"""The embedded cohorts: phantom knees with known truth, written as real picture files with manifests.

What is on a picture (findings, labels, defects) is planned first and in one process; drawing is spread over
processes, each picture with its own seed, so that the number of workers cannot change a byte. What a picture
was drawn with is kept beside it: `truth.csv` for people, `knees.json` in full precision for `regions`.
"""

import io
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import ndtri

from koa_lib.data.manifest import natural, read_manifest, write_manifest
from koa_lib.errors import StudyError
from koa_lib.grades import GRADES, NAMES
from koa_lib.images.read import describe, to_uint8
from koa_lib.phantoms import other
from koa_lib.phantoms.captions import caption
from koa_lib.phantoms.draw import TRAITS, View, joint_centre, render
from koa_lib.phantoms.findings import MIX_A, MIX_B, draw_findings, finding_grades, kl_grade, read

KNEE_CORRELATION = 0.7  # of severity within a person; gives labels that correlate like OAI's (0.5)
LIKENESS = 0.9  # share of anatomy that the two knees of a person have in common
INVERTED = 0.015
SPLIT_CYCLE = "train train test train train val train test train train".split()  # 70 : 10 : 20
# Defects of cohort B in known number, as shares of its pictures: Gornale's, a little more colour, and some of
# the audit's other findings; at least one each. `near_copies` show another picture brighter and compressed,
# `disputed` is a copy under another grade.
SHARES_B = {
    "two_knees": 0.11,
    "sixteen_bit": 0.05,
    "colour": 0.005,
    "inverted": 0.01,
    "other_size": 0.01,
    "near_copies": 0.02,
    "copies": 0.04,
    "disputed": 0,
}
FEWEST_B = 20
REPEATS = ("near_copies", "copies", "disputed")
# Of the pictures graded 0 by reader I, reader II grades 1 (Gornale: 11 of 514); else they agree.
SECOND_READER = 0.02
BROAD_MIX = (0.25, 0.15, 0.25, 0.20, 0.15)  # of pre-training, so that severe findings are seen often
OTHER_ANATOMY = 0.15


@dataclass(frozen=True)
class _Picture:
    """A planned file: what to draw, where to write it and what is known about it."""

    path: str
    knees: list  # (Findings, side); first the one that the grades are of
    grades: tuple  # by the two readers
    seeds: tuple  # of the anatomy, and of view, texture and film
    defect: str
    patient: str | None = None  # none has the external look

def write_cohort_a(folder, patients, seed, workers=2):
    """Write cohort A: two knees per patient in OAI's layout ``<split>/<grade>/<7 digits><L|R>.png``.

    Splits are by patient, 70 : 10 : 20, balanced over the worse knee's label.

    Returns
    -------
    DataFrame
        The manifest, also written as `manifest.csv`; the truth is in `truth.csv` and `knees.json`, see
        `_write`.
    """
    rng = np.random.default_rng([seed, 1])
    numbers = 9_000_000 + rng.choice(999_999, patients, replace=False)
    shared = _spread_normals(patients, rng)[:, None]
    severities = _alike(shared, rng.normal(size=(patients, 2)), KNEE_CORRELATION)
    knees = [draw_findings(value, MIX_A, rng) for value in severities.flat]
    labels = np.array([read(knee, rng) for knee in knees])
    defects = np.where(rng.random(2 * patients) < INVERTED, "inverted", "")
    splits, worse = np.empty(patients, dtype=object), labels.reshape(-1, 2).max(axis=1)
    splits[np.lexsort((rng.random(patients), worse))] = np.resize(SPLIT_CYCLE, patients)
    plan = []
    for k, (knee, label) in enumerate(zip(knees, labels, strict=True)):
        patient, place = divmod(k, 2)
        number, side = str(numbers[patient]), "LR"[place]
        path = f"{splits[patient]}/{label}/{number}{side}.png"
        seeds = [seed, 2, patient], [seed, 3, patient, place]
        plan.append(_Picture(path, [(knee, side)], (label, pd.NA), seeds, defects[k], number))
    return _write(Path(folder), plan, workers)


def _alike(shared, own, share):
    return np.sqrt(share) * shared + np.sqrt(1 - share) * own


def _spread_normals(count, rng):
    # Normal numbers in random order, one from each of `count` equal shares: small cohorts keep the grade mix.
    return ndtri((rng.permutation(count) + rng.random(count)) / count)


def write_cohort_b(folder, pictures, seed, workers=2):
    """Write cohort B: the external look, in the layout ``MedicalExpert-I/<n><Name>/<Name>G<n> (<i>).png``.

    Two-knee pictures (graded by the worse knee), 16-bit files, unequal colour channels, inverted and
    odd-sized pictures, copies, near-copies and one pair of equal pictures under two grades come in the
    numbers of `defects_b`. Reader II grades 1 in 2 % of reader I's zeros; the same files lie renumbered in
    ``MedicalExpert-II``.

    Returns
    -------
    DataFrame
        The manifest, also written as `manifest.csv`; `group_id` is the first of equal pictures.

    Raises
    ------
    StudyError
        For fewer than `FEWEST_B` pictures, which cannot hold the defects.
    """
    if pictures < FEWEST_B:
        raise StudyError(f"Cohort B has {pictures} pictures but needs at least {FEWEST_B}. Raise its size.")
    rng = np.random.default_rng([seed, 4])
    defects, sources = _place_defects(pictures, rng)
    double, disputed = defects == "two_knees", defects == "disputed"
    knees = [draw_findings(value, MIX_B, rng) for value in _spread_normals(pictures, rng)]
    others = [draw_findings(rng.normal(-0.7, 0.7), MIX_B, rng) for _ in knees]  # beside them, where two
    for k in np.flatnonzero(double):
        others[k], knees[k] = sorted((others[k], knees[k]), key=lambda knee: (kl_grade(knee), knee.jsn))
    labels = np.array([read(knee, rng) for knee in knees])[sources]
    labels[disputed] += np.where(labels[disputed] < 4, 1, -1)
    grades, sides = _two_readers(labels, rng), rng.choice(["LR", "RL"], pictures)
    plan = []
    for k, path in enumerate(_numbered("MedicalExpert-I", labels)):
        source = int(sources[k])
        pair = list(zip((knees[source], others[source]), sides[source], strict=True))
        seeds = [seed, 5, source], [seed, 6, source]
        plan.append(_Picture(path, pair[: 1 + double[k]], grades[k], seeds, defects[k]))
    folder = Path(folder)
    rows = _write(folder, plan, workers)
    # The published set repeats every file under the second reader's grade and a new number.
    again = rows.iloc[rng.permutation(pictures)]
    copies = _numbered("MedicalExpert-II", again["kl_grade_reader2"])
    for path, copy in zip(again["path"], copies, strict=True):
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, folder / copy)
    return rows


def _numbered(reader, grades):
    # Paths as in the published set, which numbers the pictures of each grade from 1.
    count = [0] * len(GRADES)
    for grade in grades:
        count[grade] += 1
        yield f"{reader}/{grade}{NAMES[grade]}/{NAMES[grade]}G{grade} ({count[grade]}).png"


def defects_b(pictures):
    """Number of pictures with each defect; 'copies' and 'disputed' repeat another picture's pixels."""
    return {kind: max(1, round(share * pictures)) for kind, share in SHARES_B.items()}


def _place_defects(pictures, rng):
    # Returns each picture's defect and the picture that it shows: itself, or for copies another one without
    # defect.
    kinds = [kind for kind, count in defects_b(pictures).items() for _ in range(count)]
    order, defects, sources = rng.permutation(pictures), np.full(pictures, "", object), np.arange(pictures)
    defects[order[: len(kinds)]] = kinds
    repeats = np.flatnonzero(np.isin(defects, REPEATS))
    sources[repeats] = order[len(kinds) :][: len(repeats)]
    return defects, sources


def _two_readers(labels, rng):
    second, zeros = labels.copy(), np.flatnonzero(labels == 0)
    changed = min(len(zeros), max(1, round(SECOND_READER * len(zeros))))
    second[rng.choice(zeros, changed, replace=False)] = 1
    return list(zip(labels, second, strict=True))


def _write(folder, plan, workers):
    """Draw the planned pictures and write what is known about them, in natural order of their paths.

    `manifest.csv` is what a real cohort has. `truth.csv` is for checks: true grade, defect, latent findings,
    and in pixels the joint's place and half the plateau's width, of the left knee of two. `knees.json` has
    for each image id its knees from left to right as `render` takes them: [findings, view, traits].
    """
    plan = sorted(plan, key=lambda picture: natural(picture.path))
    drawn = _spread_out(_write_picture, [(folder, picture) for picture in plan], workers)
    rows, truth, knees = zip(*drawn, strict=True)
    frame, table = pd.DataFrame(rows), pd.DataFrame(truth)
    first = frame.groupby("pixel_sha256")["image_id"].transform("first")
    frame["group_id"] = frame["group_id"].fillna(first)
    table.to_csv(folder / "truth.csv", index=False, lineterminator="\n", float_format="%.4f")
    kept = dict(zip(frame["image_id"], knees, strict=True))
    (folder / "knees.json").write_text(json.dumps(kept, default=asdict))
    write_manifest(frame, folder / "manifest.csv")
    return read_manifest(folder / "manifest.csv")


def _spread_out(function, jobs, workers):
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(function, jobs, chunksize=8))


def _write_picture(job):
    """Draw and save one planned picture; its rows of the manifest and of the truth, and its knees."""
    folder, picture = job
    path, (person, own), wide = folder / picture.path, picture.seeds, picture.patient is None
    (graded, side), rng = picture.knees[0], np.random.default_rng(own)
    image, knees = _draw(picture.knees, person, rng, wide)
    if picture.defect == "other_size":
        image, knees = image[:-12, 8:-8], [_cut(*knee) for knee in knees]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pixels(image, picture.defect, wide)).save(path, compress_level=1)
    name, view = path.stem.replace(" ", ""), knees[0][1]
    x, y = joint_centre(view)
    row = {
        "image_id": name,
        "path": picture.path,
        "split": "external" if wide else path.parts[-3],
        "kl_grade": picture.grades[0],
        "kl_grade_reader2": picture.grades[1],
        "group_id": picture.patient,
        "side": "" if wide else side,
        **describe(path),
        **finding_grades(graded),
    }
    truth = {
        "image_id": name,
        "true_grade": kl_grade(graded),
        "defect": picture.defect,
        "joint_x": x,
        "joint_y": y,
        "plateau": view.unit,
        **{f"latent_{finding}": value for finding, value in asdict(graded).items()},
    }
    return row, truth, knees


def _cut(findings, view, traits):
    # The view of a film without its last 12 rows and 8 columns at either side.
    centre = view.centre[0] - 8, view.centre[1]
    return findings, replace(view, height=view.height - 12, width=view.width - 16, centre=centre), traits


def _pixels(image, defect, wide):
    # The file's array: spoilt where a defect is planned; the external set stores gray in three channels.
    if defect == "sixteen_bit":
        return np.round(image * 65535).astype(np.uint16)
    if defect == "inverted":
        image = 1 - image
    if defect == "near_copies":
        buffer = io.BytesIO()
        Image.fromarray(to_uint8(np.clip(1.06 * image + 0.01, 0, 1))).save(buffer, "JPEG", quality=70)
        image = np.asarray(Image.open(buffer), dtype=np.float32) / 255
    pixels = np.dstack([to_uint8(image)] * 3) if wide else to_uint8(image)
    if defect == "colour":
        pixels[..., 2] -= np.minimum(pixels[..., 2], 9)
    return pixels


def _draw(knees, person, rng, wide):
    knees = sorted(knees, key=lambda knee: knee[1], reverse=True)  # the right one at the viewer's left
    shared = np.random.default_rng(person).normal(size=TRAITS)
    views = [_wide_view(rng, side, len(knees)) if wide else _crop_view(rng, side) for _, side in knees]
    traits = _alike(shared, rng.normal(size=(len(knees), TRAITS)), LIKENESS).tolist()
    drawn = [(findings, *rest) for (findings, _), *rest in zip(knees, views, traits, strict=True)]
    return render(drawn, rng), drawn


def _crop_view(rng, side):
    # Like OAI's automatic crops: the joint line near the middle, the bones nearly fill the width.
    centre = (112 + rng.normal(0, 3), 124 + rng.normal(0, 4))
    return View(224, 224, rng.uniform(85, 95), centre, np.clip(rng.normal(0, 2.2), -5, 5), side)


def _wide_view(rng, side, knees):
    # Like the external set: a wide strip with the limb's edges; two knees stand smaller beside each other.
    height, width, *units = (161, 320, 56, 68) if knees == 2 else (162, 300, 54, 90)
    unit = rng.uniform(*units)
    centre = (width / 2 + rng.normal(0, 12), height / 2 + rng.normal(0, 10))
    return View(height, width, unit, centre, np.clip(rng.normal(0, 3), -6, 6), side, wide=True)


def captioned(count, seed, size, workers=2):
    """Pictures with captions for contrastive pre-training: broad severities, and 15 % hands, hips and chests.

    Returns
    -------
    images : uint8 array (count, size, size)
    captions : list of str
    kinds : list of str
        'knee', 'hand', 'hip' or 'chest'.
    """
    drawn = _spread_out(_captioned_one, [([seed, 7, k], size) for k in range(count)], workers)
    images, captions, kinds = zip(*drawn, strict=True)
    return np.stack(images), list(captions), list(kinds)


def _captioned_one(job):
    seed, size = job
    rng = np.random.default_rng(seed)
    if rng.random() < OTHER_ANATOMY:
        kind, findings, side = str(rng.choice(other.KINDS)), None, ""
        image = other.render(kind, rng)
    else:
        kind, side = "knee", "LR"[int(rng.random() < 0.5)]
        findings = draw_findings(ndtri(rng.uniform(0.02, 0.98)), BROAD_MIX, rng)
        image, _ = _draw([(findings, side)], [*seed, 1], rng, wide=False)
    pixels = Image.fromarray(to_uint8(image)).resize((size, size), Image.Resampling.BOX)
    return np.asarray(pixels), caption(kind, findings, side, rng), kind
