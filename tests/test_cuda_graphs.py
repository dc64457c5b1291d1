"""``train.use_cuda_graphs``: the same training, launched at once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import model_options, rule_problems, tiny_unfoldldm
from model_runs import state_of, steps
from tiny_network import RESTORMER

from unfoldldm_basicsr.models import UnfoldLDMPhase1Model, UnfoldLDMPhase2Model, VLUNetModel
from unfoldldm_basicsr.options.run import typed
from unfoldldm_basicsr.training.options import graphs_fit
from unfoldldm_basicsr.training.restoration_model import RestorationModel

NETWORK = {'type': 'Restormer', **RESTORMER}
ISDA = {'type': 'ISDALoss', 'loss_weight': 0.1}
PHASE2 = {
    'isda_opt': ISDA, 'diffusion_opt': {'type': 'LatentDiffusionLoss'}, 'prior_warmup_iter': 3,
}  # fmt: skip
TRAININGS = {
    'restormer': (RestorationModel, NETWORK, {}),
    'phase1': (UnfoldLDMPhase1Model, tiny_unfoldldm(1), {'isda_opt': ISDA}),
    'phase2': (UnfoldLDMPhase2Model, tiny_unfoldldm(2), PHASE2),
}


def trained(name: str, folder: Path, *, graphs: bool, **train) -> tuple[dict, list[dict]]:
    """Weights after ten iterations on the GPU, on patches of two sizes, and the logs of all."""
    kind, network, losses = TRAININGS[name]
    settings = {'optim_g': {'type': 'SGD', 'lr': 0.1}, 'use_cuda_graphs': graphs}
    options = model_options(folder, network, **losses, **settings, **train)
    options['num_gpu'], options['logger']['print_freq'] = 1, 5
    if name == 'phase2':
        first = model_options(folder / 'first', tiny_unfoldldm(1), isda_opt=ISDA)
        torch.manual_seed(0)
        UnfoldLDMPhase1Model(first).save(0, 1)
        file = next((folder / 'first' / 'models').glob('net_g_*.pth'))
        options['path']['pretrain_network_phase1'] = str(file)
    torch.manual_seed(0)
    model, logs = kind(options), []
    for iteration in range(1, 11):
        steps(model, iteration, side=24 if iteration % 3 == 0 else 16)
        logs.append(dict(model.log_dict))
    return {key: value.cpu() for key, value in state_of(model.net_g).items()}, logs


@pytest.mark.gpu
@pytest.mark.parametrize('name', TRAININGS)
def test_a_training_is_the_same_with_graphs(name, tmp_path):
    plain, plain_logs = trained(name, tmp_path / 'plain', graphs=False)
    replayed, logs = trained(name, tmp_path / 'graphs', graphs=True)
    assert [log.keys() for log in logs] == [log.keys() for log in plain_logs]
    for log, plain_log in zip(logs, plain_logs, strict=True):
        assert log == pytest.approx(plain_log, rel=1e-3)
    for key, value in plain.items():
        torch.testing.assert_close(replayed[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_a_loss_that_waits_for_the_gpu_is_named(tmp_path):
    class Waiting(RestorationModel):
        def compute_losses(self, batch, current_iter):
            losses, figures = super().compute_losses(batch, current_iter)
            return {'l_pix': losses['l_pix'] * losses['l_pix'].item()}, figures

    options = model_options(tmp_path, NETWORK, use_cuda_graphs=True)
    options['num_gpu'], options['logger']['print_freq'] = 1, 5
    with pytest.raises(RuntimeError, match='use_cuda_graphs: this step cannot be captured'):
        steps(Waiting(options), 1)


def test_several_processes_and_steered_networks_are_refused(tmp_path, monkeypatch):
    options = model_options(tmp_path, NETWORK, use_cuda_graphs=True)
    assert not rule_problems(RestorationModel, options)
    monkeypatch.setenv('WORLD_SIZE', '2')
    (problem,) = graphs_fit(replace(typed(RestorationModel, options), launcher='pytorch'))
    assert problem.path == 'train.use_cuda_graphs'
    options['network_e'] = {'type': 'LabelDegradationEmbedding', 'num_degradations': 3}
    assert 'train.use_cuda_graphs' in rule_problems(VLUNetModel, options)
