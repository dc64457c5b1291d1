"""VLU-Net and its degradation vectors in a size for tests, and the files they come in."""

from pathlib import Path

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from released import randomise
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
    states = [e.state_dict() for e in (embedding, other) if e is not None]
    content = {
        'params': net.state_dict(),
        'arch': network_meta({'type': 'VLUNet', **vlunet_kwargs()}),
        'degradation': degradation_meta(CLASSES, option, *states),
    }
    if average is not None:
        content['params_ema'] = average.state_dict()
    torch.save(content, path)
    return path


def lightning_content(net: nn.Module, embedding: nn.Module | None) -> dict:
    """What a released training checkpoint holds; CLIP is in it twice."""
    state = {f'net.{key}': value for key, value in net.state_dict().items()}
    for key, value in embedding.state_dict().items() if embedding is not None else ():
        branches = (
            ('ad_imageEncoder.', 'ad_textEncoder.') if key.startswith('clip_model.') else ('',)
        )
        for branch in branches:
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
