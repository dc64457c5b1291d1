"""Restoring images with trained weights: ``Restorer('net_g.pth').restore(image)``."""

from .checkpoint import Checkpoint, CheckpointError, build_from_checkpoint, read_checkpoint
from .convert import convert_checkpoint
from .export import export_checkpoint
from .image_io import ImageReadError, Picture, read_image, write_image
from .restorer import Restorer
from .tiling import TileError, tiled_forward

__all__ = [
    'Checkpoint',
    'CheckpointError',
    'ImageReadError',
    'Picture',
    'Restorer',
    'TileError',
    'build_from_checkpoint',
    'convert_checkpoint',
    'export_checkpoint',
    'read_checkpoint',
    'read_image',
    'tiled_forward',
    'write_image',
]
