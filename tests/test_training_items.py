"""Training data: the same items whatever reads them and wherever a run goes on; named faults."""

import copy
import itertools
import logging
import multiprocessing
import os
import pickle
import random
import signal
import time
from pathlib import Path

import basicsr.train
import numpy as np
import pytest
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from dataset_options import paired, same, synthetic
from helpers import problems_at, put, run_python, stock_options, write_photos
from torch.utils.data import DataLoader, Dataset

from unfoldldm_basicsr.common.errors import DataFault
from unfoldldm_basicsr.data.loading import SeededSampler, TrainingItems, TrainLoader, fingerprint
from unfoldldm_basicsr.data.restoration_dataset import SyntheticDegradationDataset
from unfoldldm_basicsr.data.sources import FolderImages
from unfoldldm_basicsr.options.defaults import fill_defaults
from unfoldldm_basicsr.training.progress import progress
from unfoldldm_basicsr.training.resume import report_changes
from unfoldldm_basicsr.weights.training_state import Checkpoint

STEPS = 4  # per epoch of the runs below: 9 items in batches of 2


def run_options(train: dict) -> dict:
    """Options as the trainer has them when it builds the loaders."""
    options = {
        'num_gpu': 0, 'manual_seed': 5, 'datasets': {'train': dict(train)},
        'train': {'total_iter': 12},
        'path': {'training_states': 'no_such_folder', 'models': 'no_such_folder'},
    }  # fmt: skip
    options['datasets']['train'].setdefault('io_backend', {'type': 'disk'})
    return options | {'dist': False, 'rank': 0, 'world_size': 1}


def batches(options: dict, after: int = 0, count: int = 3 * STEPS) -> list[dict]:
    """The batches of the iterations ``after + 1`` to ``count``, as BasicSR's loop takes them."""
    state = {'iter': after, 'epoch': 77}
    progress.resumed = Checkpoint(Path('x.state'), state, {}) if after else None
    arguments = options, logging.getLogger('test')
    loader, sampler, *_, epochs, _ = basicsr.train.create_train_val_dataloader(*arguments)
    found = []
    for epoch in range(state['epoch'] if after else 0, epochs + 1):
        sampler.set_epoch(epoch)
        for batch in loader:
            if after + len(found) == count:
                return found
            found.append(batch)
    return found


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """torch waits so many seconds for a loader process that does not end."""
    monkeypatch.setattr(torch.utils.data._utils, 'MP_STATUS_CHECK_INTERVAL', 0.5)


@pytest.fixture
def photos(tmp_path) -> dict:
    write_photos(tmp_path / 'photos', 3, (24, 32))
    return synthetic(tmp_path / 'photos', repeat=3)


@pytest.fixture
def stock(tmp_path) -> dict:
    options = stock_options(tmp_path)
    fill_defaults(options, is_train=True)
    return options['datasets']['train'] | {'phase': 'train', 'scale': 4}


@pytest.mark.parametrize('after', [STEPS - 1, STEPS, STEPS + 2])
def test_a_resumed_run_gets_the_batches_that_the_uninterrupted_one_would(photos, after):
    options = run_options(photos)
    whole = batches(options)
    assert len(whole) == 3 * STEPS
    assert not same(whole[:STEPS], whole[STEPS : 2 * STEPS])
    assert not same(batches(options | {'manual_seed': 6}, count=STEPS), whole[:STEPS])
    random.random(), np.random.rand(3), torch.rand(5)  # noqa: NPY002  (another history)
    assert same(batches(options, after), whole[after:])


def test_every_seed_and_epoch_has_an_order_and_draws_of_its_own():
    found = []
    for seed, epoch in itertools.product((5, 6), (0, 1)):
        sampler = SeededSampler(range(50), 1, 0, 1, seed)
        sampler.set_epoch(epoch)
        found.append([*zip(*sampler, strict=True)])
    assert len({order for order, _ in found}) == 4
    assert len({draw for _, draws in found for draw in draws}) == 4 * 50


def test_stock_sets_are_cropped_anew_in_every_epoch(stock):
    for key in ('dataroot_gt', 'dataroot_lq'):  # one image: an epoch is one draw of new workers
        for file in sorted(Path(stock[key]).iterdir())[1:]:
            file.unlink()
    options = run_options(stock | {'num_worker_per_gpu': 1, 'batch_size_per_gpu': 1})
    crops = [batch['lq'].numpy().tobytes() for batch in batches(options, count=6)]
    assert len(set(crops)) > 2


