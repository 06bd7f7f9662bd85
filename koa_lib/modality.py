"""Is this a knee radiograph? A CLIP is asked in words, and its failures are held against the quality of the
pictures.
"""

from functools import cached_property

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib import encoders, quality
from koa_lib.images import to_uint8
from koa_lib.paper.claims import not_run
from koa_lib.phantoms.other import KINDS as OTHER_KINDS
from koa_lib.phantoms.other import render as render_other
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


def why_not(study):
    """Why the question cannot be asked with the first encoder of this profile; empty when it can."""
    spec, model = study.profile.systems.embeddings.encoders[0], study.profile.model
    if not spec.reason and (spec.source == "trained" or (spec.source == "start" and model.start == "random")):
        return f"{model.name} has been trained on knees alone and knows nothing of other anatomies"
    return spec.reason


def prompt_sets(study):
    """The wordings by name; the first one decides, the others are shown beside it.

    A published CLIP is asked with `PROMPTS` (our reading; the paper's are unknown). The stand-in has read
    nothing but captions of its pre-training, so it is asked in their wording, drawn anew, with the mean
    embedding of each anatomy's captions; it has read of no MRI."""
    if study.profile.model.start != "pretrain":
        return {"plain": PROMPTS}
    return {"captions": _captions(study.seed), "plain": PROMPTS}


