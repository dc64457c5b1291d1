"""Pictures and tables of results."""

from unfoldldm_basicsr.reporting.drawing import detail_box, save_picture
from unfoldldm_basicsr.reporting.grids import comparison_grid, detail_boxes, psnr_captions
from unfoldldm_basicsr.reporting.quality import Quality, measure
from unfoldldm_basicsr.reporting.tables import markdown_table, mean_row, write_table
from unfoldldm_basicsr.reporting.trace_picture import StageImages, Trace, trace_picture

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
