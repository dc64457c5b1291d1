"""Two processes on one CPU: every phase trains, and the replicas stay identical.

The checks of several ranks run in one job (starting is slow), forked from a process that has
imported everything; the tests look at what it found.
"""

import json
import multiprocessing
import os
import signal
import traceback
import weakref
from pathlib import Path

import pytest
import torch
from helpers import model_options, tiny_unfoldldm
from model_runs import Pictures, batch, networks, resumed, steps, validate
from tiny_trainings import NAFNET
from torch import distributed
from training_process import free_port
from vlunet_runs import vlunet_options

ISDA = {'type': 'ISDALoss', 'loss_weight': 0.1}
DIFFUSION = {'diffusion_opt': {'type': 'LatentDiffusionLoss'}}
CLIP = {'use_grad_clip': True}
FIVE = Pictures(5, names=('noise', 'blur'))


class Damaged(Pictures):
    """One picture cannot be read; it is in the share of rank 1."""

    def __getitem__(self, index):
        if index == 3:
            raise ValueError(f'p{index}.png: damaged')
        return super().__getitem__(index)


class Job:
    """What every process runs; ``found`` is written by rank 0."""

    def __init__(self, folder: Path):
        self.folder, self.found = folder, {}
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def ranks(self, options: dict) -> dict:
        return options | {'dist': self.world > 1, 'rank': self.rank, 'world_size': self.world}

    def options(self, name: str, network: dict, **train) -> dict:
        return self.ranks(model_options(self.folder / name, network, **train))

    def step(self, model, *iterations: int) -> None:
        """Trains with other data on every rank."""
        for iteration in iterations:
            steps(model, iteration, data=batch(100 * iteration + self.rank))

    def everywhere(self, value) -> list:
        values = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def equal_on_all_ranks(self, *nets) -> bool:
        own = torch.cat([v.flatten().double() for net in nets for v in net.state_dict().values()])
        return all(torch.equal(own, other) for other in self.everywhere(own))

    # ---- replicas -------------------------------------------------------------------------

    def phases(self) -> None:
        from unfoldldm_basicsr.models import UnfoldLDMPhase1Model, UnfoldLDMPhase2Model

        torch.manual_seed(self.rank)  # replicas start different; the wrapper must make them equal
        network = tiny_unfoldldm(1, use_checkpoint=True)
        first = UnfoldLDMPhase1Model(
            self.options('phase1', network, isda_opt=ISDA, accum_iter=2, **CLIP)
        )
        self.step(first, 1, 2)
        self.found['phase1'] = self.equal_on_all_ranks(*networks(first))
        self.found['data_differs'] = (
            len({str(x) for x in self.everywhere(first.batch['lq'])}) == self.world
        )
        first.save(0, 2)
        distributed.barrier()
        train = {'isda_opt': ISDA, 'prior_warmup_iter': 2, **DIFFUSION, **CLIP}
        options = self.options('phase2', tiny_unfoldldm(2), **train)
        options['path']['pretrain_network_phase1'] = str(self.folder / 'phase1/models/net_g_2.pth')
        second = UnfoldLDMPhase2Model(options)
        self.step(second, 1, 2)
        self.found['warmup'] = self.equal_on_all_ranks(*networks(second))
        losses, wrapper = list(second.log_dict), weakref.ref(second.net_g)
        self.step(second, 3, 4)
        self.found['joint'] = self.equal_on_all_ranks(*networks(second))
        self.found['switch'] = {
            'the old wrapper is gone': wrapper() is None,
            'the same losses': list(second.log_dict) == losses,
            'all is trained': second.log_dict['l_pix'] > 0,
        }
        # Random numbers of every rank come back, and the run goes on with the same bits.
        second.save(0, 4)
        wanted = torch.rand(2)
        distributed.barrier()
        third = resumed(second, self.options('phase2', tiny_unfoldldm(2), **train), 4)
        self.found['resumed_numbers'] = all(self.everywhere(torch.equal(torch.rand(2), wanted)))
        for model in (second, third):
            self.step(model, 5)
        own, other = (m.network.bare.state_dict() for m in (second, third))
        self.found['resumed_bits'] = all(torch.equal(own[key], other[key]) for key in own)

    def embeddings(self) -> None:
        """VLU-Net with a frozen and a trained embedding, made equal by model and wrapper."""
        from unfoldldm_basicsr.models import VLUNetModel

        for source in ('label', 'learned'):
            torch.manual_seed(self.rank)
            model = VLUNetModel(
                self.ranks(vlunet_options(self.folder / source, source, accum_iter=2))
            )
            embedding = model.embedding.bare
            self.found[f'{source}_start'] = self.equal_on_all_ranks(embedding)
            self.step(model, 1, 2)  # a second step hangs or fails where a gradient was missing
            self.found[source] = self.equal_on_all_ranks(*networks(model))

    # ---- one model on both ranks ------------------------------------------------------------

    def together(self) -> None:
        """Two ranks with two images each make the step of one process with all four."""
        from unfoldldm_basicsr.models import RestorationModel

        torch.manual_seed(0)
        both = RestorationModel(self.options('both', NAFNET))
        torch.manual_seed(0)
        alone = RestorationModel(model_options(self.folder / f'one{self.rank}', NAFNET))
        for iteration in (1, 2):
            parts = [batch(100 * iteration + rank) for rank in range(self.world)]
            self.step(both, iteration)
            whole = {key: torch.cat([p[key] for p in parts]) for key in ('lq', 'gt')}
            steps(alone, iteration, data=whole)
        pairs = zip(both.network.bare.parameters(), alone.net_g.parameters(), strict=True)
        self.found['average_gap'] = max((p - q).abs().max().item() for p, q in pairs)
        self.found['loss_gap'] = abs(both.log_dict['l_pix'] - alone.log_dict['l_pix'])
        self.validation(both)
        self.failures(both)
        self.guard(both)

    def validation(self, model) -> None:
        split = validate(model, FIVE, 2)
        best = self.everywhere(model.best_metric_results)
        self.found['best_on_all_ranks'] = best[0] == best[-1]
        model.opt |= {'dist': False, 'rank': 0, 'world_size': 1}
        self.found['validation_equals_one_rank'] = split == validate(model, FIVE, 2)
        self.found['validation_score'] = split['psnr']
        model.opt |= self.ranks({})

    def failures(self, model) -> None:
        """What goes wrong on one rank ends both with its message."""
        from unfoldldm_basicsr.common.errors import RunFailure

        def messages(pictures: Pictures) -> list[str]:
            message = ''
            try:
                validate(model, pictures, 2)
            except RunFailure as error:
                message = str(error)
            return self.everywhere(message)

        self.found['damaged_image'] = messages(Damaged(5))
        log, path = model.opt['path']['log'], self.folder / 'in_the_way'
        path.write_text('')
        distributed.barrier()
        model.opt['path']['log'] = str(path)
        self.found['unwritable_table'] = messages(FIVE)
        model.opt['path']['log'] = log

    def guard(self, model) -> None:
        data, before = batch(300 + self.rank), model.network.bare.state_dict()['intro.weight']
        before = before.clone()
        if self.rank == 1:
            data['gt'][0, 0, 0, 0] = float('nan')
        steps(model, 3, data=data)
        after = model.network.bare.state_dict()['intro.weight']
        skipped = torch.equal(before, after) and model.step.guard.in_a_row == 1
        self.found['all_skip_together'] = all(self.everywhere(skipped))
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            self.step(model, 4)
        except SystemExit as stop:
            codes = self.everywhere(stop.code)
            self.found['stopped_together'] = codes == [128 + signal.SIGTERM] * self.world
        self.found['saved_on_signal'] = (self.folder / 'both/states/4.state').exists()


