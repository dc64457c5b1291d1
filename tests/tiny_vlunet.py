"""VLU-Net and its degradation vectors in a size for tests: their files, their trainings."""

from pathlib import Path

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import model_options, plugin_options, write_photos
from released import randomise
from tiny_trainings import VLUNET as NETWORK
from torch import nn

from unfoldldm_basicsr.archs.vlunet_arch import VLUNet
from unfoldldm_basicsr.weights.checkpoint import network_meta
from unfoldldm_basicsr.weights.conditioning import degradation_meta

CLASSES = ['noise', 'rain', 'haze']
TEXTS = ['noise', 'heavy rain', 'haze']
CLIP = {
    'embed_dim': 8,
    'vision_cfg': {'layers': 2, 'width': 16, 'head_width': 16, 'patch_size': 8, 'image_size': 32},
    'text_cfg': {'context_length': 12, 'vocab_size': 49408, 'width': 8, 'heads': 2, 'layers': 1},
}
EMBEDDINGS = {  # ``network_e`` of every source for three degradations
    'clip': {'type': 'CLIPDegradationEmbedding', 'pretrained': None, 'clip_config': CLIP,
             'class_texts': TEXTS},
    'label': {'type': 'LabelDegradationEmbedding', 'num_degradations': 3, 'embed_dim': 8},
    'learned': {'type': 'LearnedDegradationEmbedding', 'embed_dim': 8, 'width': 4},
}  # fmt: skip


def vlunet_kwargs(**changes) -> dict:
    """Arguments of a VLU-Net that runs in milliseconds."""
    same = {key: value for key, value in NETWORK.items() if key != 'type'}
    return {**same, 'de_dim': 3, 'heads': [1, 1, 2, 2], **changes}


def build_vlunet(**changes) -> VLUNet:
    """A VLU-Net without any parameter at zero or one."""
    return randomise(VLUNet(**vlunet_kwargs(**changes))).requires_grad_(False)


def embedding_of(source: str, **changes) -> nn.Module:
    """The embedding that ``EMBEDDINGS[source]`` describes, its own weights random."""
    option = {**EMBEDDINGS[source], **changes}
    embedding = ARCH_REGISTRY.get(option.pop('type'))(**option).eval().requires_grad_(False)
    adapters = source == 'clip' and (embedding.ad_imageEncoder, embedding.ad_textEncoder)
    for part in adapters or (embedding,):
        randomise(part)
    return embedding


def save_vlunet(
    path: Path,
    net: nn.Module,
    source: str,
    embedding: nn.Module,
    option: dict | None = None,
    *,
    averages: tuple[nn.Module, nn.Module | None] = (None, None),
) -> Path:
    """A file as training writes it; ``averages`` are those of network and embedding."""
    option, (average, other) = option or EMBEDDINGS[source], averages
    pairs = zip(('params', 'params_ema'), (embedding, other), strict=True)
    states = {key: e.state_dict() for key, e in pairs if e is not None}
    content = {
        'params': net.state_dict(), 'arch': network_meta({'type': 'VLUNet', **vlunet_kwargs()}),
        'degradation': degradation_meta(CLASSES, option, **states),
    }  # fmt: skip
    if average is not None:
        content['params_ema'] = average.state_dict()
    torch.save(content, path)
    return path


def lightning_content(net: nn.Module, embedding: nn.Module | None) -> dict:
    """What a released training checkpoint holds; CLIP is in it twice."""
    state = {f'net.{key}': value for key, value in net.state_dict().items()}
    for key, value in embedding.state_dict().items() if embedding is not None else ():
        twice = key.startswith('clip_model.')
        for branch in ('ad_imageEncoder.', 'ad_textEncoder.') if twice else ('',):
            state[f'model_degradation.{branch}{key}'] = value
    return {
        'epoch': 199, 'global_step': 1000, 'pytorch-lightning_version': '2.0.1',
        'state_dict': state, 'loops': {'fit_loop': {'state_dict': {}}},
        'callbacks': {'ModelCheckpoint': {'monitor': None, 'best_model_path': ''}},
        'optimizer_states': [{'state': {0: {'step': torch.tensor(1.0)}}, 'param_groups': []}],
        'lr_schedulers': [{'base_lrs': [2e-4]}],
    }  # fmt: skip


NAMES = ['noise', 'blur', 'dark']


def mixture(folder: Path, names: list[str] | None = None) -> dict:
    """Validation section: two photos in each of three degradations."""
    if not (folder / 'photos').exists():
        write_photos(folder / 'photos', 2, (24, 32))
    steps = {
        'noise': {'type': 'gaussian_noise', 'sigma': 40},
        'blur': {'type': 'gaussian_blur', 'sigma': 2.0},
        'dark': {'type': 'low_light', 'gamma': 2.0, 'gain': 0.6},
    }  # fmt: skip
    names = names or NAMES
    data = {'type': 'SyntheticDegradationDataset', 'dataroot_gt': str(folder / 'photos')}
    sets = [
        {**data, 'degradation_name': name, 'degradations': [steps[name]]}
        for name in steps
        if name in names
    ]
    mixed = {'type': 'MixedDegradationDataset', 'degradation_names': names}
    return {'name': 'held_out', **mixed, 'sets': sets}


def vlunet_options(
    folder: Path, source: str, *, names: list[str] | None = None, is_train: bool = True, **train
) -> dict:
    """Options that VLUNetModel takes directly."""
    options = model_options(folder, dict(NETWORK), is_train=is_train, **train)
    data = mixture(folder.parent, names)
    sets = {'train': {**data, 'gt_size': 16}, 'val': data} if is_train else {'test': data}
    return options | {'network_e': dict(EMBEDDINGS[source]), 'datasets': sets}


def vlunet_file(folder: Path) -> dict:
    """A whole option file of a training that passes the check."""
    options, data = plugin_options(folder), mixture(folder)
    sizes = {'gt_size': 16, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    options |= {'name': 'vlunet', 'model_type': 'VLUNetModel', 'path': {'pretrain_network_e': None}}
    options |= {'network_g': dict(NETWORK), 'network_e': dict(EMBEDDINGS['label'])}
    options['datasets'] = {'train': {**data, **sizes}, 'val': data}
    schedule = {'type': 'TrueCosineAnnealingLR', 'T_max': 10, 'eta_min': 1e-6}
    options['train'] |= {'warmup_iter': 2, 'scheduler': schedule}
    del options['train']['isda_opt'], options['train']['ema_decay']
    options['val']['degradation_override'] = 'wrong'
    return options
