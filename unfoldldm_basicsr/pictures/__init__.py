"""Pictures and tables of results."""

from unfoldldm_basicsr.pictures.drawing import detail_box, save_picture
from unfoldldm_basicsr.pictures.grids import comparison_grid, detail_boxes, psnr_captions
from unfoldldm_basicsr.pictures.quality import psnr
from unfoldldm_basicsr.pictures.trace_picture import trace_picture

__all__ = [
    'comparison_grid',
    'detail_box',
    'detail_boxes',
    'psnr',
    'psnr_captions',
    'save_picture',
    'trace_picture',
]
