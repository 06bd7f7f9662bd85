"""The scorecard of a run: every published row, every claim and the audit's findings, each with verdict and reason."""


import numpy as np
import pandas as pd

from koa_lib import speed
from koa_lib.comparison import shown_fold
from koa_lib.data import cohorts
from koa_lib.errors import StudyError
from koa_lib.paper import claims
from koa_lib.paper import scorecard as rules
from koa_lib.paper.printed import Paper
from koa_lib.paper.published import SYSTEMS
from koa_lib.paper.published import read as read_published
from koa_lib.paper.scorecard import COLUMNS, DERIVED, Ours
from koa_lib.protocols import main_fold

MAIN = "jpm2026"
DROP = ("text", "discussion", "train_test_drop")
P_VALUE = ("text", "mcnemar", "p_value")
_ROWS_OF_THEIR_OWN = " repeated: |^internal pictures$|^internal patients$|^external pictures$|^train minus external accuracy$"


def scorecard(study, results, others, counts, findings, tests, systems=None):
    """The scorecard of a run.

    Parameters
    ----------
    study : Study
    results : dict of str to list of DataFrame
        Main arm: split to graded frames, one per run (fold x seed).
    others : dict of str to dict
        Baselines by their printed names, likewise.
    counts : dict of str to DataFrame
        Published manifests: 'oai_chen2018', 'gornale2020'.
    findings : DataFrame or None
        The arithmetic audit: check, value, expected, verdict, note.
    tests : DataFrame or None
        Paired tests on the external set: baseline, n, p_exact, clip_only, baseline_only, difference.
    systems : dict, optional
        Results for other systems, as `answers.read` gives them: (system, item, row, metric) -> `Ours`, (system, item, claim) -> `claims.Answer`.

    Returns
    -------
    DataFrame
        The columns of `scorecard.COLUMNS`; the paper's rows, its claims, the arithmetic, then the other systems' rows
        and claims.

    Raises
    ------
    StudyError
        A published table that is absent, or a key that it does not hold.
    """
    published, systems, comparable = _read(study), systems or {}, comparability(study)
    main = published[MAIN]
    ours = _measured(study, main, results, others, tests) | _counted(counts) | _cited(main, published["literature"])
    evidence = _evidence(study, main, results, others, tests)
    timed = speed.timings(speed.measured(study))
    parts = [
        rules.scorecard(main, ours | timed, *comparable),
        _claims(published["claims"], lambda row: claims.decide(row.test, evidence), True, comparable),
        _audit(findings),
        rules.scorecard(published["other_systems"], _of_systems(published, systems), *comparable),
        _claims(published["claims"], lambda row: systems.get((row.source, row.item, row.claim), _absent(row)), False, comparable),
    ]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)[COLUMNS]


def comparability(study):
    """Whether model rows may be held against the paper, and why not."""
    reasons = []
    if study.dry:
        reasons.append("a dry run, which only tries the steps")
    if study.synthetic:
        reasons.append("synthetic phantoms")
    elif study.profile.name != "paper":
        model = study.profile.model
        reasons.append(f"{model.name} is not the paper's ViT-B/32" + " and starts from random weights" * (model.start == "random"))
    else:
        reasons += _incomplete(study)
    return not reasons, "; ".join(reasons)


def _incomplete(study):
    # A part of the pictures, or lossy copies of them, are not the paper's data.
    note, found = study.data_note(), []
    for role in ("training", "external"):
        cohort = cohorts.facts(getattr(study.profile, role).name)
        listed = sum(map(sum, cohort.counts.values()))
        if role in note and note[role]["pictures"] < listed:
            found.append(f"{note[role]['pictures']:,} of {listed:,} {role} pictures")
        if role in note and note[role]["not_as_listed"]:
            found.append(f"{note[role]['not_as_listed']:,} {role} pictures that are not as listed")
    return found


def _read(study):
    return {name: read_published(study.published, name) for name in (MAIN, "other_systems", "claims", "literature")}


def _counted(counts):
    internal, external = counts["oai_chen2018"], counts["gornale2020"]
    internal = internal[internal["split"] != "auto_test"]  # a second crop of knees that are there already
    found = {"train_images": len(internal), "participants": internal["group_id"].nunique(), "external_images": len(external)}
    return {("text", "data", metric): Ours(number, note="counted in the manifest") for metric, number in found.items()}


def _cited(published, literature):
    # What was found in the cited source, for the rows that repeat another study or describe another system.
    columns, known = ["source_table", "item", "row", "metric"], {}
    for line in literature.itertuples():
        known[tuple(str(getattr(line, column)) for column in columns)] = line
    systems = "system" in published
    wanted = published[published["kind"].isin(["citation", "fact"] if systems else ["citation"])]
    ours = {}
    for row in wanted.itertuples():
        key = (str(row.item), str(row.row), str(row.metric))
        source = row.system if systems else MAIN
        ours[(source, *key) if systems else key] = _found(known.get((source, *key)))
    return ours


def _found(line):
    if line is None:
        return "literature.csv has no row for it"
    said = [text for text in (line.remark, line.where) if isinstance(text, str)]
    if pd.isna(line.found):
        return "; ".join(said) or "not found in the cited source"
    return Ours(float(line.found), note="; ".join(said))