@pytest.mark.parametrize('kind', ['photos', 'stock'])
def test_loader_processes_and_their_number_make_no_difference(request, kind):
    train = request.getfixturevalue(kind)
    alone = batches(run_options(train | {'num_worker_per_gpu': 0}))
    for workers, persistent, after in ((1, True, STEPS), (2, False, 3)):
        changes = {'num_worker_per_gpu': workers, 'persistent_workers': persistent}
        assert same(batches(run_options(train | changes), after), alone[after:])


def test_loader_processes_are_kept_between_epochs_unless_told_otherwise(photos):
    for workers, keep, kept in ((1, {}, True), (1, {'persistent_workers': False}, False),
                                (0, {'persistent_workers': True}, False)):  # fmt: skip
        options = run_options(photos | {'num_worker_per_gpu': workers} | keep)
        loader, *_ = basicsr.train.create_train_val_dataloader(options, logging.getLogger())
        assert loader.persistent_workers == kept


def test_images_before_the_position_are_not_read(photos, monkeypatch):
    names, read = [], FolderImages.read
    monkeypatch.setattr(FolderImages, 'read', lambda self, n: (names.append(n), read(self, n))[1])
    batches(run_options(photos), after=STEPS + 3, count=2 * STEPS)
    assert len(names) <= 2 * 2  # the last batch of the epoch, and the one that ended the reading


class Curriculum(list):
    """A data set of a project, which is told between epochs what to give."""

    level = 0

    def __getitem__(self, index):
        return {'level': self.level}


@pytest.mark.parametrize('workers', [0, 1])
def test_what_a_project_tells_its_data_set_and_loader_reaches_them(photos, monkeypatch, workers):
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'Curriculum', lambda _: Curriculum([0] * 4))
    collated = []

    def build_dataloader(*args, **settings):
        loader = loading(*args, **settings)
        loader.collate_fn = lambda items: (collated.append(items), items)[1]
        return loader

    loading = basicsr.train.build_dataloader
    monkeypatch.setattr(basicsr.train, 'build_dataloader', build_dataloader)
    options = run_options(photos | {'type': 'Curriculum', 'num_worker_per_gpu': workers})
    loader, *_ = basicsr.train.create_train_val_dataloader(options, logging.getLogger())
    for level in (0, 1, 2):
        loader.dataset.level = level
        assert {item['level'] for batch in loader for item in batch} == {level}
    assert len(collated) == (0 if workers else 6)  # in the loader processes


def test_a_loader_process_knows_the_data_set_of_the_project(photos):
    items = TrainingItems(SyntheticDegradationDataset(photos), photos)
    for made in (items, copy.copy(items), pickle.loads(pickle.dumps(items))):
        assert made.items == items.dataset.items


def test_loading_leaves_the_random_numbers_of_the_training_alone(photos):
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batches(run_options(photos))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def reported(photos: dict, stored: dict) -> list[str]:
    options = run_options(photos)
    batches(options, count=1)
    return report_changes(options, {'iter': 7, 'data': stored})


def test_changed_data_are_reported(photos):
    batches(run_options(photos), count=1)
    before = progress.data
    folder = Path(photos['dataroot_gt'])
    moved = folder.rename(folder.with_name('moved'))
    photos['dataroot_gt'] = str(moved)
    assert reported(photos, before) == []
    (moved / 'img_0.png').rename(moved / 'img_00.png')
    assert 'made with 3 of other names or sizes' in reported(photos, before)[0]
    (moved / 'img_00.png').rename(moved / 'img_0.png')
    (moved / 'img_0.png').write_bytes((moved / 'img_0.png').read_bytes() + b' ')
    assert 'made with 3 of other names or sizes' in reported(photos, before)[0]
    write_photos(moved, 4)
    message = reported(photos, before)[0]
    assert 'holds 4 images now, but the resumed state was made with 3' in message


