"""Two processes on one CPU: every phase trains under torchrun, and the replicas stay identical.

Run by torchrun this file is the job itself (all checks in one start, because starting is slow);
run by pytest it starts that job once and looks at what it found.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import weakref
from pathlib import Path

import pytest
import torch
from helpers import ROOT, model_options, run_python, tiny_unfoldldm
from tiny_vlunet_prior import TINY_PRIOR
from torch import distributed
from torch.utils.data import DataLoader, Dataset

ISDA = {'type': 'ISDALoss', 'loss_weight': 0.1}
CLIP = {'use_grad_clip': True}
NAFNET = {
    'type': 'NAFNet',
    'width': 4,
    'middle_blk_num': 1,
    'enc_blk_nums': [1],
    'dec_blk_nums': [1],
}


class Pictures(Dataset):
    opt = {'name': 'held_out'}

    def __len__(self):
        return 5

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        lq, gt = torch.rand(2, 3, 16, 16, generator=generator)
        names = ('noise', 'blur')
        return {
            'lq': lq,
            'gt': gt,
            'lq_path': f'p{index}.png',
            'degradation_name': names[index % 2],
        }


class Damaged(Pictures):
    """One picture cannot be read; it is in the share of rank 1."""

    def __init__(self, error: type[Exception]):
        self.error = error

    def __getitem__(self, index):
        if index == 3:
            raise self.error(f'p{index}.png: damaged')
        return super().__getitem__(index)


class Job:
    """What every process runs; ``found`` is written by rank 0."""

    def __init__(self, folder: Path):
        self.folder, self.found = folder, {}
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def options(self, name: str, network: dict, **train) -> dict:
        options = model_options(self.folder / name, network, **train)
        return options | {'dist': True, 'rank': self.rank, 'world_size': self.world}

    def batch(self, iteration: int) -> dict:
        """Other data on every rank."""
        generator = torch.Generator().manual_seed(100 * iteration + self.rank)
        lq, gt = torch.rand(2, 2, 3, 16, 16, generator=generator)
        return {'lq': lq, 'gt': gt, 'lq_path': ['a', 'b']}

    def step(self, model, iteration: int, data: dict | None = None) -> None:
        model.update_learning_rate(iteration)
        model.feed_data(data or self.batch(iteration))
        model.optimize_parameters(iteration)

    def everywhere(self, value) -> list:
        values = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def equal_on_all_ranks(self, model) -> bool:
        nets = model.network.bare, model.net_g_ema
        own = torch.cat([v.flatten().double() for net in nets for v in net.state_dict().values()])
        return all(torch.equal(own, other) for other in self.everywhere(own))

    # ---- checks ---------------------------------------------------------------------------

    def phases(self) -> None:
        from unfoldldm_basicsr.models import UnfoldLDMPhase1Model, UnfoldLDMPhase2Model

        torch.manual_seed(self.rank)  # replicas start different; the wrapper must make them equal
        first = UnfoldLDMPhase1Model(
            self.options('phase1', tiny_unfoldldm(1), isda_opt=ISDA, accum_iter=2, **CLIP)
        )
        for iteration in (1, 2, 3):
            self.step(first, iteration)
        self.found['phase1'] = self.equal_on_all_ranks(first)
        again = UnfoldLDMPhase1Model(
            self.options('recomputing', tiny_unfoldldm(1, use_checkpoint=True), **CLIP)
        )
        for iteration in (1, 2):
            self.step(again, iteration)
        self.found['recomputing'] = self.equal_on_all_ranks(again)
        self.found['data_differs'] = (
            len({str(x) for x in self.everywhere(first.batch['lq'])}) == self.world
        )
        first.save(0, 3)
        distributed.barrier()
        options = self.options(
            'phase2',
            tiny_unfoldldm(2),
            isda_opt=ISDA,
            diffusion_opt={'type': 'LatentDiffusionLoss'},
            prior_warmup_iter=2,
            **CLIP,
        )
        options['path']['pretrain_network_phase1'] = str(self.folder / 'phase1/models/net_g_3.pth')
        second = UnfoldLDMPhase2Model(options)
        for iteration in (1, 2):
            self.step(second, iteration)
        self.found['warmup'] = self.equal_on_all_ranks(second)
        self.found['warmup_losses'] = list(second.log_dict)
        wrapper = weakref.ref(second.net_g)
        for iteration in (3, 4):
            self.step(second, iteration)
        self.found['old_wrapper_gone'] = wrapper() is None
        self.found['joint'] = self.equal_on_all_ranks(second)
        self.found['joint_losses'] = list(second.log_dict)
        self.found['joint_trains_all'] = second.log_dict['l_pix'] > 0
        self.resume(second, options)

    def resume(self, second, options: dict) -> None:
        """Random numbers of every rank come back, and the run goes on with the same bits."""
        second.save(0, 4)
        wanted = torch.rand(2)
        distributed.barrier()
        state = self.folder / 'phase2/states/4.state'
        options['path'] |= {
            'resume_state': str(state),
            'pretrain_network_g': str(self.folder / 'phase2/models/net_g_4.pth'),
        }
        third = type(second)(options)
        third.resume_training(torch.load(state, weights_only=True))
        same = self.everywhere(torch.equal(torch.rand(2), wanted))
        self.found['random_numbers_of_each_rank'] = all(same)
        for model in (second, third):
            self.step(model, 5)
        own, other = (m.get_bare_model(m.net_g).state_dict() for m in (second, third))
        self.found['resumed_bits'] = all(torch.equal(own[key], other[key]) for key in own)

    def averaging(self) -> None:
        """Two ranks with two images each make the step of one process with all four."""
        from unfoldldm_basicsr.models import RestorationModel

        torch.manual_seed(0)
        both = RestorationModel(self.options('both', NAFNET))
        torch.manual_seed(0)
        alone = RestorationModel(model_options(self.folder / f'alone{self.rank}', NAFNET))
        for iteration in (1, 2):
            parts = self.everywhere(self.batch(iteration))
            whole = {key: torch.cat([p[key] for p in parts]) for key in ('lq', 'gt')}
            self.step(both, iteration)
            self.step(alone, iteration, whole)
        pairs = zip(both.net_g.module.parameters(), alone.net_g.parameters(), strict=True)
        gaps = [(p - q).abs().max().item() for p, q in pairs]
        self.found['average_gap'] = max(gaps)
        self.found['loss_gap'] = abs(both.log_dict['l_pix'] - alone.log_dict['l_pix'])
        self.validation(both)
        self.failures(both)
        self.guard(both)

    def validation(self, model) -> None:
        loader = DataLoader(Pictures())
        model.validation(loader, 2, None, False)
        split = dict(model.metric_results)
        results = model.evaluator.evaluate(loader, 'x', save_img=False)
        self.found['images_in_order'] = [r.index for r in results] == list(range(5))
        best = self.everywhere(model.best_metric_results)
        model.opt |= {'dist': False, 'rank': 0, 'world_size': 1}
        model.validation(loader, 2, None, False)
        model.opt |= {'dist': True, 'rank': self.rank, 'world_size': self.world}
        self.found['validation_equals_one_rank'] = split == model.metric_results
        self.found['validation_score'] = split['psnr']
        self.found['best_on_all_ranks'] = best[0] == best[-1]

    def guard(self, model) -> None:
        data = self.batch(3)
        if self.rank == 1:
            data['gt'][0, 0, 0, 0] = float('nan')
        before = model.net_g.module.state_dict()['intro.weight'].clone()
        self.step(model, 3, data)
        after = model.net_g.module.state_dict()['intro.weight']
        skipped = self.everywhere(torch.equal(before, after) and model.step.guard.in_a_row == 1)
        self.found['all_skip_together'] = all(skipped)
        model.update_learning_rate(4)
        model.feed_data(self.batch(4))
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            model.optimize_parameters(4)
        except SystemExit as stop:
            codes = self.everywhere(stop.code)
            self.found['stopped_together'] = codes == [128 + signal.SIGTERM] * self.world
        self.found['saved_on_signal'] = (self.folder / 'both/states/4.state').exists()

    def failures(self, model) -> None:
        """What goes wrong on one rank ends both with its message."""
        from unfoldldm_basicsr.common.errors import SharedFailure

        def message(action, kind=SharedFailure) -> str:
            try:
                action()
            except kind as error:
                return str(error)
            return ''

        fault, bug = Damaged(ValueError), Damaged(KeyError)
        log, path = model.opt['path']['log'], self.folder / 'in_the_way'
        found = self.everywhere(
            message(lambda: model.validation(DataLoader(fault), 2, None, False))
        )
        self.found['damaged_image'] = found
        kind = (SharedFailure, KeyError)[self.rank]  # rank 1 reads it
        found = self.everywhere(
            message(lambda: model.validation(DataLoader(bug), 2, None, False), kind)
        )
        self.found['bug'] = found
        path.write_text('')
        distributed.barrier()
        model.opt['path']['log'] = str(path)
        found = self.everywhere(
            message(lambda: model.validation(DataLoader(Pictures()), 2, None, False))
        )
        self.found['unwritable_table'] = found
        model.opt['path']['log'] = log

    def guided_host(self) -> None:
        """VLU-Net with the latent prior; its degradation vectors are trained jointly in Phase I."""
        from unfoldldm_basicsr.models import VLUNetPriorPhase1Model, VLUNetPriorPhase2Model

        def options(phase: int, **train) -> dict:
            network = {'type': 'VLUNetPrior', 'phase': phase, **TINY_PRIOR}
            embedding = {'type': 'LearnedDegradationEmbedding', 'width': 4}
            embedding['embed_dim'] = TINY_PRIOR['embed_dim']
            return self.options(f'host{phase}', network, **train) | {'network_e': embedding}

        torch.manual_seed(self.rank)
        first = VLUNetPriorPhase1Model(options(1))
        for iteration in (1, 2, 3):
            self.step(first, iteration)
        vectors = [v.clone() for v in first.conditioning.network.bare.state_dict().values()]
        own = torch.cat([v.flatten() for v in vectors])
        same_vectors = all(torch.equal(own, other) for other in self.everywhere(own))
        self.found['host_phase1'] = self.equal_on_all_ranks(first) and same_vectors
        first.save(0, 3)
        distributed.barrier()
        diffusion = {'type': 'LatentDiffusionLoss'}
        second_options = options(2, diffusion_opt=diffusion, prior_warmup_iter=1)
        file = str(self.folder / 'host1/models/net_g_3.pth')
        second_options['path']['pretrain_network_phase1'] = file
        second = VLUNetPriorPhase2Model(second_options)
        self.step(second, 1)
        self.found['host_warmup'] = second.warming_up and self.equal_on_all_ranks(second)
        for iteration in (2, 3):
            self.step(second, iteration)
        self.found['host_joint'] = not second.warming_up and self.equal_on_all_ranks(second)


def main(folder: str) -> None:
    import unfoldldm_basicsr  # noqa: F401

    torch.set_num_threads(1)
    distributed.init_process_group('gloo')
    job = Job(Path(folder))
    job.phases()
    job.guided_host()
    job.averaging()
    if job.rank == 0:
        Path(folder, 'found.json').write_text(json.dumps(job.found), encoding='utf-8')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('job')
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    result = run_python(*launcher, __file__, str(folder), cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / 'found.json').read_text(encoding='utf-8'))


@pytest.mark.parametrize(
    'phase',
    ['phase1', 'recomputing', 'warmup', 'joint', 'host_phase1', 'host_warmup', 'host_joint'],
)
def test_replicas_stay_bit_identical(found, phase):
    assert found['data_differs']
    assert found[phase]


def test_the_switch_to_joint_training_rewraps_on_all_ranks(found):
    assert found['old_wrapper_gone']
    assert found['joint_trains_all']
    assert found['warmup_losses'] == found['joint_losses']


def test_two_ranks_make_the_step_of_one_process_with_both_batches(found):
    assert found['average_gap'] < 1e-5
    assert found['loss_gap'] < 1e-6


def test_validation_split_over_ranks_gives_the_numbers_of_one(found):
    assert found['validation_equals_one_rank']
    assert found['images_in_order']  # the mean is taken in this order on any number of ranks
    assert found['best_on_all_ranks']
    assert 3 < found['validation_score'] < 40


def validate(rank: int, world: int, port: int, folder: Path) -> None:
    """One rank of a validation; rank 0 writes the scores with all their digits."""
    from unfoldldm_basicsr.models import RestorationModel

    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', rank=rank, world_size=world)
    torch.manual_seed(0)
    model = RestorationModel(Job(folder).options(f'{world}', NAFNET) | {'dist': world > 1})
    model.validation(DataLoader(Pictures()), 2, None, False)
    if rank == 0:
        digits = {name: value.hex() for name, value in model.metric_results.items()}
        Path(folder, f'{world}.json').write_text(json.dumps(digits), encoding='utf-8')
    distributed.destroy_process_group()


def test_validation_on_three_ranks_gives_the_numbers_of_one_to_the_last_digit(tmp_path):
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['unfoldldm_basicsr.train', 'basicsr.train'])
    for world in (1, 3):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        ranks = [
            context.Process(target=validate, args=(rank, world, port, tmp_path))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
        assert [process.exitcode for process in ranks] == [0] * world
    alone, three = (json.loads((tmp_path / f'{world}.json').read_text()) for world in (1, 3))
    assert alone == three
    assert float.fromhex(alone['psnr']) > 3


def test_resuming_restores_every_rank(found):
    assert found['random_numbers_of_each_rank']
    assert found['resumed_bits']


def test_what_goes_wrong_on_one_rank_of_a_validation_ends_all_with_its_message(found):
    fault = 'dataset held_out: item 3: ValueError: p3.png: damaged'
    assert found['damaged_image'] == [fault, fault]
    assert found['bug'] == ["rank 1: KeyError: 'p3.png: damaged'.", "'p3.png: damaged'"]
    first, second = found['unwritable_table']
    assert first == second
    assert first.startswith('cannot write ')
    assert 'in_the_way/validation_held_out.csv: Not a directory.' in first


def test_a_nan_on_one_rank_makes_all_skip(found):
    assert found['all_skip_together']


def test_a_signal_to_one_rank_saves_and_stops_all(found):
    assert found['stopped_together']
    assert found['saved_on_signal']


if __name__ == '__main__':
    main(sys.argv[1])
