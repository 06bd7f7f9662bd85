"""One file to one float picture in [0, 1]: formats and polarity, geometry and intensity, the joint.

Imports `errors` alone.
"""

from koa_lib.images.read import describe, read_gray, to_uint8

__all__ = ["describe", "read_gray", "to_uint8"]
