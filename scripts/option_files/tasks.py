"""The tasks of the papers' tables, and how long each method is trained on them."""

from typing import Any, NamedTuple

# ---- tasks --------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Where pairs lie, and in which set (``unfoldldm prepare``)."""

    set: str
    part: str
    listed: bool = False  # many degraded images of a clean one


class Task(NamedTuple):
    """A task of the papers' tables, with names in METRICS.

    ``train``, ``tests``: pairs; none for a task of its own kind. ``small``: images too small for
    patches of 384 and 512 pixels. ``unrounded``: published figures are of unrounded results.
    """

    title: str
    train: Images | None
    tests: tuple[Images, ...]
    metrics: str = 'psnr ssim'
    small: bool = True
    unrounded: bool = False


def _of(title: str, name: str, metrics: str = 'psnr ssim', test: str = 'test', **more: Any) -> Task:
    """A task that is trained and tested on one set."""
    return Task(title, Images(name, 'train'), (Images(name, test),), metrics, **more)


LOW_LIGHT = 'psnr ssim psnr_gt_mean ssim_gt_mean'
RAIN = 'psnr_y ssim_y psnr ssim'
TASKS = {
    'denoise': Task('blind Gaussian denoising (sigma 0 to 50)', None, (), small=False),
    'denoise_sidd': _of(
        'denoising of photos, SIDD', 'SIDD', test='val', small=False, unrounded=True
    ),
    'deblur_gopro': Task(
        'motion deblurring, GoPro',
        Images('GoPro', 'train'), (Images('GoPro', 'test'), Images('HIDE', 'test')), small=False,
    ),
    'derain_rain100l': _of('deraining, Rain100L', 'Rain100L', RAIN),
    'derain_rain13k': Task(
        'deraining, Rain13K',
        Images('Rain13K', 'train'),
        tuple(
            Images('Rain13K', part)
            for part in ('Rain100L', 'Rain100H', 'Test100', 'Test1200', 'Test2800')
        ),
        RAIN, small=False,
    ),
    'lowlight_lol_v1': _of('low light, LOL-v1', 'LOL-v1', LOW_LIGHT),
    'lowlight_lol_v2_real': _of('low light, LOL-v2 real', 'LOL-v2-real', LOW_LIGHT),
    'lowlight_lol_v2_synthetic': _of('low light, LOL-v2 synthetic', 'LOL-v2-synthetic', LOW_LIGHT),
    'underwater_uieb': _of('underwater images, UIEB', 'UIEB', 'psnr ssim uciqe uiqm'),
    'backlit_baid': _of('backlit images, BAID', 'BAID'),
    'mixture': Task('noise, rain, haze, blur and low light in one network, blind', None, ()),
}  # fmt: skip
METRICS = {
    'psnr': '{type: calculate_psnr, crop_border: 0}',
    'ssim': '{type: calculate_ssim, crop_border: 0}',
    'psnr_y': '{type: calculate_psnr, crop_border: 0, test_y_channel: true}',
    'ssim_y': '{type: calculate_ssim, crop_border: 0, test_y_channel: true}',
    'psnr_gt_mean': '{type: calculate_psnr_gt_mean} # brightness matched to the truth',
    'ssim_gt_mean': '{type: calculate_ssim_gt_mean}',
    'uciqe': '{type: calculate_uciqe}',
    'uiqm': '{type: calculate_uiqm}',
}
CLASSES = ['noise15', 'noise25', 'noise50', 'rain', 'haze', 'blur', 'lowlight']
MIXED = {  # class -> training and test images, how often the training images count
    'rain': (Images('Rain100L', 'train'), Images('Rain100L', 'test'), 120),
    'haze': (Images('OTS', 'train', True), Images('SOTS', 'outdoor', True), 1),
    'blur': (Images('GoPro_frames', 'train'), Images('GoPro_frames', 'test'), 1),
    'lowlight': (Images('LOL-v1', 'train'), Images('LOL-v1', 'test'), 1),
}
NOISY_TESTS = [
    (name, sigma) for name in ('CBSD68', 'Kodak24', 'Urban100') for sigma in (15, 25, 50)
]