def _captions(seed):
    from scipy.special import ndtri

    from koa_lib.phantoms.captions import caption
    from koa_lib.phantoms.cohorts import BROAD_MIX
    from koa_lib.phantoms.findings import draw_findings

    rng = np.random.default_rng([seed, 9])
    knees = [
        caption(KNEE, draw_findings(ndtri(rng.uniform(0.02, 0.98)), BROAD_MIX, rng), side, rng)
        for side in "LR" * (CAPTIONS // 2)
    ]
    return {
        KNEE: tuple(knees),
        **{
            kind: tuple(sorted({caption(kind, None, "", rng) for _ in range(CAPTIONS)}))
            for kind in OTHER_KINDS
        },
    }


def others(study, size):
    """Phantoms of other anatomy, none of which pre-training has seen, and what each shows.

    Returns
    -------
    images : uint8 array (n, size, size)
    kinds : list of str
    """
    from PIL import Image

    kinds = [OTHER_KINDS[k % len(OTHER_KINDS)] for k in range(study.profile.systems.embeddings.others)]
    drawn = [render_other(kind, np.random.default_rng([study.seed, 8, k])) for k, kind in enumerate(kinds)]
    images = [Image.fromarray(to_uint8(image)).resize((size, size), Image.Resampling.BOX) for image in drawn]
    return np.stack(images), kinds


class Check:
    """Asks the CLIP of a profile's first encoder what the pictures of a study show; nothing is loaded before
    it is needed.

    Parameters
    ----------
    study : Study

    Attributes
    ----------
    absent : str
        Why it cannot be asked; empty when it can.
    """

    def __init__(self, study):
        self.study, self.spec, self.absent = (
            study,
            study.profile.systems.embeddings.encoders[0],
            why_not(study),
        )
        self.sets = prompt_sets(study)
        self.wording = next(iter(self.sets))

    @cached_property
    def texts(self):
        """Mean text embedding of each anatomy, by wording."""
        sentences = [text for prompts in self.sets.values() for texts in prompts.values() for text in texts]
        clip, tokenizer = encoders.clip_of(self.study, self.spec, sentences)
        return {name: self._embedded(clip, tokenizer, prompts) for name, prompts in self.sets.items()}

    @staticmethod
    @torch.no_grad()
    def _embedded(clip, tokenizer, prompts):
        device = next(clip.parameters()).device
        means = [
            F.normalize(clip.encode_text(tokenizer(list(texts)).to(device)).float(), dim=-1).mean(0)
            for texts in prompts.values()
        ]
        return F.normalize(torch.stack(means), dim=-1).cpu().numpy()

    def said(self, embeddings, wording):
        """The anatomy whose texts are nearest to each of the embeddings (n, d), array (n,) of str."""
        names = np.array(list(self.sets[wording]))
        return names[(embeddings @ self.texts[wording].T).argmax(1)]

    @cached_property
    def pictures(self):
        """Every picture of the cohorts and of other anatomies: what it shows, what it is called, and its
        quality.

        DataFrame with cohort, image_id, group_id, kind, said_<wording> for each wording, then the columns of
        `quality.measured`."""
        parts, (study, spec) = [], (self.study, self.spec)
        for role in ("training", "external"):
            data = encoders.pictures_of(study, spec, role)
            if data is not None:
                rows = data.rows[["image_id", "group_id"]].assign(
                    cohort=getattr(study.profile, role).name, kind=KNEE
                )
                parts.append(
                    self._asked(rows, encoders.embed(study, spec, role), data.images(np.arange(len(data))))
                )
        if study.synthetic:
            images, kinds = others(study, spec.image_size)
            names = [f"other{k}" for k in range(len(kinds))]
            rows = pd.DataFrame(
                {"image_id": names, "group_id": names, "kind": kinds, "cohort": "phantoms of other anatomy"}
            )
            embedded = encoders.embed_images(
                study, spec, lambda: images, "modality-others", {"pictures": digest(images.tobytes())}
            )
            parts.append(self._asked(rows, embedded, images))
        return pd.concat(parts, ignore_index=True)

    def _asked(self, rows, embeddings, images):
        found = rows.reset_index(drop=True).assign(
            **{f"said_{name}": self.said(embeddings, name) for name in self.sets}
        )
        return pd.concat([found, quality.measured(images)], axis=1)

    @cached_property
    def judged(self):
        """The knees of the training cohort, as `quality.judged` by the wording that decides."""
        return quality.judged(
            self.pictures[self.pictures["cohort"] == self.study.profile.training.name], self.wording
        )

    def table(self):
        """Sensitivity and specificity by wording, and whether the knees of the training cohort that fail are
        of low quality.

        Returns
        -------
        DataFrame
            Columns of `rates`, then those of `low_quality`.
        """
        asked = [rates(self.pictures, wording) for wording in self.sets]
        return pd.concat(
            [*asked, low_quality(self.judged, self.study).assign(wording=self.wording)], ignore_index=True
        )

    def knees(self):
        """The row of `rates` of the training cohort's knees, by the wording that decides."""
        return rates(self.pictures, self.wording).iloc[0]

    def claim(self):
        """`quality.claim` on the knees of the training cohort."""
        return not_run(self.absent) if self.absent else quality.claim(self.judged)


def rates(pictures, wording):
    """Sensitivity of each cohort of knees, specificity of each other anatomy and of all, with Wilson
    intervals.

    Returns
    -------
    DataFrame
        pictures, wording, measure, n, right, value (share), ci_low, ci_high, failures_called (the commonest
        wrong answer).
    """
    rows, said = [], pictures[f"said_{wording}"]
    knees = pictures["kind"] == KNEE
    groups = {
        (name, "sensitivity"): rows.index for name, rows in pictures[knees].groupby("cohort", sort=False)
    }
    groups |= {
        (name, "specificity"): rows.index for name, rows in pictures[~knees].groupby("kind", sort=False)
    }
    if not knees.all():
        groups["all other anatomies", "specificity"] = pictures.index[~knees]
    for (name, measure), index in groups.items():
        right = ((said[index] == KNEE) == (measure == "sensitivity")).to_numpy()
        wrong = said[index][~right]
        rows.append(
            (
                name,
                wording,
                measure,
                len(right),
                right.sum(),
                *quality.share(right),
                wrong.mode().iloc[0] if len(wrong) else "",
            )
        )
    return pd.DataFrame(
        rows,
        columns=[
            "pictures",
            "wording",
            "measure",
            "n",
            "right",
            "value",
            "ci_low",
            "ci_high",
            "failures_called",
        ],
    )


def low_quality(judged, study):
    """How much worse the pictures are that fail: one row per share of low quality, and per AUC of a measure.

    Returns
    -------
    DataFrame
        pictures, measure, n, value with ci_low and ci_high (Wilson for the shares, group bootstrap for the
        AUCs), failures_called; failures, successes, mean_difference with _low and _high: of the measure.
    """
    parts = {
        "knees not recognised": judged["poor"][judged["failed"]],
        "knees recognised": judged["poor"][~judged["failed"]],
    }
    rows = [
        (name, "share of low quality", len(poor), *quality.share(poor.to_numpy()))
        for name, poor in parts.items()
    ]
    shares = pd.DataFrame(rows, columns=["pictures", "measure", "n", "value", "ci_low", "ci_high"])
    aucs = quality.failures(judged, study.profile.draws, study.seed)
    aucs = aucs.rename(columns={"worse_auc": "value", "worse_auc_low": "ci_low", "worse_auc_high": "ci_high"})
    aucs = aucs.assign(
        measure="AUC of worse quality, " + aucs["measure"],
        pictures="knees not recognised against recognised",
        n=len(judged),
    )
    return pd.concat([shares, aucs], ignore_index=True).assign(failures_called="")
