"""The vector that tells VLU-Net which degradation an image has: by CLIP, a label or an encoder.

All three have one interface, so the networks and models work the same with each:

    embedding(lq, label) -> (B, embed_dim)

``needs_label`` says whether an image alone is not enough, ``trained_jointly`` whether the embedding
is trained together with the network that it steers.

``CLIPDegradationEmbedding`` follows arXiv 2503.16930, section 3 and the released notebook: a frozen
OpenCLIP backbone and a small adapter per branch, tuned by telling degradations apart,

    logits = A_image(CLIP_image(lq)) . A_text(CLIP_text(texts))^T.

The released network applies its adapters with GELU, as here; the notebook has LeakyReLU in their
place, whose weights have the same names and shapes.

The other two train without any download. Shapes: B images, E = embed_dim, N degradations.
"""

from typing import NamedTuple

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from unfoldldm_basicsr.archs.layers.norm import mean_std
from unfoldldm_basicsr.archs.layers.open_clip_backbone import build_clip, import_open_clip
from unfoldldm_basicsr.common.declaration import Options, Tuple, takes

# Classes in the order of the released training, with the texts that the released CLIP was tuned on.
CLASS_TEXTS = {
    'noise15': 'image with noise',
    'noise25': 'image with many noise',
    'noise50': 'image with large amount of noise',
    'rain': 'image with rain',
    'haze': 'image with haze',
    'blur': 'image with blur',
    'lowlight': 'image with low light',
}
BACKBONE = 'clip_model.'
RELEASED_BACKBONES = ('ad_imageEncoder.clip_model.', 'ad_textEncoder.clip_model.')


class DegradationLogits(NamedTuple):
    """Embedding (B, E) of the images and their scores (B, N) for the degradations' texts."""

    embedding: Tensor
    logits: Tensor


def build_adapter(dim: int) -> nn.Sequential:
    """Three linear layers with layer norm, GELU between them: (B, dim) -> (B, dim)."""

    def layer() -> tuple[nn.Module, ...]:
        return nn.Linear(dim, dim), nn.LayerNorm(dim)

    return nn.Sequential(*layer(), nn.GELU(), *layer(), nn.GELU(), *layer())


class CLIPEmbeddingOptions(Options):
    """Options of CLIPDegradationEmbedding."""

    model_name: str = 'ViT-B-32'
    """OpenCLIP architecture."""
    pretrained: str | None = 'laion2b_s34b_b79k'
    """OpenCLIP tag (downloaded on first use), path of a local weight file, or nothing for random
    weights."""
    clip_config: dict | None = None
    """OpenCLIP configuration (embed_dim, vision_cfg, text_cfg) of an architecture of your own in
    place of model_name."""
    class_texts: Tuple[str] = Field(tuple(CLASS_TEXTS.values()), min_length=1)
    """One text per degradation; their order is the order of the labels. The default follows the
    released training; the released notebook lists haze before rain."""
    tune_adapters: bool = False
    """Trains the adapters; otherwise nothing has a gradient."""
    normalize: bool = False
    """Compares unit vectors (cosines); the released notebook does not."""
    temperature: PositiveFloat = 1.0
    """Divides the logits; 1 in the released notebook."""


