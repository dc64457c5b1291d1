"""A network with an input of its own, and the model that gives it, as docs/contributing.md says."""

import numpy as np
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
from helpers import model_options, plugin_options, problems_at, write_options, write_photos
from torch import nn

from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.restoring import Restorer
from unfoldldm_basicsr.weights.checkpoint import ARCH_KEY, network_meta


class Leveled(nn.Module):
    def __init__(self, *, inp_channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(inp_channels + 1, inp_channels, 3, padding=1)

    def forward(self, lq, level):
        levels = level.view(-1, 1, 1, 1).expand(-1, 1, *lq.shape[2:])
        return lq + self.conv(torch.cat([lq, levels], 1))


class LeveledModel(RestorationModel):
    network_inputs = ('level',)

    def network_arguments(self, batch):
        return {'level': batch['lq'].std((1, 2, 3))}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'Leveled', Leveled)
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'LeveledModel', LeveledModel)


def test_the_check_knows_which_model_gives_a_network_its_input(tmp_path):
    options = plugin_options(tmp_path)
    del options['train']['isda_opt']
    options['network_g'] = {'type': 'Leveled'}
    options['model_type'] = 'RestorationModel'
    assert 'Leveled also needs level' in problems_at(options, 'network_g.type')
    options['model_type'] = 'LeveledModel'
    assert problems_at(options, 'network_g.type') == ''


def test_it_trains_and_restores(tmp_path):
    model = LeveledModel(model_options(tmp_path, {'type': 'Leveled'}))
    before = model.net_g.conv.weight.clone()
    model.feed_data({'lq': torch.rand(2, 3, 8, 8), 'gt': torch.rand(2, 3, 8, 8)})
    model.optimize_parameters(1)
    assert not torch.equal(model.net_g.conv.weight, before)
    assert model.restore(model.batch)[0].shape == (2, 3, 8, 8)


@pytest.mark.parametrize('wrap', [lambda net: net, nn.DataParallel, torch.compile])
def test_what_has_the_image_alone_says_what_it_lacks(wrap):
    image, restorer = np.zeros((8, 8, 3), np.uint8), Restorer(wrap(Leveled()), device='cpu')
    for measured in (restorer.restore, lambda _: network_cost({'type': 'Leveled'})):
        with pytest.raises(ValueError, match='Leveled also needs level with every image'):
            measured(image)
    if wrap is not torch.compile:  # which needs a compiler
        assert restorer.restore(image, level=torch.ones(1)).shape == image.shape


def test_restore_refuses_it_once_and_check_counts_its_parameters(tmp_path, output_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / 'photos', 2, (8, 8))
    meta = network_meta({'type': 'Leveled'})
    torch.save({'params': Leveled().state_dict(), ARCH_KEY: meta}, 'x.pth')
    said = output_of('restore', '-i', 'photos', '-o', 'out', '-w', 'x.pth', status=2)
    assert said.count('Leveled also needs level') == 1
    options = plugin_options(tmp_path)
    del options['train']['isda_opt']
    options |= {'network_g': {'type': 'Leveled'}, 'model_type': 'LeveledModel'}
    write_options(tmp_path / 'x.yml', options)
    said = output_of('check', '-opt', 'x.yml', '--no-data')
    assert 'Leveled: 0.00 M parameters, operations not counted: Leveled also needs level' in said
