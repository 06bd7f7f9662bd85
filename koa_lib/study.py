"""A study: one profile with one seed, its inputs, its run folder and its artefact store."""

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from koa_lib import profile as profiles
from koa_lib.data import MANIFESTS
from koa_lib.data.files import walk
from koa_lib.errors import StudyError
from koa_lib.profile import ROOT
from koa_lib.settings import Profile
from koa_lib.store import Store, write_text

BUILD = ROOT / "reports" / "_build"
FOLDERS = ("tables", "figures", "predictions", "history", "similarities", "checkpoints", "features")
INTERACTIVE = "interactive"  # the step of a session in JupyterLab
DRY = "KOA_DRY"  # the environment variable by which `make` tells a notebook that it is a dry run


@dataclass(frozen=True)
class Inputs:
    """What a run depends on beside the code: data folders, weights and what lies in them."""

    profile: str
    seed: int
    data: str
    external: str
    weights: str
    content: str
    dry: bool


@dataclass(frozen=True)
class Study:
    """A profile, a seed and the folder of its results. Open one with `Study.open`.

    Examples
    --------
    >>> study = Study.open("demo")
    >>> study.profile.model.name, study.seeds
    ('koa-tiny', (42, 43, 44))
    """

    profile: Profile
    seed: int
    inputs: Inputs
    run_dir: Path
    step: str

    @classmethod
    def open(cls, profile, seed=None, step=None):
        """Open the study that a notebook works on.

        Parameters
        ----------
        profile : str
            A profile's name.
        seed : int, optional
            By default the profile's own.
        step : str, optional
            Who works on it, for the log; by default the notebook that papermill runs.

        Raises
        ------
        StudyError
            Unknown profile, a seed that is no whole number, or real data needed and no folder given.
        """
        settings, dry = profiles.load(profile), is_dry()
        seed = _seed(seed, settings)
        run_dir = BUILD / run_name(settings, seed, dry)
        path = run_dir / "inputs.yaml"
        inputs = _read_inputs(path) if path.exists() else _checked_inputs(profile, seed, "", "", "", dry)[0]
        settings = profiles.dry(settings, real=bool(inputs.data)) if dry else settings
        study = cls(settings, seed, inputs, run_dir, step or os.environ.get("KOA_STEP", INTERACTIVE))
        for folder in FOLDERS:
            (study.own_dir / folder).mkdir(parents=True, exist_ok=True)
        return study

    @cached_property
    def store(self):
        """The artefact store of this run; in a session that make did not start it reads the run and makes
        what is missing beside it."""
        return Store(self.run_dir, self.step, self.own_dir, self.profile.threads)

    @property
    def own_dir(self):
        """Where this session writes: the run folder, or its `interactive` folder in a session that make did
        not start, so that trying things out never changes the study's own."""
        return self.run_dir / INTERACTIVE if self.step == INTERACTIVE else self.run_dir

    def file(self, name):
        """Where a file of the run is read: what this session has written, or else what the run has;
        `name` is its path below the run folder."""
        own = self.own_dir / name
        return own if own.exists() else self.run_dir / name

    def data_note(self):
        """What was noted of the pictures when they were read (`data.json`): hash, and per role hash, pictures
        and how many are not as listed; {} before."""
        path = self.file("data.json")
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def published(self):
        """The folder of the published numbers."""
        return MANIFESTS / "published"

    @property
    def synthetic(self):
        """Whether results come from phantoms and can't be held against the paper."""
        return self.profile.synthetic

    @property
    def dry(self):
        """Whether this run only shows that all steps work: random weights, a few pictures, one epoch."""
        return self.inputs.dry

    @property
    def seeds(self):
        """The seeds of the main arm's trainings, the study's own first."""
        return tuple(range(self.seed, self.seed + self.profile.seeds))

    @cached_property
    def commit(self):
        """Short commit of the code, with '+' when files differ from it; 'unknown' outside git."""
        try:
            return subprocess.run(
                ["git", "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"], cwd=ROOT,
                capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return "unknown"

    def stamp(self):
        """One line for captions: which step, commit, data and seed made a figure."""
        data = {"hash": "not read yet", **self.data_note()}
        copies = sum(data[role]["not_as_listed"] for role in ("training", "external") if role in data)
        return (f"{'DRY RUN · ' if self.dry else ''}{self.step} · commit {self.commit} · data {data['hash']}"
                f"{f' ({copies:,} files not as listed)' if copies else ''} · seed {self.seed}")

    def headline(self, text):
        """Note the sentence that closes the run in the terminal."""
        write_text(self.own_dir / "headline.txt", "DRY RUN: " * self.dry + text + "\n")

    def folder_of(self, cohort):
        """The folder of real pictures for a cohort role ('training' or 'external'); None when not given."""
        given = {"training": self.inputs.data, "external": self.inputs.external}[cohort]
        return Path(given) if given else None


def _seed(given, settings):
    if given is None:
        return settings.seed
    least, most = profiles.RANGES["seed"]
    if type(given) is not int or not least <= given <= most:
        raise StudyError(f"The seed {given!r} is no whole number from {least} to {most:,}. "
                         "Give for instance SEED=42, or seed = 42 in the cell of parameters.")
    return given


def is_dry():
    """Whether `make` was called with DRY=1."""
    return bool(os.environ.get(DRY))


def run_name(settings, seed, dry=False):
    """Name of the run folder: the profile, with '-dry' for a dry run and '-seed<s>' for another seed than the
    profile's."""
    return settings.name + "-dry" * dry + f"-seed{seed}" * (seed != settings.seed)


def prepare_inputs(profile, seed=None, data="", external="", weights="", dry=False, check=None):
    """Check the inputs of a run and write `inputs.yaml`, only when something changed.

    Published weights that the profile starts from are looked for, downloaded and opened here by `check`, as
    `systems.preflight.check`: not after hours of work, and not again for the same inputs.

    Returns
    -------
    Inputs

    Raises
    ------
    StudyError
        A folder that is missing, real data needed and not given, or weights that are neither there nor on the
        hub.
    """
    inputs, settings = _checked_inputs(profile, seed, data, external, weights, dry)
    path = BUILD / run_name(settings, inputs.seed, dry) / "inputs.yaml"
    text = yaml.safe_dump({**inputs.__dict__, "synthetic": settings.synthetic}, sort_keys=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != text.encode():
        _nothing_runs(path.parent)
        if check and not dry:
            check(settings, inputs.weights)
        write_text(path, text)
    return inputs


def _nothing_runs(run_dir):
    # A run that goes on would take the rest of its notebooks from other inputs.
    for lock in (run_dir / ".locks").glob("nb__*.lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            name = lock.stem.removeprefix("nb__")
            raise StudyError(f"{name} of {run_dir.name} is being executed with other DATA, EXTERNAL or "
                             "WEIGHTS. Wait for that run, or stop it, and start again.") from None


def _checked_inputs(profile, seed, data, external, weights, dry):
    settings = profiles.load(profile)
    seed = _seed(seed, settings)
    settings = profiles.dry(settings, real=bool(data)) if dry else settings
    if settings.training.source == "folder" and not data:
        raise StudyError(
            f"Profile '{profile}' needs real radiographs: make reproduce PROFILE={profile} "
            "DATA=<folder of kneeKL224>. The set is Mendeley Data doi:10.17632/56rmx5bjcr.1 (CC BY 4.0).")
    if settings.training.source == "phantoms" and (data or external):
        raise StudyError(f"Profile '{profile}' works on phantoms and reads no DATA or EXTERNAL. "
                         "Use PROFILE=oai, laptop or paper.")
    given = {"DATA": data, "EXTERNAL": external, "WEIGHTS": weights}
    places = (_absolute(name, value) for name, value in given.items())
    return Inputs(profile, seed, *places, content=_content(given.values()), dry=dry), settings


def stored_inputs(path):
    """The content of an `inputs.yaml`; StudyError when it is damaged."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is damaged: no YAML can be read from it. "
                         "Delete it and run make again.") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no list of 'key: value' lines. Delete it and run make again.")
    return content


def _read_inputs(path):
    content, known = {"dry": False, **stored_inputs(path)}, [field.name for field in fields(Inputs)]
    missing = [name for name in known if name not in content]
    if missing:
        raise StudyError(f"{path} lacks {', '.join(missing)}. Delete it and run make again.")
    return Inputs(**{name: content[name] for name in known})


def _absolute(name, folder):
    if not folder:
        return ""
    if not Path(folder).is_dir():
        raise StudyError(f"{name}={folder} is no folder. Give an existing folder.")
    return str(Path(folder).resolve())


def _content(folders):
    # Names, sizes and times of all files: quick to take, and different when a picture was changed or added.
    digest = hashlib.sha256()
    for folder in filter(None, folders):
        for path in sorted(walk(folder)):
            state = path.stat() if path.exists() else path.lstat()  # of a link to nowhere
            line = f"{path.relative_to(folder)}|{state.st_size}|{state.st_mtime_ns}\n"
            digest.update(os.fsencode(line))
    return digest.hexdigest()[:12]
