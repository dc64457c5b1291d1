"""The vector that tells VLU-Net which degradation an image has: by CLIP, a label or an encoder.

All three have one interface, so the networks and models work the same with each:

    embedding(lq, label) -> (B, embed_dim)

``CLIPDegradationEmbedding`` follows arXiv 2503.16930, section 3 and the released notebook: a frozen
OpenCLIP backbone and a small adapter per branch, tuned by telling degradations apart,

    logits = A_image(CLIP_image(lq)) . A_text(CLIP_text(texts))^T.

The other two train without any download. Shapes: B images, E = embed_dim, N degradations.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat.registry import register
from ..config.suggest import did_you_mean

RELEASED_TEXTS = (
    'image with noise',
    'image with many noise',
    'image with large amount of noise',
    'image with haze',
    'image with rain',
    'image with blur',
    'image with low light',
)
INSTALL_HINT = (
    'CLIPDegradationEmbedding needs OpenCLIP: pip install open_clip_torch '
    '(or use LabelDegradationEmbedding or LearnedDegradationEmbedding).'
)
BACKBONE = 'clip_model.'
RELEASED_BACKBONES = ('ad_imageEncoder.clip_model.', 'ad_textEncoder.clip_model.')


def _open_clip():
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(INSTALL_HINT) from error
    return open_clip


class DegradationLogits(NamedTuple):
    """Embedding (B, E) of the images and their scores (B, N) for the degradations' texts."""

    embedding: Tensor
    logits: Tensor


def build_adapter(dim: int) -> nn.Sequential:
    """Three linear layers with layer norm, GELU between them: (B, dim) -> (B, dim)."""
    layers: list[nn.Module] = []
    for index in range(3):
        layers += [nn.Linear(dim, dim), nn.LayerNorm(dim)]
        if index < 2:
            layers.append(nn.GELU())
    return nn.Sequential(*layers)


