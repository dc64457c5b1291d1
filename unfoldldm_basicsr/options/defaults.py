"""Values for the keys that BasicSR reads without asking whether they are there."""

import os
import re
from collections.abc import Iterator

from basicsr.utils.registry import DATASET_REGISTRY

from unfoldldm_basicsr.common.registration import registered
from unfoldldm_basicsr.common.sections import SECTIONS
from unfoldldm_basicsr.options.run import reads_itself, section_values

_FILLED = {
    '': ('num_gpu', 'scale', 'manual_seed'),
    'logger': ('print_freq', 'save_checkpoint_freq', 'use_tb_logger'),
    'val': ('val_freq', 'save_img', 'suffix'),
}
_COUNTS = ('_iter', '_freq', '_per_gpu')  # 5e3 is a float in YAML, and BasicSR counts with them
_NO_FOLDER = 'strict_load|pretrain_network|resume|param_key'  # BasicSR makes all others of path
_NUMBERS = ('warmup_iter', 'ema_decay')  # compared with others; ~ is as good as none


def fill_defaults(options: dict, is_train: bool) -> None:
    """Completes ``options`` in place, so that BasicSR raises no bare KeyError.

    Only keys with a harmless meaning when absent are filled; what a run depends on (``name``,
    ``network_g``, ``total_iter``, ...) is for the check to demand. Sections of a wrong type stay
    as they are.
    """
    for key in ('path', 'logger', *(() if is_train else ('val',))):
        if options.get(key) is None:
            options[key] = {}
    named = 'scale' in options
    for name, keys in _FILLED.items():
        section = options.get(name) if name else options
        for key in keys if isinstance(section, dict) else ():
            section.setdefault(key, SECTIONS[name].model_fields[key].default)
    for key, value in section_values(options, 'path').items():
        if isinstance(value, str) and re.search('resume_state|pretrain_network', str(key)):
            options['path'][key] = os.path.expanduser(value)
        elif value is None and not re.search(_NO_FOLDER, str(key)):
            del options['path'][key]
    sets = section_values(options, 'datasets')
    for phase, section in sets.items():
        if isinstance(section, dict):
            if named:
                section['scale'] = options['scale']
            _fill_dataset(section, str(phase))
    for section in (*(options.get(name) for name in ('train', 'val', 'logger')), *sets.values()):
        for key, value in [*section.items()] if isinstance(section, dict) else ():
            if value is None and key in _NUMBERS:
                del section[key]
            elif isinstance(value, float) and value.is_integer() and str(key).endswith(_COUNTS):
                section[key] = int(value)


def _fill_dataset(section: dict, phase: str) -> None:
    if section.get('name') is None:
        section['name'] = phase
    elif type(section['name']) is int:  # 291
        section['name'] = str(section['name'])
    section['phase'] = phase.split('_')[0]
    if section.get('io_backend') is None:
        section['io_backend'] = {'type': 'disk'}
    for _, part, key in places_of(section):
        part[key] = os.path.expanduser(part[key])
    if phase == 'train':
        section.setdefault('num_worker_per_gpu', 4)
    cls = registered(DATASET_REGISTRY, section.get('type'))
    if cls is None or reads_itself(cls):
        return  # it may have defaults of its own
    section.setdefault('scale', SECTIONS[''].model_fields['scale'].default)
    if phase == 'train' and not hasattr(cls, 'Options'):
        section.setdefault('use_hflip', False)  # BasicSR's data sets index what is missing
        section.setdefault('use_rot', False)


def places_of(section: dict, prefix: str = '') -> Iterator[tuple[str, dict, str]]:
    """Where a data set names folders and lists: place, section and key, of a mixture's sets too."""
    for key, value in section.items():
        if isinstance(value, str) and str(key).startswith(('dataroot', 'meta_info')):
            yield f'{prefix}{key}', section, key
    sets = section.get('sets')  # a class of anybody may mean others by it
    for index, part in enumerate(sets if isinstance(sets, list) else ()):
        if isinstance(part, dict):
            yield from places_of(part, f'{prefix}sets.{index}.')
