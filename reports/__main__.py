"""`python -m reports`: what make does with a finished run. A user's mistake ends in one sentence."""

import sys

import typer

from koa_lib import cli
from koa_lib.report.running import run_dir

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _of_run(work):
    # Makes a command of what is done with the folder of a run.
    @app.command(work.__name__, help=work.__doc__)
    def command(profile: str = cli.Profile, seed: int = cli.Seed):
        work(run_dir(profile, seed))

    return command


@_of_run
def build(run):
    """Build the HTML report of a run."""
    from reports.build import tell_and_build

    tell_and_build(run)


@_of_run
def pdf(run):
    """Print the HTML report of a run to one PDF by headless Chromium."""
    from reports.pdf import print_report

    print(f"report: {print_report(run)}")


@_of_run
def verify(run):
    """Compare a run's tables with the reference tables; exit code 1 when one differs more than is allowed."""
    from reports import reference

    reference.check_fresh(run)
    result = reference.compare(run)
    print(reference.report(result))
    sys.exit(bool(len(result.misses)))


@_of_run
def reference(run):
    """Keep a run's tables as reference: numbers only, below reports/reference."""
    from reports import reference as tables

    tables.check_fresh(run)
    print(f"tables kept in {tables.keep(run)}")


if __name__ == "__main__":
    cli.run(app)
