"""Four-direction selective scan (SS2D) as one operator with interchangeable backends."""

from unfoldldm_basicsr.ops.ss2d.op import scan_flops, ss2d_scan

__all__ = ['scan_flops', 'ss2d_scan']
