"""What the grid of encoders, projection heads and losses shows, as text."""

import torch

from koa_lib.alignment import LEVEL, STANDS_IN, chosen, clear, linear_better, shown
from koa_lib.losses import batch_targets
from koa_lib.metrics import best_constant


def grid_in_words(table, grades):
    """The span of accuracy and kappa of each encoder, beside one grade for every picture, as text."""
    spans = [f"{name} {rows['accuracy'].min():.3f} to {rows['accuracy'].max():.3f} (quadratic kappa {rows['qwk'].min():.2f} to {rows['qwk'].max():.2f})"
             for name, rows in table.groupby("encoder", sort=False)]
    constant = best_constant(grades)["accuracy"]
    above = int((table["accuracy_low"] > constant).sum())
    return (f"Accuracy over heads and losses: {'; '.join(spans)}. One grade for every picture reaches {constant:.3f}; "
            f"of {len(table)} combinations {above} {'lies' if above == 1 else 'lie'} above it with the whole interval.")


def rule_in_words(study, table):
    """What the rule of `linear_better` says, how far chance alone could carry it, and whose differences these are, as text."""
    answer, number = linear_better(table), len(table)
    above, below = clear(table, "gap_accuracy")
    chance = min(1, number * (1 - LEVEL) / 2)
    return (f"By the rule the claim is **{answer.verdict}** on this run's data. Of {number} differences {above} lie above 0 with the whole 95 % interval and "
            f"{below} below; they go from {answer.ours:+.1f} points ({answer.ci_low:+.1f} to {answer.ci_high:+.1f}) to {100 * table['gap_accuracy'].max():+.1f}. "
            f"If the heads did not differ, at least one of {number} such intervals would lie below 0 by chance in up to {100 * chance:.0f} % of studies ({number} × {50 * (1 - LEVEL):g} %); of the "
            "intervals that hold all at once, {} lie above 0 and {} below. ".format(*clear(table, "simultaneous")) + stand_ins_in_words(study))


def ends_in_words(table):
    """The lowest loss of each kind and its floor, as text."""
    ends = "; ".join(f"{row.loss} {row.lowest_loss:.2f} ({row.encoder}, {row.head}) above a floor of {row.loss_floor:.2f}" for row in table.itertuples())
    return f"At the last epoch the lowest losses are, in nats: {ends}."


def targets_in_words(grades):
    """The label-aware and ordinal targets of a small batch, as a Markdown table: one row per grade that occurs."""
    numbers = torch.tensor(grades)
    kinds = [batch_targets(numbers, kind) for kind in ("hard", "ordinal")]
    head = "| a picture of | label-aware: shares of the texts of grades " + ", ".join(map(str, grades)) + " | ordinal |\n| :-- | :-- | :-- |\n"
    cells = {grade: " | ".join(", ".join(f"{share:.2f}" for share in targets[place].tolist()) for targets in kinds) for place, grade in enumerate(grades)}
    return head + "\n".join(f"| grade {grade} | {said} |" for grade, said in cells.items())


def loss_and_grading_in_words(ends, grid):
    """Whether the encoder with the lowest training loss is also the one that grades best, for each loss, as text.

    Parameters
    ----------
    ends, grid : DataFrame
        From `alignment.curves` and `alignment.grid`.
    """
    best = grid.loc[grid.groupby("loss")["qwk"].idxmax()].set_index("loss")["encoder"]
    others = {}
    for row in ends[ends["encoder"] != ends["loss"].map(best)].itertuples():
        others.setdefault(f"lowest with {row.encoder}, highest kappa with {best[row.loss]}", []).append(row.loss)
    said = "; ".join(f"{', '.join(names)}: {pair}" for pair, names in others.items())
    if not others:
        return "For each loss the encoder with the lowest training loss also has the highest quadratic kappa."
    return (f"For {sum(map(len, others.values()))} of {len(ends)} losses the encoder with the lowest training loss is not the one with the highest quadratic kappa on pictures "
            f"that it has not seen ({said}): heads can fit what they are trained on and still grade worse.")


def answer_in_words(study, trained, grid, gaps):
    """The answer to the notebook's question, as text: the combination that the inner part chooses, and what the rule says of linear heads.

    Parameters
    ----------
    trained : list
        From `heads.run`.
    grid, gaps : DataFrame
        From `alignment.grid` and `alignment.differences`.
    """
    first = chosen(trained)[0]
    place = (grid["encoder"] == shown(study, first.encoder)) & (grid["head"] == first.head) & (grid["loss"] == first.loss)
    row, near = grid[place].iloc[0], int((grid["qwk"] >= grid.loc[place, "qwk_low"].iloc[0]).sum()) - 1
    above, below = clear(gaps, "gap_accuracy")
    return (f"The inner part chooses {row['encoder']}, {row['head']} head, {row['loss']} loss: accuracy {row['accuracy']:.3f} ({row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}) and "
            f"quadratic kappa {row['qwk']:.3f} ({row['qwk_low']:.3f} to {row['qwk_high']:.3f}) on unseen pictures. Of the {len(grid) - 1} other combinations {near} reach the lower end of "
            f"that kappa's 95 % interval{', so it is not shown to be the one best' if near else ''}. That linear heads are better is **{linear_better(gaps).verdict}** here: "
            f"of {len(gaps)} differences in accuracy {above} lie clearly above 0, {below} below.")


def encoders_in_words(study):
    """How many image encoders are run, which are not, and what stands in, as text."""
    encoders = study.profile.systems.heads.encoders
    absent = [spec.name for spec in encoders if spec.reason]
    rest = f"; {', '.join(absent)} not, for the reason in the table" if absent else ""
    return f"Of {len(encoders)} image encoders {len(encoders) - len(absent)} are run{rest}. {_meaning(study)}"


def stand_ins_in_words(study):
    """How many of the encoders that are run stand in for a published one or have random weights, as text; empty when none does."""
    run = [spec for spec in study.profile.systems.heads.encoders if not spec.reason]
    stand_ins, untrained = sum(spec.source in STANDS_IN for spec in run), sum(_is_random(study, spec) for spec in run)
    if not stand_ins + untrained:
        return ""
    return f"Of the {len(run)} encoders {stand_ins} stand in for the named network and {untrained} {'has' if untrained == 1 else 'have'} random weights ([Table S32](#table-s32))."


def _is_random(study, spec):
    return spec.source == "random" or study.dry and spec.source == "timm"


def _meaning(study):
    # What numbers of different encoders do not say, most of all those of stand-ins.
    run = [spec for spec in study.profile.systems.heads.encoders if not spec.reason]
    stand_ins, untrained = [spec.name for spec in run if spec.source in STANDS_IN], [spec.name for spec in run if _is_random(study, spec)]
    told = [f"Of {', '.join(stand_ins)} a [stand-in](../reports/glossary.md#term-Stand-in) is run, whose numbers say nothing about the published network."] if stand_ins else []
    told += [f"Random weights that were never trained: {', '.join(untrained)}."] if untrained else []
    told += ["The encoders differ in what they have learnt before, so a comparison between them is none of architectures."] if len(run) > 1 else []
    return " ".join(told)
