"""Mixing of training pairs, as the option files of Restormer ask for it."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import model_options

from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.batches import MixingOptions, mixed, prepare
from unfoldldm_basicsr.training.options import TrainOptions


def batch_of(size=4):
    lq = torch.arange(float(size)).view(size, 1, 1, 1).expand(size, 1, 2, 2)
    return {'lq': lq, 'gt': lq + 10, 'lq_path': [str(i) for i in range(size)]}


def test_mixing_blends_lq_and_gt_of_every_pair_alike():
    blend = mixed(batch_of(), MixingOptions(), random.Random(7))
    assert torch.allclose(blend['gt'], blend['lq'] + 10)
    assert not torch.allclose(blend['lq'], batch_of()['lq'])
    assert 0 <= blend['lq'].min() <= blend['lq'].max() <= 3
    assert blend['lq'].mean() == pytest.approx(1.5)  # every image is a partner once
    assert blend['lq_path'] == ['0', '1', '2', '3']


def test_mixing_follows_from_seed_iteration_and_rank():
    train = TrainOptions.model_construct(mixing_augs=MixingOptions(mixup=True))

    def draw(*place):
        return prepare(batch_of(), train, *place)['lq'].flatten().tolist()

    first = draw(1, 5, 0)
    assert first == draw(1, 5, 0)
    assert all(first != draw(*other) for other in ((2, 5, 0), (1, 5, 1), (1, 6, 0)))


def test_half_of_the_batches_stay_as_they_are_and_shares_are_beta_distributed():
    batch, draw = {'lq': torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)}, random.Random(0)
    batch['gt'] = batch['lq']
    halves = MixingOptions(use_identity=True)
    same = sum(mixed(batch, halves, draw)['lq'] is batch['lq'] for _ in range(400))
    assert 160 < same < 240
    for beta in (0.4, 4.0):  # an even distribution has the variance of beta = 1
        always = MixingOptions(mixup_beta=beta)
        shares = torch.tensor([float(mixed(batch, always, draw)['lq'][1]) for _ in range(1000)])
        shares = shares[shares < 1]  # own partner in half of the cases
        assert float(shares.mean()) == pytest.approx(0.5, abs=0.04)
        assert float(shares.var()) == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.15)


@pytest.mark.parametrize('mixup', [True, False])
def test_a_model_mixes_training_batches_where_asked(tmp_path, mixup):
    options = model_options(tmp_path, {'type': 'TinyConvNet'}, mixing_augs={'mixup': mixup})
    model = RestorationModel(options)
    model.current_iter = 7
    model.feed_data(batch_of())
    draw = random.Random(f'mixup/{options["manual_seed"]}/7/0')  # as runs before drew it
    expected = mixed(batch_of(), MixingOptions(), draw) if mixup else batch_of()
    assert torch.equal(model.batch['lq'], expected['lq'])
    assert torch.equal(model.batch['gt'], expected['gt'])
