"""The options that decide what a run computes, and how they differ between two starts of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Where data lie and how they are loaded; what they are is in the fingerprint of the data.
_OF_LOADING = {
    'name', 'phase', 'scale', 'io_backend', 'num_worker_per_gpu', 'persistent_workers',
    'pin_memory', 'prefetch_mode', 'num_prefetch_queue', 'timeout', 'on_error', 'max_error_share',
}  # fmt: skip
# The model itself reports and decides about these.
SCHEDULE_KEYS = ('optim_g', 'scheduler', 'warmup_iter')
_OF_RESUMING = ('apply_new_schedule', 'max_nonfinite')


def run_options(opt: Mapping[str, Any]) -> dict[str, Any]:
    """Key path -> plain value of the options that decide about the weights."""
    train = {
        key: value
        for key, value in (opt.get('train') or {}).items()
        if key not in (*SCHEDULE_KEYS, *_OF_RESUMING)
    }
    data = (opt.get('datasets') or {}).get('train') or {}
    sections = {
        'manual_seed': opt.get('manual_seed'),
        'number of processes': opt.get('world_size', 1),
        'datasets.train': {k: v for k, v in data.items() if k not in _OF_LOADING},
        'train': train,
        **{key: value for key, value in opt.items() if str(key).startswith('network_')},
    }
    found: dict[str, Any] = {}
    for name, section in sections.items():
        found |= flatten(section, name)
    return {k: v for k, v in found.items() if not _names_a_file(k)}


def option_digest(options: Mapping[str, Any]) -> str:
    """SHA-256 of flat options."""
    text = json.dumps(options, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Key path -> plain value, through mappings and lists of mappings."""
    if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, Mapping):
        return {
            name: item
            for key, inner in value.items()
            for name, item in flatten(inner, f'{prefix}.{key}').items()
        }
    return {prefix: list(value) if isinstance(value, tuple) else value}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys of two flat option dicts whose values differ, with both values ('not set' for none)."""
    keys = [*before, *(key for key in now if key not in before)]
    pairs = [(key, before.get(key), now.get(key)) for key in keys]
    return [
        (key, *('not set' if v is None else v for v in (then, here)))
        for key, then, here in pairs
        if then != here
    ]


def _names_a_file(key: str) -> bool:
    return key.rpartition('.')[2].startswith(('dataroot', 'meta_info'))
