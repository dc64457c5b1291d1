"""The OpenCLIP network of a degradation embedding, with the remedy where it cannot be had."""

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from unfoldldm_basicsr.common.suggest import did_you_mean


def import_open_clip() -> ModuleType:
    """OpenCLIP, imported when it is needed: it takes seconds."""
    try:
        import open_clip
    except ImportError as error:
        raise ImportError('CLIPDegradationEmbedding: pip install open_clip_torch') from error
    return open_clip


_SIZES = (
    'embed_dim', 'layers', 'width', 'head_width', 'heads', 'patch_size', 'image_size',
    'context_length',
)  # fmt: skip
_LEAST = dict.fromkeys(_SIZES, 1) | {'vocab_size': 49408}  # tokens of open_clip.tokenize


def _check_sizes(config: dict, prefix: str = 'clip_config') -> None:
    """ValueError for sizes that OpenCLIP would build with and fail later."""
    for key, value in config.items():
        place, least = f'{prefix}.{key}', _LEAST.get(key)
        listed = isinstance(value, list | tuple)  # as layers of a ResNet
        if isinstance(value, dict):
            _check_sizes(value, place)
        elif key in ('vision_cfg', 'text_cfg'):
            raise ValueError(f"{place} must be a section of OpenCLIP's keys, got {value!r}.")
        elif least and not listed and (type(value) is not int or value < least):
            raise ValueError(f'{place} must be a whole number >= {least}, got {value!r}.')
    image, patch = config.get('image_size'), config.get('patch_size')
    if isinstance(image, int) and isinstance(patch, int) and image < patch:
        raise ValueError(f'{prefix}.image_size ({image}) is less than patch_size ({patch}).')


def build_clip(model_name: str, pretrained: str | None, clip_config: dict | None) -> nn.Module:
    """An OpenCLIP network with the weights asked for; see ``CLIPDegradationEmbedding``.

    On the meta device, where only the shapes count, no weights are loaded or downloaded.
    """
    open_clip = import_open_clip()
    if clip_config is None and model_name not in open_clip.list_models():
        known = [name for name in open_clip.list_models() if name.startswith('ViT-B')]
        raise ValueError(f"model_name: unknown '{model_name}'.{did_you_mean(model_name, known)}")
    name, device = 'your clip_config' if clip_config else model_name, torch.get_default_device()
    loads = pretrained is not None and device.type != 'meta'
    file = Path(pretrained or '').expanduser()
    if pretrained is not None and not file.is_file():
        tags = [] if clip_config else open_clip.list_pretrained_tags_by_model(model_name)
        if pretrained not in tags:
            raise ValueError(
                f"pretrained: '{pretrained}' is neither a file nor an OpenCLIP tag of {name}."
                f'{did_you_mean(pretrained, tags)}'
            )
        try:
            if loads:
                return open_clip.create_model(model_name, pretrained=pretrained)
        except (OSError, RuntimeError, ValueError) as error:
            raise FileNotFoundError(_remedy(model_name, pretrained, error)) from error
    if clip_config:
        _check_sizes(clip_config)
        try:
            net = open_clip.CLIP(**clip_config)
        except TypeError as error:
            raise ValueError(f'clip_config: {error}') from error
    else:
        with _quiet():
            net = open_clip.create_model(model_name, load_weights=False, device=device)
    if loads:
        try:
            open_clip.load_checkpoint(net, str(file), weights_only=True)
        except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"pretrained: '{pretrained}' does not hold weights of {name}: {error}"
            ) from error
    return net


@contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCLIP's warning of random weights, which also comes where none are meant."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _remedy(model_name: str, tag: str, error: Exception) -> str:
    hub = import_open_clip().get_pretrained_cfg(model_name, tag).get('hf_hub', '').rstrip('/')
    page = f' from https://huggingface.co/{hub}' if hub else ''
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"The CLIP weights '{tag}' of {model_name} could not be had: {cause} "
        f'Either run once where the network allows the download, or download '
        f'open_clip_pytorch_model.bin{page} elsewhere and set pretrained to its path; a new '
        f'training can use LabelDegradationEmbedding or LearnedDegradationEmbedding, which need no '
        f'download.'
    )
