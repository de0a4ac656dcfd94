"""How many dimensions an image has, and how far apart its pixels are, as its file says.

nnU-Net's readers give a 2D image a slice axis, and a made-up distance along it: 999 for pictures, and 999 times the
pixel size for NIfTI, NRRD and MetaImage, which may be any number. So the number is never asked; the header is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter


def stated_spacing(properties: Mapping[str, Any], reader: BaseReaderWriter) -> tuple[float, ...]:
    """Distances along (z, y, x), or along (y, x) for what the file declares as 2D.

    Args:
        properties: nnU-Net's, of the image that `reader` read.

    Returns:
        mm; 1 along each axis of a picture, whose unit is the pixel.
    """
    spacing = tuple(float(step) for step in properties["spacing"])
    stated = properties.get("sitk_stuff", {}).get("spacing", spacing)
    return spacing[1:] if is_picture(reader) or len(stated) == 2 else spacing


def is_picture(reader: BaseReaderWriter) -> bool:
    """PNG and its like: 2D, without a size in mm."""
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    return isinstance(reader, NaturalImage2DIO)
