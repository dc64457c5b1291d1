"""Tiny VLU-Net trainings for the tests: three degradations, three kinds of embedding."""

from pathlib import Path

from helpers import model_options, plugin_options, write_photos
from tiny_trainings import VLUNET as NETWORK
from tiny_vlunet import embeddings

NAMES = ['noise', 'blur', 'dark']
TINY_CLIP = {
    'embed_dim': 8,
    'vision_cfg': {'layers': 1, 'width': 16, 'head_width': 8, 'patch_size': 8, 'image_size': 32},
    'text_cfg': {'context_length': 12, 'vocab_size': 49408, 'width': 8, 'heads': 2, 'layers': 1},
}
EMBEDDINGS = embeddings(TINY_CLIP, ['noise', 'blur', 'low light'])


def mixture(folder: Path, names: list[str] | None = None) -> dict:
    """Validation section: two photos in each of three degradations."""
    if not (folder / 'photos').exists():
        write_photos(folder / 'photos', 2, (24, 32))
    steps = {
        'noise': {'type': 'gaussian_noise', 'sigma': 40},
        'blur': {'type': 'gaussian_blur', 'sigma': 2.0},
        'dark': {'type': 'low_light', 'gamma': 2.0, 'gain': 0.6},
    }
    names = names or NAMES
    return {
        'name': 'held_out',
        'type': 'MixedDegradationDataset',
        'degradation_names': names,
        'sets': [
            {
                'type': 'SyntheticDegradationDataset',
                'degradation_name': name,
                'dataroot_gt': str(folder / 'photos'),
                'degradations': [steps[name]],
            }
            for name in sorted(names, key=NAMES.index)
        ],
    }


def vlunet_options(
    folder: Path, source: str, *, names: list[str] | None = None, is_train: bool = True, **train
) -> dict:
    """Options that VLUNetModel takes directly."""
    options = model_options(folder, dict(NETWORK), is_train=is_train, **train)
    options['network_e'] = dict(EMBEDDINGS[source])
    data = mixture(folder.parent, names)
    if is_train:
        options['datasets'] = {'train': {**data, 'gt_size': 16}, 'val': data}
    else:
        options['datasets'] = {'test': data}
    return options


def vlunet_file(folder: Path) -> dict:
    """A whole option file of a training that passes the check."""
    options, data = plugin_options(folder), mixture(folder)
    sizes = {'gt_size': 16, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    options |= {
        'name': 'vlunet',
        'model_type': 'VLUNetModel',
        'datasets': {'train': {**data, **sizes}, 'val': data},
        'network_g': dict(NETWORK),
        'network_e': dict(EMBEDDINGS['label']),
        'path': {'pretrain_network_e': None},
    }
    schedule = {'type': 'TrueCosineAnnealingLR', 'T_max': 10, 'eta_min': 1e-6}
    options['train'] |= {'warmup_iter': 2, 'scheduler': schedule}
    del options['train']['isda_opt'], options['train']['ema_decay']
    options['val']['degradation_override'] = 'wrong'
    return options
