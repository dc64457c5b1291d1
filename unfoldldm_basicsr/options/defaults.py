"""Values for the keys that BasicSR reads without asking whether they are there."""

from __future__ import annotations

from collections.abc import Callable

_SECTION_DEFAULTS = (
    ('logger', 'print_freq', 100),
    ('logger', 'save_checkpoint_freq', 5000),
    ('logger', 'use_tb_logger', False),
    ('val', 'val_freq', 5000),
    ('val', 'save_img', False),
    ('val', 'suffix', None),
)

# Iteration counts: BasicSR compares and divides them; 5e3 is a float in YAML.
_COUNTS = {
    'train': ('total_iter', 'warmup_iter', 'prior_warmup_iter', 'accum_iter'),
    'val': ('val_freq',),
    'logger': ('print_freq', 'save_checkpoint_freq'),
}


def fill_defaults(options: dict, is_train: bool) -> list[str]:
    """Completes ``options`` in place, so that BasicSR raises no bare KeyError.

    Only keys with a harmless meaning when absent are filled; what a run depends on (``name``,
    ``network_g``, ``total_iter``, ...) is for the check to demand. Sections of a wrong type stay
    as they are.

    Returns:
        The keys that were filled, as ``section.key=value``.
    """
    filled: list[str] = []

    def fill(section: dict, prefix: str, key: str, value: object) -> None:
        if key not in section:
            section[key] = value
            filled.append(f'{prefix}{key}={value}')

    for key, value in (('num_gpu', 'auto'), ('scale', 1), ('manual_seed', None)):
        fill(options, '', key, value)
    for key in ('path', 'logger'):
        if options.get(key) is None:
            options[key] = {}
    if not is_train and options.get('val') is None:
        options['val'] = {}
    for section, key, value in _SECTION_DEFAULTS:
        training_only = section == 'logger' or key == 'val_freq'
        if isinstance(options.get(section), dict) and (is_train or not training_only):
            fill(options[section], f'{section}.', key, value)
    for phase, dataset in _datasets(options):
        _fill_dataset(dataset, phase, fill)
    for section, keys in _COUNTS.items():
        _whole_numbers(options.get(section), keys)
    return filled


def _fill_dataset(dataset: dict, phase: str, fill: Callable) -> None:
    prefix = f'datasets.{phase}.'
    fill(dataset, prefix, 'name', phase)
    if dataset.get('io_backend') is None:
        dataset.pop('io_backend', None)
    fill(dataset, prefix, 'io_backend', {'type': 'disk'})
    if phase == 'train':
        fill(dataset, prefix, 'num_worker_per_gpu', 4)
        if not _declares_its_keys(dataset.get('type')):
            fill(dataset, prefix, 'use_hflip', False)
            fill(dataset, prefix, 'use_rot', False)
        # New workers every epoch cost seconds each; torch refuses persistent ones without workers.
        workers = bool(dataset['num_worker_per_gpu'])
        fill(dataset, prefix, 'persistent_workers', workers)
        if not workers:
            dataset['persistent_workers'] = False


def _declares_its_keys(dataset_type: object) -> bool:
    """Whether the class knows its own defaults; those of BasicSR index what is missing."""
    from basicsr.utils.registry import DATASET_REGISTRY

    cls = DATASET_REGISTRY._obj_map.get(str(dataset_type))
    return hasattr(cls, 'option_keys')


def _datasets(options: dict) -> list[tuple[str, dict]]:
    datasets = options.get('datasets')
    if not isinstance(datasets, dict):
        return []
    return [(str(p), d) for p, d in datasets.items() if isinstance(d, dict)]


def _whole_numbers(section: object, keys: tuple[str, ...]) -> None:
    if not isinstance(section, dict):
        return
    for key in keys:
        value = section.get(key)
        if isinstance(value, float) and value.is_integer():
            section[key] = int(value)