def test_paired_mixed_and_stock_sets_have_fingerprints(photos, stock, tmp_path):
    folder = photos['dataroot_gt']
    prints = set()
    part = {k: photos[k] for k in ('type', 'dataroot_gt', 'degradations')}
    mixture = {k: v for k, v in photos.items() if k not in (*part, 'repeat')} | {
        'type': 'MixedDegradationDataset',
        'degradation_names': ['a', 'b'],
        'sets': [{**part, 'degradation_name': name} for name in 'ab'],
    }
    for train in (photos, paired(folder, folder), mixture, stock):
        batches(run_options(train), count=1)
        found = progress.data
        assert found['images'] >= 3
        prints.add(found['sha256'])
    assert len(prints) == 4

    def own(*paths: str) -> dict:
        return fingerprint(type('Own', (), {'paths': paths or None, '__len__': lambda _: 3})())

    assert own()['images'] == 3
    assert own('a/1.png') == own('moved/1.png') != own('a/2.png')


@pytest.fixture
def broken(photos) -> dict:
    path = Path(photos['dataroot_gt']) / 'img_1.png'
    path.write_bytes(path.read_bytes()[:200])
    return photos


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_ends_the_run_with_one_line_that_names_it(broken, workers):
    with pytest.raises(DataFault, match=r'^dataset photos: .*img_1\.png: cannot be') as caught:
        batches(run_options(broken | {'num_worker_per_gpu': workers}))
    assert '\n' not in str(caught.value)


def test_stock_data_sets_name_the_files_too(stock):
    Path(stock['dataroot_lq'], 'img_2.png').write_bytes(b'no image')
    with pytest.raises(DataFault, match=r': [^ ]*lq/img_2\.png: cannot be decoded') as caught:
        batches(run_options(stock))
    assert 'gt' not in str(caught.value).partition('cannot')[0], 'only the damaged one of the pair'


@pytest.mark.parametrize('workers', [0, 2])
def test_skipping_takes_the_next_image_with_the_same_draw(broken, workers, log):
    logging.getLogger('basicsr').setLevel(logging.ERROR)  # as BasicSR does on every rank above 0
    policy = {'on_error': 'skip', 'max_error_share': 0.5, 'num_worker_per_gpu': workers}
    found = batches(run_options(broken | policy))
    names = [Path(path).name for batch in found for path in batch['gt_path']]
    assert set(names) == {'img_0.png', 'img_2.png'}
    assert same(found, batches(run_options(broken | policy | {'num_worker_per_gpu': 0})))
    assert same(found[5:], batches(run_options(broken | policy), after=5))
    if workers == 0:  # once, however often the photo is drawn
        assert log.text.count('left out') == 3
        assert log.text.count('number 1 of 3') == 3, 'in three runs'


def test_the_first_image_takes_the_place_of_an_unreadable_last_one(photos):
    Path(photos['dataroot_gt'], 'img_2.png').write_bytes(b'')
    options = photos | {'on_error': 'skip', 'max_error_share': 1 / 3}  # just as many
    items = TrainingItems(SyntheticDegradationDataset(options), options)
    names = [Path(item['gt_path']).name for item in items.__getitems__([7, 8])]
    assert names == ['img_1.png', 'img_0.png']


def test_too_many_unreadable_images_end_the_run(broken):
    policy = {'on_error': 'skip', 'max_error_share': 0.2}
    with pytest.raises(DataFault, match=r'1 of 3 images cannot be read.*max_error_share \(0\.2\)'):
        batches(run_options(broken | policy))


def hang(photos: dict) -> dict:
    """Reading one of the photos never ends: a pipe that nobody writes to."""
    path = Path(photos['dataroot_gt']) / 'img_1.png'
    path.unlink()
    os.mkfifo(path)
    return photos | {'timeout': 1.5}


@pytest.mark.parametrize('workers', [0, 1])
def test_a_hanging_reader_ends_the_run_and_names_the_file(photos, workers):
    previous = signal.getsignal(signal.SIGALRM)
    with pytest.raises(DataFault, match=r'img_1\.png: .*no answer within 1\.5 s'):
        batches(run_options(hang(photos) | {'num_worker_per_gpu': workers}))
    assert signal.getsignal(signal.SIGALRM) is previous


STOPPED = """
import os, subprocess, time, torch
from unfoldldm_basicsr.data.loading import TrainingItems, TrainLoader

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, index):
        time.sleep(0.5)
        return index

os.setpgrp()
items = TrainingItems(Slow(), {'name': 'x', 'timeout': 2}, workers=1)
batches = iter(TrainLoader(torch.utils.data.DataLoader(items, num_workers=1)))
next(batches)
stop = 'sleep 1; kill -s STOP -- -{0}; sleep 5; kill -s CONT -- -{0}'.format(os.getpid())
subprocess.Popen(['sh', '-c', stop], start_new_session=True)
print(len(list(batches)))
"""


