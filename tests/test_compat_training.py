"""BasicSR's training loop: real epochs, fresh crops, errors that arrive, resume, process groups."""

import logging
import multiprocessing
import os
import pickle
import re
import subprocess
import time
from itertools import chain
from pathlib import Path
from unittest.mock import MagicMock, Mock

import basicsr.data
import basicsr.train
import pytest
import torch
from basicsr.archs import build_network
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.prefetch_dataloader import CPUPrefetcher, PrefetchDataLoader
from basicsr.models import build_model
from basicsr.utils.logger import MessageLogger
from helpers import preflight, put, run_python, stock_options
from safetensors.torch import save_file
from torch.utils.data import ConcatDataset
from training_process import free_port

from unfoldldm_basicsr.compat import distributed
from unfoldldm_basicsr.data.loading import SeededSampler, TrainingItems
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.weights.checkpoint import CheckpointError


@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
def test_basicsrs_own_models_train_from_all_weights_that_the_check_accepts(tmp_path, suffix):
    options, file = parsed(tmp_path), tmp_path / f'x.{suffix}'
    state = build_network(dict(options['network_g'])).state_dict()
    if suffix == 'safetensors':
        save_file(state, file)
    else:  # of a compiled network, averaged
        wrapped = {f'module._orig_mod.{k}': v for k, v in state.items()}
        torch.save({'model_state_dict': wrapped | {'n_averaged': torch.tensor(3)}}, file)
    options['path']['pretrain_network_g'] = str(file)
    assert preflight(stock_options(tmp_path) | {'path': options['path']}, 'x.yml', True) == []
    options['train']['ema_decay'] = 0.9
    model = build_model(options)
    for net in (model.net_g, model.net_g_ema):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    model.feed_data({'lq': torch.rand(1, 3, 8, 8), 'gt': torch.rand(1, 3, 32, 32)})
    model.optimize_parameters(1)
    assert not torch.equal(model.net_g.conv_first.weight, state['conv_first.weight'])
    other = put(options, 'network_g.num_feat', 8)
    with pytest.raises(CheckpointError, match=r'of another shape \(first conv_first'):
        build_model(other)


def test_the_last_line_of_the_log_expects_no_more(tmp_path, log):
    logger = MessageLogger(parsed(tmp_path, total_iter=4), 3)
    for iteration in (3, 4):
        logger.start_time = time.time() - 10
        logger({'epoch': 0, 'iter': iteration, 'lrs': [1e-3], 'time': 1.0, 'data_time': 0.1})
    assert re.findall(r'eta: ([-\d:]+)', log.text) == ['0:00:10', '0:00:00']
    assert logger.max_iters == 4, 'which a logger of a project may read'


def parsed(tmp_path: Path, **changes) -> dict:
    options = stock_options(tmp_path, **changes)
    fill_defaults(options, is_train=True)
    options.update(dist=False, rank=0, world_size=1, is_train=True, auto_resume=False)
    for phase, dataset in options['datasets'].items():
        dataset.update(phase=phase, scale=4)
    return options


def test_epochs_are_counted_from_the_batches_the_loader_gives(tmp_path, monkeypatch):
    options = parsed(tmp_path, total_iter=10, batch=3)  # 5 pictures: one batch, the rest dropped
    arguments = options, logging.getLogger('test')
    loader, *_, epochs, _ = basicsr.train.create_train_val_dataloader(*arguments)
    *_, stock_epochs, _ = basicsr.train.create_train_val_dataloader.replaces(*arguments)
    steps = len(loader)
    assert steps * (epochs + 1) > 10  # the loop runs epochs + 1 times
    assert steps * (stock_epochs + 1) < 10
    twice = [basicsr.train.build_dataset(options['datasets']['train'])] * 2  # as a project wants it
    monkeypatch.setattr(basicsr.train, 'build_dataset', lambda _: ConcatDataset(twice))
    assert len(basicsr.train.create_train_val_dataloader(*arguments)[0]) == 3


def test_the_order_of_images_follows_seed_and_epoch():
    def order(seed, epoch):
        sampler = SeededSampler(range(50), num_replicas=1, rank=0, ratio=1, seed=seed)
        sampler.set_epoch(epoch)
        return [index for index, _ in sampler]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


@pytest.mark.parametrize(('images', 'ranks', 'ratio'), [(7, 2, 1), (5, 3, 4), (4, 1, 2.5)])
def test_ranks_share_one_permutation_as_in_basicsr(images, ranks, ratio):
    shares = [list(SeededSampler(range(images), ranks, r, ratio, seed=1)) for r in range(ranks)]
    theirs = [list(EnlargedSampler(range(images), ranks, r, ratio)) for r in range(ranks)]
    assert [len(s) for s in shares] == [len(s) for s in theirs]
    assert sorted(index for index, _ in chain(*shares)) == sorted(chain(*theirs))


