"""Names of BasicSR's forks, translated with their meaning kept: Restormer's and NAFNet's.

``TABLE`` has one row for each key; what a row needs to know beside its value stands in the section.
Read by the check, by the start of a run, and by ``unfoldldm migrate``.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

from unfoldldm_basicsr.common.registration import registered

MODELS = {'ImageCleanModel': 'RestorationModel', 'ImageRestorationModel': 'RestorationModel'}
DATASETS = {
    'Dataset_PairedImage': 'PairedDegradationDataset',
    'Dataset_GaussianDenoising': 'SyntheticDegradationDataset',
    'Dataset_DefocusDeblur_DualPixel_16bit': 'DualPixelDataset',
}
_PAIRS, _NOISE, _DUAL = DATASETS
_STOCK = 'PairedImageDataset'  # NAFNet's, with one key named otherwise than BasicSR's
_PROGRESSIVE = ('iters', 'gt_sizes', 'mini_batch_sizes')
New = dict[str, Any] | str  # what replaces a key in its section; a text: why it stays as it is


class Row(NamedTuple):
    """One key of a fork.

    ``new`` are its new names, none where nothing is needed in its place, or what gives the new keys
    from the value and its section.
    """

    section: str  # ``train``, ``val``, ``path``, ``datasets.train``, or ``datasets`` for any set
    key: str
    owners: tuple[str, ...]  # types of the models, or data sets, that have it so
    new: tuple[str, ...] | Callable[[Any, Mapping[str, Any]], New] = ()
    why: str = ''  # for users


def _not_mixed(value: Any, section: Mapping) -> New:
    return {} if value is False else 'NAFNet has no mixup; write mixing_augs: {mixup: true}'


def _noise(value: Any, section: Mapping) -> New:
    """``sigma_type`` with ``sigma_range``, or ``sigma_test``: noise as it comes, not clipped."""
    key, levels = 'sigma', value
    if isinstance(value, str):
        key, levels = 'levels' if value == 'choice' else 'sigma', section.get('sigma_range')
        if value not in ('constant', 'random', 'choice'):
            return 'Restormer knows constant, random and choice'
        if isinstance(levels, list) != (value != 'constant'):
            return f'sigma_range must {"not " * (value == "constant")}be a list with it'
    return {'degradations': [{'type': 'gaussian_noise', key: levels}], 'lq_output': 'unclipped'}


def _channels(value: Any, section: Mapping) -> New:
    return {} if value == 3 else {'color': 'grey'}


def _tiles(value: Any, section: Mapping) -> New:
    if not value:
        return {}
    for keys in (_CROPS[:1], _CROPS[1:3], _CROPS[3:]):
        sides = [section.get(key) for key in keys]
        if all(isinstance(side, int | float) for side in sides):
            return {'tile': max(sides)} if max(sides) != 1 else {}
    return 'it needs crop_size, crop_size_h and crop_size_w, or crop_size_h_ratio and _w_ratio'


_FORKS, _SETS = tuple(MODELS), tuple(DATASETS)
_CROPS = ('crop_size', 'crop_size_h', 'crop_size_w', 'crop_size_h_ratio', 'crop_size_w_ratio')
_FLIPS = ('use_hflip', 'use_rot')
_OF_NOISE = 'the noise is one of the degradations'
TABLE = (
    Row('path', 'param_key', _FORKS, ('param_key_g',)),
    Row('train', 'mixup', _FORKS, _not_mixed, 'nothing is mixed without mixing_augs'),
    Row('val', 'window_size', _FORKS, (), 'the networks pad images by themselves'),
    Row('val', 'max_minibatch', _FORKS, (), 'images are restored one by one'),
    Row('val', 'rgb2bgr', _FORKS, (), 'images are saved in their colours'),
    Row('val', 'trans_num', _FORKS, (), 'NAFNet does not read it'),
    Row('val', 'grids', _FORKS, _tiles, 'tiles overlap and are blended'),
    *(Row('val', key, _FORKS, (), 'tiles are square') for key in _CROPS),
    Row('datasets', 'use_flip', (_STOCK, *_SETS), ('use_hflip',)),
    Row('datasets', 'geometric_augs', _SETS, _FLIPS, 'the eight turns and mirrorings'),
    Row('datasets.train', 'sigma_type', (_NOISE,), _noise, 'levels of 255, not clipped to [0, 1]'),
    Row('datasets.train', 'sigma_test', (_NOISE,), (), 'it is of validations'),
    Row('datasets', 'sigma_test', (_NOISE,), _noise, 'levels of 255, not clipped to [0, 1]'),
    Row('datasets', 'sigma_type', (_NOISE,), (), 'it is of trainings'),
    Row('datasets', 'sigma_range', (_NOISE,), (), _OF_NOISE),
    Row('datasets', 'in_ch', (_NOISE,), _channels, 'channels of the images'),
    Row('datasets', 'dataroot_lq', (_NOISE,), (), _OF_NOISE),
    Row('datasets', 'filename_tmpl', (_NOISE,), (), 'one folder is read, so no names are paired'),
    Row('datasets', 'mean', (_NOISE,), (), 'Restormer shifts pairs by it, not noise'),
    Row('datasets', 'std', (_NOISE,), (), 'Restormer divides pairs by it, not noise'),
    Row('datasets', 'dataroot_lqL', (_DUAL,), ('dataroot_lq',)),
    Row('datasets', 'dataroot_lqR', (_DUAL,), ('dataroot_lq_right',)),
)


def translate(options: dict) -> list[str]:
    """Replaces what forks name otherwise, in place; values that are not understood stay.

    A project that registers a class of such a name gets its own. Returns one note for each key,
    ``key.path: what became of it (why)``.
    """
    notes: list[str] = []
    model, datasets = options.get('model_type'), options.get('datasets')
    datasets = datasets if isinstance(datasets, dict) else {}
    if str(model) in MODELS and not registered(MODEL_REGISTRY, model):
        options['model_type'] = MODELS[model]
        notes.append(_note('model_type', model, {'model_type': MODELS[model]}))
        for name in ('path', 'train', 'val'):
            notes += _rows(options.get(name), name, model)
        notes += _added(options.get('train'), model)
    for phase, section in datasets.items():
        path, kind = f'datasets.{phase}', section.get('type') if isinstance(section, dict) else None
        new = DATASETS.get(str(kind))
        if new and registered(DATASET_REGISTRY, kind):
            continue
        notes += _rows(section, path, kind)
        if new:
            if kind == _PAIRS and {'mean', 'std'} & section.keys():
                new = _STOCK  # which shifts both images by them
            section['type'] = new
            notes.append(_note(f'{path}.type', kind, {'type': new}))
    return notes + (_progressive(options, datasets.get('train')) if notes else [])


def _rows(section: Any, path: str, owner: Any) -> list[str]:
    """Applies to each key of a section the first row that is about it."""
    notes = []
    rows = [row for row in TABLE if owner in row.owners and path.startswith(row.section)]
    before = dict(section) if isinstance(section, dict) else {}
    for key, value in before.items():
        row = next((row for row in rows if row.key == key), None)
        new: New = {key: section.pop(key)}  # which keeps the order
        if row is not None:
            new = row.new(value, before) if callable(row.new) else dict.fromkeys(row.new, value)
            twice = [name for name in new if name in before] if isinstance(new, dict) else ()
            new = f'{twice[0]} is there too' if twice else new
            notes.append(_note(f'{path}.{key}', value, new, row.why))
        section |= {key: value} if isinstance(new, str) else new  # a text: for the check to judge
    return notes


def _note(path: str, old: Any, new: New, why: str = '') -> str:
    if isinstance(new, str):
        return f'{path}: {_yaml(old)} is left as it is: {new}.'
    now = ', '.join(f'{k}: {_yaml(v)}' for k, v in new.items())
    reason = f' ({why})' if why else ''
    return f'{path}: {_yaml(old)} is {f"read as {now}" if new else "not needed"}{reason}.'


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _progressive(options: dict, section: Any) -> list[str]:
    """Restormer has its progressive sizes with the data, and they belong to the training."""
    train = options.get('train')
    if not isinstance(section, dict) or not isinstance(train, dict):
        return []
    found = [key for key in _PROGRESSIVE if key in section]
    if not found or 'progressive' in train:
        return []
    train['progressive'] = {key: section.pop(key) for key in found}
    return [f'datasets.train.{key}: is read as train.progressive.' for key in found]


def _added(train: Any, model: str) -> list[str]:
    """What the trainers of the forks do unless told otherwise."""
    if not isinstance(train, dict):
        return []
    adds = {}
    if model == 'ImageRestorationModel':
        adds['use_grad_clip'] = 'NAFNet limits the gradient norm to 0.01 unless told otherwise'
    optimizer = train.get('optim_g')
    if isinstance(optimizer, dict) and optimizer.get('weight_decay') != 0:
        adds['decay_all'] = 'the trainers of the forks let biases and gains decay too'
    adds = {key: text for key, text in adds.items() if key not in train}
    train.update(dict.fromkeys(adds, True))
    return [f'train.{key}: added: {text}.' for key, text in adds.items()]
