"""Which keys an option file may hold: BasicSR's own, and those that the named classes declare.

A class declares its keys in ``option_keys`` (see the package's models and data sets). For classes
that do not, BasicSR's above all, the words that their source compares and looks up stand in: a key
that appears nowhere in the code of the class does nothing.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache

from unfoldldm_basicsr.options.values import Key

_NONE = type(None)
_COUNT = (int,)
_NUMBER = (int, float)

TOP: dict[str, Key] = {
    'name': Key((str,), 'name of the experiment, also of its folder'),
    'model_type': Key((str,), 'registered model'),
    'scale': Key(_COUNT, 'size of the output relative to the input', low=1),
    'num_gpu': Key((int, str), "number of GPUs, 0 for the CPU, or 'auto'", low=0),
    'manual_seed': Key((int, _NONE), 'seed of all random numbers', low=0, high=2**31),
    'datasets': Key((dict,), 'sections train, val, val_2, ... or test, test_2, ...'),
    'network_g': Key((dict,), 'type and arguments of the network'),
    'path': Key((dict, _NONE), 'weights to start from'),
    'train': Key((dict,), 'training settings'),
    'val': Key((dict, _NONE), 'validation settings'),
    'logger': Key((dict, _NONE), 'logging settings'),
    'dist_params': Key((dict, _NONE), 'settings of the process group'),
    'find_unused_parameters': Key((bool,), 'for DistributedDataParallel'),
}
PATH: dict[str, Key] = {
    'pretrain_network_g': Key((str, _NONE), 'weights to start from, or to test'),
    'param_key_g': Key((str, _NONE), 'which weights of that file: params or params_ema'),
    'strict_load_g': Key((bool,), 'every weight must fit'),
    'resume_state': Key((str, _NONE), 'training state to go on from'),
    'ignore_resume_networks': Key((list, _NONE), 'networks that a resumed run does not load'),
}
TRAIN: dict[str, Key] = {
    'total_iter': Key(_COUNT, 'number of training steps', low=1, high=1e9),
    'warmup_iter': Key((int, _NONE), 'steps of linear warm-up of the learning rate', low=-1),
    'ema_decay': Key((*_NUMBER, _NONE), 'decay of the averaged weights', low=0, high=1),
    'optim_g': Key((dict,), 'type and arguments of the optimiser'),
    'scheduler': Key((dict,), 'type and arguments of the learning-rate schedule'),
    'pixel_opt': Key((dict, _NONE), 'type and arguments of the pixel loss'),
}
VAL: dict[str, Key] = {
    'val_freq': Key(_COUNT, 'steps between validations', low=1),
    'save_img': Key((bool,), 'write the restored images'),
    'pbar': Key((bool,), 'progress bar'),
    'suffix': Key((str, _NONE), 'ending of the names of restored images'),
    'metrics': Key((dict, _NONE), 'name: {type, arguments, better}'),
}
LOGGER: dict[str, Key] = {
    'print_freq': Key(_COUNT, 'steps between lines of the log', low=1),
    'save_checkpoint_freq': Key(_COUNT, 'steps between checkpoints', low=1),
    'use_tb_logger': Key((bool,), 'write TensorBoard files'),
    'wandb': Key((dict, _NONE), 'project and resume_id of Weights & Biases'),
}
WANDB: dict[str, Key] = {
    'project': Key((str, _NONE), 'name of the project'),
    'resume_id': Key((str, _NONE), 'run to go on with'),
}
DIST_PARAMS: dict[str, Key] = {
    'backend': Key((str,), 'communication library', choices=('nccl', 'gloo')),
    'port': Key((int, _NONE), 'port of the first process (slurm only)', low=1, high=65535),
}
DATASET: dict[str, Key] = {
    'name': Key((str,), 'name in the log'),
    'type': Key((str,), 'registered data set'),
    'io_backend': Key((dict, _NONE), '{type: disk} or {type: lmdb}'),
    'num_worker_per_gpu': Key(_COUNT, 'loader processes per GPU', low=0, high=256),
    'batch_size_per_gpu': Key(_COUNT, 'batch size per GPU', low=1),
    'dataset_enlarge_ratio': Key(_NUMBER, 'passes over the data per epoch', low=1),
    'use_shuffle': Key((bool,), 'of old files; training data are always shuffled'),
    'prefetch_mode': Key((str, _NONE), 'how batches are fetched ahead', choices=('cuda', 'cpu')),
    'num_prefetch_queue': Key(_COUNT, 'batches fetched ahead by prefetch_mode cpu', low=1),
    'pin_memory': Key((bool,), 'page-locked memory, for GPUs'),
    'persistent_workers': Key((bool,), 'keep the loader processes between epochs'),
    'on_error': Key((str,), 'what to do with unreadable images', choices=('raise', 'skip')),
    'max_error_share': Key(_NUMBER, 'share of unreadable images that skip allows', low=0, below=1),
    'timeout': Key(_NUMBER, 'seconds after which an image counts as unreadable', low=0),
    'dataroot_gt': Key((str, _NONE), 'folder or LMDB of clean images'),
    'dataroot_lq': Key((str, _NONE), 'folder or LMDB of degraded images'),
    'meta_info_file': Key((str, _NONE), 'list of the images to use'),
    'filename_tmpl': Key((str,), 'name of the degraded image'),
    'gt_size': Key((int, _NONE), 'side of the training patches', low=1, high=4096),
    'use_hflip': Key((bool,), 'random mirroring'),
    'use_rot': Key((bool,), 'random turns by 90 degrees'),
    'mean': Key((list, _NONE), 'subtracted from the images, one per channel'),
    'std': Key((list, _NONE), 'divides the images, one per channel'),
}
# Arguments of BasicSR's metrics, which have no annotations.
METRIC: dict[str, Key] = {
    'crop_border': Key(_COUNT, 'pixels left out at each border', low=0),
    'input_order': Key((str,), 'what validation gives', choices=('HWC',)),
    'test_y_channel': Key((bool,), 'compare the luminance only'),
    'better': Key((str,), 'which values are better', choices=('higher', 'lower')),
}
IO_BACKENDS = ('disk', 'lmdb')
_BASE = {'': TOP, 'path': PATH, 'train': TRAIN, 'val': VAL, 'logger': LOGGER}


def model_keys(cls: type | None, section: str) -> tuple[dict[str, Key], frozenset[str]]:
    """Keys of a section ('' for the top level) under a model.

    Returns:
        The keys that are known with their types, and further words that the class uses.
    """
    keys = dict(_BASE[section])
    declared = getattr(cls, 'option_keys', None)
    if declared is None:
        return keys, frozenset() if cls is None else words_in_source(cls)
    return keys | _keys(declared.get(section, {}), keys), frozenset()


def dataset_keys(cls: type) -> tuple[dict[str, Key], frozenset[str]]:
    """Keys of the section of a data set; as :func:`model_keys`."""
    declared = getattr(cls, 'option_keys', None)
    if declared is None:
        return dict(DATASET), words_in_source(cls)
    return _keys(declared, DATASET), frozenset()


def _keys(declared: Mapping[str, tuple], ranges: Mapping[str, Key]) -> dict[str, Key]:
    """Declared keys, with the ranges of BasicSR's key of the same name."""
    return {
        name: ranges[name]._replace(types=tuple(kinds), help=text)
        if name in ranges
        else Key(tuple(kinds), text)
        for name, (kinds, text) in declared.items()
    }


@cache
def words_in_source(cls: type) -> frozenset[str]:
    """Every single word that stands as a text in the source of a class and its bases."""
    words = set()
    for base in cls.__mro__:
        if base.__module__.split('.')[0] in ('builtins', 'torch', 'typing', 'abc'):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):  # defined in a console or in C: nothing to read
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    return frozenset(w for w in words if w.isidentifier())