def test_an_error_while_prefetching_arrives_instead_of_hanging():
    broken = MagicMock(__len__=Mock(return_value=4))
    broken.__getitem__.side_effect = ValueError('picture 0 is broken')
    loader = PrefetchDataLoader(num_prefetch_queue=1, dataset=broken, num_workers=0)
    with pytest.raises(ValueError, match='picture 0 is broken'):
        list(loader)
    loader = PrefetchDataLoader(num_prefetch_queue=1, dataset=list(range(5)), num_workers=0)
    assert torch.cat(list(loader)).tolist() == [0, 1, 2, 3, 4]


def test_the_prefetcher_starts_one_set_of_workers_per_epoch(tmp_path):
    options = put(parsed(tmp_path), 'datasets.train.num_worker_per_gpu', 1)
    loader, *_ = basicsr.train.create_train_val_dataloader(options, logging.getLogger('test'))
    before = set(multiprocessing.active_children())
    prefetcher = CPUPrefetcher(loader)
    assert set(multiprocessing.active_children()) == before
    prefetcher.reset()
    assert prefetcher.next()['lq'].shape == (2, 3, 8, 8)
    assert len(set(multiprocessing.active_children()) - before) == 1


def test_stock_datasets_reach_a_spawned_worker_and_no_import_warns(tmp_path):
    section = parsed(tmp_path)['datasets']['val']
    dataset = TrainingItems(PairedImageDataset(section), section)  # as the training loader has it
    (tmp_path / 'dataset.pkl').write_bytes(pickle.dumps(dataset))
    code = 'import pickle; d = pickle.load(open("dataset.pkl", "rb")); print(d[0]["lq"].shape)'
    # imports nothing of this package by itself
    result = run_python('-W', 'error', '-W', 'ignore::ResourceWarning', '-c', code, cwd=tmp_path)
    assert result.stdout.strip() == 'torch.Size([3, 8, 12])', result.stderr


@pytest.fixture
def one_process(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(free_port()))
    yield monkeypatch
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launched(environment, rank: str = '0', size: str = '1', gpus: int = 0) -> None:
    environment.setattr(torch.cuda, 'device_count', lambda: gpus)
    for name, value in (('RANK', rank), ('WORLD_SIZE', size), ('LOCAL_RANK', rank)):
        environment.setenv(name, value)


@pytest.mark.parametrize('machines', ['1', '2'])
def test_a_restarted_attempt_on_one_machine_has_a_store_of_its_own(one_process, machines):
    server = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)
    launched(one_process)
    one_process.setenv('MASTER_PORT', str(server.port))
    one_process.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    one_process.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    one_process.setenv('GROUP_WORLD_SIZE', machines)
    basicsr.utils.dist_util.init_dist('pytorch')
    prefixes = {key.split('/')[0] for key in server.list_keys() if '/' in key}
    assert prefixes == {'attempt_1' if machines == '1' else 'default_pg'}


def test_slurm_starts_from_its_variables(one_process, tmp_path):
    one_process.setattr(torch.cuda, 'device_count', lambda: 0)
    one_process.setenv('SLURM_PROCID', '0')
    one_process.setenv('SLURM_NTASKS', '1')
    basicsr.utils.dist_util.init_dist('slurm')
    assert torch.distributed.get_backend() == 'gloo'
    assert os.environ['WORLD_SIZE'] == '1'
    model = build_model(parsed(tmp_path) | {'dist': True})  # BasicSR's asks for a GPU
    assert type(model.net_g).__name__ == 'DistributedDataParallel'


def test_launchers_without_their_variables_are_explained(one_process):
    with pytest.raises(ValueError, match='torchrun --nproc_per_node'):
        distributed.init_dist_pytorch('nccl')
    one_process.delenv('SLURM_PROCID', raising=False)
    with pytest.raises(ValueError, match='srun'):
        distributed.init_dist_slurm('nccl')


def test_more_processes_than_gpus_are_refused(one_process):
    launched(one_process, rank='2', size='3', gpus=2)
    with pytest.raises(ValueError, match='nproc_per_node=2'):
        distributed.init_dist_pytorch('nccl')


@pytest.mark.parametrize(
    ('nodes', 'first'),
    [('gpu-7', 'gpu-7'), ('n[1-2],m-03', 'n1'), ('rack[01-04,9]n[3-4],x', 'rack01n3')],
)
def test_slurm_hosts_are_expanded_without_a_shell(monkeypatch, nodes, first):
    monkeypatch.setattr(subprocess, 'Popen', None)
    monkeypatch.setenv('SLURM_NODELIST', nodes)
    assert distributed.first_slurm_host() == first
