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
from koa_lib.images.read import describe
from koa_lib.phantoms import other
from koa_lib.phantoms.captions import caption
from koa_lib.phantoms.draw import TRAITS, View, joint_centre, render
from koa_lib.phantoms.findings import MIX_A, MIX_B, draw_findings, finding_grades, kl_grade, read

KNEE_CORRELATION = 0.7  # of severity within a person; gives labels that correlate like OAI's (0.5)
LIKENESS = 0.9  # share of anatomy that the two knees of a person have in common
INVERTED = 0.015
SPLIT_CYCLE = (
    "train",
    "train",
    "test",
    "train",
    "train",
    "val",
    "train",
    "test",
    "train",
    "train",
)  # 70 : 10 : 20
# Defects of cohort B in known number, as shares of its pictures: Gornale's, a little more colour, and some
# of the audit's other findings. `near_copies` show another picture brighter and compressed.
SHARES_B = {
    "two_knees": 0.11,
    "sixteen_bit": 0.05,
    "colour": 0.005,
    "inverted": 0.01,
    "other_size": 0.01,
    "near_copies": 0.02,
    "copies": 0.04,
}
DISPUTED_B = 1
FEWEST_B = 20
REPEATS = ("near_copies", "copies", "disputed")
SECOND_READER = (
    0.02  # of the pictures graded 0 by reader I, reader II grades 1 (Gornale: 11 of 514); else they agree
)
BROAD_MIX = (0.25, 0.15, 0.25, 0.20, 0.15)  # of pre-training, so that severe findings are seen often
OTHER_ANATOMY = 0.15


@dataclass(frozen=True)
class _Picture:
    """A planned file: what to draw, where to write it and what is known about it."""

    path: str
    knees: list  # of (Findings, side), from left to right
    person: list  # seed of the anatomy
    seed: list  # seed of view, texture and film
    known: dict  # columns of the manifest and of the truth
    defect: str
    wide: bool


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
    shared = np.sqrt(KNEE_CORRELATION) * _spread_normals(patients, rng)[:, None]
    severities = shared + np.sqrt(1 - KNEE_CORRELATION) * rng.normal(size=(patients, 2))
    knees = [draw_findings(value, MIX_A, rng) for value in severities.flat]
    labels = np.array([read(knee, rng) for knee in knees])
    inverted = rng.random(2 * patients) < INVERTED
    splits, worse = np.empty(patients, dtype=object), labels.reshape(-1, 2).max(axis=1)
    splits[np.lexsort((rng.random(patients), worse))] = np.resize(SPLIT_CYCLE, patients)
    plan = []
    for k, (knee, label) in enumerate(zip(knees, labels, strict=True)):
        patient, place = divmod(k, 2)
        split, number, side = splits[patient], str(numbers[patient]), "LR"[place]
        path, defect = f"{split}/{label}/{number}{side}.png", "inverted" if inverted[k] else ""
        known = _known(knee, split, label, pd.NA, number, side)
        seeds = [seed, 2, patient], [seed, 3, patient, place]
        plan.append(_Picture(path, [(knee, side)], *seeds, known, defect, wide=False))
    return _write(Path(folder), plan, workers)


