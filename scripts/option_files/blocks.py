"""Blocks of the option files, with ``$name`` where tasks and methods differ."""

PAIRED = """
type: PairedDegradationDataset
dataroot_gt: datasets/${place}_gt.lmdb
dataroot_lq: datasets/${place}_lq.lmdb
$listed
"""
NOISY = """
type: SyntheticDegradationDataset
dataroot_gt: datasets/$place
io_backend: {type: lmdb}
degradations:
  - {type: gaussian_noise, sigma: $sigma}
lq_output: unclipped # as in the published denoising protocols
"""
MIXED_NOISE = """
type: SyntheticDegradationDataset
dataroot_gt: datasets/$place
degradations: [{type: gaussian_noise, sigma: $sigma}]
lq_output: uint8
"""
LOADING = """
gt_size: $gt_size
use_hflip: $flips
use_rot: $flips
num_worker_per_gpu: $workers
batch_size_per_gpu: $batch
persistent_workers: true
pin_memory: true
"""
UNFOLDLDM = """
network_g:
  type: UnfoldLDM
  phase: $phase
  dim: $dim # preset '$preset': dim, num_blocks, heads, mgda_dim
  num_blocks: $blocks
  heads: $heads
$mgda_dim
  num_stages: 3
  num_timesteps: 3
  prior_dim: 64
  prior_window: $gt_size # side of the training patches
$dark
$memory
"""
UNFOLDLDM_TRAIN = """
train:
  total_iter: $total
$prior_warmup
  warmup_iter: ~
  ema_decay: 0.999
  optim_g: {type: AdamW, lr: 2.0e-4, weight_decay: 0, betas: [0.9, 0.999]}
  scheduler: $scheduler
$progressive
  use_grad_clip: true
  grad_clip_norm: $clip
  amp: $amp
  pixel_opt: {type: L1Loss, loss_weight: 1.0}
  isda_opt: {type: ISDALoss, loss_weight: 0.01}
  stage_loss_weight: $stage_loss
$diffusion
"""
RESTORMER = """
network_g:
  type: Restormer
  inp_channels: 3
  out_channels: 3
  dim: 48
  num_blocks: [4, 6, 6, 8]
  num_refinement_blocks: 4
  heads: [1, 2, 4, 8]
  ffn_expansion_factor: 2.66
  bias: false
  LayerNorm_type: $norm
  dual_pixel_task: false
"""
RESTORMER_TRAIN = """
train:
  total_iter: $total
  warmup_iter: -1
  ema_decay: 0
  optim_g: {type: AdamW, lr: 3.0e-4, weight_decay: 1.0e-4, betas: [0.9, 0.999]}
  scheduler: # constant, then a half cosine
    type: CosineAnnealingRestartCyclicLR
    periods: [$constant, $rest]
    restart_weights: [1, 1]
    eta_mins: [3.0e-4, 1.0e-6]
$progressive
  mixing_augs: {mixup: $mixup, mixup_beta: 1.2, use_identity: true}
  use_grad_clip: true
  grad_clip_norm: 0.01
$amp
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
"""
NAFNET_GOPRO = """
network_g:
  type: NAFNetLocal # as NAFNet in training; windows of 1.5 patches on larger images
  width: 32
  middle_blk_num: 1
  enc_blk_nums: [1, 1, 1, 28]
  dec_blk_nums: [1, 1, 1, 1]
  train_size: [1, 3, 256, 256] # sets the windows
"""
NAFNET = """
network_g:
  type: NAFNet
  width: 32
  middle_blk_num: 12
  enc_blk_nums: [2, 2, 4, 8]
  dec_blk_nums: [2, 2, 2, 2]
"""
NAFNET_TRAIN = """
train:
  total_iter: $total
  warmup_iter: -1
  ema_decay: 0
  optim_g: {type: AdamW, lr: 1.0e-3, weight_decay: $decay, betas: [0.9, 0.9]}
  scheduler: {type: TrueCosineAnnealingLR, T_max: $total, eta_min: 1.0e-7}
  use_grad_clip: true # the released trainer's default
  grad_clip_norm: 0.01
$amp
  pixel_opt: {type: PSNRLoss, loss_weight: 1.0, reduction: mean} # logged as minus the PSNR in dB
"""
TOP = """
name: $run
model_type: $model
scale: 1
num_gpu: auto
manual_seed: $seed
"""
TRAIN_VAL = """
val:
  val_freq: $val_freq
  save_img: false
  pbar: true
$metrics
"""
LOGGER = """
logger:
  print_freq: $print_freq
  save_checkpoint_freq: $save_freq
  keep_checkpoints: 5
  use_tb_logger: true
"""
DND = """
datasets:
  test:
    name: DND
    type: SingleImageDataset
    dataroot_lq: datasets/DND/test_lq.lmdb
    io_backend: {type: lmdb}
"""
TEST_PATH = """
path:
  pretrain_network_g: experiments/$run/models/net_g_latest.pth$released
$key
  strict_load_g: true
"""
TEST_VAL = """
val:
  save_img: true
  suffix: ~
  pbar: true
$prior
$metrics
"""
