"""Advice to trainings that run out of memory."""

from __future__ import annotations

import pytest
import torch
from helpers import model_options

from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.training.guards import training_memory

RESTORMER = {'type': 'Restormer', 'dim': 4, 'heads': [1, 1, 1, 1], 'num_blocks': [1, 1, 1, 1]}
NAFNET = {'type': 'NAFNet', 'width': 4, 'enc_blk_nums': [1], 'dec_blk_nums': [1]}


def no_memory(*args, **kwargs):
    raise torch.cuda.OutOfMemoryError('Tried to allocate 2 GiB')


def test_a_training_without_memory_hears_what_its_network_can_do(tmp_path):
    for network, named in (({**RESTORMER, 'use_checkpoint': False}, True), (NAFNET, False)):
        model = RestorationModel(model_options(tmp_path, network))
        model.compute_losses = no_memory
        image = torch.rand(1, 3, 16, 16)
        model.feed_data({'lq': image, 'gt': image, 'lq_path': ['a.png']})
        with pytest.raises(RuntimeError, match=r'Out of GPU memory.*allocate 2 GiB') as caught:
            model.optimize_parameters(1)
        assert ('network_g.use_checkpoint: true' in str(caught.value)) == named
        assert 'accum_iter' in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'already', 'named'),
    [('UnfoldLDM', False, True), ('Restormer', True, False), ('NAFNet', None, False)],
)
def test_remedies_are_named_from_the_cheapest_to_the_dearest(name, already, named):
    network = {'type': name} if already is None else {'type': name, 'use_checkpoint': already}
    with (
        pytest.raises(RuntimeError, match='Out of GPU memory') as caught,
        training_memory({'network_g': network}),
    ):
        no_memory()
    keys = 'accum_iter', 'use_checkpoint', 'amp', 'gt_size'
    found = [str(caught.value).find(key) for key in keys if named or key != 'use_checkpoint']
    assert found == sorted(found)
    assert found[0] > 0
    assert ('use_checkpoint' in str(caught.value)) == named
