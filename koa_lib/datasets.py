"""From manifest rows to tensors: the cohorts of a study, their pictures as arrays, normalisation and augmentation."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from koa_lib import splits
from koa_lib.data import cohorts, looks
from koa_lib.data.manifest import data_hash, find_pictures, read_manifest
from koa_lib.errors import StudyError
from koa_lib.images import shape
from koa_lib.images.read import file_sha256, read_gray
from koa_lib.study import MANIFESTS

STATISTICS = {  # mean and standard deviation per channel, METHODS: ImageNet as the paper prints, CLIP as its weights expect
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class Cohort:
    """A cohort of a study: its name and the manifest rows whose pictures are there (`file`, `status` added)."""

    name: str
    rows: pd.DataFrame

    @property
    def facts(self):
        """`cohorts.facts`, with groups of near-duplicates where patients are unknown, as `cohort` merges them."""
        known = cohorts.facts(self.name)
        return known if known.group == "patient" else replace(known, group="near-duplicates")

    @property
    def root(self):
        """The folder below which the manifest's paths lie."""
        return self.rows["file"].iloc[0].parents[2]

    def __repr__(self):
        per_split = self.rows["split"].value_counts().to_dict()
        return f"Cohort {self.name}: {len(self.rows)} pictures, {self.rows['group_id'].nunique()} groups, {per_split}"


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
        manifest = read_manifest(folder / "manifest.csv")
    else:
        folder = study.folder_of(role)
        if folder is None:
            return None
        manifest = read_manifest(MANIFESTS / f"{spec.name}.csv")
    layouts = cohorts.facts(spec.name).layouts.values() if spec.name in cohorts.names() else ()
    found = find_pictures(manifest, folder, layouts)
    found = splits.sample(found) if study.dry else found
    _note_data(study, role, found)
    return Cohort(spec.name, found)


def inspected(study, role):
    """What the files of a study's cohort hold (`looks.inspect`), read once; None without the cohort."""
    members = _members(study, role)
    return None if members is None else _inspect(study, members)


def _inspect(study, members):
    key = {"data": data_hash(members.rows), "content": study.inputs.content}
    path = study.store.make(f"data/{members.name}__files.csv", key, lambda path: looks.write(looks.inspect(members.rows), path),
                            code=("data/looks", "images/read"))
    return looks.read(path, members.rows)


def _phantom_folder(study, spec, role):
    from koa_lib.phantoms.cohorts import write_cohort_a, write_cohort_b

    write = {"training": write_cohort_a, "external": write_cohort_b}[role]
    key = {"cohort": spec, "seed": study.seed}
    return study.store.make(f"data/{spec.name}", key, lambda path: write(_made(path), spec.size, study.seed), code=("phantoms/cohorts", "phantoms/findings", "phantoms/draw", "data/manifest", "images/read"))


def _made(path):
    path.mkdir(parents=True)
    return path


def _note_data(study, role, rows):
    # The content of the pictures as they are on disk, so that a re-encoded copy has its own hash.
    from koa_lib.store import write_text

    path = study.run_dir / "data.json"
    note = json.loads(path.read_text()) if path.exists() else {}
    key = [study.inputs.content, data_hash(rows)]
    if note.get(role, {}).get("key") == key:
        return
    files = data_hash(rows.assign(pixel_sha256=[file_sha256(file) for file in rows["file"]]))
    note[role] = {"key": key, "hash": files, "pictures": len(rows), "re_encoded": int((rows["status"] == "re-encoded").sum())}
    note["hash"] = "-".join(note[r]["hash"][:7] for r in ("training", "external") if r in note)
    write_text(path, json.dumps(note, indent=1))


@dataclass(frozen=True)
class KneeDataset:
    """Pictures ready for a model, and what they may be used for.

    Attributes
    ----------
    rows : DataFrame
        Manifest rows, index 0..n-1.
    pixels : uint8 array (N, size, size)
        The decoded pictures of the whole cohort, usually memory-mapped.
    index : int array (n,)
        Where each row's picture lies in `pixels`.
    role : str
        'any' before splitting, then 'fit', 'select' or 'report': `training.fit` refuses other roles.
    mirrored : bool
        Whether pictures are shown with left and right exchanged.
    """

    rows: pd.DataFrame
    pixels: np.ndarray
    index: np.ndarray
    role: str = "any"
    mirrored: bool = False

    def __len__(self):
        return len(self.rows)

    def __repr__(self):
        counts = self.rows["kl_grade"].value_counts().sort_index().to_dict()
        return f"KneeDataset ({self.role}): {len(self)} pictures of {self.rows['group_id'].nunique()} groups, per KL grade {counts}"

    @property
    def grades(self):
        """Reference grades, int array (n,)."""
        return self.rows["kl_grade"].to_numpy()

    def images(self, positions):
        """Pictures at some positions, uint8 (k, size, size)."""
        images = np.asarray(self.pixels[self.index[positions]])
        return images[..., ::-1].copy() if self.mirrored else images

    def part(self, positions, role):
        """The rows at some positions, for one role."""
        return replace(self, rows=self.rows.iloc[positions].reset_index(drop=True), index=self.index[positions], role=role)