# ---- schedules ----------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """How long (``total`` iterations), in what sizes (``iters``, ``sizes`` and ``batches`` of
    progressive training), on how many GPUs; ``note`` says what the settings are.
    """

    total: int
    gt_size: int
    batch: int
    gpus: int
    note: str
    iters: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    workers: int = 8
    warmup: int = 0  # of the latent prior, Phase II
    val_freq: int = 20000
    amp: str = '~ # bf16 takes a third less memory'


RELATIVES = 'Schedule of the close relatives ({}): the paper does not give its own.'
ONE_DAY = 'Meant for about a day on one GPU; not measured, and no published setting.'
PRESETS = {  # dim, num_blocks, heads, mgda_dim
    'tiny': (32, '[1, 1, 1]', '[0, 0, 4]', None),
    'small': (64, '[1, 1, 1]', '[0, 0, 4]', None),
    'base': (192, '[6, 6, 5]', '[0, 0, 8]', 32),
    'large': (256, '[4, 6, 8]', '[0, 0, 8]', 64),
}


def unfoldldm_schedule(name: str, phase: int, one_day: bool) -> Schedule:
    if one_day:
        total, warmup = ((40000, 0), (60000, 10000))[phase - 1]
        return Schedule(total, 128, 8, 1, ONE_DAY, warmup=warmup, val_freq=5000, amp='bf16')
    if name == 'denoise':
        total, warmup = ((30000, 0), (35000, 5000))[phase - 1]
        note = f'Reduced schedule (patch 128, {total} iterations): the paper does not give its own.'
        return Schedule(total, 128, 8, 1, note, warmup=warmup, val_freq=5000)
    if name == 'mixture':
        total, warmup = ((300000, 0), (400000, 100000))[phase - 1]
        note = 'Patches and images as VLU-Net (nhrbl); the paper has no such mixture.'
        return Schedule(total, 128, 4, 8, note, warmup=warmup)
    if TASKS[name].small:
        iters = ((55000, 25000, 29000, 23000, 18000), (65000, 35000, 39000, 33000, 28000))
        return Schedule(
            (150000, 200000)[phase - 1], 256, 8, 4, RELATIVES.format('Reti-Diff'),
            iters[phase - 1], (128, 160, 192, 224, 256), (4, 4, 2, 2, 1),
            warmup=(0, 45000)[phase - 1], val_freq=5000,
        )  # fmt: skip
    iters = (
        (92000, 80000, 38000, 33000, 33000, 24000), (150000, 60000, 50000, 60000, 40000, 40000),
    )  # fmt: skip
    return Schedule(
        (300000, 400000)[phase - 1], 512, 8, 8, RELATIVES.format('DiffIR, Reti-Diff'),
        iters[phase - 1], (192, 256, 320, 384, 464, 512), (8, 4, 2, 2, 1, 1),
        warmup=(0, 100000)[phase - 1],
    )  # fmt: skip


def restormer_schedule(name: str, one_day: bool) -> Schedule:
    if one_day:
        return Schedule(100000, 128, 8, 1, ONE_DAY, val_freq=5000, amp='bf16')
    if name == 'mixture':
        note = 'Patches and images as VLU-Net (nhrbl), optimiser and schedule as published.'
        return Schedule(300000, 128, 4, 8, note)
    if TASKS[name].small:
        note = 'As published for deblurring and deraining, but patches of at most 256 pixels.'
        return Schedule(
            300000, 256, 8, 8, note, (92000, 64000, 48000, 96000), (128, 160, 192, 256),
            (8, 5, 4, 2), val_freq=4000,
        )  # fmt: skip
    return Schedule(
        300000, 384, 8, 8, 'At the published settings.',
        (92000, 64000, 48000, 36000, 36000, 24000), (128, 160, 192, 256, 320, 384),
        (8, 5, 4, 2, 1, 1), val_freq=4000,
    )  # fmt: skip


def nafnet_schedule(name: str, one_day: bool) -> Schedule:
    if one_day:
        return Schedule(200000, 256, 8, 1, ONE_DAY, workers=4, val_freq=5000, amp='bf16')
    published = name in ('deblur_gopro', 'denoise_sidd')
    note = 'At the published settings.' if published else 'As published for SIDD.'
    return Schedule(200000, 256, 4, 8, note, workers=4)