def _known(knee, split, grade, second, group="", side=""):
    latents = {f"latent_{name}": value for name, value in asdict(knee).items()}
    return {
        "split": split,
        "kl_grade": grade,
        "kl_grade_reader2": second,
        "group_id": group,
        "side": side,
        "true_grade": kl_grade(knee),
        **finding_grades(knee),
        **latents,
    }


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
        raise StudyError(
            f"Cohort B has {pictures} pictures, its defects need at least {FEWEST_B}. Raise its size."
        )
    rng = np.random.default_rng([seed, 4])
    defects, sources = _place_defects(pictures, rng)
    double, disputed = defects == "two_knees", defects == "disputed"
    knees = [draw_findings(value, MIX_B, rng) for value in _spread_normals(pictures, rng)]
    others = [
        draw_findings(rng.normal(-0.7, 0.7), MIX_B, rng) for _ in knees
    ]  # second knee of two-knee pictures
    for k in np.flatnonzero(double):
        others[k], knees[k] = sorted((others[k], knees[k]), key=lambda knee: (kl_grade(knee), knee.jsn))
    labels = np.array([read(knee, rng) for knee in knees])[sources]
    labels[disputed] += np.where(labels[disputed] < 4, 1, -1)
    second, sides = _second_reader(labels, rng), rng.choice(["LR", "RL"], pictures)
    plan = []
    for k, (path, source) in enumerate(
        zip(_numbered("MedicalExpert-I", labels), sources.tolist(), strict=True)
    ):
        known = _known(knees[source], "external", labels[k], second[k])
        shown = list(zip((knees[source], others[source]), sides[source], strict=True))
        # The right knee stands at the viewer's left.
        shown = sorted(shown, key=lambda knee: knee[1], reverse=True) if double[k] else shown[:1]
        plan.append(_Picture(path, shown, [seed, 5, source], [seed, 6, source], known, defects[k], wide=True))
    folder = Path(folder)
    rows = _write(folder, plan, workers)
    # The published set repeats every file under the second reader's grade and a new number.
    again = rows.iloc[rng.permutation(len(rows))]
    for path, copy in zip(
        again["path"], _numbered("MedicalExpert-II", again["kl_grade_reader2"]), strict=True
    ):
        (folder / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, folder / copy)
    return rows


def _numbered(reader, grades):
    # Paths as in the published set, which numbers the pictures of each grade from 1.
    count = np.zeros(len(GRADES), int)
    for grade in grades:
        count[grade] += 1
        yield f"{reader}/{grade}{NAMES[grade]}/{NAMES[grade]}G{grade} ({count[grade]}).png"


def defects_b(pictures):
    """Number of pictures with each defect; 'copies' and 'disputed' repeat another picture's pixels."""
    return {
        **{kind: max(1, round(share * pictures)) for kind, share in SHARES_B.items()},
        "disputed": DISPUTED_B,
    }


def _place_defects(pictures, rng):
    # Returns each picture's defect and the picture that it shows: itself, or for copies another one without
    # defect.
    counts = defects_b(pictures)
    kinds = np.repeat(list(counts), list(counts.values()))
    order, defects, sources = rng.permutation(pictures), np.full(pictures, "", object), np.arange(pictures)
    defects[order[: len(kinds)]] = kinds
    repeats = np.flatnonzero(np.isin(defects, REPEATS))
    sources[repeats] = order[len(kinds) : len(kinds) + len(repeats)]
    return defects, sources


def _second_reader(labels, rng):
    second, zeros = labels.copy(), np.flatnonzero(labels == 0)
    changed = min(len(zeros), max(1, round(SECOND_READER * len(zeros))))
    second[rng.choice(zeros, changed, replace=False)] = 1
    return second


def _write(folder, plan, workers):
    """Draw the planned pictures and write what is known about them, in natural order of their paths.

    `manifest.csv` is what a real cohort has. `truth.csv` is for checks: true grade, defect, latent findings,
    and in pixels the joint's place and half the plateau's width, of the left knee of two. `knees.json` has
    for each image id its knees from left to right as `render` takes them: [findings, view, traits].
    """
    drawn = _spread_out(_write_picture, [(folder, picture) for picture in plan], workers)
    rows, knees = zip(*sorted(drawn, key=lambda pair: natural(pair[0]["path"])), strict=True)
    frame = pd.DataFrame(rows).astype({"kl_grade_reader2": "Int64"})
    first = frame.groupby("pixel_sha256")["image_id"].transform("first")
    frame["group_id"] = frame["group_id"].mask(frame["group_id"] == "", first)
    truth = [
        "image_id",
        "true_grade",
        "defect",
        "joint_x",
        "joint_y",
        "plateau",
        *frame.filter(like="latent_"),
    ]
    frame[truth].to_csv(folder / "truth.csv", index=False, lineterminator="\n", float_format="%.4f")
    (folder / "knees.json").write_text(
        json.dumps(dict(zip(frame["image_id"], knees, strict=True)), default=asdict)
    )
    write_manifest(frame, folder / "manifest.csv")
    return read_manifest(folder / "manifest.csv")


