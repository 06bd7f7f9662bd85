"""Where things stand in the report: the items of the paper, the other pages, and links to both."""

import re

from koa_lib.report import entries

# Item of the paper: what it shows there.
PAPER_ITEMS = {
    "table_1": "The grades and their textual descriptions",
    "table_2": "Overall performance, training and external",
    "table_3": "Performance per grade",
    "table_4": "Comparison with image-only models",
    "table_5": "Comparison with other studies",
    "figure_1": "CLIP for grading, principle",
    "figure_2": "Radiographs per grade and data set",
    "figure_3": "Inference with CLIP",
    "figure_4": "The fine-tuned model",
    "figure_5": "Accuracy and loss over epochs",
    "figure_6": "Confusion matrix, external data",
    "figure_7": "Graded examples with probabilities",
    "figure_8": "Image-to-query similarity",
}
PAGES = {
    "deviations": "Methods and deviations",
    "glossary": "Glossary",
    "tripod_ai": "TRIPOD+AI checklist",
    "claim_2024": "CLAIM 2024 checklist",
    "model_card": "Model card",
    "data_cards": "Data cards",
    "environment": "Environment and provenance",
    "references": "References",
}


def title(notebook, stem):
    """The first heading of a notebook without its number, e.g. 'Does it hold elsewhere?'."""
    heading = (re.search(r"^# (?:\d+ · )?(.+)$", notebook.cells[0].source, re.MULTILINE)
               if notebook.cells else None)
    return heading[1].strip() if heading else stem


def page(key, notebook):
    """Address of an exhibit from the report's root."""
    return f"notebooks/{notebook}.html#{entries.label(key)}"


def link(target, run):
    """Label and address, from a page in `reports/`, of an exhibit ('table_3'), notebook
    ('05_external_evaluation') or page ('deviations#d4').

    Raises
    ------
    KeyError
        Nothing of the report has this name.
    """
    if target in run.exhibits:
        found = run.exhibits[target]
        return {"label": found["name"], "href": f"../{page(target, found['notebook'])}"}
    if target in run.notebooks:
        return {"label": f"Notebook {int(target[:2])}", "href": f"../notebooks/{target}.html"}
    name, _, anchor = target.partition("#")
    told = (f"Deviation {anchor.upper()}" if re.fullmatch(r"d\d+", anchor)
            else PAGES[name] + f": {anchor.replace('-', ' ')}" * bool(anchor))
    return {"label": told, "href": f"{name}.html" + f"#{anchor}" * bool(anchor)}