def run_rank(folder: Path, rank: int, world: int, port: int) -> None:
    import unfoldldm_basicsr  # noqa: F401

    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', rank=rank, world_size=world)
    try:
        job = Job(folder)
        for check in (job.phases, job.embeddings, job.together):
            check()
    except BaseException:
        (folder / f'error_{rank}.txt').write_text(traceback.format_exc(), encoding='utf-8')
        raise
    if rank == 0:
        (folder / 'found.json').write_text(json.dumps(job.found), encoding='utf-8')
    distributed.destroy_process_group()


def run_job(folder: Path, world: int = 2) -> dict:
    context, port = multiprocessing.get_context('forkserver'), free_port()
    context.set_forkserver_preload(['unfoldldm_basicsr.train', 'basicsr.train'])
    ranks = [
        context.Process(target=run_rank, args=(folder, rank, world, port)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(600)
    errors = [path.read_text(encoding='utf-8')[-3000:] for path in folder.glob('error_*.txt')]
    assert [process.exitcode for process in ranks] == [0] * world, '\n'.join(errors)
    return json.loads((folder / 'found.json').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('job')
    vlunet_options(folder / 'photos_first', 'label')
    return run_job(folder)


REPLICAS = ['phase1', 'warmup', 'joint', 'label_start', 'label', 'learned_start', 'learned']
TOGETHER = ['resumed_numbers', 'resumed_bits', 'stopped_together', 'saved_on_signal']


@pytest.mark.parametrize('part', [*REPLICAS, *TOGETHER])
def test_replicas_stay_bit_identical_and_ranks_resume_and_stop_together(found, part):
    assert found['data_differs']
    assert found[part]


def test_the_switch_to_joint_training_rewraps_on_all_ranks(found):
    assert all(found['switch'].values()), found['switch']


def test_two_ranks_make_the_step_of_one_process_with_both_batches(found):
    assert found['average_gap'] < 1e-5
    assert found['loss_gap'] < 1e-6


def test_validation_split_over_ranks_gives_the_numbers_of_one(found):
    assert found['validation_equals_one_rank']
    assert found['best_on_all_ranks']
    assert 3 < found['validation_score'] < 40


def test_what_goes_wrong_on_one_rank_of_a_validation_ends_all_with_its_message(found):
    fault = 'dataset held_out: item 3: ValueError: p3.png: damaged'
    assert found['damaged_image'] == [fault, fault]
    first, second = found['unwritable_table']
    assert first == second
    assert first.startswith('cannot write ')
    assert 'in_the_way/validation_held_out.csv: File exists.' in first


def test_a_nan_on_one_rank_makes_all_skip(found):
    assert found['all_skip_together']
