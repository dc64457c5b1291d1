"""The option files of a new training: what ``unfoldldm init`` writes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

# --task: what a clean image goes through
TASKS = {
    'blind': ('gaussian_blur', 'gaussian_noise'),
    'denoise': ('gaussian_noise',),
    'deblur': ('motion_blur',),
    'defocus': ('gaussian_blur',),
    'derain': ('rain',),
    'dehaze': ('haze',),
    'lowlight': ('low_light',),
    'jpeg': ('jpeg',),
}
WHOLE = ('dehaze', 'lowlight')  # the same all over a photo, of which a patch tells too little
_SMALL = {'num_blocks': [1, 1, 1], 'heads': [0, 0, 4], 'num_stages': 3}
_NAF = {'middle_blk_num': 1, 'dec_blk_nums': [1, 1, 1, 1]}
# --network: network_g, and the learning rate
NETWORKS: dict[str, tuple[dict[str, Any], float]] = {
    'unfoldldm-tiny': ({'type': 'UnfoldLDM', 'dim': 32, **_SMALL}, 1e-3),
    'unfoldldm-small': ({'type': 'UnfoldLDM', 'dim': 64, 'prior_dim': 64, **_SMALL}, 5e-4),
    'unfoldldm-base': (
        {
            'type': 'UnfoldLDM', 'dim': 192, 'num_blocks': [6, 6, 5], 'heads': [0, 0, 8],
            'mgda_dim': 32, 'num_stages': 3, 'prior_dim': 64,
        },
        2e-4,
    ),
    'restormer-small': (
        {
            'type': 'Restormer', 'dim': 16, 'num_blocks': [1, 1, 1, 2], 'heads': [1, 2, 4, 8],
            'num_refinement_blocks': 1, 'ffn_expansion_factor': 2.0,
        },
        1e-3,
    ),
    'restormer': ({'type': 'Restormer'}, 3e-4),
    'nafnet-small': ({'type': 'NAFNet', 'width': 16, 'enc_blk_nums': [1, 1, 1, 4], **_NAF}, 1e-3),
    'nafnet': ({'type': 'NAFNet', 'width': 32, 'enc_blk_nums': [1, 1, 1, 28], **_NAF}, 1e-3),
}  # fmt: skip
PHASE1_SHARE = 0.15  # of the iterations
PATCHES_PER_IMAGE = 500
FEWEST, MOST = 2000, 300_000  # iterations
MANY = 100  # images, from which prior_levels: lq is better: docs/findings.md


@dataclass
class NewTraining:
    """What the option files say."""

    name: str  # of the experiments; two-phase networks add _phase1 and _phase2
    network: str  # of NETWORKS
    train: Mapping[str, Any]  # keys of the data set that tell where the images are
    val: Mapping[str, Any]
    task: str | None  # of TASKS; none for pairs
    images: int  # to train on
    patch: int  # side of the patches
    batch: int = 8  # patches of a step
    part: int = 8  # of them, those computed at once
    grey: bool = False  # photos, whose channels have the same noise
    num_gpu: str | int = 'auto'  # or 0
    iterations: int = 0  # of all phases; default: every image is seen 500 times, within limits

    def __post_init__(self) -> None:
        wanted = PATCHES_PER_IMAGE * self.images / self.batch
        self.iterations = self.iterations or int(min(max(round(wanted, -3), FEWEST), MOST))

    @property
    def phases(self) -> tuple[int | None, ...]:
        """(1, 2) for UnfoldLDM, else (None,)."""
        return (1, 2) if self.network.startswith('unfoldldm') else (None,)

    def iterations_of(self, phase: int | None) -> int:
        first = round(PHASE1_SHARE * self.iterations, -1)
        return int({1: first, 2: self.iterations - first}.get(phase, self.iterations))

    def file(self, phase: int | None = None) -> str:
        return f'{self.experiment(phase)}.yml'

    def experiment(self, phase: int | None = None) -> str:
        return f'{self.name}_phase{phase}' if phase else self.name

    def text(self, folder: Path, phase: int | None = None) -> str:
        """An option file that lies in ``folder``."""
        network, lr = NETWORKS[self.network]
        total, path = self.iterations_of(phase), folder / self.file(phase)
        model = f'UnfoldLDMPhase{phase}Model' if phase else 'RestorationModel'
        if phase:
            network = {'type': 'UnfoldLDM', 'phase': phase, 'prior_window': self.patch, **network}
        if phase and self.task == 'lowlight':  # options/compare/dark, docs/findings.md
            network |= {'base': 'x', 'wm_window': self.patch}
        start, losses, clip, seen = '', '', 0.01, self.patch
        if phase and self.task in WHOLE:  # docs/training.md
            network['prior_levels'], seen = 'lq' if self.images >= MANY else True, 3 * self.patch
            cut = {'iters': [1], 'gt_sizes': [self.patch], 'mini_batch_sizes': [self.batch]}
            losses += f'  progressive: {_flow(cut)} # patches are cut from gt_size\n'
            losses += '  prior_context: true # all of which the prior sees\n'
        last_rate = lr if phase == 1 else 1e-5  # constant in Phase I: Phase II lowers it
        if phase == 2:
            weights = f'experiments/{self.experiment(1)}/models/net_g_latest.pth'
            start = f'  pretrain_network_phase1: {_flow(weights)}\n'
            losses += '  diffusion_opt: {type: LatentDiffusionLoss, loss_weight: 1.0}\n'
            losses += f'  prior_warmup_iter: {total // 12} # II-a: the diffusion alone\n'
            clip = {'restoration': 0.01, 'prior': 1.0}
        if phase and 'gaussian_noise' not in TASKS.get(self.task, ()):  # costs half a dB there
            losses += '  isda_opt: {type: ISDALoss, loss_weight: 0.01}\n'
        if phase:
            losses += f'  stage_loss_weight: {0.3 if phase == 1 else 0.05}\n'
        often = min(total, max(total // 6, 100))
        title = f'{self.network}, {self.task or "pairs"}'
        numeral = f', Phase {"I" * phase}' if phase else ''
        return f"""\
