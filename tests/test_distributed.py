"""Two processes on one CPU: every phase trains, the replicas stay identical, and both act as one.

The processes are forked from one that has imported everything. What a check asserts, it asserts on
both ranks.
"""

import multiprocessing
import os
import signal
import time
import traceback
import weakref
from pathlib import Path

import basicsr.test
import pytest
import torch
from helpers import model_options, tiny_unfoldldm
from model_runs import Pictures, batch, networks, resumed, steps, validate
from tiny_network import NORMED
from tiny_trainings import NAFNET
from tiny_vlunet import vlunet_options
from torch import distributed
from training_process import free_port

from unfoldldm_basicsr.common.errors import RunFailure
from unfoldldm_basicsr.models import (
    RestorationModel,
    UnfoldLDMPhase1Model,
    UnfoldLDMPhase2Model,
    VLUNetModel,
)

ISDA = {'type': 'ISDALoss', 'loss_weight': 0.1}
DIFFUSION = {'diffusion_opt': {'type': 'LatentDiffusionLoss'}}
CLIP = {'use_grad_clip': True}
FIVE = Pictures(5, names=('noise', 'blur'))
WORLD = 2


def ranks(options: dict) -> dict:
    return options | {'dist': True, 'rank': distributed.get_rank(), 'world_size': WORLD}


def options_of(folder: Path, network: dict, **train) -> dict:
    return ranks(model_options(folder, network, **train))


def step(model, *iterations: int) -> None:
    """Trains with other data on every rank."""
    for iteration in iterations:
        steps(model, iteration, data=batch(100 * iteration + distributed.get_rank()))


def everywhere(value) -> list:
    values = [None] * WORLD
    distributed.all_gather_object(values, value)
    return values


def equal_on_all_ranks(*nets) -> bool:
    own = torch.cat([v.flatten().double() for net in nets for v in net.state_dict().values()])
    return all(torch.equal(own, other) for other in everywhere(own))


def both_phases_keep_replicas_identical_and_resume_with_the_same_bits(folder: Path) -> None:
    torch.manual_seed(distributed.get_rank())  # replicas start different; the wrapper equals them
    network = tiny_unfoldldm(1, use_checkpoint=True)
    train = {'isda_opt': ISDA, 'accum_iter': 2, **CLIP}
    first = UnfoldLDMPhase1Model(options_of(folder / 'phase1', network, **train))
    step(first, 1, 2)
    assert equal_on_all_ranks(*networks(first))
    assert len({str(lq) for lq in everywhere(first.batch['lq'])}) == WORLD, 'the data differ'
    first.save(0, 2)
    distributed.barrier()
    train = {'isda_opt': ISDA, 'prior_warmup_iter': 2, **DIFFUSION, **CLIP}
    options = options_of(folder / 'phase2', tiny_unfoldldm(2), **train)
    options['path']['pretrain_network_phase1'] = str(folder / 'phase1/models/net_g_2.pth')
    second = UnfoldLDMPhase2Model(options)
    step(second, 1, 2)
    assert equal_on_all_ranks(*networks(second))
    losses, wrapper = list(second.log_dict), weakref.ref(second.net_g)
    step(second, 3, 4)  # the switch to joint training
    assert equal_on_all_ranks(*networks(second))
    assert wrapper() is None, 'the old wrapper is gone'
    assert list(second.log_dict) == losses
    assert second.log_dict['l_pix'] > 0, 'all is trained'
    # Random numbers of every rank come back, and the run goes on with the same bits.
    second.save(0, 4)
    wanted = torch.rand(2)
    distributed.barrier()
    third = resumed(second, options_of(folder / 'phase2', tiny_unfoldldm(2), **train), 4)
    assert torch.equal(torch.rand(2), wanted)
    for model in (second, third):
        step(model, 5)
    own, other = (m.network.bare.state_dict() for m in (second, third))
    assert all(torch.equal(own[key], other[key]) for key in own)


def embeddings_stay_identical_frozen_or_trained(folder: Path) -> None:
    for source in ('label', 'learned'):
        torch.manual_seed(distributed.get_rank())
        model = VLUNetModel(ranks(vlunet_options(folder / source, source, accum_iter=2)))
        assert equal_on_all_ranks(model.embedding.bare)
        step(model, 1, 2)  # a second step hangs or fails where a gradient was missing
        assert equal_on_all_ranks(*networks(model))


