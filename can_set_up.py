"""Asked by `make setup` before it installs anything: can this Python hold koa-clip, and is the environment
free for this clone? One sentence says what to do where not. Any Python 3 can read this file."""

import json
import re
import sys
from pathlib import Path
from urllib.request import url2pathname

HERE = Path(__file__).resolve().parent


def refusal(environment):
    """Why not, or None; `environment` is the folder of the one that this Python belongs to, '' before."""
    project = (HERE / "pyproject.toml").read_text(encoding="utf-8")
    lowest, beyond = map(int, re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project).groups())
    leave = "Delete it" if environment == ".venv" else "Leave it ('deactivate' or 'conda deactivate')"
    if not (3, lowest) <= sys.version_info[:2] < (3, beyond):
        found = f"{environment or sys.executable} has 3.{sys.version_info[1]}"
        remedy = (f"{leave}, and make again" if environment else
                  f"Install Python 3.{lowest} (or 'conda env create -f environment.yml'), or name one: "
                  f"make setup PYTHON=<path of python3.{lowest}>")
        return f"koa-clip needs Python 3.{lowest} to 3.{beyond - 1}, and {found}. {remedy}."
    owner = environment and _owner()
    if owner and owner != HERE and (owner / "koa_lib").is_dir():
        return (f"The environment {environment} belongs to the clone in {owner}, which would stop working. "
                f"{leave}, and make sets up another here.")
    return None


def _owner():
    from importlib.metadata import distributions  # the oldest versions that are refused lack it

    noted = [one.read_text("direct_url.json") or "{}" for one in distributions(name="koa-clip")]
    urls = [json.loads(text).get("url", "") for text in noted]
    return next((Path(url2pathname(url[7:])).resolve() for url in urls if url.startswith("file://")), None)


if __name__ == "__main__":
    sys.exit(refusal(*sys.argv[1:] or [""]))
