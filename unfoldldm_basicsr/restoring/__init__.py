"""Restoring images with trained weights: ``Restorer('net_g.pth').restore(image)``."""

from unfoldldm_basicsr.data.images import Picture, read_picture, write_picture
from unfoldldm_basicsr.restoring.restorer import Restorer
from unfoldldm_basicsr.restoring.tiling import TileError
from unfoldldm_basicsr.weights.checkpoint import CheckpointError

__all__ = ['CheckpointError', 'Picture', 'Restorer', 'TileError', 'read_picture', 'write_picture']
