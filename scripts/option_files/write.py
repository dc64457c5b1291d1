"""Writes the option files of UnfoldLDM, Restormer and NAFNet from one table of tasks and methods.

    python scripts/option_files/write.py            # writes them below options/{train,test}
    python scripts/option_files/write.py --check    # names those that differ; exit status 1

The files are ordinary BasicSR YAML; whoever trains edits a copy of one. What many of them share is
changed here. Files of VLU-Net and the smoke files are written by hand.
"""

import argparse
import sys
from pathlib import Path
from string import Template

import blocks
from tasks import (
    CLASSES,
    METRICS,
    MIXED,
    NOISY_TESTS,
    PRESETS,
    TASKS,
    Images,
    Schedule,
    Task,
    nafnet_schedule,
    restormer_schedule,
    unfoldldm_schedule,
)

ROOT = Path(__file__).resolve().parents[2]
TRAIN = 'python -m unfoldldm_basicsr.train -opt {} --auto_resume'
TORCHRUN = (
    'torchrun --nproc_per_node={} -m unfoldldm_basicsr.train -opt {} --launcher pytorch '
    '--auto_resume'
)
TEST = 'python -m unfoldldm_basicsr.test -opt {}'


def fill(block: str, **values: object) -> str:
    """A block of YAML, by its name; lines that end up empty are left out."""
    text = Template(getattr(blocks, block)).substitute(values)
    return ''.join(line for line in text.lstrip('\n').splitlines(keepends=True) if line.strip())


def indented(text: str, by: int) -> str:
    return ''.join(' ' * by + line for line in text.splitlines(keepends=True))


# ---- data ---------------------------------------------------------------------------------------


BACKEND = 'io_backend: {type: lmdb}\n'


def paired(images: Images) -> str:
    place = f'{images.set}/{images.part}'
    listed = f'meta_info_file: datasets/{place}.txt' if images.listed else ''
    return fill('PAIRED', place=place, listed=listed)


def mixed(split: int) -> str:
    """The data set of all degradations; 0: training, 1: test."""
    text = f'type: MixedDegradationDataset\ndegradation_names: [{", ".join(CLASSES)}]\n'
    text += f'{BACKEND}sets:\n'
    photos = ('BSD400_WED/train_gt.lmdb', 'CBSD68/test_gt.lmdb')[split]
    for name in CLASSES:
        text += f'  - degradation_name: {name}\n'
        if name.startswith('noise'):
            part, repeat = (
                fill('MIXED_NOISE', place=photos, sigma=name.removeprefix('noise')),
                3,
            )
        else:
            part, repeat = paired(MIXED[name][split]), MIXED[name][2]
        text += indented(part, 4) + f'    repeat: {repeat}\n' * (repeat > 1 and not split)
    return text


def datasets(name: str, how: Schedule | None, *, flips: bool = True) -> str:
    """The section ``datasets`` of a training, or of a test (``how`` is None)."""
    task, sections = TASKS[name], {}
    if how is not None:
        if name == 'denoise':
            data = fill('NOISY', place='DFWB/train_gt.lmdb', sigma='[0, 50]')
        elif name == 'mixture':
            data = mixed(0)
        else:
            data = paired(task.train) + BACKEND
            data += 'repeat: 100 # an epoch of a few hundred images is short\n' * task.small
        loading = fill('LOADING', flips=str(flips).lower(), **how._asdict())
        sections['train'] = f'name: {name}\n{data}{loading}'
    tests = [
        f'name: {images.set}_{images.part}\n{paired(images)}{BACKEND}' for images in task.tests
    ]
    if name == 'denoise':
        tests = [
            f'name: {photos}_sigma{sigma}\n'
            + fill('NOISY', place=f'{photos}/test_gt.lmdb', sigma=sigma)
            for photos, sigma in ([('CBSD68', 25)] if how else NOISY_TESTS)
        ]
    if name == 'mixture':
        tests = [f'name: mixture_test\n{mixed(1)}']
    for number, test in enumerate(tests[: 1 if how else None], 1):
        alone = 'test' if name == 'mixture' else f'test_{number}'
        sections['val' if how else alone] = test
    return 'datasets:\n' + ''.join(f'  {k}:\n{indented(v, 4)}' for k, v in sections.items())


# ---- methods ------------------------------------------------------------------------------------


def progressive(how: Schedule) -> str:
    if not how.iters:
        return ''
    listed = {'iters': how.iters, 'gt_sizes': how.sizes, 'mini_batch_sizes': how.batches}
    lines = [f'    {key}: [{", ".join(map(str, values))}]' for key, values in listed.items()]
    return '\n'.join(['  progressive: # patch and batch size per GPU, by iteration', *lines])


