"""The `koa` command: thin wrappers around the library; a user's mistake ends in one sentence, not a
traceback."""

import errno
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from koa_lib.errors import GOES_ON, StudyError, printable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="koa-clip: grade knee osteoarthritis with CLIP, and rebuild the study.",
)
data_app = typer.Typer(no_args_is_help=True, help="Fetch, build, verify and audit cohorts.")
app.add_typer(data_app, name="data")

STOPPED = 130  # exit code of a command that Ctrl-C ends


Profile = typer.Option("demo", help="smoke, demo, oai, laptop or paper.")
Seed = typer.Option(None, help="By default the profile's own.")
Pictures = typer.Argument(
    help="Picture files (PNG, JPEG, TIFF, WebP, BMP, DICOM), folders, lists (.txt), or - for a list on stdin."
)


@app.command()
def inputs(profile: str = Profile, seed: int = Seed, data: str = "", external: str = "", weights: str = ""):
    """Check the inputs of a run and note them in its inputs.yaml."""
    from koa_lib import engine, journal
    from koa_lib.report.running import run_dir
    from koa_lib.study import is_dry, prepare_inputs

    _own_clone()

    def check(*given):
        from koa_lib.systems import preflight  # slow to import, and seldom needed

        preflight.check(*given)

    engine.chosen()
    prepare_inputs(profile, seed, data, external, weights, is_dry(), check)
    journal.compact(run_dir(profile, seed))


@app.command()
def notebook(
    name: str,
    profile: str = Profile,
    seed: int = Seed,
):
    """Execute one notebook of the study, e.g. 03_fine_tune."""
    from koa_lib.report.running import execute

    execute(name, profile, seed)


@app.command()
def summary(
    profile: str = Profile,
    seed: int = Seed,
    options: str = typer.Option("", help="What make was given, for the commands that may follow."),
):
    """Print the main result of a run, its time, what may follow and where the report is."""
    from koa_lib.report.closing import summarise
    from koa_lib.report.running import run_dir

    print(summarise(run_dir(profile, seed), options))


@app.command()
def bench(
    data: str = typer.Option("", help="Folder with pictures of oai_chen2018; without it phantoms are drawn."),
):
    """Time this library beside a plain way that gives the same, and growing amounts of work: 6 minutes."""
    from koa_lib.bench import costs, works
    from koa_lib.study import BUILD

    works.run(BUILD / "bench", data)
    costs.run(BUILD / "bench")


@app.command("student")
def student_copies(folder: str = typer.Argument("", help="By default student/ of the repository.")):
    """Write copies of all notebooks without their solutions; a changed copy is kept."""
    from koa_lib.report import student

    folder = folder or student.COPIES
    print(student.report(student.write_copies(folder), folder))


@app.command()
def grade(
    pictures: list[str] = Pictures,
    weights: str = typer.Option(
        None, help="Folder of exported weights; by default of the newest run that is no test."
    ),
    json: bool = typer.Option(
        False, "--json", help="JSON lines: first the model's card, then one line per picture."
    ),
    html: str = typer.Option(
        None, help="Also write a page with pictures, probabilities and where the model looks."
    ),
    out: str = typer.Option(
        None, help="For large archives: add the JSON lines to this file; what it holds is not graded again."
    ),
):
    """Grade knee radiographs. No medical device.

    Exit code 0: every picture was graded; 1: at least one could not be, its row says why; 2: wrong use, or
    the system refused. Warnings don't change it.
    """
    from koa_lib.grading import archive, show

    if out is not None and html is not None:
        raise StudyError("--out writes no page. Give either --out or --html.")
    if out is not None:
        sys.exit(archive.run(pictures, weights, out))
    sys.exit(show.run(pictures, weights, json, None if html is None else _new_file(html, "--html")))


@data_app.command()
def fetch(
    cohort: str,
    folder: str = typer.Argument("", help="By default data/<cohort>."),
    url: str = typer.Option("", help="Another address of the same archive, e.g. a mirror."),
):
    """Download a cohort, unpack it and check every picture against its manifest."""
    from koa_lib.data.fetch import fetch

    fetch(cohort, folder or f"data/{cohort}", url)


@data_app.command()
def build(
    cohort: str,
    folder: str,
    readers: str = typer.Option(None, help="CSV with image_id or pixel_sha256 and kl_grade_reader2."),
    out: str = typer.Option("", help="By default <cohort>.csv in this folder."),
):
    """Build a cohort's manifest from its files and compare it with the committed one."""
    from koa_lib.data import check
    from koa_lib.store import write_table

    target = _new_file(out or f"{cohort}.csv")
    frame = check.build(cohort, folder, readers)
    write_table(target, frame, "backslashreplace")
    print(f"{len(frame):,} rows written to {target}. {check.compare(target, cohort)}")
    for path in frame.attrs["left_out"]:
        print(f"left out, because its path does not fit the layout: {printable(path)}")