@register(ARCH_REGISTRY)
class CLIPDegradationEmbedding(nn.Module):
    """CLIP's opinion of the degraded image, bent by an adapter towards degradations.

    The backbone is always frozen. It is not written to checkpoints when it came from
    ``pretrained``, since it can be had there again; the key names of the adapters are the released
    ones, and released state dicts, in which the backbone appears twice, load as well.

    Args:
        model_name: OpenCLIP architecture.
        pretrained: OpenCLIP tag (downloaded on first use), path of a local weight file, or None for
            random weights.
        clip_config: OpenCLIP configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``) of an
            architecture of your own in place of ``model_name``.
        class_texts: one text per degradation; their order is the order of the labels.
        tune_adapters: trains the adapters; otherwise nothing has a gradient.
        normalize: compares unit vectors (cosines); the released notebook does not.
        temperature: divides the logits; 1 in the released notebook.

    Raises:
        ImportError: OpenCLIP is not installed.
        ValueError: unknown architecture or tag, or a weight file that does not fit.
        FileNotFoundError: the weights can neither be found nor downloaded.
    """

    def __init__(
        self,
        *,
        model_name: str = 'ViT-B-32',
        pretrained: str | None = 'laion2b_s34b_b79k',
        clip_config: dict | None = None,
        class_texts: Sequence[str] = RELEASED_TEXTS,
        tune_adapters: bool = False,
        normalize: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not class_texts or temperature <= 0:
            raise ValueError(
                'CLIPDegradationEmbedding needs at least one entry in class_texts and a '
                f'temperature above 0; got {list(class_texts)} and {temperature}.'
            )
        self.clip_model = build_clip(model_name, pretrained, clip_config).requires_grad_(False)
        self.embed_dim = self.clip_model.visual.output_dim
        self.save_backbone = pretrained is None
        self.ad_imageEncoder = nn.ModuleDict({'adapter': build_adapter(self.embed_dim)})
        self.ad_textEncoder = nn.ModuleDict({'adapter': build_adapter(self.embed_dim)})
        for branch in (self.ad_imageEncoder, self.ad_textEncoder):
            branch.requires_grad_(tune_adapters)
        self.class_texts = tuple(class_texts)
        self.normalize = normalize
        self.temperature = temperature
        size = self.clip_model.visual.image_size
        self.image_size = size if isinstance(size, int) else size[0]
        constants = _open_clip().constants
        for name, value in (
            ('mean', constants.OPENAI_DATASET_MEAN),
            ('std', constants.OPENAI_DATASET_STD),
        ):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)
        self._raw_texts: Tensor | None = None  # output of the frozen text tower
        self.train()

    def train(self, mode: bool = True) -> CLIPDegradationEmbedding:
        """Training mode for the adapters; the backbone stays in evaluation mode."""
        super().train(mode)
        self.clip_model.eval()
        return self

    def preprocess(self, lq: Tensor) -> Tensor:
        """CLIP's view of an image: shorter side to its input size, centre square, normalised.

        Args:
            lq: (B, 3, H, W), RGB in [0, 1].

        Returns:
            (B, 3, S, S), S = 224 for ViT-B-32.
        """
        height, width = lq.shape[-2:]
        size = [self.image_size * side // min(height, width) for side in (height, width)]
        image = F.interpolate(lq, size, mode='bicubic', align_corners=False, antialias=True)
        top, left = (round((side - self.image_size) / 2) for side in size)
        image = image[..., top : top + self.image_size, left : left + self.image_size]
        return (image.clamp(0, 1) - self.mean) / self.std

    def encode_texts(self) -> Tensor:
        """(N, E) embeddings of ``class_texts``."""
        if self._raw_texts is None:
            tokens = _open_clip().tokenize(list(self.class_texts), self.clip_model.context_length)
            with torch.no_grad():
                self._raw_texts = self.clip_model.encode_text(tokens.to(self.mean.device))
        return self.ad_textEncoder['adapter'](self._raw_texts)

    def forward(
        self, lq: Tensor, label: Tensor | None = None, *, return_logits: bool = False
    ) -> Tensor | DegradationLogits:
        """The degradation vector of each image.

        Args:
            lq: (B, 3, H, W), RGB in [0, 1], any H and W.
            label: ignored; part of the common interface.
            return_logits: also compares with ``class_texts``.

        Returns:
            (B, E), or :class:`DegradationLogits`.
        """
        with torch.no_grad():
            features = self.clip_model.encode_image(self.preprocess(lq))
        embedding = self.ad_imageEncoder['adapter'](features)
        if not return_logits:
            return embedding
        images, texts = embedding, self.encode_texts()
        if self.normalize:
            images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        return DegradationLogits(embedding, images @ texts.T / self.temperature)

    def _apply(self, fn, recurse: bool = True) -> CLIPDegradationEmbedding:
        self._raw_texts = None  # computed again where the network now lives
        return super()._apply(fn, recurse)

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """As usual, without a backbone that can be loaded again from where it came."""
        state = super().state_dict(*args, **kwargs)
        if not self.save_backbone:
            start = kwargs.get('prefix', '') + BACKBONE
            for key in [key for key in state if key.startswith(start)]:
                del state[key]
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self._raw_texts = None
        for released in RELEASED_BACKBONES:
            start = prefix + released
            for key in [key for key in state_dict if key.startswith(start)]:
                state_dict[prefix + BACKBONE + key[len(start) :]] = state_dict.pop(key)
        if not any(key.startswith(prefix + BACKBONE) for key in state_dict):
            for key, value in self.clip_model.state_dict().items():
                state_dict[prefix + BACKBONE + key] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


def build_clip(model_name: str, pretrained: str | None, clip_config: dict | None) -> nn.Module:
    """An OpenCLIP network with the weights asked for; see :class:`CLIPDegradationEmbedding`.

    Raises:
        ValueError: unknown architecture or tag, or a weight file that does not fit.
        FileNotFoundError: the weights can neither be found nor downloaded.
    """
    open_clip = _open_clip()
    if clip_config is None and model_name not in open_clip.list_models():
        known = [name for name in open_clip.list_models() if name.startswith('ViT-B')]
        raise ValueError(f"model_name: unknown '{model_name}'.{did_you_mean(model_name, known)}")
    is_file = pretrained is not None and Path(pretrained).expanduser().is_file()
    if pretrained is not None and not is_file:
        tags = [] if clip_config else open_clip.list_pretrained_tags_by_model(model_name)
        if pretrained not in tags:
            raise ValueError(
                f"pretrained: '{pretrained}' is neither a file nor an OpenCLIP tag of "
                f'{"your clip_config" if clip_config else model_name}.'
                f'{did_you_mean(pretrained, tags)}'
            )
        try:
            return open_clip.create_model(model_name, pretrained=pretrained)
        except (OSError, RuntimeError, ValueError) as error:
            raise FileNotFoundError(_remedy(model_name, pretrained, error)) from error
    if clip_config:
        try:
            net = open_clip.CLIP(**clip_config)
        except TypeError as error:
            raise ValueError(f'clip_config: {error}') from error
    else:
        net = open_clip.create_model(model_name, load_weights=False)
    if is_file:
        try:
            open_clip.load_checkpoint(net, str(Path(pretrained).expanduser()), weights_only=True)
        except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"pretrained: '{pretrained}' does not hold weights of "
                f'{"your clip_config" if clip_config else model_name}: {error}'
            ) from error
    else:
        get_root_logger().warning(
            'CLIPDegradationEmbedding: pretrained is null, so CLIP starts from random weights.'
        )
    return net


