"""The `koa` command: thin wrappers around the library; a user's mistake ends in one sentence, not a traceback."""

import sys

import typer

from koa_lib.errors import StudyError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="koa-clip: grade knee osteoarthritis with CLIP, and rebuild the study.")
data_app = typer.Typer(no_args_is_help=True, help="Look at cohorts and their manifests.")
app.add_typer(data_app, name="data")

Profile = typer.Option("demo", help="smoke, demo, oai or paper.")
Seed = typer.Option(None, help="By default the profile's own.")


@app.command()
def inputs(profile: str = Profile, seed: int = Seed, data: str = "", external: str = "", weights: str = ""):
    """Check the inputs of a run and note them in its inputs.yaml."""
    from koa_lib.study import prepare_inputs

    prepare_inputs(profile, seed, data, external, weights)


@app.command()
def notebook(name: str, profile: str = Profile, seed: int = Seed):
    """Execute one notebook of the study, e.g. 03_fine_tune."""
    from koa_lib.notebooks import execute

    execute(name, profile, seed)


@app.command()
def report(profile: str = Profile, seed: int = Seed):
    """Build the HTML report of a run."""
    from koa_lib.notebooks import run_dir
    from koa_lib.report import build

    build(run_dir(profile, seed))


@app.command()
def summary(profile: str = Profile, seed: int = Seed):
    """Print where the report of a run is, its main result and its time."""
    from koa_lib.notebooks import run_dir, summarise

    print(summarise(run_dir(profile, seed)))


@app.command()
def reference(profile: str = Profile, seed: int = Seed):
    """Keep a run's tables as reference: numbers only, below reports/reference."""
    from koa_lib.notebooks import run_dir
    from koa_lib.reference import keep

    print(f"tables kept in {keep(run_dir(profile, seed))}")


@data_app.command("check")
def check(cohort: str, folder: str):
    """Find a cohort's pictures below a folder and compare them with its manifest."""
    from koa_lib import manifests
    from koa_lib.study import MANIFESTS

    manifest = manifests.read_manifest(MANIFESTS / f"{cohort}.csv")
    found = manifests.find_pictures(manifest, folder)
    as_listed = found[found["status"] == "as listed"]
    same = sum(manifests.file_sha256(row.file) == row.sha256 for row in as_listed.itertuples())
    print(f"{len(found)} of {len(manifest)} pictures found: {same} with the same bytes, {len(as_listed) - same} changed, {len(found) - len(as_listed)} re-encoded.")


@data_app.command("phantoms")
def phantoms(folder: str, patients: int = 100, seed: int = 0):
    """Write a phantom cohort of knees with its manifest, to look at or to try the study on."""
    from pathlib import Path

    from koa_lib.phantoms import write_cohort_a

    target = Path(folder)
    if target.exists():
        raise StudyError(f"{folder} exists already. Give a new folder, so that nothing is overwritten.")
    target.mkdir(parents=True)
    manifest = write_cohort_a(target, patients, seed)
    print(f"{len(manifest)} pictures and manifest.csv written to {folder}.")


def main():
    """Entry point: a `StudyError` becomes one line on stderr and exit code 1."""
    try:
        app()
    except StudyError as error:
        print(f"koa: {error}", file=sys.stderr)
        sys.exit(1)
