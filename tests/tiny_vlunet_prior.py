"""The smallest VLU-Net with every part of the latent prior."""

from __future__ import annotations

TINY_HOST = {
    'de_dim': 3,
    'dim': 10,
    'num_blocks': [1, 1, 1, 1],
    'num_refinement_blocks': 1,
    'heads': [1, 1, 1, 2],
    'embed_dim': 6,
}
TINY_PRIOR = {
    **TINY_HOST,
    'corrector_dim': 8,
    'corrector_num_blocks': [1, 1, 1],
    'corrector_heads': [0, 0, 2],
    'prior_dim': 8,
    'prior_width': 8,
    'prior_encoder_blocks': 1,
    'denoiser_dim': 16,
}
