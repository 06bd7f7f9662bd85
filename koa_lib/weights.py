"""Published weights: from a local folder, or from the hubs that open_clip and timm name.

A folder given as WEIGHTS holds one sub-folder per model, named as the profile names it (`ViT-B-32-quickgelu`,
`resnet50.tv_in1k`, ...), with the files of its hub page; CLIP may also lie in the folder itself.
"""

import re
from contextlib import contextmanager
from pathlib import Path

from koa_lib.errors import StudyError
from koa_lib.images.read import file_sha256

SUFFIXES = (".safetensors", ".bin", ".pt")  # of weight files; the first are preferred
STEMS = (
    "open_clip_model",
    "open_clip_pytorch_model",
    "model",
    "pytorch_model",
)  # names on hub pages, likewise
CONFIGS = ("model.json", "open_clip_config.json")
CLIP_TAG = "openai"
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_config.json")
FILES = ("model.safetensors",)
FOUNDATIONS = {
    "biomedclip": "BiomedCLIP",
    "rad-dino": "RAD-DINO",
}  # source of an encoder to its name in `foundation.PAGES`, which is slow to import
SECONDS = 10  # to wait for the hub's first answer


def clip(name, given=""):
    """Weights of a CLIP model.

    Parameters
    ----------
    name : str
        open_clip architecture.
    given : str or Path, optional
        The folder WEIGHTS; without it the hub (or its local cache) is asked.

    Returns
    -------
    Path
        A folder with weights and configuration, or the weight file of the hub's cache.

    Raises
    ------
    StudyError
        When neither has them: says what to download and where to put it.
    """
    if given:
        for folder in (Path(given) / name, Path(given)):
            if any((folder / config).is_file() for config in CONFIGS):
                return folder
        raise StudyError(f"{given} holds no weights of {name}: {_advice(name, _clip_page(name), CLIP_FILES)}")
    return _from_hub(name, _clip_page(name), CLIP_FILES)


def network(name, given=""):
    """The weight file of a timm network, likewise; `name` has timm's tag, e.g. `resnet50.tv_in1k`."""
    import timm

    page = timm.get_pretrained_cfg(name).hf_hub_id
    if given:
        if _weight_files(Path(given) / name):
            return file_of(Path(given) / name)
        raise StudyError(f"{given} holds no weights of {name}: {_advice(name, page, FILES)}")
    return _from_hub(name, page, FILES)


def folder(name, page, files, given=""):
    """The folder with the files of a model's hub page, likewise: its weights (`files[0]`, or any weight file)
    and the others."""
    if given:
        place = Path(given) / name
        if _weight_files(place) and all((place / file).is_file() for file in files[1:]):
            return place
        raise StudyError(f"{given} holds no weights of {name}: {_advice(name, page, files)}")
    return [
        _from_hub(name, page, (file, *(other for other in files if other != file))).parent for file in files
    ][0]


def file_of(place):
    """The weight file of a place, the one that is loaded and whose hash is taken.

    Parameters
    ----------
    place : str or Path
        The file itself, or a folder: a file named as on a hub page is taken before any other, hidden files
        never.

    Raises
    ------
    StudyError
        A folder without weights, or with several of which none is named as on a hub page.
    """
    place = Path(place)
    if place.is_file():
        return place
    found = _weight_files(place)
    known = [path for path in found if path.stem in STEMS]
    if known:
        return min(known, key=lambda path: (SUFFIXES.index(path.suffix), STEMS.index(path.stem)))
    if len(found) != 1:
        many = f"several weight files ({found[0].name}, {found[1].name}, ...)" if found else "no weights"
        raise StudyError(
            f"{place} holds {many}. Name the one to load {STEMS[0]}{SUFFIXES[0]} ({', '.join(SUFFIXES)})."
        )
    return found[0]


def _weight_files(folder):
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        path for path in files if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def tensors(place):
    """The tensors by name of the weight file of a place: safetensors, or a pickle that may hold nothing but
    tensors."""
    import open_clip

    return open_clip.factory.load_state_dict(str(file_of(place)))


@contextmanager
def fitting(name, place, page="its page on the hub"):
    """Whatever the libraries raise when weights are damaged or not those of a model becomes one `StudyError`.

    It names the first tensor that is missing, unknown or of another shape, where it is that, and the page
    with the right ones.
    """
    try:
        yield
    except StudyError:
        raise
    except Exception as error:  # safetensors, torch, json and pickle each have their own
        said = " ".join(str(error).split())
        tensor = re.search(r'state_dict: "(.+?)"|size mismatch for (.+?):', said)
        reason = (
            f"{tensor[1] or tensor[2]} is missing, unknown or of another shape"
            if tensor
            else f"{type(error).__name__}: {said[:160]}"
        )
        raise StudyError(
            f"{place} holds no weights of {name} ({reason}). Give the files of {page}."
        ) from error


def weights_hash(place):
    """What identifies weights in artefact keys: SHA-256 of `file_of` the place, or 'random' without one."""
    return "random" if place is None else file_sha256(file_of(place))


def _from_hub(name, page, files):
    import requests
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(page, files[0])
    if isinstance(cached, str):
        return Path(cached)
    try:
        requests.head(constants.ENDPOINT, timeout=SECONDS)  # the hub's own client tries for a minute
        return Path(hf_hub_download(page, files[0]))
    except Exception as error:  # whatever the network and its libraries raise, the advice is the same
        raise StudyError(
            f"The weights of {name} could not be downloaded ({type(error).__name__}): "
            f"{_advice(name, page, files)}"
        ) from error


def _advice(name, page, files):
    wanted = f"download {' and '.join(files)} from huggingface.co/{page}"
    return f"{wanted}, put them into <folder>/{name}/ and give WEIGHTS=<folder>."


def _clip_page(name):
    import open_clip

    return (open_clip.get_pretrained_cfg(name, CLIP_TAG) or {}).get("hf_hub", "").strip("/")
