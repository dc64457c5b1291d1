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
TEXTS = ['image with noise', 'image with rain', 'image with haze']
WIDTH = 64  # of the vectors
# widths of 64 per head, as all ViT-B CLIPs have
CLIP = {
    'embed_dim': WIDTH,
    'vision_cfg': {'layers': 2, 'width': 64, 'head_width': 64, 'patch_size': 8, 'image_size': 32},
    'text_cfg': {'context_length': 16, 'vocab_size': 49408, 'width': 64, 'heads': 1, 'layers': 1},
}


def embeddings(clip_config: dict, class_texts: list[str]) -> dict[str, dict]:
    """``network_e`` of every source for three degradations."""
    width, clip = clip_config['embed_dim'], {'pretrained': None, 'clip_config': clip_config}
    return {
        'clip': {'type': 'CLIPDegradationEmbedding', **clip, 'class_texts': class_texts},
        'label': {'type': 'LabelDegradationEmbedding', 'num_degradations': 3, 'embed_dim': width},
        'learned': {'type': 'LearnedDegradationEmbedding', 'embed_dim': width, 'width': 4},
    }


OPTIONS = embeddings(CLIP, TEXTS)


def vlunet_kwargs(**changes) -> dict:
    """Arguments of a VLU-Net that runs in milliseconds."""
    return {
        'de_dim': 3,
        'dim': 10,
        'num_blocks': [1, 1, 1, 1],
        'num_refinement_blocks': 1,
        'heads': [1, 1, 2, 2],
        'embed_dim': WIDTH,
        **changes,
    }


def build_vlunet(**changes) -> VLUNet:
    """A VLU-Net without any parameter at zero or one."""
    return randomise(VLUNet(**vlunet_kwargs(**changes))).requires_grad_(False)


def embedding_of(source: str, **changes) -> nn.Module:
    """The embedding that ``OPTIONS[source]`` describes, its own weights random."""
    option = {**OPTIONS[source], **changes}
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
    option, (average, other) = option or OPTIONS[source], averages
    pairs = zip(('params', 'params_ema'), (embedding, other), strict=True)
    states = {key: e.state_dict() for key, e in pairs if e is not None}
    content = {
        'params': net.state_dict(),
        'arch': network_meta({'type': 'VLUNet', **vlunet_kwargs()}),
        'degradation': degradation_meta(CLASSES, option, **states),
    }
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
        'epoch': 199,
        'global_step': 1000,
        'pytorch-lightning_version': '2.0.1',
        'state_dict': state,
        'loops': {'fit_loop': {'state_dict': {}}},
        'callbacks': {'ModelCheckpoint': {'monitor': None, 'best_model_path': ''}},
        'optimizer_states': [{'state': {0: {'step': torch.tensor(1.0)}}, 'param_groups': []}],
        'lr_schedulers': [{'base_lrs': [2e-4]}],
    }


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