@data_app.command("verify")
def verify_files(cohort: str, folder: str, out: str = typer.Option("", help="CSV for the whole list.")):
    """Compare every picture below a folder with the cohort's manifest; exit code 1 when something is
    wrong."""
    from koa_lib.data.fetch import verify

    verify(cohort, folder, out and _new_file(out))


@data_app.command()
def audit(
    cohort: str,
    folder: str,
    out: str = typer.Option("", help="Folder for the tables, by default <cohort>_audit."),
):
    """Find what repeats, contradicts, leaks or looks odd in a cohort's files."""
    from koa_lib.data import audit, cohorts, looks
    from koa_lib.data.files import find_pictures

    target = Path(out or f"{cohort}_audit")
    _new_file(target / "findings.csv" if target.is_dir() else target)
    listed = cohorts.manifest(cohort, folder)
    rows = find_pictures(listed, folder, cohorts.facts(cohort).layouts.values())
    root = rows["file"].iloc[0].parents[2]
    inspected = looks.with_second_reader(looks.inspect(rows), root)
    result = audit.audit(inspected, cohort)
    result.write(target)
    print(f"{cohort} in {root}: {len(rows):,} of {len(listed):,} listed pictures found", end="; ")
    print(f"'koa data verify' tells about the others\n{audit.as_text(result)}")
    print(f"findings.csv, affected_files.csv, sets.csv and format_shortcut.csv are in {target}")
    if not inspected["readable"].all():
        problems = inspected.loc[~inspected["readable"], "problem"]
        raise StudyError("\n  ".join(["Files that cannot be read were left out:", *problems]))


@data_app.command()
def phantoms(
    folder: str,
    patients: int = typer.Option(100, min=1),
    seed: int = typer.Option(0, min=0),
):
    """Write a phantom cohort of knees with its manifest, to look at or to try the study on."""
    from koa_lib.phantoms.cohorts import write_cohort_a

    target = Path(folder)
    if target.exists():
        raise StudyError(f"{folder} exists already. Give a new folder, so that nothing is overwritten.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".part-", dir=target.parent) as made:  # half a cohort is none
        count = len(write_cohort_a(Path(made, "cohort"), patients, seed))
        os.replace(Path(made, "cohort"), target)
    print(f"{count} pictures and manifest.csv written to {folder}.")


def _own_clone():
    # An activated environment may be that of another clone, whose code would run, and into its folders.
    from koa_lib.profile import ROOT

    if Path("koa_lib").is_dir() and not Path("koa_lib").samefile(ROOT / "koa_lib"):
        raise StudyError(f"The environment {sys.prefix} runs the clone in {ROOT}, not {Path.cwd()}. "
                         "Leave it ('deactivate' or 'conda deactivate'), and make sets up another here.")


def _new_file(path, option="--out"):
    # Looked at before the work, so that nothing is done in vain.
    path = Path(path)
    if path.exists():
        raise StudyError(
            f"{path} exists already. Give another name with {option}, so that nothing is overwritten."
        )
    if not os.access(path.absolute().parent, os.W_OK):
        raise StudyError(
            f"The folder of {path} does not exist or is read-only. Give another name with {option}."
        )
    return path


def main():
    """The `koa` command."""
    run(app)


def run(commands):
    """Run a typer application as a program.

    A `StudyError`, or what the system refuses, is a sentence on stderr and exit code 1 (2 when grading,
    whose 1 is that of a picture); Ctrl-C is a line and 130.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a closed one is None
        stream.reconfigure(errors="backslashreplace")  # file names need not be valid text
    grading = sys.argv[1:2] == ["grade"]
    goes_on = not grading or any(argument.startswith("--out") for argument in sys.argv)
    goes_on &= sys.argv[1:2] != ["data"] or sys.argv[2:3] == ["fetch"]  # other work on cohorts starts anew
    try:
        commands()
    except SystemExit as done:  # typer ends so at a KeyboardInterrupt too
        if done.code == STOPPED:
            print("koa: stopped." + goes_on * f" {GOES_ON}", file=sys.stderr)
        raise
    except (StudyError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError):
            where, why = error.filename or "A file", error.strerror or error
            said = f"{where} cannot be read or written ({why}). Check the folder and the space left."
            said += (error.errno == errno.ENOSPC and goes_on) * f" {GOES_ON}"
        print("koa:", "\n".join(printable(said.split("\n"))), file=sys.stderr)
        sys.exit(2 if grading else 1)
