"""Is this a knee radiograph? A CLIP is asked in words, and its failures are held against the quality of the pictures (METHODS 3)."""

from functools import cached_property

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from koa_lib import encoders
from koa_lib.images import to_uint8
from koa_lib.phantoms.other import KINDS as OTHER_KINDS
from koa_lib.phantoms.other import render as render_other
from koa_lib.quality import STRENGTHS, degrade, measured, share
from koa_lib.store import digest

KNEE = "knee"
PROMPTS = {KNEE: ("knee radiograph",), "chest": ("chest radiograph",), "hand": ("hand radiograph",), "hip": ("hip radiograph",), "brain": ("brain MRI",)}
CAPTIONS = 64  # drawn for knees, in the words of the stand-in's pre-training


def why_not(study, spec):
    """Why the question cannot be asked with an encoder of this profile; empty when it can."""
    if spec.reason:
        return spec.reason
    if spec.source == "trained" or (spec.source == "start" and study.profile.model.start == "random"):
        return f"{study.profile.model.name} has been trained on knees alone and knows nothing of other anatomies"
    return ""


def prompt_sets(study):
    """The wordings by name; the first one decides, the others are shown beside it.

    A published CLIP is asked with `PROMPTS` (our reading; the paper's are unknown). The stand-in has read nothing but captions of its pre-training,
    so it is asked in their wording, drawn anew, with the mean embedding of each anatomy's captions; it has read of no MRI.
    """
    if study.profile.model.start != "pretrain":
        return {"plain": PROMPTS}
    return {"captions": _captions(study.seed), "plain": PROMPTS}


