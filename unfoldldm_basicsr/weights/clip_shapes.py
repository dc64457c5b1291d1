"""OpenCLIP configurations read back from the shapes of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

HEAD_WIDTH = 64  # of all ViT-B CLIPs; shapes do not tell it
VIT_B_32 = {
    'embed_dim': 512,
    'vision_cfg': {
        'layers': 12, 'width': 768, 'head_width': 64, 'mlp_ratio': 4.0, 'patch_size': 32,
        'image_size': 224,
    },
    'text_cfg': {
        'context_length': 77, 'vocab_size': 49408, 'width': 512, 'heads': 8, 'layers': 12,
        'mlp_ratio': 4.0,
    },
}  # fmt: skip
_NEEDED = (
    'visual.conv1.weight', 'visual.positional_embedding', 'text_projection', 'positional_embedding',
    'token_embedding.weight', 'visual.transformer.resblocks.0.mlp.c_fc.weight',
    'transformer.resblocks.0.mlp.c_fc.weight',
)  # fmt: skip


def infer_clip_config(backbone: Mapping[str, Tensor]) -> dict[str, Any]:
    """OpenCLIP configuration of a vision transformer from the shapes of its weights.

    Raises:
        ValueError: no weights of such a network, or a width that is no multiple of the usual 64 per
            head.
    """
    missing = [key for key in _NEEDED if key not in backbone]
    if missing:
        raise ValueError(f'its CLIP has no {missing[0]}, so it is no OpenCLIP vision transformer.')
    vision, text = 'visual.transformer.resblocks', 'transformer.resblocks'
    width, _, patch, _ = backbone['visual.conv1.weight'].shape
    tokens = len(backbone['visual.positional_embedding']) - 1
    text_width, embed_dim = backbone['text_projection'].shape
    for name, value in (('visual.conv1.weight', width), ('text_projection', text_width)):
        if value % HEAD_WIDTH:
            raise ValueError(
                f'its CLIP has a width of {value} ({name}), no multiple of {HEAD_WIDTH}, so that'
                f' its attention heads cannot be told.'
            )
    return {
        'embed_dim': embed_dim,
        'vision_cfg': {
            'layers': _depth(backbone, vision),
            'width': width,
            'head_width': HEAD_WIDTH,
            'mlp_ratio': len(backbone[f'{vision}.0.mlp.c_fc.weight']) / width,
            'patch_size': patch,
            'image_size': patch * round(tokens**0.5),
        },
        'text_cfg': {
            'context_length': len(backbone['positional_embedding']),
            'vocab_size': len(backbone['token_embedding.weight']),
            'width': text_width,
            'heads': text_width // HEAD_WIDTH,
            'layers': _depth(backbone, text),
            'mlp_ratio': len(backbone[f'{text}.0.mlp.c_fc.weight']) / text_width,
        },
    }


def _depth(backbone: Mapping[str, Tensor], prefix: str) -> int:
    return len({k[len(prefix) :].split('.')[1] for k in backbone if k.startswith(f'{prefix}.')})