PRIOR_WARMUP = "  prior_warmup_iter: {} # II-a: only PI' and f_theta, against the frozen PI"
DARK = """\
  wm_window: {} # W and M of a whole photo are unlike those of a patch
  base: x # a gradient step towards a dark y undoes the stage before
  prior_levels: lq # PI and PI' see how bright the input is: options/compare/dark"""
CHECKPOINT = '  use_checkpoint: true # a sixth of the memory for a quarter more time'


def network(method: str, name: str, how: Schedule, phase: int, preset: str, training: bool) -> str:
    if method == 'NAFNet':
        return fill('NAFNET_GOPRO' if name == 'deblur_gopro' else 'NAFNET')
    if method == 'Restormer':
        return fill('RESTORMER', norm='BiasFree' if name.startswith('denoise') else 'WithBias')
    dim, blocks, heads, mgda_dim = PRESETS[preset]
    return fill(
        'UNFOLDLDM', phase=phase, preset=preset, dim=dim, blocks=blocks, heads=heads,
        mgda_dim=f'  mgda_dim: {mgda_dim}' if mgda_dim else '', gt_size=how.gt_size,
        dark=DARK.format(how.gt_size) if name.startswith('lowlight') else '',
        memory=CHECKPOINT if training and how.iters else '',
    )  # fmt: skip


