"""One file to one float picture in [0, 1]: formats and polarity, geometry and intensity, the joint.

Imports `errors` alone.
"""

from koa_lib.images.picture import to_uint8
from koa_lib.images.read import read_gray

__all__ = ["read_gray", "to_uint8"]