@ARCH_REGISTRY.register()
@takes(CLIPEmbeddingOptions)
class CLIPDegradationEmbedding(nn.Module):
    """CLIP's opinion of the degraded image, bent by an adapter towards degradations.

    The backbone is always frozen. It is not written to checkpoints when it came from
    ``pretrained``, since it can be had there again; the key names of the adapters are the released
    ones, and released state dicts, in which the backbone appears twice, load as well.

    Raises:
        ValueError: unknown architecture or tag, or a weight file that does not fit.
        FileNotFoundError: the weights can neither be found nor downloaded.
    """

    needs_label = False
    trained_jointly = False
    released_texts = CLASS_TEXTS

    def __init__(self, options: CLIPEmbeddingOptions) -> None:
        super().__init__()
        pretrained = options.pretrained
        self.clip_model = build_clip(options.model_name, pretrained, options.clip_config)
        self.clip_model.requires_grad_(False)
        self.embed_dim = self.clip_model.visual.output_dim
        self.save_backbone = pretrained is None
        self.ad_imageEncoder = nn.ModuleDict({'adapter': build_adapter(self.embed_dim)})
        self.ad_textEncoder = nn.ModuleDict({'adapter': build_adapter(self.embed_dim)})
        for branch in (self.ad_imageEncoder, self.ad_textEncoder):
            branch.requires_grad_(options.tune_adapters)
        self.class_texts = options.class_texts
        size = self.clip_model.visual.image_size
        self.image_size = size if isinstance(size, int) else size[0]
        for name in ('mean', 'std'):
            value = getattr(import_open_clip().constants, f'OPENAI_DATASET_{name.upper()}')
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)
        self._raw_texts: Tensor | None = None  # output of the frozen text tower
        self._random_backbone = pretrained is None  # until weights are loaded
        self.train()

    def train(self, mode: bool = True) -> 'CLIPDegradationEmbedding':
        """Training mode for the adapters; the backbone stays in evaluation mode."""
        super().train(mode)
        self.clip_model.eval()
        return self

    def preprocess(self, lq: Tensor) -> Tensor:
        """CLIP's view of (B, 3, H, W) RGB in [0, 1]: shorter side to its input size, centre square,
        normalised (B, 3, S, S), S = 224 for ViT-B-32. The overshoot of the cubic is kept, as in the
        released code, which resizes tensors.
        """
        image = resize(lq, self.image_size, InterpolationMode.BICUBIC, antialias=True)
        return (center_crop(image, self.image_size) - self.mean) / self.std

    def encode_raw_texts(self) -> Tensor:
        """(N, E) embeddings of ``class_texts`` by CLIP alone, without the adapter."""
        if self._raw_texts is None:
            texts, length = list(self.class_texts), self.clip_model.context_length
            tokens = import_open_clip().tokenize(texts, length).to(self.mean.device)
            with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
                self._raw_texts = self.clip_model.encode_text(tokens)
        return self._raw_texts

    def compare(self, embedding: Tensor) -> Tensor:
        """Scores (B, N) of degradation vectors (B, E) for ``class_texts``."""
        texts = self.ad_textEncoder['adapter'](self.encode_raw_texts())
        if self.options.normalize:
            embedding, texts = F.normalize(embedding, dim=-1), F.normalize(texts, dim=-1)
        with torch.autocast(embedding.device.type, enabled=False):  # sums of E terms of size one
            dtype = torch.promote_types(embedding.dtype, self.mean.dtype)
            return embedding.to(dtype) @ texts.to(dtype).T / self.options.temperature

    def forward(
        self, lq: Tensor, label: Tensor | None = None, *, return_logits: bool = False
    ) -> Tensor | DegradationLogits:
        """(B, 3, H, W) RGB in [0, 1], any H and W -> degradation vectors (B, E).

        ``label`` is ignored. With ``return_logits`` they are also compared with ``class_texts``.
        """
        if self._random_backbone:
            self._random_backbone = False
            get_root_logger().warning(
                'CLIPDegradationEmbedding: pretrained is null, so CLIP starts from random weights.'
            )
        with torch.no_grad():
            features = self.clip_model.encode_image(self.preprocess(lq))
        embedding = self.ad_imageEncoder['adapter'](features)
        if not return_logits:
            return embedding
        return DegradationLogits(embedding, self.compare(embedding))

    def _apply(self, fn, recurse: bool = True) -> 'CLIPDegradationEmbedding':
        self._raw_texts = None  # computed again where the network now lives
        return super()._apply(fn, recurse)

    @staticmethod
    def merge_backbones(state_dict: dict[str, Tensor], prefix: str = '') -> bool:
        """Keeps the backbone once, which released weights hold twice; whether there is one."""
        for released in RELEASED_BACKBONES:
            start = prefix + released
            for key in [key for key in state_dict if key.startswith(start)]:
                state_dict[prefix + BACKBONE + key[len(start) :]] = state_dict.pop(key)
        return any(key.startswith(prefix + BACKBONE) for key in state_dict)

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
        if self.merge_backbones(state_dict, prefix):
            self._random_backbone = False
        else:
            for key, value in self.clip_model.state_dict().items():
                state_dict[prefix + BACKBONE + key] = value
        super()._load_from_state_dict(state_dict, prefix, *args)


class EmbeddingOptions(Options):
    """What the embeddings without CLIP share."""

    embed_dim: PositiveInt = 512
    """Length E of the vectors."""


class LabelEmbeddingOptions(EmbeddingOptions):
    """Options of LabelDegradationEmbedding."""

    num_degradations: PositiveInt
    """Number N of degradations."""


@ARCH_REGISTRY.register()
@takes(LabelEmbeddingOptions)
class LabelDegradationEmbedding(nn.Module):
    """One vector per known degradation: a random code that stays as it is.

    The first linear layer of the network it steers learns what each vector means.
    """

    needs_label = True
    trained_jointly = False

    def __init__(self, options: LabelEmbeddingOptions) -> None:
        super().__init__()
        self.embed_dim = options.embed_dim
        self.table = nn.Embedding(options.num_degradations, self.embed_dim)

    def forward(self, lq: Tensor, label: Tensor | None = None) -> Tensor:
        """(B,) indices of the degradations of B images -> (B, E).

        Raises ValueError: no label, or an index out of range.
        """
        known = self.table.num_embeddings
        if label is None:
            raise ValueError(
                'LabelDegradationEmbedding needs the index of the degradation: use a dataset that '
                "gives 'degradation' (MixedDegradationDataset does), pass label, or use "
                'CLIPDegradationEmbedding or LearnedDegradationEmbedding.'
            )
        label = torch.as_tensor(label, device=lq.device).reshape(-1)
        if int(label.min()) < 0 or int(label.max()) >= known:
            raise ValueError(
                f'Degradation indices are 0 to {known - 1}, got {sorted(set(label.tolist()))}; '
                f'num_degradations of the embedding must cover the class order of the data.'
            )
        return self.table(label.long())


class LearnedEmbeddingOptions(EmbeddingOptions):
    """Options of LearnedDegradationEmbedding."""

    width: PositiveInt = 32
    """Channels of the first convolution; doubled twice."""
    in_channels: PositiveInt = 3
    """Channels of the image."""


@ARCH_REGISTRY.register()
@takes(LearnedEmbeddingOptions)
class LearnedDegradationEmbedding(nn.Module):
    """A small convolutional encoder, trained jointly with the restoration network.

    The first convolution keeps the full resolution, where noise lives; mean and standard deviation
    over all positions make the vector independent of the image's size.
    """

    needs_label = False
    trained_jointly = True

    def __init__(self, options: LearnedEmbeddingOptions) -> None:
        super().__init__()
        self.embed_dim = embed_dim = options.embed_dim
        layers, channels = [], options.in_channels
        for index in range(3):
            out, stride = options.width * 2**index, min(2, index + 1)
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
        """(B, in_channels, H, W) in [0, 1], any H and W -> (B, E); ``label`` is ignored."""
        return self.head(torch.cat(mean_std(self.features(lq), (2, 3), 1e-6), 1))