def dataset(study, role, geometry, intensity, size):
    """The `KneeDataset` of a cohort, decoded once and kept as a memory-mapped array; None without the cohort.

    Where the geometry parts pictures of two knees, such a picture has two rows with the same image id.
    """
    members = cohort(study, role)
    if members is None:
        return None
    key = {"data": data_hash(members.rows), "content": study.inputs.content, "geometry": geometry, "intensity": intensity, "size": size}
    trained = study.profile.our_protocol.geometry
    if geometry == "joint_crop":
        key["trained"] = trained
    if intensity == "none":
        files = list(members.rows["file"])

        def build(path):
            _decode_all(files, (geometry, size, trained), path)
    else:
        plain = dataset(study, role, geometry, "none", size)
        reference = training_histogram(study, size) if intensity == "match_train" else None
        key["reference"] = None if reference is None else reference.round(6).tolist()

        def build(path):
            _adjust_all(plain, intensity, reference, path)
    folder = study.store.make(f"features/pictures__{members.name}__{geometry}-{intensity}__{size}", key, build, ("datasets", "images/shape", "images/joint", "images/read"))
    owners = np.load(folder / "owners.npy")
    return KneeDataset(members.rows.iloc[owners].reset_index(drop=True), np.load(folder / "pixels.npy", mmap_mode="r"), np.arange(len(owners)))


def training_histogram(study, size):
    """Cumulative mean histogram of the training split as the model sees it; reads no label, no test and no external picture."""
    training = dataset(study, "training", study.profile.our_protocol.geometry, "none", size)
    fitted = training.images(np.flatnonzero(training.rows["split"] == "train"))
    return shape.mean_histogram(picture / np.float32(255) for picture in fitted)


def _decode_all(files, view, folder):
    def decode(file):
        return [np.round(square * 255).astype(np.uint8) for square in shape.squares(read_gray(file), *view)]

    with ThreadPoolExecutor(2) as pool:
        decoded = list(pool.map(decode, files))
    owners = np.repeat(np.arange(len(files)), [len(squares) for squares in decoded])
    _keep(folder, owners, [square for squares in decoded for square in squares])


def _adjust_all(plain, intensity, reference, folder):
    adjusted = [np.round(shape.adjust(picture / 255, intensity, reference) * 255).astype(np.uint8) for picture in plain.pixels]
    _keep(folder, pd.factorize(plain.rows["image_id"])[0], adjusted)


def _keep(folder, owners, squares):
    folder.mkdir()
    np.save(folder / "owners.npy", owners)
    np.save(folder / "pixels.npy", np.stack(squares))


def to_tensor(images, statistics):
    """uint8 or float gray images (n, H, W) as a normalised float tensor (n, 3, H, W).

    Raises
    ------
    StudyError
        When values are outside [0, 1] after scaling: a wrong intensity range gives silently wrong grades.
    """
    import torch

    values = torch.as_tensor(np.asarray(images))
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise StudyError(f"Pictures hold values from {values.min():.2f} to {values.max():.2f}; the model needs [0, 1]. Read them with read_gray.")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in STATISTICS[statistics])
    return (values[:, None] - mean) / std


def augment(images, kind, generator):
    """Randomly changed copies of gray images (n, H, W), float in [0, 1].

    `as_printed`: horizontal flip with p = 0.5 and rotation within 10 degrees (section 3.5). `strong` (our
    protocol without pre-trained weights): also scale 10 %, shift 3 % of the side, gamma, contrast, brightness.
    """
    import torch
    import torch.nn.functional as F

    images = torch.as_tensor(np.asarray(images))[:, None]
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    n, size = len(images), images.shape[-1]

    def uniform(low, high):
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, flip = uniform(-1, 1) * (np.pi / 18), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    scale, shift_x, shift_y = (uniform(0.9, 1.1), uniform(-0.06, 0.06), uniform(-0.06, 0.06)) if kind == "strong" else (torch.ones(n), torch.zeros(n), torch.zeros(n))
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([torch.stack([cos * flip, -sin, shift_x], 1), torch.stack([sin * flip, cos, shift_y], 1)], 1)
    grid = F.affine_grid(matrix, (n, 1, size, size), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if kind == "strong":
        gamma, contrast, brightness = (uniform(*limits).view(n, 1, 1, 1) for limits in ((-0.3, 0.3), (0.75, 1.25), (-0.1, 0.1)))
        images = images.clamp(1e-4, 1) ** torch.exp(gamma)
        mean = images.mean((2, 3), keepdim=True)
        images = (images - mean) * contrast + mean + brightness
    return images.clamp(0, 1)[:, 0]
