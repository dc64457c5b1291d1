"""Restoring images with trained weights: ``Restorer('net_g.pth').restore(image)``."""

from unfoldldm_basicsr.inference.checkpoint import Checkpoint, CheckpointError, build_from_checkpoint, read_checkpoint
from unfoldldm_basicsr.inference.convert import convert_checkpoint
from unfoldldm_basicsr.inference.export import export_checkpoint
from unfoldldm_basicsr.inference.image_io import ImageReadError, Picture, read_image, write_image
from unfoldldm_basicsr.inference.restorer import Restorer
from unfoldldm_basicsr.inference.tiling import TileError, tiled_forward

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
