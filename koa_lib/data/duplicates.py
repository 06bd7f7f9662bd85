"""Near-duplicates: pictures that look alike to a perceptual hash, grouped."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from koa_lib.data.manifest import natural

# Of 256 bits. Copies of OAI pictures that were compressed, brightened, shifted by a pixel or cropped by 1 % differ in at
# most 26 bits, different OAI knees in at least 36 (6,604 pictures); no label and no external picture was used.
THRESHOLD = 28
_BLOCK = 500  # pictures compared at once with all: 8,260 pictures take 2 s and 16 MB


def distances(hashes):
    """Each picture's smallest Hamming distance to another one.

    Parameters
    ----------
    hashes : sequence of str
        Perceptual hashes, hex, all of one length.

    Returns
    -------
    int array (n,), bits; the number of bits plus one for a single picture
    """
    words = _words(hashes)
    nearest = np.full(len(words), 64 * words.shape[1] + 1)
    for start, block in _blocks(words):
        block[np.arange(len(block)), start + np.arange(len(block))] = nearest.max()
        nearest[start : start + len(block)] = np.minimum(block.min(axis=1), nearest[start : start + len(block)])
    return nearest


def near_groups(rows, together=None, threshold=THRESHOLD):
    """Name of each picture's group of near-duplicates: the image id of the group's first picture in path order.

    Parameters
    ----------
    rows : DataFrame
        image_id, path, perceptual_hash.
    together : str, optional
        A column whose equal values belong to one group, too.
    threshold : int
        Largest Hamming distance of two neighbours in a group, in bits.

    Returns
    -------
    list of str
    """
    words, pairs = _words(rows["perceptual_hash"]), []
    for start, block in _blocks(words):
        left, right = np.nonzero(block <= threshold)
        pairs.append(np.stack([left + start, right]))
    if together:
        first = rows.groupby(together).ngroup().to_numpy()
        pairs.append(np.stack([np.arange(len(rows)), np.unique(first, return_index=True)[1][first]]))
    left, right = np.concatenate(pairs, axis=1)
    _, label = connected_components(coo_matrix((np.ones(len(left)), (left, right)), shape=(len(rows), len(rows))), directed=False)
    order = sorted(range(len(rows)), key=lambda k: natural(rows["path"].iloc[k]), reverse=True)
    first = {label[k]: rows["image_id"].iloc[k] for k in order}
    return [first[k] for k in label]


def _words(hashes):
    return np.array([[int(text[k : k + 16], 16) for k in range(0, len(text), 16)] for text in hashes], dtype=np.uint64)


def _blocks(words):
    for start in range(0, len(words), _BLOCK):
        differing = words[start : start + _BLOCK, None] ^ words[None]
        yield start, np.bitwise_count(differing).sum(axis=2).astype(int)
