"""Pictures and tables of results."""

from .drawing import detail_box, save_picture
from .grids import comparison_grid, detail_boxes, psnr_captions
from .quality import Quality, measure
from .tables import markdown_table, mean_row, write_table
from .trace_picture import StageImages, Trace, trace_picture

__all__ = [
    'Quality',
    'StageImages',
    'Trace',
    'comparison_grid',
    'detail_box',
    'detail_boxes',
    'markdown_table',
    'mean_row',
    'measure',
    'psnr_captions',
    'save_picture',
    'trace_picture',
    'write_table',
]