def test_a_training_that_was_stopped_for_longer_than_its_timeouts_goes_on():
    """By Ctrl-Z or a scheduler, while a loader process reads and the trainer waits for it."""
    result = run_python('-c', STOPPED)
    assert result.stdout.strip() == '5', result.stderr


def loader_of(dataset: Dataset, workers: int = 1, timeout: float | None = None, **settings):
    options = {'name': 'x'} if timeout is None else {'name': 'x', 'timeout': timeout}
    items = TrainingItems(dataset, options, workers=workers)
    return TrainLoader(DataLoader(items, num_workers=workers, **settings))


class Stubborn(Dataset):
    """Item 2 hangs where no signal reaches it, as in a system call on a lost disk."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        if index == 2:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(60)
        return index

    def item_paths(self, index: int) -> list[str]:
        return [f'picture_{index}.png']


def test_a_loader_process_that_cannot_be_interrupted_is_given_up_and_named():
    before = multiprocessing.active_children()
    with pytest.raises(DataFault, match=r'timed out.*Files being read: picture_2\.png'):
        list(loader_of(Stubborn(), timeout=2))
    assert set(multiprocessing.active_children()) <= set(before)


class Numbers(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return index


@pytest.mark.parametrize('method', ['fork', pytest.param('spawn', marks=pytest.mark.faults)])
def test_loader_processes_outlive_signals_from_their_first_moment(method):
    others = set(multiprocessing.active_children())  # a loader that an earlier test left behind
    batches = iter(loader_of(Numbers(), 2, multiprocessing_context=method))
    found, processes = [int(next(batches))], set(multiprocessing.active_children()) - others
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
    assert [*found, *map(int, batches)] == list(range(40))


def test_loader_processes_end_when_they_are_terminated():
    others = set(multiprocessing.active_children())  # a loader that an earlier test left behind
    batches = iter(loader_of(Numbers()))
    next(batches)
    (process,) = set(multiprocessing.active_children()) - others
    process.terminate()  # as multiprocessing does when the program ends
    process.join(5)
    assert process.exitcode == 0


class Suicidal(Stubborn):
    def __getitem__(self, index: int):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_loader_process_is_explained():
    match = r'x: .*picture_2\.png.*said why above.*num_worker_per_gpu'
    with pytest.raises(DataFault, match=match):
        list(loader_of(Suicidal()))


def test_a_hand_over_that_breaks_off_is_told_from_an_error_of_the_data_set():
    class Broken(DataLoader):
        message = 'socket'

        def __iter__(self):
            yield 0
            raise ConnectionResetError(self.message)

    loader = Broken(TrainingItems(Suicidal(), {'name': 'x'}, workers=1), num_workers=1)
    with pytest.raises(DataFault, match=r'x: socket\. Files.*num_worker_per_gpu'):
        list(TrainLoader(loader))
    loader.message = 'Caught ConnectionResetError in DataLoader worker process 0.'
    with pytest.raises(ConnectionResetError, match='Caught'):
        list(TrainLoader(loader))


def test_prefetching_in_a_thread_waits_no_longer_either(photos):
    options = run_options(hang(photos) | {'prefetch_mode': 'cpu', 'timeout': 0.5})
    with pytest.raises(DataFault, match=r'timed out after 1\.5 seconds.*img_1\.png'):
        batches(options)
    with open(Path(photos['dataroot_gt']) / 'img_1.png', 'wb'):
        pass  # lets the thread end


def test_the_check_reads_an_image_of_each_set_and_follows_the_policy(plugin, tmp_path):
    write_photos(tmp_path / 'train', 4, (40, 48))
    options = put(plugin, 'datasets.train.dataroot_gt', str(tmp_path / 'train'))
    (tmp_path / 'train' / 'img_0.png').write_bytes(b'')
    for changes, words in (({}, 'img_0.png'), ({'on_error': 'skip'}, 'max_error_share')):
        options['datasets']['train'] |= changes
        assert words in problems_at(options, 'datasets.train')
    options = put(options, 'datasets.train.max_error_share', 0.4)
    assert problems_at(options, 'datasets.train') == ''
    (tmp_path / 'clean' / 'img_0.png').write_bytes(b'')
    assert 'img_0.png: ' in problems_at(options, 'datasets.val')
    options = put(options, 'datasets.val.on_error', 'skip')
    assert 'measures every image' in problems_at(options, 'datasets.val.on_error')