def _spread_out(function, jobs, workers):
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(function, jobs, chunksize=8))


def _write_picture(job):
    folder, picture = job
    path, rng = folder / picture.path, np.random.default_rng(picture.seed)
    image, knees = _draw(picture.knees, picture.person, rng, picture.wide)
    knees = [_cut(*knee) for knee in knees] if picture.defect == "other_size" else knees
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, _spoil(image, picture.defect), picture)
    left = knees[0][1]
    x, y = joint_centre(left)
    return {
        "image_id": path.stem.replace(" ", ""),
        "path": picture.path,
        **picture.known,
        **describe(path),
        "defect": picture.defect,
        "joint_x": x,
        "joint_y": y,
        "plateau": left.unit,
    }, knees


def _cut(findings, view, traits):
    # The film of another size, as `_spoil` cuts it.
    centre = view.centre[0] - 8, view.centre[1]
    return findings, replace(view, height=view.height - 12, width=view.width - 16, centre=centre), traits


def _spoil(image, defect):
    if defect == "inverted":
        return 1 - image
    if defect == "other_size":
        return image[:-12, 8:-8]
    if defect == "near_copies":
        buffer, brighter = io.BytesIO(), np.clip(1.06 * image + 0.01, 0, 1)
        Image.fromarray(np.round(brighter * 255).astype(np.uint8)).save(buffer, "JPEG", quality=70)
        return np.asarray(Image.open(buffer), dtype=np.float32) / 255
    return image


def _draw(knees, person, rng, wide):
    shared = np.random.default_rng(person).normal(size=TRAITS)
    views = [_wide_view(rng, side, len(knees)) if wide else _crop_view(rng, side) for _, side in knees]
    own = rng.normal(size=(len(knees), TRAITS))
    traits = np.sqrt(LIKENESS) * shared + np.sqrt(1 - LIKENESS) * own
    drawn = [
        (findings, view, row) for (findings, _), view, row in zip(knees, views, traits.tolist(), strict=True)
    ]
    return render(drawn, rng), drawn


def _crop_view(rng, side):
    # Like OAI's automatic crops: the joint line near the middle, the bones nearly fill the width.
    centre = (112 + rng.normal(0, 3), 124 + rng.normal(0, 4))
    return View(224, 224, rng.uniform(85, 95), centre, float(np.clip(rng.normal(0, 2.2), -5, 5)), side)


def _wide_view(rng, side, knees):
    # Like the external set: a wide strip with the limb's edges; two knees stand smaller beside each other.
    height, width, unit = (161, 320, rng.uniform(56, 68)) if knees == 2 else (162, 300, rng.uniform(54, 90))
    centre = (width / 2 + rng.normal(0, 12), height / 2 + rng.normal(0, 10))
    return View(height, width, unit, centre, float(np.clip(rng.normal(0, 3), -6, 6)), side, wide=True)


def _save(path, image, picture):
    if picture.defect == "sixteen_bit":
        Image.fromarray(np.round(image * 65535).astype(np.uint16)).save(path, compress_level=1)
        return
    pixels = np.round(image * 255).astype(np.uint8)
    if picture.wide:  # the external set stores gray in three channels
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if picture.defect == "colour":
        pixels[..., 2] = np.maximum(pixels[..., 2], 9) - 9
    Image.fromarray(pixels).save(path, compress_level=1)


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
    pixels = Image.fromarray(np.round(image * 255).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BOX
    )
    return np.asarray(pixels), caption(kind, findings, side, rng), kind
