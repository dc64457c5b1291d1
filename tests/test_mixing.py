"""Mixing of training pairs, as the option files of Restormer ask for it."""

from __future__ import annotations

import pytest
import torch
from helpers import model_options

from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.batches import MixingOptions, MixUp


def batch_of(size=4):
    lq = torch.arange(float(size)).view(size, 1, 1, 1).expand(size, 1, 2, 2)
    return {'lq': lq, 'gt': lq + 10, 'lq_path': [str(i) for i in range(size)]}


def test_mixing_blends_lq_and_gt_of_every_pair_alike():
    mixed = MixUp(MixingOptions())(batch_of(), 7)
    assert torch.allclose(mixed['gt'], mixed['lq'] + 10)
    assert not torch.allclose(mixed['lq'], batch_of()['lq'])
    assert 0 <= mixed['lq'].min() <= mixed['lq'].max() <= 3
    assert mixed['lq'].mean() == pytest.approx(1.5)  # every image is a partner once
    assert mixed['lq_path'] == ['0', '1', '2', '3']


def test_mixing_follows_from_seed_iteration_and_rank():
    def draw(**changes):
        settings = {'seed': 1, 'rank': 0, 'iteration': 5} | changes
        mix = MixUp(MixingOptions(), settings['seed'], settings['rank'])
        return mix(batch_of(), settings['iteration'])['lq'].flatten().tolist()

    assert draw() == draw()
    for changes in ({'seed': 2}, {'rank': 1}, {'iteration': 6}):
        assert draw() != draw(**changes)


def test_half_of_the_batches_stay_as_they_are_and_shares_are_beta_distributed():
    batch = {'lq': torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)}
    batch['gt'] = batch['lq']
    mix = MixUp(MixingOptions(use_identity=True))
    same = sum(mix(batch, i)['lq'] is batch['lq'] for i in range(400))
    assert 160 < same < 240
    for beta in (0.4, 4.0):  # an even distribution has the variance of beta = 1
        always = MixUp(MixingOptions(mixup_beta=beta))
        shares = torch.tensor([float(always(batch, i)['lq'][1]) for i in range(1000)])
        shares = shares[shares < 1]  # own partner in half of the cases
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.04)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.15)


@pytest.mark.parametrize('mixup', [True, False])
def test_a_model_mixes_training_batches_where_asked(tmp_path, mixup):
    options = model_options(tmp_path, {'type': 'TinyConvNet'}, mixing_augs={'mixup': mixup})
    model = RestorationModel(options)
    model.current_iter = 7
    model.feed_data(batch_of())
    mix = MixUp(MixingOptions(), seed=options['manual_seed'])
    expected = mix(batch_of(), 7) if mixup else batch_of()
    assert torch.equal(model.batch['lq'], expected['lq'])
    assert torch.equal(model.batch['gt'], expected['gt'])
