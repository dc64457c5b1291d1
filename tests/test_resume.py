"""A real Phase II training that is killed, resumed, terminated, and resumed to its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, model_options, tiny_unfoldldm, write_options, write_photos

from unfoldldm_basicsr.models import UnfoldLDMPhase1Model
from unfoldldm_basicsr.models.interruption import stop_request

TOTAL, SAVE_EVERY = 60, 3


@pytest.fixture(scope='module')
def project(tmp_path_factory) -> Path:
    """A folder with photos, noisy copies, the weights of Phase I and the options of Phase II."""
    folder = tmp_path_factory.mktemp('project')
    (folder / 'lq').mkdir()
    noise = np.random.default_rng(1)
    for path in write_photos(folder / 'gt', 4, (24, 32)):
        image = cv2.imread(str(path)).astype(float) + noise.normal(0, 25, (24, 32, 3))
        cv2.imwrite(str(folder / 'lq' / path.name), image.clip(0, 255).astype(np.uint8))
    first = UnfoldLDMPhase1Model(model_options(folder / 'phase1', tiny_unfoldldm(1)))
    first.save(0, 1)
    stop_request.remove()
    data = {
        'type': 'PairedDegradationDataset',
        'dataroot_gt': str(folder / 'gt'),
        'dataroot_lq': str(folder / 'lq'),
    }
    train_data = {'gt_size': 16, 'batch_size_per_gpu': 2, 'num_worker_per_gpu': 0}
    options = {
        'name': 'phase2',
        'model_type': 'UnfoldLDMPhase2Model',
        'num_gpu': 0,
        'manual_seed': 1,
        'datasets': {'train': {**data, **train_data}, 'val': {**data, 'name': 'held_out'}},
        'network_g': tiny_unfoldldm(2),
        'path': {'pretrain_network_phase1': str(folder / 'phase1' / 'models' / 'net_g_1.pth')},
        'train': {
            'total_iter': TOTAL,
            'warmup_iter': 4,
            'prior_warmup_iter': 4,
            'ema_decay': 0.9,
            'optim_g': {'type': 'AdamW', 'lr': 2e-4},
            'scheduler': {'type': 'ConstantCosineLR', 'constant_iter': 20, 'eta_min': 1e-6},
            'use_grad_clip': True,
            'pixel_opt': {'type': 'L1Loss'},
            'isda_opt': {'type': 'ISDALoss'},
            'diffusion_opt': {'type': 'LatentDiffusionLoss'},
        },
        'val': {
            'val_freq': 1000,
            'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0}},
        },
        'logger': {'print_freq': 1, 'save_checkpoint_freq': SAVE_EVERY},
    }
    write_options(folder / 'phase2.yml', options)
    return folder


def start(project: Path, *args: str) -> subprocess.Popen:
    command = [sys.executable, '-m', 'unfoldldm_basicsr.train', '-opt', 'phase2.yml', *args]
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def states(project: Path) -> list[int]:
    folder = project / 'experiments' / 'phase2' / 'training_states'
    return sorted(int(p.stem) for p in folder.glob('*.state'))


def stop(process: subprocess.Popen, project: Path, after: int, signum: int) -> str:
    """Sends a signal as soon as the state of iteration ``after`` is there; returns the output."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if max(states(project), default=0) >= after:
            process.send_signal(signum)
            break
        time.sleep(0.01)
    return process.communicate(timeout=300)[0]


def resumed_at(output: str) -> int:
    match = re.search(r'Resuming training from epoch: \d+, iter: (\d+)', output)
    assert match, output[-3000:]
    return int(match[1])


def test_training_goes_on_after_kill_and_after_termination(project):
    process = start(project)
    output = stop(process, project, after=2 * SAVE_EVERY, signum=signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, output[-3000:]
    killed_at = max(states(project))
    assert killed_at < TOTAL

    process = start(project, '--auto_resume')
    output = stop(process, project, after=killed_at + SAVE_EVERY, signum=signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM, output[-3000:]
    assert resumed_at(output) == killed_at
    stopped_at = max(states(project))
    assert f'Stopped by a signal at iteration {stopped_at}' in output

    process = start(project, '--auto_resume')
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    assert resumed_at(output) == stopped_at
    logged = [int(i) for i in re.findall(r'iter: +(\d+), lr', output)]
    assert logged == list(range(stopped_at + 1, TOTAL + 1))
    assert f'@ {TOTAL} iter' in output  # the validation at the end

    root = project / 'experiments'
    assert [p.name for p in root.iterdir()] == ['phase2']  # nothing was moved aside
    final = torch.load(root / 'phase2' / 'models' / 'net_g_latest.pth', weights_only=True)
    phase1 = torch.load(project / 'phase1' / 'models' / 'net_g_1.pth', weights_only=True)
    for key, value in phase1['params_ema'].items():
        if key.startswith('prior_encoder.'):
            assert torch.equal(final['params'][key], value)
            assert torch.equal(final['params_ema'][key], value)
