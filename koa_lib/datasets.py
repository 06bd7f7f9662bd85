"""From manifest rows to tensors: reading, geometry, normalisation, augmentation, and cohorts of a study."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from PIL import Image

from koa_lib import manifests
from koa_lib.errors import StudyError
from koa_lib.study import MANIFESTS

STATISTICS = {  # mean and standard deviation per channel, METHODS: ImageNet as the paper prints, CLIP as its weights expect
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
# Share of the shorter side that `center_crop` keeps: OAI crops carry the joint line in their middle (our reading).
CENTRAL_SHARE = 0.82


def read_gray(path):
    """A picture as gray float32 (H, W) in [0, 1]; 16-bit values are rescaled by 65,535, colour is averaged."""
    pixels, _ = manifests.decode(path)
    gray = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    return gray if gray.ndim == 2 else gray.mean(axis=2)


def to_square(image, geometry, size):
    """Fit a gray picture (H, W) in [0, 1] into (size, size).

    `stretch` ignores the aspect ratio (as printed), `pad` fills to a square with the border's median,
    `center_crop` keeps the central square.
    """
    height, width = image.shape
    if geometry == "pad":
        side = max(height, width)
        border = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]))
        square = np.full((side, side), border, dtype=np.float32)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        image = square
    elif geometry == "center_crop":
        side = round(min(height, width) * CENTRAL_SHARE)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    return np.clip(np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)), 0, 1)


@dataclass(frozen=True)
class Cohort:
    """A cohort of a study: its name and the manifest rows whose pictures are there (`file`, `status` added)."""

    name: str
    rows: pd.DataFrame

    def __repr__(self):
        per_split = self.rows["split"].value_counts().to_dict()
        return f"Cohort {self.name}: {len(self.rows)} pictures, {self.rows['group_id'].nunique()} groups, {per_split}"


def cohort(study, role):
    """The cohort that plays a role in a study.

    Parameters
    ----------
    study : Study
    role : {'training', 'external'}

    Returns
    -------
    Cohort or None
        None when no folder was given for the external cohort.
    """
    spec = getattr(study.profile, role)
    if spec.source == "phantoms":
        folder = _phantom_folder(study, spec, role)
        manifest = manifests.read_manifest(folder / "manifest.csv")
    else:
        folder = study.folder_of(role)
        if folder is None:
            return None
        manifest = manifests.read_manifest(MANIFESTS / f"{spec.name}.csv")
    found = manifests.find_pictures(manifest, folder)
    _note_data(study, role, found)
    return Cohort(spec.name, found)


def _phantom_folder(study, spec, role):
    from koa_lib import phantoms

    write = {"training": phantoms.write_cohort_a, "external": phantoms.write_cohort_b}[role]
    key = {"cohort": spec, "seed": study.seed}
    return study.store.make(f"data/{spec.name}", key, lambda path: write(_made(path), spec.size, study.seed), code=("phantoms", "findings", "radiograph", "manifests"))


def _made(path):
    path.mkdir(parents=True)
    return path


def _note_data(study, role, rows):
    # The content of the pictures as they are on disk, so that a re-encoded copy has its own hash.
    from koa_lib.store import write_text

    path = study.run_dir / "data.json"
    note = json.loads(path.read_text()) if path.exists() else {}
    key = [study.inputs.content, manifests.data_hash(rows)]
    if note.get(role, {}).get("key") == key:
        return
    files = manifests.data_hash(rows.assign(pixel_sha256=[manifests.file_sha256(file) for file in rows["file"]]))
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
    """

    rows: pd.DataFrame
    pixels: np.ndarray
    index: np.ndarray
    role: str = "any"

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
        return np.asarray(self.pixels[self.index[positions]])

    def part(self, positions, role):
        """The rows at some positions, for one role."""
        return replace(self, rows=self.rows.iloc[positions].reset_index(drop=True), index=self.index[positions], role=role)


def dataset(study, role, geometry, intensity, size):
    """The `KneeDataset` of a cohort, decoded once and kept as a memory-mapped array; None without the cohort."""
    members = cohort(study, role)
    if members is None:
        return None
    files = list(members.rows["file"])
    name = f"features/pictures__{members.name}__{geometry}-{intensity}__{size}.npy"
    key = {"data": manifests.data_hash(members.rows), "content": study.inputs.content, "geometry": geometry, "intensity": intensity, "size": size}
    path = study.store.make(name, key, lambda part: _decode_all(files, geometry, size, part), code=("datasets", "manifests"))
    return KneeDataset(members.rows, np.load(path, mmap_mode="r"), np.arange(len(members.rows)))


def _decode_all(files, geometry, size, path):
    with open(path, "wb") as file:  # np.save would add a suffix to the temporary name
        array = np.empty((len(files), size, size), dtype=np.uint8)

        def decode(item):
            position, picture = item
            array[position] = np.round(to_square(read_gray(picture), geometry, size) * 255)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, enumerate(files)))
        np.save(file, array)


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

    images = torch.as_tensor(np.asarray(images)).float()[:, None]
    images = images / 255 if images.max() > 1 else images
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