def _captions(seed):
    from scipy.special import ndtri

    from koa_lib.phantoms.captions import caption
    from koa_lib.phantoms.cohorts import BROAD_MIX
    from koa_lib.phantoms.findings import draw_findings

    rng = np.random.default_rng([seed, 9])
    knees = [caption(KNEE, draw_findings(ndtri(rng.uniform(0.02, 0.98)), BROAD_MIX, rng), side, rng) for side in "LR" * (CAPTIONS // 2)]
    return {KNEE: tuple(knees), **{kind: tuple(sorted({caption(kind, None, "", rng) for _ in range(CAPTIONS)})) for kind in OTHER_KINDS}}


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
    """Asks one encoder's CLIP what the pictures of a study show."""

    def __init__(self, study, spec):
        self.study, self.spec, self.sets = study, spec, prompt_sets(study)
        sentences = [text for prompts in self.sets.values() for texts in prompts.values() for text in texts]
        clip, tokenizer = encoders.clip_of(study, spec, sentences)
        self.texts = {name: self._embedded(clip, tokenizer, prompts) for name, prompts in self.sets.items()}
        self.wording = next(iter(self.sets))

    @staticmethod
    @torch.no_grad()
    def _embedded(clip, tokenizer, prompts):
        device = next(clip.parameters()).device
        means = [F.normalize(clip.encode_text(tokenizer(list(texts)).to(device)).float(), dim=-1).mean(0) for texts in prompts.values()]
        return F.normalize(torch.stack(means), dim=-1).cpu().numpy()

    def said(self, embeddings, wording):
        """The anatomy whose texts are nearest to each of the embeddings (n, d), array (n,) of str."""
        names = np.array(list(self.sets[wording]))
        return names[(embeddings @ self.texts[wording].T).argmax(1)]

    def pictures(self):
        """Every picture of the cohorts and of other anatomies: what it shows, what it is called, and its quality.

        Returns
        -------
        DataFrame
            cohort, image_id, group_id, kind, said_<wording> for each wording, then the columns of `quality.measured`.
        """
        parts = []
        for role in ("training", "external"):
            data = self._data if role == "training" else encoders.pictures_of(self.study, self.spec, role)
            if data is not None:
                rows = data.rows[["image_id", "group_id"]].assign(cohort=getattr(self.study.profile, role).name, kind=KNEE)
                parts.append(self._asked(rows, encoders.embed(self.study, self.spec, role), data.images(np.arange(len(data)))))
        if self.study.synthetic:
            images, kinds = self._others
            rows = pd.DataFrame({"image_id": [f"other{k}" for k in range(len(kinds))], "kind": kinds, "cohort": "phantoms of other anatomy"}).assign(group_id=lambda rows: rows["image_id"])
            parts.append(self._asked(rows, self._embed(lambda: images, "others", pictures=digest(images.tobytes())), images))
        return pd.concat(parts, ignore_index=True)

    def _asked(self, rows, embeddings, images):
        found = rows.reset_index(drop=True).assign(**{f"said_{name}": self.said(embeddings, name) for name in self.sets})
        return pd.concat([found, measured(images)], axis=1)

    def _embed(self, draw, name, **key):
        return encoders.embed_images(self.study, self.spec, draw, f"modality-{name}", key)

    def degraded(self):
        """The answers for pictures that are spoilt on purpose: the first knees of the test split, and other anatomies where there are any.

        Returns
        -------
        DataFrame
            degradation, strength, n, sensitivity, ci_low, ci_high (of the knees, Wilson), others, specificity, specificity_low, specificity_high.
        """
        knees, strange = self.samples()
        images = knees if strange is None else np.concatenate([knees, strange])
        steps = [(kind, strength) for kind, strengths in STRENGTHS.items() for strength in strengths]
        embeddings = self._embed(lambda: np.concatenate([degrade(images, *step, self.study.seed) for step in steps]), "degraded", steps=steps, pictures=digest(images.tobytes()))
        called = self.said(embeddings, self.wording).reshape(len(steps), len(images)) == KNEE
        return pd.DataFrame([_degraded_row(*step, answer, len(knees)) for step, answer in zip(steps, called, strict=True)])

    def samples(self):
        """The pictures that are spoilt: knees (n, size, size), and other anatomies likewise or None."""
        number, strange = self.study.profile.systems.embeddings.degraded, None
        if self.study.synthetic:
            strange = self._others[0][:number]
        return self._data.images(self._chosen()), strange

    def sample_ids(self):
        """The image ids of the knees of `samples`."""
        return self._data.rows["image_id"].iloc[self._chosen()]

    def _chosen(self):
        unseen = np.flatnonzero(self._data.rows["split"] == "test")
        return (unseen if len(unseen) else np.arange(len(self._data)))[: self.study.profile.systems.embeddings.degraded]

    @cached_property
    def _data(self):
        return encoders.pictures_of(self.study, self.spec, "training")

    @cached_property
    def _others(self):
        return others(self.study, self.spec.image_size)


def _degraded_row(kind, strength, called, knees):
    right, wrong = called[:knees], ~called[knees:]
    row = {"degradation": kind, "strength": strength, "n": knees, **share("sensitivity", right, ("ci_low", "ci_high"))}
    return {**row, "others": len(wrong), **share("specificity", wrong, ("specificity_low", "specificity_high"))}


def rates(pictures, wording):
    """Sensitivity of each cohort of knees, specificity of each other anatomy and of all, with Wilson intervals.

    Returns
    -------
    DataFrame
        pictures, wording, measure, n, right, rate, ci_low, ci_high, failures_called (the commonest wrong answer).
    """
    rows, said = [], pictures[f"said_{wording}"]
    knees = pictures["kind"] == KNEE
    groups = {(name, "sensitivity"): rows.index for name, rows in pictures[knees].groupby("cohort", sort=False)}
    groups |= {(name, "specificity"): rows.index for name, rows in pictures[~knees].groupby("kind", sort=False)}
    if not knees.all():
        groups["all other anatomies", "specificity"] = pictures.index[~knees]
    for (name, measure), index in groups.items():
        right = ((said[index] == KNEE) == (measure == "sensitivity")).to_numpy()
        wrong = said[index][~right]
        rows.append({"pictures": name, "wording": wording, "measure": measure, "n": len(right), "right": int(right.sum()), **share("rate", right, ("ci_low", "ci_high")),
                     "failures_called": wrong.mode().iloc[0] if len(wrong) else ""})
    return pd.DataFrame(rows)