def _remedy(model_name: str, tag: str, error: Exception) -> str:
    hub = _open_clip().get_pretrained_cfg(model_name, tag).get('hf_hub', '').rstrip('/')
    page = f' from https://huggingface.co/{hub}' if hub else ''
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"The CLIP weights '{tag}' of {model_name} could not be had: {cause} "
        f'Either run once where the network allows the download, or download '
        f'open_clip_pytorch_model.bin{page} elsewhere and set pretrained to its path, or use '
        f'LabelDegradationEmbedding or LearnedDegradationEmbedding, which need no download.'
    )


@register(ARCH_REGISTRY)
class LabelDegradationEmbedding(nn.Module):
    """One learned vector per known degradation.

    Args:
        num_degradations: N.
        embed_dim: E.

    Raises:
        ValueError: ``num_degradations`` below 1.
    """

    def __init__(self, *, num_degradations: int, embed_dim: int = 512) -> None:
        super().__init__()
        if num_degradations < 1:
            raise ValueError(f'num_degradations must be at least 1, got {num_degradations}.')
        self.embed_dim = embed_dim
        self.table = nn.Embedding(num_degradations, embed_dim)
        self.table.weight._no_weight_decay = True

    def forward(self, lq: Tensor, label: Tensor | None = None) -> Tensor:
        """The vector of each image's degradation.

        Args:
            lq: (B, 3, H, W); only B counts.
            label: (B,) indices of the degradations.

        Returns:
            (B, E).

        Raises:
            ValueError: no label, another number of labels, or an index out of range.
        """
        known = self.table.num_embeddings
        if label is None:
            raise ValueError(
                'LabelDegradationEmbedding needs the index of the degradation: use a dataset that '
                "gives 'degradation' (MixedDegradationDataset does), pass label, or use "
                'CLIPDegradationEmbedding or LearnedDegradationEmbedding.'
            )
        label = label.reshape(-1)
        if len(label) != len(lq):
            raise ValueError(f'{len(lq)} images need as many labels, got {len(label)}.')
        if int(label.min()) < 0 or int(label.max()) >= known:
            raise ValueError(
                f'Degradation indices are 0 to {known - 1}, got {sorted(set(label.tolist()))}; '
                f'num_degradations of the embedding must cover the class order of the data.'
            )
        return self.table(label.long())


@register(ARCH_REGISTRY)
class LearnedDegradationEmbedding(nn.Module):
    """A small convolutional encoder, trained jointly with the restoration network.

    The first convolution keeps the full resolution, where noise lives; mean and standard deviation
    over all positions make the vector independent of the image's size.

    Args:
        embed_dim: E.
        width: channels of the first convolution; doubled twice.
        in_channels: channels of the image.
    """

    def __init__(self, *, embed_dim: int = 512, width: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        layers: list[nn.Module] = []
        channels = in_channels
        for index in range(3):
            out, stride = width * 2**index, min(2, index + 1)
            conv = nn.Conv2d(channels, out, 3, stride, padding=1, padding_mode='replicate')
            layers += [conv, nn.GELU()]
            channels = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.LayerNorm(2 * channels),
            nn.Linear(2 * channels, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, embed_dim),
            nn.LayerNorm(embed_dim),
        )

    def forward(self, lq: Tensor, label: Tensor | None = None) -> Tensor:
        """The degradation vector of each image.

        Args:
            lq: (B, in_channels, H, W), RGB in [0, 1], any H and W.
            label: ignored; part of the common interface.

        Returns:
            (B, E).
        """
        maps = self.features(lq).flatten(2)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        variance = maps.var(-1, correction=0)
        return self.head(torch.cat([maps.mean(-1), (variance + 1e-6).sqrt()], 1))
