"""Both phases can learn: four images gain 10 dB in 50 steps, with true and generated prior."""

from __future__ import annotations

import torch
from helpers import tiny_unfoldldm
from torch import Tensor

from unfoldldm_basicsr.archs import UnfoldLDM
from unfoldldm_basicsr.losses import ISDALoss, LatentDiffusionLoss


def network(phase: int) -> UnfoldLDM:
    arguments = tiny_unfoldldm(phase, dim=16, mgda_d_state=1, null_prior_prob=0.0)
    arguments.pop('type')
    return UnfoldLDM(**arguments)


def four_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 4, 4, generator=generator)
    gt = torch.nn.functional.interpolate(coarse, size=(16, 16), mode='bicubic').clamp(0, 1)
    return gt + 0.1 * torch.randn(gt.shape, generator=generator), gt


def psnr(x: Tensor, gt: Tensor) -> float:
    return -10 * (x - gt).square().mean().log10().item()


def fit(net: UnfoldLDM, lq: Tensor, gt: Tensor, steps: int, warmup: int = 0) -> None:
    net.train()
    groups = [[p for _, p in g] for g in net.parameter_groups().values() if g]
    optimizer = torch.optim.AdamW([p for g in groups for p in g], 3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        mode = 'warmup' if step < warmup else 'restore'
        trace = net(lq, gt, mode=mode, return_trace=True)
        loss = torch.zeros(())
        if mode == 'restore':
            hats, tildes = [s.x_hat for s in trace.stages], [s.x_tilde for s in trace.stages]
            loss = (trace.output - gt).abs().mean() + ISDALoss()(hats, tildes)
        if net.phase == 2:
            loss = loss + LatentDiffusionLoss()(
                [s.generated for s in trace.stages], trace.target_prior
            )
        optimizer.zero_grad()
        loss.backward()
        for group in groups:
            torch.nn.utils.clip_grad_norm_(group, 1.0)
        optimizer.step()
        scheduler.step()


def test_four_images_are_overfitted_in_both_phases():
    torch.manual_seed(0)
    lq, gt = four_images()
    first = network(1)
    fit(first, lq, gt, 50)
    with torch.no_grad():
        oracle = psnr(first.eval()(lq, gt), gt)
    second = network(2)
    second.load_state_dict(first.state_dict(), strict=False)
    fit(second, lq, gt, 40, warmup=15)
    with torch.no_grad():
        generated = psnr(second.eval()(lq), gt)
    assert oracle > psnr(lq, gt) + 9
    assert generated > oracle - 3
