"""Is this a knee radiograph? A CLIP is asked in words, and its failures are held against the quality of the pictures."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import laplace
from scipy.special import ndtri

from koa_lib import encoders, stats
from koa_lib.data.sets import subset
from koa_lib.datasets import KneeDataset
from koa_lib.images import to_uint8
from koa_lib.images.shape import VIEWS
from koa_lib.paper.claims import Answer, not_run
from koa_lib.paper.scorecard import Ours
from koa_lib.phantoms.captions import caption
from koa_lib.phantoms.cohorts import BROAD_MIX
from koa_lib.phantoms.findings import draw_findings
from koa_lib.phantoms.other import KINDS as OTHER_KINDS
from koa_lib.phantoms.other import render as render_other
from koa_lib.predictions import PROBABILITIES
from koa_lib.store import digest

KNEE = "knee"
PROMPTS = {
    KNEE: ("knee radiograph",),
    "chest": ("chest radiograph",),
    "hand": ("hand radiograph",),
    "hip": ("hip radiograph",),
    "brain": ("brain MRI",),
}
CAPTIONS = 64  # drawn for knees, in the words of the stand-in's pre-training
# How much worse a picture is than others of its cohort, by what `measured` measures.
WORSE = {
    "sharpness": lambda rows: -rows["sharpness"],
    "distance from the median exposure": lambda rows: (rows["exposure"] - rows["exposure"].median()).abs(),
    "contrast": lambda rows: -rows["contrast"],
}
POOR = 0.1  # share of the pictures, at the bad end of each measure, that count as of low quality
FEWEST_FAILURES = 5
ALL_ALIKE = (
    0.05  # chance of no exception among the groups, at the bound of a share of which all pictures are alike
)


def why_not(study):
    """Why the question cannot be asked with the first encoder of this profile; empty when it can."""
    spec, model = study.profile.systems.embeddings.encoders[0], study.profile.model
    if not spec.reason and (spec.source == "trained" or (spec.source == "start" and model.start == "random")):
        return f"{model.name} has been trained on knees alone and knows nothing of other anatomies"
    return spec.reason


def wordings(study):
    """The words for each anatomy, by wording; the first wording decides, the others are shown beside it.

    A published CLIP is asked with `PROMPTS` (our reading; the paper's are unknown). The stand-in has read nothing but
    captions of its pre-training, so it is asked in their wording, drawn anew, with the mean embedding of each
    anatomy's captions; it has read of no MRI."""
    if study.profile.model.start != "pretrain":
        return {"plain": PROMPTS}
    rng = np.random.default_rng([study.seed, 9])
    knees = [
        caption(KNEE, draw_findings(ndtri(rng.uniform(0.02, 0.98)), BROAD_MIX, rng), side, rng)
        for side in "LR" * (CAPTIONS // 2)
    ]
    others = {kind: sorted({caption(kind, None, "", rng) for _ in range(CAPTIONS)}) for kind in OTHER_KINDS}
    return {"captions": {KNEE: knees, **others}, "plain": PROMPTS}


def others(study, size):
    """Phantoms of other anatomy, `size` pixels a side, none of which pre-training has seen, as a `KneeDataset` without
    grades; None where the pictures of the study are real."""
    if not study.synthetic:
        return None
    kinds = [OTHER_KINDS[k % len(OTHER_KINDS)] for k in range(study.profile.systems.embeddings.others)]
    drawn = [render_other(kind, np.random.default_rng([study.seed, 8, k])) for k, kind in enumerate(kinds)]
    images = np.stack(
        [Image.fromarray(to_uint8(image)).resize((size, size), Image.Resampling.BOX) for image in drawn]
    )
    names = [f"other{k}" for k in range(len(kinds))]
    rows = pd.DataFrame({"image_id": names, "group_id": names, "kind": kinds})
    return KneeDataset(rows, images, np.arange(len(rows)), origin=digest(images.tobytes()), name="others")


def asked(experiment):
    """Every picture of the cohorts and of other anatomies: what it shows, what it is called, and how well it is taken.

    Returns
    -------
    DataFrame or str
        cohort (of other anatomies: the kind), image_id, group_id, kind, said_<wording> for each wording, then as
        `measured`; or why the CLIP of the profile's first encoder cannot be asked.
    """
    study = experiment.study
    if reason := why_not(study):
        return reason
    spec, sets = study.profile.systems.embeddings.encoders[0], wordings(study)
    arm, texts = encoders.arm(experiment, spec, "modality", None), embedded(experiment, spec, sets)
    inside, outside = experiment.data("training", arm), experiment.data("external", arm, VIEWS[0])
    if outside:
        chosen = outside.rows["image_id"].isin(subset(outside.rows, "deduplicated"))
        outside = outside.part(np.flatnonzero(chosen), "report")
    parts = []
    for role, data in (("training", inside), ("external", outside), ("", others(study, arm.size))):
        if data:
            vectors = np.asarray(experiment.features(arm, data)[0], np.float32)[data.index]
            rows = data.rows.reindex(columns=["image_id", "group_id", "kind"]).fillna({"kind": KNEE})
            cohort = getattr(study.profile, role).name if role else rows["kind"]
            said = {f"said_{name}": nearest(vectors, texts[name]) for name in sets}
            parts.append(
                pd.concat(
                    [rows.assign(cohort=cohort, **said), measured(data.images(np.arange(len(data))))], axis=1
                )
            )
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def embedded(experiment, spec, sets):
    """Mean text embedding of each anatomy, of length 1, by wording: dict of DataFrames (anatomies, d)."""
    sentences = [text for prompts in sets.values() for texts in prompts.values() for text in texts]
    clip, tokenizer = encoders.clip_of(experiment, spec, sentences)
    device, made = next(clip.parameters()).device, {}
    for name, prompts in sets.items():
        each = [clip.encode_text(tokenizer(list(texts)).to(device)).float() for texts in prompts.values()]
        means = torch.stack([F.normalize(vectors, dim=-1).mean(0) for vectors in each])
        made[name] = pd.DataFrame(F.normalize(means, dim=-1).cpu().numpy(), index=list(prompts))
    return made


def nearest(vectors, texts):
    """The anatomy whose texts (from `embedded`) are nearest to each of the vectors (n, d), array (n,) of str."""
    return texts.index.to_numpy()[(vectors @ texts.to_numpy().T).argmax(1)]


def measured(images):
    """How well pictures are taken, each measured on its gray values in [0, 1].

    Parameters
    ----------
    images : array (n, H, W)
        uint8, or float in [0, 1].

    Returns
    -------
    DataFrame
        sharpness (variance of the Laplacian; low is blurred), exposure (mean gray), contrast (standard deviation of
        the gray values).
    """
    values = np.asarray(images)
    gray = values / np.float32(255) if values.dtype == np.uint8 else values.astype(np.float32)
    # The edge row and column repeat a neighbour and say nothing.
    sharp = [laplace(picture)[1:-1, 1:-1].var() for picture in gray]
    found = {"sharpness": np.array(sharp), "exposure": gray.mean((1, 2)), "contrast": gray.std((1, 2))}
    return pd.DataFrame(found).astype(float)


def table(study, pictures):
    """Sensitivity and specificity by wording, and whether the knees of the training cohort that fail are of low quality.

    Parameters
    ----------
    pictures : DataFrame or str
        From `asked`.

    Returns
    -------
    DataFrame or str
        pictures, wording, measure, n, value with ci_low and ci_high (groups resampled, see `share`), failures_called
        (the commonest wrong answer); or why there is none.
    """
    if isinstance(pictures, str):
        return pictures
    sets = [name.removeprefix("said_") for name in pictures if name.startswith("said_")]
    rows = [row for wording in sets for row in rates(study, pictures, wording)]
    rows += [{**row, "wording": sets[0]} for row in low_quality(study, judged(study, pictures))]
    return pd.DataFrame(rows).fillna({"failures_called": ""})


def rates(study, pictures, wording):
    """Sensitivity of each cohort of knees, specificity of each other anatomy and of all: rows of `table`."""
    parts, strange = dict(list(pictures.groupby("cohort", sort=False))), pictures[pictures["kind"] != KNEE]
    rows, parts = [], parts | ({"all other anatomies": strange} if len(strange) else {})
    for name, part in parts.items():
        said, knee = part[f"said_{wording}"], part["kind"] == KNEE
        right = (said == KNEE) == knee
        row = {
            "pictures": name,
            "wording": wording,
            "measure": "sensitivity" if knee.all() else "specificity",
        }
        called = "".join(said[~right].mode()[:1])
        rows.append({**row, **share(study, right, part["group_id"]), "failures_called": called})
    return rows


def share(study, right, groups):
    """A share of pictures with its 95 % interval, whole groups resampled: n, value, ci_low, ci_high; NaN without pictures.

    Where all pictures are alike no draw differs; the open end is then the exact one-sided bound (Clopper-Pearson;
    about 3 / n, the rule of three) of as many independent groups.
    """
    value, low, high = stats.mean_interval(right, groups, study.profile.draws, study.seed)
    if value in (0, 1):
        reach = 1 - ALL_ALIKE ** (1 / groups.nunique())
        low, high = max(0.0, value - reach), min(1.0, value + reach)
    return {"n": len(right), "value": value, "ci_low": low, "ci_high": high}


def judged(study, pictures):
    """The knees of the training cohort with `failed`, by the wording that decides, and `poor`: among the worst tenth of
    these pictures in sharpness, contrast or exposure."""
    knees = pictures[pictures["cohort"] == study.profile.training.name]
    decides = next(name for name in knees if name.startswith("said_"))
    worse = pd.DataFrame({name: of(knees) for name, of in WORSE.items()})
    return knees.assign(failed=knees[decides] != KNEE, poor=(worse >= worse.quantile(1 - POOR)).any(axis=1))


def low_quality(study, found):
    """How much worse the pictures are that fail, from `judged`: rows of `table`, one for the share of low quality
    among each, and one for the AUC of each measure (chance that a failure is of worse quality)."""
    parts = {"knees not recognised": found[found["failed"]], "knees recognised": found[~found["failed"]]}
    rows = [
        {"pictures": name, "measure": "share of low quality", **share(study, part["poor"], part["group_id"])}
        for name, part in parts.items()
    ]
    names = {"macro_auc": "value", "macro_auc_low": "ci_low", "macro_auc_high": "ci_high"}
    for measure, worse in WORSE.items():
        # To the kernel, failed or not are two grades, and how bad a picture is, as a rank, is the probability of failing.
        rank = worse(found).rank(pct=True)
        graded = pd.DataFrame(0.0, found.index, PROBABILITIES).assign(p0=1 - rank, p1=rank)
        graded = graded.assign(kl_grade=found["failed"].astype(int), group_id=found["group_id"])
        auc = stats.measured(graded, ["macro_auc"], study.profile.draws, study.seed)
        row = {
            "pictures": "knees not recognised against recognised",
            "measure": f"AUC of worse quality, {measure}",
        }
        rows.append({**row, **{names.get(name, name): value for name, value in auc.items()}})
    return rows


def claim(study, pictures):
    """Whether zero-shot failures are mostly of low image quality; `pictures` as from `asked`.

    *Replicated* when the interval of the share of failures that are of low quality lies above one half, *not
    replicated* when it lies below, else *inconclusive*; *not run* with fewer than five failures. Ours is that share."""
    if isinstance(pictures, str):
        return not_run(pictures)
    found = judged(study, pictures)
    failed, poor = found["failed"], found["poor"]
    if failed.sum() < FEWEST_FAILURES:
        return not_run(
            f"{failed.sum()} of {len(found)} knees are not recognised, too few to say what they share"
        )
    _, value, low, high = share(study, poor[failed], found["group_id"][failed]).values()
    verdict = "replicated" if low > 0.5 else "not replicated" if high < 0.5 else "inconclusive"
    reason = (
        f"{poor[failed].sum()} of {failed.sum()} failures are of low quality (worst tenth in sharpness, "
        f"contrast or exposure), {poor[~failed].mean():.0%} of the successes"
    )
    return Answer(value, low, high, "ratio", verdict, reason)


def recognised(study, pictures, how):
    """The share of the training cohort's knees that are recognised, in per cent: `Ours`, or why there is none."""
    if isinstance(pictures, str):
        return pictures
    found = judged(study, pictures)
    n, value, low, high = share(study, ~found["failed"], found["group_id"]).values()
    wording = next(iter(wordings(study)))
    note = f"{how}; wording: {wording}; interval {100 * low:.1f} to {100 * high:.1f} % (patients resampled), n = {n}"
    return Ours(100 * value, note=note)
