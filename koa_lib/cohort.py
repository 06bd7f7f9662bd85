"""The cohorts of a study, opened: which pictures are there, and each as the array that a model sees."""

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from koa_lib import splits
from koa_lib.data import MANIFESTS, cohorts, looks
from koa_lib.data.files import find_pictures, write_as_found
from koa_lib.data.manifest import data_hash
from koa_lib.datasets import KneeDataset
from koa_lib.images import array, shape
from koa_lib.store import digest, made_from, write_text


@dataclass(frozen=True)
class Cohort:
    """A cohort of a study: its name and the manifest rows whose pictures are there (`file`, `file_sha256` and
    `as_listed` added)."""

    name: str
    rows: pd.DataFrame

    @property
    def facts(self):
        """`cohorts.facts`, with groups of near-duplicates where patients are unknown, as `cohort` merges
        them."""
        known = cohorts.facts(self.name)
        return known if known.group == "patient" else replace(known, group="near-duplicates")

    @property
    def root(self):
        """The folder below which the manifest's paths lie."""
        return self.rows["file"].iloc[0].parents[2]

    def __repr__(self):
        per_split = self.rows["split"].value_counts().to_dict()
        groups = self.rows["group_id"].nunique()
        return f"Cohort {self.name}: {len(self.rows)} pictures, {groups} groups, {per_split}"


def cohort(study, role):
    """The cohort that plays a role in a study.

    The groups of the external cohort merge near-duplicates, because its patients are unknown.

    Parameters
    ----------
    study : Study
    role : {'training', 'external'}

    Returns
    -------
    Cohort or None
        None when no folder was given for the external cohort.
    """
    members = _members(study, role)
    if members is None or role == "training":
        return members
    seen = _inspect(study, members)
    rows, readable = members.rows.copy(), seen["readable"]
    rows.loc[readable, "group_id"] = looks.near_groups(seen[readable], "group_id")
    return replace(members, rows=rows)


def _members(study, role):
    spec = getattr(study.profile, role)
    if spec.source == "phantoms":
        folder = _phantom_folder(study, spec, role)
        manifest, content = cohorts.manifest(spec.name, folder), made_from(folder)
    else:
        folder, content = study.folder_of(role), study.inputs.content
        if folder is None:
            return None
        manifest = cohorts.manifest(spec.name, lists=MANIFESTS)
    layouts = cohorts.facts(spec.name).layouts.values() if spec.name in cohorts.names() else ()
    found = find_pictures(manifest, folder, layouts)
    found = splits.sample(found) if study.dry else found
    found = found.join(_as_found(study, spec.name, found, content))
    _note_data(study, role, found)
    return Cohort(spec.name, found)


def inspected(study, role):
    """What the files of a study's cohort hold (`looks.inspect`), read once; None without the cohort."""
    members = _members(study, role)
    return None if members is None else _inspect(study, members)


def _inspect(study, members):
    key = {"files": _files(members.rows), "manifest": data_hash(members.rows)}
    path = study.store.make(
        f"data/{members.name}__files.csv", key, partial(looks.write_inspected, members.rows)
    )
    return looks.read(path, members.rows)


def _phantom_folder(study, spec, role):
    from koa_lib.phantoms.cohorts import write_cohort_a, write_cohort_b

    draw = {
        "training": partial(write_cohort_a, patients=spec.size),
        "external": partial(write_cohort_b, pictures=spec.size),
    }[role]
    return study.store.make(
        f"data/{spec.name}", {"cohort": spec, "seed": study.seed}, partial(draw, seed=study.seed)
    )


def _as_found(study, name, rows, content):
    # Each file as it is on disk; read again only when a name, size or time below the folder changes, or the
    # manifest.
    key = {
        "content": content,
        "files": digest(rows[["file", "sha256", "pixel_sha256"]].astype(str).to_numpy().tolist()),
    }
    path = study.store.make(f"data/{name}__as_found.csv", key, partial(write_as_found, rows))
    return pd.read_csv(path)


def _files(rows):
    return digest(rows[["image_id", "file_sha256"]].to_numpy().tolist())


def _note_data(study, role, rows):
    # The content of the pictures as they are on disk, so that a re-encoded copy has its own hash; whether it
    # is as listed, its hash tells.
    whole = data_hash(rows.assign(pixel_sha256=rows["file_sha256"]))
    other = int((~rows["as_listed"]).sum())
    note = study.data_note()
    note = {**note, role: {"hash": whole, "pictures": len(rows), "not_as_listed": other}}
    note["hash"] = "-".join(note[role]["hash"][:7] for role in ("training", "external") if role in note)
    if note != study.data_note():
        write_text(study.own_dir / "data.json", json.dumps(note, indent=1))


def dataset(study, role, geometry, intensity, size):
    """The `KneeDataset` of a cohort, decoded once and kept as a memory-mapped array; None without the cohort.

    Where the geometry parts pictures of two knees, such a picture has two rows with the same image id.
    """
    members = cohort(study, role)
    if members is None:
        return None
    key, ours = {"geometry": geometry, "intensity": intensity, "size": size}, study.profile.our_protocol
    if intensity == "none":
        key |= {"files": _files(members.rows), "trained": ours.geometry if geometry == "joint_crop" else ""}
        build = partial(array.write_squares, list(members.rows["file"]), geometry, size, ours.geometry)
    else:
        plain = dataset(study, role, geometry, "none", size)
        reference = training_histogram(study, size) if intensity == "match_train" else None
        key |= {
            "pictures": plain.origin,
            "reference": None if reference is None else digest(reference.tobytes()),
        }
        build = partial(
            array.write_adjusted, plain.pixels, pd.factorize(plain.rows["image_id"])[0], intensity, reference
        )
    folder = study.store.make(
        f"features/pictures__{members.name}__{geometry}-{intensity}__{size}", key, build
    )
    owners = np.load(folder / "owners.npy")
    rows = members.rows.iloc[owners].reset_index(drop=True)
    name = f"{members.name}__{geometry}-{intensity}"
    return KneeDataset(
        rows,
        np.load(folder / "pixels.npy", mmap_mode="r"),
        np.arange(len(owners)),
        origin=made_from(folder),
        name=name,
    )


def training_histogram(study, size):
    """Cumulative mean histogram of the training split as the model sees it; reads no label, no test and no
    external picture."""
    training = dataset(study, "training", study.profile.our_protocol.geometry, "none", size)
    fitted = training.images(np.flatnonzero(training.rows["split"] == "train"))
    return shape.mean_histogram(picture / np.float32(255) for picture in fitted)