def both_make_the_step_of_one_process_with_both_batches(folder: Path) -> None:
    torch.manual_seed(0)
    both = RestorationModel(options_of(folder / 'both', NAFNET))
    torch.manual_seed(0)
    alone = RestorationModel(model_options(folder / f'one{distributed.get_rank()}', NAFNET))
    for iteration in (1, 2):
        parts = [batch(100 * iteration + rank) for rank in range(WORLD)]
        step(both, iteration)
        whole = {key: torch.cat([p[key] for p in parts]) for key in ('lq', 'gt')}
        steps(alone, iteration, data=whole)
    pairs = zip(both.network.bare.parameters(), alone.net_g.parameters(), strict=True)
    assert max((p - q).abs().max().item() for p, q in pairs) < 1e-5
    assert abs(both.log_dict['l_pix'] - alone.log_dict['l_pix']) < 1e-6


def a_validation_split_over_ranks_gives_the_numbers_of_one(folder: Path) -> None:
    options = options_of(folder, NORMED, ema_decay=0.5)
    model = RestorationModel(options | {'find_unused_parameters': True})
    assert model.net_g.find_unused_parameters
    step(model, 1)  # after which each rank has running statistics of its own
    split = validate(model, FIVE, 2)
    best = everywhere(model.best_metric_results)
    assert best[0] == best[1]
    model.opt |= {'dist': False, 'rank': 0, 'world_size': 1}
    assert split == validate(model, FIVE, 2)
    assert 3 < split['psnr'] < 40


def no_rank_tests_before_older_results_are_moved(folder: Path) -> None:
    if distributed.get_rank() == 0:
        time.sleep(1)
    basicsr.test.make_exp_dirs(ranks({'path': {'results_root': folder / 'x'}, 'is_train': False}))
    assert (folder / 'x').is_dir()


def what_rank_0_cannot_write_ends_both_with_its_message(folder: Path) -> None:
    model = RestorationModel(options_of(folder, NAFNET))
    (folder / 'in_the_way').write_text('')
    distributed.barrier()
    model.opt['path']['log'] = str(folder / 'in_the_way')
    with pytest.raises(RunFailure, match=r'^cannot write .*way/validation_held_out\.csv: File exi'):
        validate(model, FIVE, 2)


def a_nan_or_a_signal_on_one_rank_is_met_by_both(folder: Path) -> None:
    model = RestorationModel(options_of(folder, NAFNET))
    data, before = batch(300 + distributed.get_rank()), model.network.bare.intro.weight.clone()
    if distributed.get_rank() == 1:
        data['gt'][0, 0, 0, 0] = float('nan')
    steps(model, 3, data=data)
    assert torch.equal(before, model.network.bare.intro.weight)
    assert model.step.skipped['in_a_row'] == 1
    if distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        step(model, 4)
    assert stop.value.code == 128 + signal.SIGTERM
    distributed.barrier()
    assert (folder / 'states/4.state').exists()


def run_rank(check, folder: Path, rank: int, port: int) -> None:
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', rank=rank, world_size=WORLD)
    try:
        check(folder)
    except BaseException:
        (folder / f'error_{rank}.txt').write_text(traceback.format_exc(), encoding='utf-8')
        raise
    distributed.destroy_process_group()


@pytest.mark.parametrize('check', [
    both_phases_keep_replicas_identical_and_resume_with_the_same_bits,
    embeddings_stay_identical_frozen_or_trained, no_rank_tests_before_older_results_are_moved,
    both_make_the_step_of_one_process_with_both_batches,
    a_validation_split_over_ranks_gives_the_numbers_of_one,
    what_rank_0_cannot_write_ends_both_with_its_message,
    a_nan_or_a_signal_on_one_rank_is_met_by_both,
], ids=lambda check: check.__name__)  # fmt: skip
def test_two_ranks_act_as_one(tmp_path, check):
    context, port = multiprocessing.get_context('forkserver'), free_port()
    context.set_forkserver_preload(['unfoldldm_basicsr.train', 'basicsr.train'])
    vlunet_options(tmp_path / 'photos_first', 'label')
    processes = [
        context.Process(target=run_rank, args=(check, tmp_path, rank, port))
        for rank in range(WORLD)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    errors = [path.read_text(encoding='utf-8')[-3000:] for path in tmp_path.glob('error_*.txt')]
    assert [process.exitcode for process in processes] == [0] * WORLD, '\n'.join(errors)
