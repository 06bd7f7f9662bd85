"""Readings of the printed training: what the paper leaves open, one factor at a time.

Each reading changes `as_printed` in one point (never a full grid); sources are the paper's sections and
published CLIP fine-tuning.
"""

from dataclasses import dataclass, replace

import pandas as pd

from koa_lib import metrics
from koa_lib.comparison import shown, shown_fold
from koa_lib.losses import chance_loss, infonce_floor
from koa_lib.predictions import arrays
from koa_lib.protocols import clip_arm, main_arm, main_fold

AS_PRINTED = "as printed"
TOWERS = ("last_blocks", "full_image", "both_encoders")


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
    # All 12 blocks frozen (section 3.4), the last two layers trained (section 3.4), fine-tuning of the model
    # (section 4.1), both encoders optimised (section 3.3).
    Reading("trained part", "projection", {"part": "projection"}),
    Reading("trained part", "last blocks", {"part": "last_blocks"}),
    Reading("trained part", "full image tower", {"part": "full_image"}),
    Reading("trained part", "both encoders", {"part": "both_encoders"}),
    # The ratio is not printed; 0.2 is CLIP-Adapter's.
    *(Reading("residual ratio", f"{ratio:g}", {"residual": ratio}) for ratio in (0.4, 0.6, 0.8, 1.0)),
    # Symmetric cross-entropy over the batch (sections 3.3 and 3.5).
    Reading("loss", "symmetric InfoNCE", {"loss": "infonce"}),
    # Table 1 numbers the grades 1 to 5, KL grades are 0 to 4; 'this is Mild OA' (section 3.3), 'Severe knee'
    # (4.4).
    Reading("prompts", "no digits", {"prompts": "no_digits"}),
    Reading("prompts", "corrected numbers", {"prompts": "corrected"}),
    Reading("prompts", "template", {"prompts": "template"}),
    Reading("prompts", "short queries", {"prompts": "queries"}),
    # CLIP's weights expect CLIP's statistics.
    Reading("normalisation", "CLIP", {"normalisation": "clip"}),
    # Printed once as 1e-4; published CLIP fine-tuning uses 1e-6 to 3e-5.
    Reading("learning rate", "1e-5", {"learning_rate": 1e-5}),
    # Only in the discussion; an inner tenth of the patients decides (our reading).
    Reading("early stopping", "patience 5", {"patience": 5}),
)


def arms(study):
    """Pairs (reading, arm) on the paper's fold; none where the printed recipe cannot run, and none that
    trains blocks of a tower where the profile leaves those out."""
    if study.profile.as_printed is None:
        return []
    main, fold, left = main_arm(study), (main_fold(study),), absent(study)
    return [(reading, clip_arm(study, reading.name, _changed(study, main.recipe, reading), main.scheme, fold))
            for reading in READINGS if reading not in left]


def absent(study):
    """The readings that a profile leaves out, as its `not_run` says under 'towers'."""
    trains = [reading for reading in READINGS if reading.change.get("part") in TOWERS]
    return trains if "towers" in study.profile.not_run else []


def _changed(study, recipe, reading):
    recipe = replace(recipe, **reading.change)
    # Epochs of a reading that trains blocks of a tower cost a hundred times those on cached embeddings.
    return replace(recipe, epochs=study.profile.tower_epochs) if recipe.part in TOWERS else recipe


def table(experiment, results):
    """Each reading on the paper's held-out fold, beside the recipe as printed.

    Parameters
    ----------
    results : Results
        Of the main arm and of those of `arms`.

    Returns
    -------
    DataFrame
        factor, option, epochs, n, accuracy, macro_f1, qwk, qwk_low, qwk_high, difference (of qwk, reading
        minus printed, same pictures), difference_low, difference_high, external_accuracy, external_qwk; 95 %
        group-bootstrap intervals; not_run (why it is not).
    """
    study, main = experiment.study, main_arm(experiment.study)
    results, rows = shown(study, results), []
    for reading, arm in [(Reading("", AS_PRINTED, {}), main), *arms(study)]:
        found = results.of(arm=arm.name)
        values = found.measured(("accuracy", "macro_f1", "qwk"), split="held_out")
        gap = results.of(split="held_out").gap(arm.name, main.name, ["qwk"])
        row = {"factor": reading.factor, "option": reading.option,
               "epochs": int(experiment.history(arm)["epoch"].max()),  # early stopping ends earlier
               **{name: values[name] for name in ("n", "accuracy", "macro_f1", "qwk", "qwk_low", "qwk_high")},
               **{name.replace("qwk", "difference"): gap[name] for name in ("qwk", "qwk_low", "qwk_high")}}
        if "external" in found:
            outside = metrics.summary(*arrays(found.graded(split="external")))
            row |= {f"external_{name}": outside[name] for name in ("accuracy", "qwk")}
        rows.append(row)
    rows += [{"factor": reading.factor, "option": reading.option, "not_run": study.profile.not_run["towers"]}
             for reading in absent(study)]
    order = [(reading.factor, reading.option) for reading in READINGS]
    rows[1:] = sorted(rows[1:], key=lambda row: order.index((row["factor"], row["option"])))
    frame = pd.DataFrame(rows).astype({"epochs": "Int64", "n": "Int64"})
    frame.loc[0, ["difference_low", "difference_high"]] = float("nan")  # an arm has no difference to itself
    return frame


def contrastive_history(experiment, results):
    """The history of the reading that trains with InfoNCE, with its lowest loss and that of a guess.

    Returns
    -------
    DataFrame
        As `Experiment.history`; floor, guess (nats).
    """
    arm = next(arm for _, arm in arms(experiment.study) if arm.recipe.loss == "infonce")
    train = shown_fold(experiment.study, results.of(arm=arm.name), "train")
    batch = min(arm.recipe.batch, len(train))
    floor = infonce_floor(train["kl_grade"].value_counts().sort_index(), batch)
    return experiment.history(arm).assign(floor=floor, guess=chance_loss(batch))
