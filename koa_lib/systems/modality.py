"""Is this a knee radiograph? A CLIP is asked, and its failures are held against the quality of pictures."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import laplace
from scipy.special import ndtri

from koa_lib import stats
from koa_lib.data.sets import subset
from koa_lib.datasets import KneeDataset
from koa_lib.images import to_uint8
from koa_lib.images.shape import VIEWS
from koa_lib.phantoms.captions import caption
from koa_lib.phantoms.cohorts import BROAD_MIX
from koa_lib.phantoms.findings import draw_findings
from koa_lib.phantoms.other import KINDS as OTHERS
from koa_lib.phantoms.other import render as render_other
from koa_lib.predictions import PROBABILITIES
from koa_lib.store import digest
from koa_lib.systems import encoders
from koa_lib.verdict import Answer, Ours, decided, not_run

KNEE, LOW_QUALITY = "knee", "share of low quality"
FAILED, RECOGNISED = "knees not recognised", "knees recognised"
COLUMNS = ("pictures", "wording", "measure", "n", "value", "ci_low", "ci_high", "failures_called")
PROMPTS = {
    KNEE: ("knee radiograph",),
    "chest": ("chest radiograph",),
    "hand": ("hand radiograph",),
    "hip": ("hip radiograph",),
    "brain": ("brain MRI",),
}
CAPTIONS = 64  # drawn for knees, in the words of the stand-in's pre-training
# How much worse pictures are than the others beside them, by what `quality` measures.
WORSE = {
    "sharpness": lambda rows: -rows["sharpness"],
    "distance from the median exposure": lambda rows: (rows["exposure"] - rows["exposure"].median()).abs(),
    "contrast": lambda rows: -rows["contrast"],
}
POOR = 0.1  # share of the pictures, at the bad end of each measure, that count as of low quality
FEWEST_FAILURES = 5
EXACT = 0.05  # chance that as many groups show no exception, at the bound of a share where all are alike
ALL_OTHERS = "all other anatomies"


def why_not(study):
    """Why the question cannot be asked with the first encoder of this profile; empty when it can."""
    spec, model = study.profile.systems.embeddings.encoders[0], study.profile.model
    if not spec.reason and (spec.source == "trained" or (spec.source == "start" and model.start == "random")):
        return f"{model.name} has been trained on knees alone and knows nothing of other anatomies"
    return spec.reason


def wordings(study):
    """The words for each anatomy, by wording; the first wording decides, the others are shown beside it.

    A published CLIP is asked with `PROMPTS` (our reading; the paper's are unknown). The stand-in has read
    nothing but captions of its pre-training, so it is asked in their wording, drawn anew, with the mean
    embedding of each anatomy's captions; it has read of no MRI."""
    if study.profile.model.start != "pretrain":
        return {"plain": PROMPTS}
    rng = np.random.default_rng([study.seed, 9])
    knees = [
        caption(KNEE, draw_findings(ndtri(rng.uniform(0.02, 0.98)), BROAD_MIX, rng), side, rng)
        for side in "LR" * (CAPTIONS // 2)
    ]
    others = {kind: sorted({caption(kind, None, "", rng) for _ in range(CAPTIONS)}) for kind in OTHERS}
    return {"captions": {KNEE: knees, **others}, "plain": PROMPTS}


def pictures(experiment, arm):
    """The pictures to ask about: pairs (cohort or anatomy, `KneeDataset`).

    Knees of each cohort, the external ones without repeats and conflicts; beside phantoms, those of other
    anatomies, none of which pre-training has seen."""
    study = experiment.study
    yield study.profile.training.name, experiment.data("training", arm)
    if outside := experiment.data("external", arm, VIEWS[0]):
        kept = outside.rows["image_id"].isin(subset(outside.rows, "deduplicated"))
        yield study.profile.external.name, outside.part(np.flatnonzero(kept), "report")
    if study.synthetic:
        for first, kind in enumerate(OTHERS):
            numbers = range(first, study.profile.systems.embeddings.others, len(OTHERS))
            images = np.stack([_other(kind, [study.seed, 8, number], arm.size) for number in numbers])
            rows, origin = pd.DataFrame({"group_id": numbers}), digest(images.tobytes())
            yield kind, KneeDataset(rows, images, np.arange(len(rows)), origin=origin, name=kind)


def _other(kind, seed, size):
    drawn = Image.fromarray(to_uint8(render_other(kind, np.random.default_rng(seed))))
    return np.asarray(drawn.resize((size, size), Image.Resampling.BOX))


def asked(experiment):
    """What the CLIP of the profile's first encoder calls each of the `pictures`, and how well it is taken.

    Returns
    -------
    DataFrame
        cohort (or anatomy), group_id, said_<wording> for each wording, then as `quality`.
    """
    study, parts = experiment.study, []
    spec, sets = study.profile.systems.embeddings.encoders[0], wordings(study)
    arm, texts = encoders.arm(experiment, spec, "modality", None), embedded(experiment, spec, sets)
    for cohort, data in pictures(experiment, arm):
        vectors = np.asarray(experiment.features(arm, data)[0], np.float32)[data.index]
        rows = quality(data.images(np.arange(len(data))))
        rows = rows.assign(cohort=cohort, group_id=data.rows["group_id"])
        for name, prompts in sets.items():
            rows[f"said_{name}"] = np.array(list(prompts))[(vectors @ texts[name].T).argmax(1)]
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


@torch.no_grad()
def embedded(experiment, spec, sets):
    """Mean text embedding of each anatomy, of length 1, by wording: arrays (anatomies, d)."""
    sentences = [text for prompts in sets.values() for texts in prompts.values() for text in texts]
    clip, tokenizer = encoders.clip_of(experiment, spec, sentences)
    device = next(clip.parameters()).device

    def mean(texts):
        return F.normalize(clip.encode_text(tokenizer(list(texts)).to(device)).float(), dim=-1).mean(0)

    return {
        name: F.normalize(torch.stack([mean(texts) for texts in prompts.values()]), dim=-1).cpu().numpy()
        for name, prompts in sets.items()
    }


def quality(images):
    """How well pictures are taken, each measured on its gray values in [0, 1].

    Parameters
    ----------
    images : array (n, H, W)
        uint8, or float in [0, 1].

    Returns
    -------
    DataFrame
        sharpness (variance of the Laplacian; low is blurred), exposure (mean gray), contrast (standard
        deviation of the gray values).
    """
    values = np.asarray(images)
    gray = values / np.float32(255) if values.dtype == np.uint8 else values.astype(np.float32)
    # The edge row and column repeat a neighbour and say nothing.
    sharp = [laplace(picture)[1:-1, 1:-1].var() for picture in gray]
    found = {"sharpness": np.array(sharp), "exposure": gray.mean((1, 2)), "contrast": gray.std((1, 2))}
    return pd.DataFrame(found).astype(float)


def table(experiment):
    """`judged` of what is `asked`; a str says why it cannot be asked."""
    return why_not(experiment.study) or judged(experiment.study, asked(experiment))


def judged(study, pictures):
    """Sensitivity and specificity by wording, and whether the knees that fail are poor pictures.

    Parameters
    ----------
    pictures : DataFrame
        As from `asked`.

    Returns
    -------
    DataFrame
        pictures, wording, measure, n, value with ci_low and ci_high (groups resampled, see `share`),
        failures_called (the commonest wrong answer). The first row is the training cohort's sensitivity by
        the wording that decides, by which its knees fail.
    """
    sets = [name.removeprefix("said_") for name in pictures if name.startswith("said_")]
    rows = [row for wording in sets for row in _rates(study, pictures, wording)]
    rows += _low_quality(study, pictures[pictures["cohort"] == study.profile.training.name], sets[0])
    return pd.DataFrame(rows, columns=COLUMNS)


def _rates(study, pictures, wording):
    strange = pictures[pictures["cohort"].isin(OTHERS)].assign(cohort=ALL_OTHERS)
    for name, part in pd.concat([pictures, strange]).groupby("cohort", sort=False):
        knees, said = name not in (*OTHERS, ALL_OTHERS), part[f"said_{wording}"]
        right, measure = (said == KNEE) == knees, "sensitivity" if knees else "specificity"
        yield name, wording, measure, *share(study, right, part["group_id"]), "".join(said[~right].mode()[:1])


def share(study, right, groups):
    """A share of pictures with its 95 % interval, whole groups resampled: (n, value, low, high), or NaN.

    Where all pictures are alike no draw differs; the open end is then the exact one-sided bound
    (Clopper-Pearson; about 3 / n, the rule of three) of as many independent groups.
    """
    value, low, high = stats.mean_interval(right, groups, study.profile.draws, study.seed)
    if value in (0, 1):
        reach = 1 - EXACT ** (1 / groups.nunique())
        low, high = max(0.0, value - reach), min(1.0, value + reach)
    return len(right), value, low, high


def _low_quality(study, knees, wording):
    worse = pd.DataFrame({name: of(knees) for name, of in WORSE.items()})
    poor, failed = (worse >= worse.quantile(1 - POOR)).any(axis=1), knees[f"said_{wording}"] != KNEE
    groups = knees["group_id"]
    for name, part in ((FAILED, failed), (RECOGNISED, ~failed)):
        yield name, wording, LOW_QUALITY, *share(study, poor[part], groups[part]), ""
    for name, rank in worse.rank(pct=True).items():
        # To the kernel, failed or not are two grades; a picture's rank from good to bad is the probability.
        graded = pd.DataFrame(0.0, knees.index, PROBABILITIES).assign(p0=1 - rank, p1=rank)
        graded = graded.assign(kl_grade=failed.astype(int), group_id=groups)
        auc = stats.measured(graded, ["macro_auc"], study.profile.draws, study.seed)
        yield f"{FAILED} against recognised", wording, f"AUC of worse quality, {name}", *auc.values(), ""


def claim(found):
    """Whether zero-shot failures are mostly of low image quality, from `table`.

    *Replicated* when the interval of the share of failures that are of low quality lies above one half, *not
    replicated* when it lies below, else *inconclusive*; *not run* with fewer than five failures. Ours is that
    share."""
    if isinstance(found, str):
        return not_run(found)
    rows = found[found["measure"] == LOW_QUALITY].set_index("pictures")
    failed, right = rows.loc[FAILED], rows.loc[RECOGNISED]
    if failed.n < FEWEST_FAILURES:
        total = failed.n + right.n
        return not_run(f"{failed.n} of {total} knees are not recognised, too few to say what they share")
    low, high = failed.ci_low, failed.ci_high
    verdict = decided(low > 0.5, high < 0.5)
    reason = (
        f"{failed.value * failed.n:.0f} of {failed.n} failures are of low quality (worst tenth in sharpness, "
        f"contrast or exposure), {right.value:.0%} of the successes"
    )
    return Answer(failed.value, low, high, "ratio", verdict, reason)


def recognised(found, how):
    """Recognised share of the training cohort's knees in per cent, from `table`: `Ours`, or why not."""
    if isinstance(found, str):
        return found
    row = found.iloc[0]
    note = f"{how}; wording: {row.wording}; n = {row.n}"
    return Ours(100 * row.value, note=note, boot_low=100 * row.ci_low, boot_high=100 * row.ci_high)
