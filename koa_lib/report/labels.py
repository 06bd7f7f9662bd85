"""Names for people: what the columns, arms, cohorts and other codes of the files are called on the pages. Files keep the codes."""

import re

# Column of a file -> its name in the field, and, where that is not obvious, what it is.
COLUMNS = {
    "accuracy": ("Accuracy", ""),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity of the five grades; chance is 0.2"),
    "macro_precision": ("Macro-precision", "mean over the grades of the share of right calls"),
    "macro_sensitivity": ("Macro-sensitivity", "mean over the grades of the share of recognised knees"),
    "macro_specificity": ("Macro-specificity", "mean over the grades of the share of other knees not called the grade"),
    "macro_f1": ("Macro-F1", "mean F1 of the five grades; F1 is the harmonic mean of precision and sensitivity"),
    "macro_auc": ("Macro-AUC", "mean AUC of the five grades, each against the rest"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "auc": ("AUC", "chance that a knee of the grade gets a higher probability of it than another knee"),
    "qwk": ("Quadratic κ", "quadratic weighted kappa: agreement beyond chance, where far errors count more; 1 is perfect, 0 is chance"),
    "linear_kappa": ("Linear κ", "kappa with errors weighted by their distance in grades"),
    "weighted_kappa": ("Weighted κ", "agreement beyond chance, where far errors count more"),
    "kappa": ("Cohen's κ", "agreement beyond chance"),
    "mae": ("MAE (grades)", "mean absolute error: how many grades an answer is off"),
    "within_one": ("Within one grade", "share of knees graded at most one grade off"),
    "ece": ("Calibration error (ECE)", "expected calibration error: mean gap between the top probability and the share of right answers, 15 bins"),
    "flip_disagreement": ("Flip disagreement", "share of pictures whose grade changes when left and right are exchanged"),
    "sensitivity": ("Sensitivity", "share of the knees of a grade that are recognised"),
    "specificity": ("Specificity", "share of the other knees that are not called the grade"),
    "precision": ("Precision", "share of right calls"),
    "ci": ("95 % interval", ""),
    "n": ("n", "number of radiographs"),
    "kl_grade": ("KL grade", "Kellgren–Lawrence grade, 0 (normal) to 4 (severe)"),
    "grade": ("KL grade", "Kellgren–Lawrence grade, 0 (normal) to 4 (severe)"),
    "name": ("Grade name", ""),
    "as_run": ("As run", "network, picture size, epochs and start weights in this run"),
    "best_constant": ("Best constant answer", "the most that one grade for every picture reaches"),
    "above_chance": ("Above chance", "the interval lies above chance"),
    "reader_1": ("Reader I", ""),
    "features": ("Known to the classifier", ""),
    "zero_shot": ("Without external data", "yes where no picture and no grade of the external cohort was used; the model itself is fine-tuned on the training cohort"),
    "labels": ("External labels", "graded external pictures that are learnt from"),
    "arm": ("Arm", "a model with one way of training it"),
    "clip_only": ("Only CLIP right", "pictures that CLIP grades rightly and the baseline wrongly"),
    "baseline_only": ("Only baseline right", "pictures that the baseline grades rightly and CLIP wrongly"),
    "p_exact": ("p, exact", "McNemar's exact test on the discordant pictures"),
    "p_mid": ("p, mid-p", "McNemar's mid-p test on the discordant pictures"),
    "p_holm": ("p, Holm", "exact p corrected for the number of tests by Holm's method"),
    "p_value": ("p", ""),
    "difference": ("Difference", "paired: both on the same pictures"),
    "by_image": ("Folds over pictures", ""),
    "by_patient": ("Folds over patients", ""),
    "implied_precision": ("Implied precision", "what sensitivity, specificity and counts imply"),
    "implied_f1": ("Implied F1", "what sensitivity, specificity and counts imply"),
    "corrected": ("In its source", "the accuracy that the cited source prints, where it was found"),
    "wilson": ("Wilson's 95 % interval", "interval of a proportion of n independent pictures"),
    "width_ratio": ("Width ratio", "printed interval width over that of n independent pictures"),
    "n_of_width": ("n for this width", "independent pictures that give the printed width"),
    "attainable": ("Attainable", "the sensitivity can be a whole number of n pictures"),
    "share": ("Share of the grade", "what a random order of the pictures gives"),
    "average_precision": ("Average precision", "area under the precision-recall curve of a query"),
    "published": ("Compared with", "the printed number or, in a row of arithmetic, what printed numbers and counts imply"),
    "ours": ("This run", ""),
    "item": ("Item", "where it is printed"),
    "expected": ("Compared with", "the printed number, or what other printed numbers and counts imply"),
    "tolerance": ("Tolerance", "difference that rounding explains"),
    "inference_ms": ("Inference time (ms)", ""),
    "training_minutes": ("Training time (min)", ""),
    "train_test_drop": ("Drop from training to test", ""),
    "test_set": ("Test set", ""),
    "option": ("Reading", "one way to read what the paper leaves open"),
    "sd over seeds": ("SD over seeds", ""),
    # Notebook 9
    "inner_qwk": ("Quadratic κ, inner part", "on the tenth of the training patients that made the choice, so it is flattered"),
    "gap_accuracy": ("Accuracy, difference", "linear minus non-linear head on the same pictures"),
    "gap_qwk": ("Quadratic κ, difference", "linear minus non-linear head on the same pictures"),
    "gap_macro_f1": ("Macro-F1, difference", "linear minus non-linear head on the same pictures"),
    "simultaneous": ("Accuracy, all differences at once", "Bonferroni's correction for the number of differences"),
    "lowest_loss": ("Lowest loss (nats)", "mean over the last epoch of the training that ends lowest"),
    "loss_floor": ("Floor (nats)", "what no model can undercut on the same batches"),
    "uniform_loss": ("Equally likely (nats)", "the loss of finding every text of a batch equally likely"),
    # Notebook 8
    "symmetry_weight": ("Weight of symmetry", "λ₁ of the symmetry loss"),
    "consistency_weight": ("Weight of consistency", "λ₂ of the consistency loss"),
    "comparison": ("Arm − other arm", "difference of the two on the same pictures"),
    "accuracy_sd": ("SD of accuracy", "standard deviation over the seeds"),
    "macro_f1_sd": ("SD of macro-F1", "standard deviation over the seeds"),
    "qwk_sd": ("SD of quadratic κ", "standard deviation over the seeds"),
    "flip_disagreement_sd": ("SD of flip disagreement", "standard deviation over the seeds"),
    # Notebook 11
    "learned_from": ("Learned from", "before the classifier saw a grade"),
    "spread": ("Spread", "0 when all pictures get the same embedding, 1 when the embeddings point everywhere alike"),
    "effective_rank": ("Effective rank", "in how many directions the embeddings differ"),
    "label_percent": ("Labels (%)", "share of the training patients whose grades are used"),
    "sd_over_draws": ("SD over draws", "standard deviation over the seeds, each of which draws other patients (with all labels the same ones: only the part that chooses the regularisation differs); the towers stay the same"),
    "against_supervised": ("Against supervised", "quadratic kappa minus that of CLIP fine-tuned with all labels, paired"),
    "against_random": ("Against random", "quadratic kappa minus that of the random start with as many labels, paired"),
    "within_margin_percent": ("Equal within the margin from (%)", "there and with more labels the interval excludes a loss of more than the margin"),
    "not_below_percent": ("No loss shown from (%)", "there and with more labels the interval reaches 0"),
    "as_high_percent": ("Value as high from (%)", "there and with more labels, whatever the interval"),
    # Notebook 10
    "how": ("How it is run", "network, picture size, epochs and start weights in this run; stand-ins are named"),
    "not_run": ("Run in this profile", "or the reason why not"),
    "levels_auc": ("AUC, mean of levels", "each level of the task against the rest"),
    "fitted_on": ("Fitted on (n)", "pictures that the classifier or network learns from"),
    "chosen_on": ("Chosen on (n)", "pictures of other patients that choose its settings"),
    "qwk_difference": ("Difference of quadratic κ", "first minus second, on the same pictures"),
    "linear_kappa_difference": ("Difference of linear κ", "first minus second, on the same pictures"),
    "right": ("Right", "pictures that are answered rightly"),
    "rate": ("Share", "right answers among the pictures"),
    "failures_called": ("Wrong ones mostly called", "the commonest wrong answer"),
    "failures": ("Not recognised", "mean of the knees that are not called knee"),
    "successes": ("Recognised", "mean of the knees that are called knee"),
    "mean_difference": ("Difference of means", "not recognised minus recognised"),
    "worse_auc": ("AUC of worse quality", "chance that a knee that is not recognised is of worse quality than one that is; 0.5 is chance"),
    # Notebook 12.
    "layer": ("Mapped layer", "what Grad-CAM maps, its name in the network, and its cells"),
    "above_constant": ("Above a constant", "whether more of the pictures are graded rightly than one grade for all of them reaches"),
    "commonest": ("Commonest answer", "the grade that the model gives most often, and to how many of the pictures"),
    "trained_patients": ("Patients with the other knee in training", "how many patients of the explained pictures have another knee in this model's training part"),
    "inside": ("Inside", "share of the map that lies in the regions of the findings"),
    "hits": ("Hits", "share of pictures whose brightest pixel lies in a region of the findings"),
    "chance_area": ("Chance", "share of the picture that the regions cover"),
    "other_patients": ("Others' maps", "the same for the maps of other patients in place of the picture's own"),
    "chance_gain": ("Over chance", "the value minus chance, picture by picture"),
    "own_gain": ("Own − others'", "how much more the picture's own map reaches than those of other patients"),
    "curve_area": ("Area", "mean height of the curve: probability of the model's own grade"),
    "random_gain": ("Over random", "how much lower (deletion) or higher (insertion) the area is than in random order"),
    "centre_gain": ("Over centre", "how much lower (deletion) or higher (insertion) the area is than in centre-out order"),
    "random_verdict": ("Against random", "better or worse than random order, after correction"),
    "centre_verdict": ("Against centre", "better or worse than centre-out order, after correction"),
}
# Held as shares; a frame in per cent says so in its heads.
SHARES = {"accuracy", "balanced_accuracy", "macro_precision", "macro_sensitivity", "macro_specificity", "macro_f1", "f1", "sensitivity", "specificity",
          "precision", "implied_precision", "implied_f1", "within_one", "corrected"}
WHOLE = {"epochs", "n", "n_of_width", "folds", "pictures", "groups", "files", "labels"}
# Codes that are no words: replaced wherever they stand.
_CODES = {
    "clip-as_printed": "CLIP as printed", "clip-our_protocol": "CLIP by our protocol", "clip-as_printed-patients": "CLIP as printed, folds over patients", "as_printed": "as printed", "our_protocol": "our protocol",
    "phantom_a": "phantom cohort A", "phantom_b": "phantom cohort B", "oai_chen2018": "OAI (Chen 2018)", "gornale2020": "Gornale 2020",
    "held_out": "held-out fold", "center_crop": "centre crop", "joint_crop": "joint crop", "match_train": "matched to training", "no_digits": "no digits",
    "last_blocks": "last blocks", "full_image": "full image tower", "both_encoders": "both encoders", "jpm2026": "the paper",
}
# Words of a file that need another only where they are all that a cell says.
_CELLS = {"train": "training part", "val": "validation part", "test": "test part", "external": "external cohort", "auto_test": "automatic crops", "queries": "short queries",
          "audit": "arithmetic", "mcnemar": "McNemar's test", "macro": "mean of the grades", "corrected": "corrected numbers", "sd over seeds": "SD over seeds", "sd over folds": "SD over folds"}
_CODE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(sorted(map(re.escape, _CODES), key=len, reverse=True))})(?![\w/-]|\.\w)")
_PER_CENT, _MINUS = re.compile(r"(?<=\d) ?%(?!\w)"), re.compile(r"(?:^|(?<=[\s(\[]))-(?=\.?\d)")
_ITEM = re.compile(r"\b(table|figure)_(s?\d+)\b")


