"""Four-direction selective scan (SS2D) as one operator with interchangeable backends."""

from unfoldldm_basicsr.ops.ss2d.dispatch import chosen_backend, describe_backends, set_scan_backend
from unfoldldm_basicsr.ops.ss2d.op import scan_flops, ss2d_scan

__all__ = ['chosen_backend', 'describe_backends', 'scan_flops', 'set_scan_backend', 'ss2d_scan']
