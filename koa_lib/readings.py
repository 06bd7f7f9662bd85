"""Readings of the printed training: what the paper leaves open or says in more than one way, one factor at a time.

Each reading changes `as_printed` in one point (never a full grid); sources are the paper's sections and published CLIP fine-tuning.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from koa_lib import metrics, stats
from koa_lib.comparison import shown_fold
from koa_lib.losses import chance_loss, infonce_floor
from koa_lib.predictions import arrays
from koa_lib.protocols import clip_arm, main_arm, main_fold

AS_PRINTED = "as printed"


@dataclass(frozen=True)
class Reading:
    """A named option of a factor and the change of the recipe that it makes."""

    factor: str
    option: str
    change: dict

    @property
    def name(self):
        """Name of its arm and files, e.g. 'reading-loss-infonce'."""
        return "reading-" + f"{self.factor}-{self.option}".lower().replace(" ", "_").replace(".", "_")


READINGS = (
    Reading("trained part", "projection", {"part": "projection"}),  # all 12 blocks frozen (section 3.4), no adapter
    Reading("trained part", "last blocks", {"part": "last_blocks"}),  # last two layers trained (section 3.4)
    Reading("trained part", "full image tower", {"part": "full_image"}),  # fine-tuning of the model (section 4.1)
    Reading("trained part", "both encoders", {"part": "both_encoders"}),  # both encoders optimised (section 3.3)
    *(Reading("residual ratio", f"{ratio:g}", {"residual": ratio}) for ratio in (0.4, 0.6, 0.8, 1.0)),  # ratio not printed; 0.2 is CLIP-Adapter's
    Reading("loss", "symmetric InfoNCE", {"loss": "infonce"}),  # symmetric cross-entropy over the batch (sections 3.3 and 3.5)
    Reading("prompts", "no digits", {"prompts": "no_digits"}),  # Table 1 numbers the grades 1 to 5
    Reading("prompts", "corrected numbers", {"prompts": "corrected"}),  # KL grades are 0 to 4
    Reading("prompts", "template", {"prompts": "template"}),  # 'this is Mild OA' (section 3.3)
    Reading("prompts", "short queries", {"prompts": "queries"}),  # 'Severe knee' (section 4.4)
    Reading("normalisation", "CLIP", {"normalisation": "clip"}),  # CLIP's weights expect CLIP's statistics
    Reading("learning rate", "1e-5", {"learning_rate": 1e-5}),  # printed once as 1e-4; published CLIP fine-tuning uses 1e-6 to 3e-5
    Reading("early stopping", "patience 5", {"patience": 5}),  # only in the discussion; an inner tenth of the patients decides (our reading)
)


def arms(study):
    """Pairs (reading, arm) on the paper's fold, the printed recipe changed in one point; none where it cannot run."""
    if study.profile.as_printed is None:
        return []
    main, fold = main_arm(study), (main_fold(study),)
    return [(reading, clip_arm(study, reading.name, _changed(study, main.recipe, reading), main.scheme, fold)) for reading in READINGS]


def _changed(study, recipe, reading):
    recipe = replace(recipe, **reading.change)
    # Epochs of a reading that trains blocks of a tower cost a hundred times those on cached embeddings.
    return replace(recipe, epochs=study.profile.tower_epochs) if recipe.part in ("last_blocks", "full_image", "both_encoders") else recipe


def table(study, printed, found):
    """Each reading on the paper's held-out fold, beside the recipe as printed.

    Parameters
    ----------
    printed : dict
        Results of the main arm, as from `Runner.run`.
    found : list of (Reading, Arm, dict)

    Returns
    -------
    DataFrame
        factor, option, epochs, n, accuracy, macro_f1, qwk, qwk_low, qwk_high, difference (of qwk, reading minus printed, same
        pictures), difference_low, difference_high, external_accuracy, external_qwk; 95 % group-bootstrap intervals.
    """
    base = shown_fold(study, printed, "held_out")
    rows = [{"factor": "", "option": AS_PRINTED, "epochs": study.profile.as_printed.epochs, **_values(study, printed), "difference": 0.0, "difference_low": np.nan, "difference_high": np.nan}]
    for reading, changed, results in found:
        both = stats.paired(shown_fold(study, results, "held_out"), base)
        gap = stats.difference(both, "qwk", study.profile.draws, study.seed)
        rows.append({"factor": reading.factor, "option": reading.option, "epochs": _epochs(study, changed), **_values(study, results),
                     "difference": gap["difference"], "difference_low": gap["ci_low"], "difference_high": gap["ci_high"]})
    return pd.DataFrame(rows)


def _epochs(study, arm):
    # As trained: early stopping ends before the recipe does.
    return int(pd.read_csv(study.file(f"history/{arm.name}.csv"))["epoch"].max())


def _values(study, results):
    graded = shown_fold(study, results, "held_out")
    summary = stats.confusion_summary(graded, study.profile.draws, study.seed).set_index("metric")
    values = {"n": len(graded), **summary.value[["accuracy", "macro_f1", "qwk"]], "qwk_low": summary.ci_low["qwk"], "qwk_high": summary.ci_high["qwk"]}
    if "external" in results:
        outside = metrics.summary(*arrays(shown_fold(study, results, "external")))
        values |= {"external_accuracy": outside["accuracy"], "external_qwk": outside["qwk"]}
    return values


def contrastive_history(study, found, printed):
    """The history of the reading that trains with InfoNCE, with the loss that cannot be undercut and that of a guess.

    Parameters
    ----------
    found : list of (Reading, Arm, dict)
    printed : dict
        Results of the main arm, as from `Runner.run`.

    Returns
    -------
    DataFrame
        The arm's history; floor, guess (nats).
    """
    arm = next(arm for _, arm, _ in found if arm.recipe.loss == "infonce")
    mix = shown_fold(study, printed, "train")["kl_grade"].value_counts().sort_index()
    batch = min(arm.recipe.batch, mix.sum())
    history = pd.read_csv(study.file(f"history/{arm.name}.csv"))
    return history.assign(floor=infonce_floor(mix, batch), guess=chance_loss(batch))