def words(text):
    """A text of a file with its codes replaced by what people call them, e.g. "clip-as_printed" by "CLIP as printed"."""
    return _coded(_CELLS.get(text, text))


def _coded(text):
    text = _ITEM.sub(lambda found: f"{found[1].capitalize()} {found[2].upper()}", text)
    return _CODE.sub(lambda found: _CODES[found[0]], text)


def typeset(text):
    """A text for reading with one style of numbers: "47%" becomes "47 %" that stays on one line, "-0.3" gets a minus sign."""
    return _MINUS.sub("−", _PER_CENT.sub("\N{NO-BREAK SPACE}%", text))


def column(name, percent=False):
    """Head of a column and, where the term is not obvious, what it means.

    Parameters
    ----------
    name : str
        As in the file, e.g. "macro_f1", "published_ci", "auc_kl_0".
    percent : bool
        Shares are held in per cent.

    Returns
    -------
    (str, str)
        Such as ("Macro-F1 (%)", "mean F1 of the five grades ...").
    """
    name = str(name)
    if name in COLUMNS:
        text, hint = COLUMNS[name]
        return text + " (%)" * (percent and name in SHARES), hint
    for before, said in (("published_", "Published {}"), ("external_", "External {}"), ("held-out ", "Held-out {}"), ("external ", "External {}"), ("n ", "{} (n)")):
        rest = name.removeprefix(before)
        if rest != name and (rest in COLUMNS or before == "n "):
            text, hint = column(rest, percent) if rest in COLUMNS else (_capital(_coded(rest)), COLUMNS["n"][1])
            return said.format(_small(text) if said.endswith("}") else text), hint
    graded = re.fullmatch(r"(\w+)_kl_(\d)", name)
    if graded:
        text, hint = column(graded[1], percent)
        return f"{text}, KL {graded[2]}", hint
    counted = re.fullmatch(r"(\w+) (groups|files)", name)
    return _capital(f"{_coded(counted[1])}: {counted[2]}" if counted else _coded(name).replace("_", " ")), ""


def interval_column(name):
    """Head of the joined columns "<name>_low" and "<name>_high"."""
    if name in ("ci", "wilson", "published_ci"):
        return column(name)[0]
    return f"{column(name)[0]}, 95 % interval" if name else "95 % interval"


def interval(study, *cohort_names):
    """What the bootstrap intervals of a caption are: level, draws, and what is resampled in each cohort."""
    from koa_lib.data import cohorts

    patients = dict.fromkeys(cohorts.facts(name).group == "patient" for name in cohort_names)
    units = {True: "whole patients", False: "groups of look-alike pictures (patients are not known: it may be too narrow)"}
    return f"95 % interval: group bootstrap, {study.profile.draws:,} draws of {' or '.join(units[known] for known in patients)}"


def _capital(text):
    return text[:1].upper() + text[1:]


def _small(text):
    # "AUC" and "F1" stay as they are.
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
