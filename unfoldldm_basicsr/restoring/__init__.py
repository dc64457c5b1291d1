"""Restoring images with trained weights: ``Restorer('net_g.pth').restore(image)``."""

from unfoldldm_basicsr.data.images import Picture, read_picture, write_picture
from unfoldldm_basicsr.data.pixels import ImageError
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.restoring.tiling import TileError, tiled_forward
from unfoldldm_basicsr.weights.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from unfoldldm_basicsr.weights.convert import convert_checkpoint
from unfoldldm_basicsr.weights.export import export_checkpoint

__all__ = [
    'Checkpoint',
    'CheckpointError',
    'ImageError',
    'Picture',
    'Restorer',
    'TileError',
    'convert_checkpoint',
    'export_checkpoint',
    'read_checkpoint',
    'read_picture',
    'tiled_forward',
    'write_picture',
]
