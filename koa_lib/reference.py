"""Reference tables: the numbers of a run on real data, kept in the repository for comparison; no image among them."""

import json
import shutil

from koa_lib.errors import StudyError
from koa_lib.profile import ROOT

FOLDER = ROOT / "reports" / "reference"


def keep(run_dir):
    """Copy a run's tables to ``reports/reference/<run>/<data-hash>/``.

    Returns
    -------
    Path

    Raises
    ------
    StudyError
        When the run has no tables or has not read its data.
    """
    tables, note = sorted((run_dir / "tables").glob("*.csv")), run_dir / "data.json"
    if not tables or not note.is_file():
        raise StudyError(f"{run_dir} has no finished tables. Run 'make reproduce' with this profile first.")
    target = FOLDER / run_dir.name / json.loads(note.read_text())["hash"]
    target.mkdir(parents=True, exist_ok=True)
    for table in tables:
        shutil.copyfile(table, target / table.name)
    return target