def _measured(study, published, results, others, tests):
    # Values of the model rows, or for each why there is none.
    train, external = results.get("train", []), results.get("external", [])
    drawn = main_fold(study), study.profile.draws, study.seed
    ours = rules.measured("table_2", "train", train, *drawn)
    for row in published[published["kind"] == "model"].itertuples():
        if not external and (row.item, row.row) != ("table_2", "train"):
            ours[row.item, str(row.row), row.metric] = claims.NO_EXTERNAL
        elif external and row.item == "table_4":
            frames = others.get(row.row, {}).get("external", [])
            found = {key: _not_constant(study, row.row, value, frames) for key, value in rules.measured("table_4", row.row, frames, *drawn).items()}
            ours |= found or {(row.item, row.row, row.metric): _why_absent(study, row.row)}
    if external:
        ours |= rules.measured("table_2", "test", external, *drawn) | rules.measured("table_3", "", external, *drawn)
        ours[DROP] = claims.train_test_drop(train, external) if train else "no run on the training part"
        ours[P_VALUE] = _p_value(_tests(study, results, tests), _external(study, results, claims.TESTED, others.get(claims.TESTED, {})))
    return ours


def _not_constant(study, name, value, frames):
    # An accuracy that one grade for every picture has as well says so.
    shown = next((frame for frame in frames if frame.attrs.get("fold") == main_fold(study)), frames[0])
    return value._replace(note="; ".join(text for text in (value.note, claims.one_grade({name: shown})) if text))


def _p_value(tests, tested):
    row = claims.against(tests, claims.TESTED)
    return row if isinstance(row, str) else Ours(float(row.p_exact), note=claims.discordant(row, tested))


def _tests(study, results, tests):
    if not results.get("external"):
        return claims.NO_EXTERNAL
    if tests is None or claims.TESTED not in set(tests.get("baseline", ())):
        return _why_absent(study, claims.TESTED)
    return tests


def _why_absent(study, name):
    reasons = [f"{name}: {spec.reason}" for spec in study.profile.baselines if spec.name == name and spec.reason]
    return reasons[0] if reasons else f"this run has no {name}"


def _evidence(study, published, results, others, tests):
    arms = {claims.ORDER[0]: results} | {name: others.get(name, {}) for name in (*claims.ORDER[1:], claims.TESTED)}
    models = {name: _external(study, results, name, arm) for name, arm in arms.items()}
    drop = Paper(published).number(*DROP).value
    return claims.Evidence(models, results.get("train", []), results.get("external", []), _tests(study, results, tests), drop,
                           study.profile.draws, study.seed)


def _external(study, results, name, arm):
    # The shown fold's external frame, or why there is none.
    if arm.get("external"):
        return shown_fold(study, arm, "external")
    return _why_absent(study, name) if results.get("external") else claims.NO_EXTERNAL


def _claims(table, answer, main, comparable):
    rows = []
    for row in table[(table["source"] == MAIN) == main].itertuples():
        found = answer(row)
        verdict, reason = found.verdict, found.reason
        if verdict != "not run" and not comparable[0]:
            verdict, reason = "not comparable", f"{comparable[1]}; {reason}"
        rows.append((row.source, row.item, row.claim, "claim", found.unit, np.nan, *found[:3], row.test, verdict, reason))
    return pd.DataFrame(rows, columns=COLUMNS)


def _absent(row):
    if row.test.startswith("not run:"):
        return claims.not_run(row.test.removeprefix("not run:").strip())
    return claims.not_run(_notebook(row.source))


def _notebook(system):
    return f"notebook {SYSTEMS[system].notebook} has not been run" if system in SYSTEMS else "no notebook of the study covers it"


def _of_systems(published, given):
    table = published["other_systems"]
    ours = _cited(table, published["literature"])
    ours |= {(row.system, row.item, row.row, row.metric): _notebook(row.system) for row in table[table["kind"] == "model"].itertuples()}
    known = set(published["claims"][["source", "item", "claim"]].itertuples(index=False, name=None))
    unknown = [key for key in given if key not in ours and key not in known]
    if unknown:
        raise StudyError(f"The published tables have no row {unknown[0]} of another system. Use their system, item, row and metric, or system, item and claim.")
    return ours | {key: value for key, value in given.items() if key in ours}


def _audit(findings):
    if findings is None:
        return pd.DataFrame(columns=COLUMNS)
    # What is a row of its own on the scorecard already does not count twice.
    judged = findings[(findings["verdict"] != "reference") & ~findings["check"].str.contains(_ROWS_OF_THEIR_OWN)]
    verdict = np.where(judged["verdict"] == "agrees", "replicated", "not replicated")
    table = pd.DataFrame({"source": "arithmetic", "item": "audit", "row": judged["check"], "metric": "", "unit": "", "published": judged["expected"],
                          "ours": judged["value"], "rule": DERIVED, "verdict": verdict, "reason": judged["note"]})
    return table.reindex(columns=COLUMNS).astype({"ci_low": float, "ci_high": float})
