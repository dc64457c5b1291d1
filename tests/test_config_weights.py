"""The check reads the weights that an option file names, and knows when a run needs none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from basicsr.utils.options import parse_options
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import problems_at, put, write_options

from unfoldldm_basicsr.options.preflight import preflight


def weights_of(options: dict, file: Path) -> Path:
    network = dict(options['network_g'])
    net = dict(iter(ARCH_REGISTRY))[network.pop('type')](**network)
    torch.save({'params': net.state_dict()}, file)
    return file


def test_weights_that_fit_are_accepted_and_others_explained(stock, tmp_path):
    file = weights_of(stock, tmp_path / 'net_g.pth')
    stock = put(stock, 'path.pretrain_network_g', str(file))
    assert preflight(stock, 'x.yml', True) == []
    wider = put(stock, 'network_g.num_feat', 8)
    assert 'does not fit network_g (MSRResNet)' in problems_at(wider, 'path.pretrain_network_g')
    loose = put(wider, 'path.strict_load_g', False)
    assert 'another network' in problems_at(loose, 'path.pretrain_network_g')
    deeper = put(put(stock, 'network_g.num_block', 2), 'path.strict_load_g', False)
    assert problems_at(deeper, 'path.pretrain_network_g') == ''
    assert problems_at(put(stock, 'path.param_key_g', 'params_emma'), 'path.pretrain_network_g')
    misnamed = put(stock, 'path.pretrain_network_g', str(tmp_path / 'net_q.pth'))
    assert "Did you mean 'net_g.pth'" in problems_at(misnamed, 'path.pretrain_network_g')
    file.write_bytes(file.read_bytes()[:-30])
    assert 'damaged' in problems_at(stock, 'path.pretrain_network_g')


@pytest.fixture
def phase2(plugin):
    plugin = put(plugin, 'model_type', 'UnfoldLDMPhase2Model')
    plugin = put(plugin, 'network_g.phase', 2)
    return put(plugin, 'train.diffusion_opt', {'type': 'LatentDiffusionLoss'})


def test_phase_two_starts_from_the_weights_of_its_phase_one(plugin, phase2, tmp_path):
    place = 'path.pretrain_network_phase1'
    file = str(weights_of(plugin, tmp_path / 'phase1.pth'))
    assert preflight(put(phase2, place, file), 'x.yml', True) == []
    missing = problems_at(put(phase2, place, 'experiments/my1/models/net_g_latest.pth'), place)
    assert 'no such file' in missing
    assert 'unfoldldm_basicsr.train -opt YOUR_PHASE1.yml, the option file with name: my1' in missing
    second = str(weights_of(phase2, tmp_path / 'phase2.pth'))
    assert 'pretrain_network_g' in problems_at(put(phase2, place, second), place)


def test_a_resumed_run_needs_no_weights_to_start_from(
    phase2, plugin, tmp_path, monkeypatch, capsys
):
    """Its checkpoint replaces them; a fresh start needs them, and so does an ignored network."""
    place = 'path.pretrain_network_phase1'
    options = put(phase2, place, '/moved/away.pth')
    assert preflight(options, 'x.yml', True, resuming=True) == []
    assert 'no such file' in problems_at(options, place)
    (tmp_path / '5.state').write_bytes(b'')
    named = put(options, 'path.resume_state', str(tmp_path / '5.state'))
    assert problems_at(named, place) == ''
    assert 'no such file' in problems_at(named, place, resuming=False)
    ignored = put(options, 'path.ignore_resume_networks', ['network_g'])
    assert 'no such file' in problems_at(ignored, place, resuming=True)
    assert 'no such file' in problems_at(
        put(plugin, 'path.pretrain_network_g', '/no.pth'), 'path.pretrain_network_g'
    )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['x', '-opt', str(write_options(tmp_path / 'x.yml', options))])
    sys.argv.append('--auto_resume')
    with pytest.raises(SystemExit):
        parse_options(str(tmp_path), is_train=True)
    assert '/moved/away.pth: no such file' in capsys.readouterr().err
    states = tmp_path / 'experiments' / options['name'] / 'training_states'
    states.mkdir(parents=True)
    (states / '5.state').write_bytes(b'')
    assert parse_options(str(tmp_path), is_train=True)[0]['auto_resume']
    sys.argv.pop()
    with pytest.raises(SystemExit):
        parse_options(str(tmp_path), is_train=True)