def train(method: str, name: str, how: Schedule, phase: int) -> str:
    amp = '  amp: bf16' if how.amp == 'bf16' else ''
    common = {'total': how.total, 'progressive': progressive(how)}
    if method == 'NAFNet':
        decay = '1.0e-3' if name == 'deblur_gopro' else '0'
        return fill('NAFNET_TRAIN', decay=decay, amp=amp, **common)
    if method == 'Restormer':
        constant, mixup = how.total * 92 // 300, str(name.startswith('denoise')).lower()
        periods = {'constant': constant, 'rest': how.total - constant}
        return fill('RESTORMER_TRAIN', mixup=mixup, amp=amp, **periods, **common)
    rest, second = how.total - how.warmup, phase == 2
    if second and how.iters:  # halved three times after the warm-up of the prior
        steps = [how.warmup + rest * part // 15 for part in (4, 8, 12)]
        scheduler = f'{{type: MultiStepLR, milestones: {steps}, gamma: 0.5}}'
    else:
        constant = how.warmup + 3 * rest // 10
        scheduler = f'{{type: ConstantCosineLR, constant_iter: {constant}, eta_min: 1.0e-6}}'
    loss = '  diffusion_opt: {type: LatentDiffusionLoss, loss_weight: 1.0}'
    return fill(
        'UNFOLDLDM_TRAIN', scheduler=scheduler, amp=how.amp, diffusion=loss if second else '',
        stage_loss=0.05 if second else 0.3,
        prior_warmup=PRIOR_WARMUP.format(how.warmup) if second else '',
        clip='{restoration: 0.01, prior: 1.0}' if second else '0.01', **common,
    )  # fmt: skip


# ---- files --------------------------------------------------------------------------------------

SEEDS = {'UnfoldLDM': 0, 'Restormer': 100, 'NAFNet': 42}
PRIOR_SOURCE = '  prior_source: generated # null, shuffled, oracle: what the prior is worth'


def metrics(task: Task) -> str:
    lines = ['  use_image: false # as published: not rounded to 8 bits'] * task.unrounded
    return '\n'.join(
        [*lines, '  metrics:', *(f'    {m}: {METRICS[m]}' for m in task.metrics.split())]
    )


def train_file(
    method: str, name: str, phase: int = 0, preset: str = '', one_day: bool = False
) -> tuple[str, str]:
    how = {
        'UnfoldLDM': lambda: unfoldldm_schedule(name, phase, one_day),
        'Restormer': lambda: restormer_schedule(name, one_day),
        'NAFNet': lambda: nafnet_schedule(name, one_day),
    }[method]()
    named = f'{name}_{preset}' if preset and name == 'denoise' else name
    file = f'train/{method}/{named}{"_one_day" * one_day}{f"_phase{phase}" * bool(phase)}.yml'
    run, path = f'{method.lower()}_{Path(file).stem}', f'options/{file}'
    title = ('', ', Phase I (prior pre-training)', ', Phase II (diffusion)')[phase]
    kind = f'{method}, preset {preset}' if preset else method + ' (width 32)' * (method == 'NAFNet')
    command = TORCHRUN.format(how.gpus, path) if how.gpus > 1 else TRAIN.format(path)
    about = f'# {kind}: {TASKS[name].title}{title}.\n# {command}\n# {how.note}\n'
    if how.gpus > 1:
        about += f'# On G GPUs multiply every batch size by {how.gpus} / G.\n'
    model = f'UnfoldLDMPhase{phase}Model' if phase else 'RestorationModel'
    start = '' if phase else '  pretrain_network_g: ~\n  strict_load_g: true\n'
    if phase == 2:
        weights = f'experiments/{run.replace("phase2", "phase1")}/models/net_g_latest.pth'
        start = f'  pretrain_network_phase1: {weights}\n'
    parts = [
        about + fill('TOP', run=run, model=model, seed=SEEDS[method]),
        datasets(name, how, flips=(method, name) != ('NAFNet', 'denoise_sidd')),
        network(method, name, how, phase, preset, training=True),
        f'path:\n{start}  resume_state: ~\n',
        train(method, name, how, phase),
        fill('TRAIN_VAL', val_freq=how.val_freq, metrics=metrics(TASKS[name])),
        fill(
            'LOGGER',
            print_freq=min(500, how.val_freq // 10),
            save_freq=min(5000, how.val_freq),
        ),
        'dist_params:\n  backend: nccl\n',
    ]
    return file, '\n'.join(parts)


def test_file(method: str, name: str, *, dnd: bool) -> tuple[str, str]:
    ours, task = method == 'UnfoldLDM', TASKS[name]
    file = f'test/{method}/{"denoise_dnd" if dnd else name}.yml'
    run = f'{method.lower()}_{name}{"_base" * (ours and name == "denoise")}{"_phase2" * ours}'
    title = 'denoising of photos, DND: saves images for its authors to score' if dnd else task.title
    how = unfoldldm_schedule(name, 2, False)
    parts = [
        f'# Tests a trained {method}{" (preset base)" * ours}: {title}.\n'
        f'# {TEST.format(f"options/{file}")}\n'
        + fill(
            'TOP', run=f'test_{method.lower()}_{Path(file).stem}', seed=SEEDS[method],
            model='UnfoldLDMPhase2Model' if ours else 'RestorationModel',
        ),
        fill('DND') if dnd else datasets(name, None),
        network(method, name, how, 2, 'base', training=False),
        fill(
            'TEST_PATH', run=run, released='' if ours else ' # or released weights, as they are',
            key='  param_key_g: params_ema' if ours else '',
        ),
        fill(
            'TEST_VAL', prior=PRIOR_SOURCE if ours else '', metrics='' if dnd else metrics(task)
        ),
    ]  # fmt: skip
    return file, '\n'.join(parts)


def files() -> dict[str, str]:
    found = []
    for name in TASKS:
        if name != 'derain_rain13k':
            for preset in PRESETS if name == 'denoise' else ['base']:
                found += [train_file('UnfoldLDM', name, phase, preset) for phase in (1, 2)]
            found += [test_file('UnfoldLDM', name, dnd=False)]
        found += [train_file('Restormer', name), test_file('Restormer', name, dnd=False)]
        if name not in ('denoise', 'derain_rain13k', 'mixture'):
            found += [train_file('NAFNet', name), test_file('NAFNet', name, dnd=False)]
    for method in ('UnfoldLDM', 'Restormer', 'NAFNet'):
        found += [test_file(method, 'denoise_sidd', dnd=True)]
        phases = (1, 2) if method == 'UnfoldLDM' else (0,)
        preset = 'small' if method == 'UnfoldLDM' else ''
        found += [train_file(method, 'deblur_gopro', phase, preset, True) for phase in phases]
    return dict(found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='write nothing, name the differences')
    args = parser.parse_args(argv)
    wanted, folders = files(), ('UnfoldLDM', 'Restormer', 'NAFNet')
    present = {
        path.relative_to(ROOT / 'options').as_posix(): path.read_text(encoding='utf-8')
        for arch in folders
        for path in (ROOT / 'options').glob(f't*/{arch}/*.yml')
    }
    changed = [f for f in sorted({*wanted, *present}) if wanted.get(f) != present.get(f)]
    for file in changed:
        print(file)
        if args.check:
            continue
        path = ROOT / 'options' / file
        if file not in wanted:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[file], encoding='utf-8')
    return int(args.check and bool(changed))


if __name__ == '__main__':
    sys.exit(main())