# {title}{numeral}; made by unfoldldm init
# python -m unfoldldm_basicsr.train -opt {quote(str(path))} --auto_resume
# After a change: unfoldldm check -opt {quote(str(path))}
name: {_flow(self.experiment(phase))}
model_type: {model}
scale: 1
num_gpu: {self.num_gpu} # auto: one GPU, several with torchrun; 0: the CPU
manual_seed: 0

datasets:
  train:
    name: train
{_lines(self.train, 4)}\
{self.degradations()}\
    gt_size: {seen} # side of the patches
    batch_size_per_gpu: {self.batch}
    repeat: {max(1, 4000 // self.images)} # of {self.images} images, every time another patch
    num_worker_per_gpu: {4 if self.num_gpu else 1}
  val:
    name: heldout # never trained on
{_lines(self.val, 4)}\
{self.degradations(fixed=self.task not in WHOLE)}\
    center_crop: {512 if self.num_gpu else 256} # without it: whole images, which take longer

network_g:
{_lines(network, 2)}
path:
{start}\
  resume_state: ~

train:
  total_iter: {total}
  warmup_iter: {min(total // 50, 500)}
  ema_decay: {0.99 if total < 10_000 else 0.999}
  accum_iter: {self.batch // self.part} # parts of a batch that are computed one after another
  optim_g: {{type: AdamW, lr: {_flow(lr)}, weight_decay: 0, betas: [0.9, 0.999]}}
  scheduler: {{type: TrueCosineAnnealingLR, T_max: {total}, eta_min: {_flow(last_rate)}}}
  use_grad_clip: true
  grad_clip_norm: {_flow(clip)}
  pixel_opt: {{type: L1Loss, loss_weight: 1.0}}
{losses}\

val:
  val_freq: {often}
  save_img: false
  pbar: true
  metrics:
    psnr: {{type: calculate_psnr, crop_border: 0}}
    ssim: {{type: calculate_ssim, crop_border: 0}}

logger:
  print_freq: {max(1, min(100, often // 4))}
  save_checkpoint_freq: {often}
  keep_checkpoints: 3
  use_tb_logger: true # tensorboard --logdir tb_logger
"""

    def degradations(self, *, fixed: bool = False) -> str:
        """Lines of ``degradations``: the ranges of the catalogue, or the middle of each."""
        if self.task is None:
            return ''
        from unfoldldm_basicsr.data.degradations import DEGRADATIONS

        text = '    degradations: # seen by: unfoldldm degrade PHOTO -opt FILE -o sheet.png\n'
        for name in TASKS[self.task]:
            step = DEGRADATIONS[name]()
            values = {key: [*limits] for key, limits in step.ranges.items()}
            if fixed:
                values = {key: round(value, 6) for key, value in step.at_strength(0.5).items()}
            grey = {'gray_prob': 1} if self.grey and name == 'gaussian_noise' else {}
            text += f'      - {_flow({"type": name, **values, **grey})}\n'
        return text


def held_back(names: Sequence[str], where: str) -> tuple[list[str], list[str]]:
    """Splits images into those to train on and a tenth, evenly spread, to validate on: 1 to 20.

    Squares of one photo (``_s001``, ...) and degraded images of one clean image stay together: of
    those held back one is for the validation, the others for nothing.
    """
    from unfoldldm_basicsr.data.listing import read_entry, without_extension

    if len(names) < 2:
        raise ValueError(f'{where}: at least one image to train on and one to validate on.')
    photos: dict[str, list[str]] = {}
    for name in names:
        photo = re.sub(r'_s\d{3,}$', '', without_extension(read_entry(name)[0]))
        photos.setdefault(photo, []).append(name)
    parts = [*photos.values()] if len(photos) > 1 else [[name] for name in names]
    count = min(max(round(len(parts) / 10), 1), 20)
    chosen = {int(len(parts) / count * (k + 0.5)) for k in range(count)}
    kept = [name for k, part in enumerate(parts) if k not in chosen for name in part]
    return kept, [parts[k][len(parts[k]) // 2] for k in sorted(chosen)]


def _lines(section: Mapping[str, Any], indent: int) -> str:
    return ''.join(f'{" " * indent}{key}: {_flow(value)}\n' for key, value in section.items())


def _flow(value: Any) -> str:
    """A value in YAML on one line."""
    style = {'default_flow_style': True, 'width': 10**6, 'sort_keys': False, 'allow_unicode': True}
    return yaml.safe_dump([value], **style).strip()[1:-1]
