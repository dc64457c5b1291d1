"""Restoring images with trained weights: ``Restorer('net_g.pth').restore(image)``."""

from unfoldldm_basicsr.data.picture_files import ImageReadError, Picture, read_image, write_image
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.restoring.tiling import TileError, tiled_forward
from unfoldldm_basicsr.weights.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from unfoldldm_basicsr.weights.convert import convert_checkpoint
from unfoldldm_basicsr.weights.export import export_checkpoint
from unfoldldm_basicsr.weights.networks import build_from_checkpoint

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
