"""``unfoldldm init``: option files that pass the check and fit the memory, or one clear error."""

import os
import re
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from helpers import preflight, write_photos

from unfoldldm_basicsr.cli import main
from unfoldldm_basicsr.commands import init_command
from unfoldldm_basicsr.commands.init_command import Trial, fitted, memory_of, trial_step
from unfoldldm_basicsr.data.images import Picture, read_picture, write_picture
from unfoldldm_basicsr.preparing.lmdb_writer import write_lmdb
from unfoldldm_basicsr.preparing.new_training import NETWORKS, TASKS, NewTraining, held_back
from unfoldldm_basicsr.training.restoration_model import RestorationModel


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init_command, 'measure', lambda *_: Trial(0.5, 0.25))
    write_photos(tmp_path / 'my: photos #1', 12)
    return tmp_path


CASES = [
    *(['--network', name, '--memory', '24'] for name in NETWORKS),
    *(['--network', 'nafnet-small', '--task', task] for task in TASKS),
    ['--network', 'unfoldldm-tiny', '--task', 'lowlight', '--memory', '24'],
    ['--network', 'nafnet-small', '--degraded', 'their twins', '--memory', 'cpu'],
]


@pytest.mark.parametrize('words', CASES, ids=lambda words: ' '.join(words[1:4:2]))
def test_what_is_written_passes_the_check(folder, output_of, words):
    photo = folder / 'my: photos #1' / 'img_0.png'
    photo.rename(photo.with_name('img\udce9.png'))  # no UTF-8
    shutil.copytree(photo.parent, folder / 'their twins')
    said = output_of('init', 'my: photos #1', '-o', 'made', *words)
    files = sorted((folder / 'made').glob('*.yml'))
    assert len(files) == (1 if words[1].startswith(('restormer', 'nafnet')) else 2)
    for file in files:
        options = yaml.safe_load(file.read_text())
        assert preflight(options, file.name, True, here='phase2' not in file.name) == []
    lists = [folder / 'made' / f'mine_{part}.txt' for part in ('train', 'val')]
    train, val = (file.read_bytes().split() for file in lists)
    assert len(val) == 1
    assert sorted([*train, *val]) == sorted(os.fsencode(p.name) for p in photo.parent.iterdir())
    assert [f'-opt made/{file.name} --auto_resume' in said for file in files] == [True] * len(files)
    assert 'patches of' in said


@pytest.mark.parametrize('part', ['train', 'test', 'val'])
def test_a_prepared_set_is_found_by_its_name(folder, part):
    """Pairs and, where it has one, the test part; several degraded images may share a clean one."""
    for name in ('train_gt', 'train_lq', f'{part}_gt', f'{part}_lq'):
        target = folder / 'datasets' / 'Rain' / f'{name}.lmdb'
        write_lmdb(folder / 'my: photos #1', target, force=True)
    hazy = {f'hazy/{photo.name}': photo for photo in (folder / 'my: photos #1').iterdir()}
    write_lmdb(hazy, folder / 'datasets' / 'Rain' / 'train_lq.lmdb', force=True)
    lines = [f'img_{n}.png, hazy/img_{m}.png' for n in (0, 1) for m in range(12)]
    (folder / 'datasets' / 'Rain' / 'train.txt').write_text('\n'.join(lines) + '\n')
    assert main(['init', 'Rain', '--network', 'nafnet-small']) == 0
    data = yaml.safe_load((folder / 'mine.yml').read_text())['datasets']
    assert data['train']['dataroot_lq'] == 'datasets/Rain/train_lq.lmdb'
    assert data['val']['dataroot_lq'] == f'datasets/Rain/{part}_lq.lmdb'
    own = {name: Path(data[name].get('meta_info_file', '')).name for name in data}
    words = ['datasets/Rain/train_gt.lmdb/', '--degraded', 'datasets/Rain/train_lq.lmdb/']
    assert main(['init', *words, '--network', 'nafnet-small', '--name', 'tab']) == 0
    held_out = {'train': 'mine_train.txt', 'val': 'mine_val.txt'}
    assert own == (held_out if part == 'train' else {'train': 'train.txt', 'val': ''})


def test_large_images_are_to_be_cut_first_and_files_replaced_only_when_asked(
    folder, monkeypatch, output_of
):
    words = ['init', 'my: photos #1', '--network', 'nafnet-small']
    for limit, said, more in ((48 * 64 - 1, True, []), (48 * 64, False, ['--overwrite'])):
        monkeypatch.setattr(init_command, 'LARGE', limit)
        assert ('unfoldldm prepare' in output_of(*words, *more)) == said
    (folder / 'mine.yml').write_text('edited')
    message = 'mine.yml: exists; choose another name or pass --overwrite.'
    assert message in output_of(*words, status=2)
    assert (folder / 'mine.yml').read_text() == 'edited'


def test_a_folder_goes_before_a_prepared_set_and_no_image_is_trained_and_validated_on(
    folder, output_of
):
    write_photos(folder / 'all', 3)
    write_photos(folder / 'all' / 'held', 2)
    (folder / 'datasets' / 'all' / 'train_gt.lmdb').mkdir(parents=True)
    said = output_of('init', 'all', '--val', 'all/held', '--network', 'nafnet-small')
    assert '2 images of --val are left out' in said
    assert (folder / 'mine_train.txt').read_text().split() == [f'img_{n}.png' for n in range(3)]
    train = yaml.safe_load((folder / 'mine.yml').read_text())['datasets']['train']
    assert (train['dataroot_gt'], train['meta_info_file']) == ('all', 'mine_train.txt')
    assert 'gray_prob' not in str(train)
    for file in folder.rglob('img_*.png'):
        write_picture(file, Picture(read_picture(file).pixels[..., 0]))
    said = output_of('init', 'all', '--network', 'nafnet-small', '--overwrite')
    assert 'Grey photos' in said
    assert "'gray_prob': 1" in str(yaml.safe_load((folder / 'mine.yml').read_text()))


def test_nothing_is_written_where_something_is_wrong(folder, output_of):
    write_photos(folder / 'others', 2)
    write_photos(folder / 'single', 1)
    for place in ('Rain/train_gt.lmdb', 'Blur/test_gt.lmdb'):
        (folder / 'datasets' / place).mkdir(parents=True)
    write_photos(folder / 'torn', 2)
    (folder / 'torn' / 'img_1.png').write_bytes(b'')
    file = folder / 'my: photos #1' / 'img_0.png'
    before = sorted(folder.rglob('*'))
    for words, message in (
        (['my: photos #1', '--degraded', 'others'], 'unfoldldm prepare folder --gt'),
        (['others', '--degraded', './others'], 'is the folder of the clean images'),
        (['others', '--val', 'others'], 'holds all images of others'),
        (['Blur'], 'Blur: is a prepared set without train_gt.lmdb, it has test_gt.lmdb'),
        (['torn'], 'torn/img_1.png: the file is empty'),
        (['my: photos #1', '--degraded', 'others', '--task', 'derain'], 'the pairs are the task'),
        (['my: photos #1', '--degraded', 'others', '--val', 'others'], '--val-degraded'),
        (['datasets/Rain', '--degraded', 'others'], 'Rain is a prepared set, which has its own'),
        (['single'], 'single: at least one image to train on and one'),
        (['nowhere'], 'nowhere: no such folder'),
        (['my: photos #1', '-o', str(file)], 'img_0.png: is a file; name a folder'),
        (['my: photos #1', '--memory', 'lots'], "lots: give GiB, for example 24, or 'cpu'"),
        (['my: photos #1', '--memory', '0.1'], 'no training step fits into 0.1 GiB'),
        (['my: photos #1', '--memory', '24', '--hours', '1'], '--memory 24 means a GPU'),
        (['my: photos #1', '--hours', 'inf'], 'inf: must be above 0'),
        (['my: photos #1', '--hours', '0.005'], '60 steps; 100 at least are 0.0077 hours'),
    ):
        assert message in output_of('init', *words, status=2)
        assert sorted(folder.rglob('*')) == before


def test_a_training_lasts_as_long_as_it_may(folder, monkeypatch, output_of):
    seconds = {1: 0.5, 2: 0.25, None: 0.25}
    monkeypatch.setattr(init_command, 'measure', lambda _, phase=2: Trial(0.5, seconds[phase]))
    said = output_of('init', 'my: photos #1', '--memory', 'cpu', '--hours', '1')
    files = [yaml.safe_load((folder / f'mine_phase{phase}.yml').read_text()) for phase in (1, 2)]
    counts = [file['train']['total_iter'] for file in files]
    assert [file['train']['scheduler']['T_max'] for file in files] == counts
    assert 0.5 * counts[0] + 0.25 * counts[1] == pytest.approx(0.9 * 3600, rel=0.01)
    assert counts[0] == pytest.approx(0.15 * sum(counts), abs=10)
    for count, each in zip(counts, ('0.5', '0.25'), strict=True):
        long = timedelta(seconds=round(count * float(each)))
        assert f'# {count} steps of {each} s: {long}' in said
    said = output_of('init', 'my: photos #1', '--memory', 'cpu', '--hours', '0.01', '--name', 's')
    assert '# 20 steps of 0.5 s: 0:00:10' in said


def training(**changes) -> NewTraining:
    return NewTraining('x', 'unfoldldm-tiny', {}, {}, 'blind', 20, patch=128, **changes)


@pytest.mark.parametrize(('limit', 'most', 'free', 'patch', 'parts'), [
    (9.0, 99, 1024, 128, [8]), (8.4, 99, 1024, 128, [4]), (1.5, 99, 1024, 128, [1]),
    (1.4, 99, 1024, 96, [1]), (0.6, 99, 1024, 32, [1]),  # found without trying larger ones
    (100, 3, 1024, 128, [8, 4, 2]),  # a step that fails halves the part
    (24, 99, 4, 128, []),  # a step that this machine cannot make is foretold
])  # fmt: skip
def test_the_largest_sizes_that_fit_are_taken(monkeypatch, limit, most, free, patch, parts):
    monkeypatch.setattr(init_command, 'free_memory', lambda device: free * 2**30)
    steps = []

    def measure(sized: NewTraining) -> Trial | None:
        """Memory that grows with the pixels: 1 GiB for 128 x 128 beside half a GiB."""
        steps.append((sized.patch, sized.part))
        gib = 0.5 + sized.part * (sized.patch / 128) ** 2
        return Trial(gib, 1.0) if gib <= most else None

    sized, trial = fitted(training(), limit, measure)
    assert (sized.patch, sized.part, sized.batch) == (patch, parts[-1] if parts else 8, 8)
    assert (trial is None) == (not parts)
    assert trial is None or trial.gib <= limit
    assert steps[2:] == [(patch, part) for part in parts], 'after two small ones'


def test_a_trial_makes_steps_of_the_training_itself():
    small = replace(training(num_gpu=0), patch=32, part=2)
    for phase in (1, 2):
        trial = trial_step(yaml.safe_load(small.text(Path(), phase)), small.part)
        assert 0.1 < trial.gib < 100
        assert trial.seconds > 0


def test_a_trial_without_memory_is_none_and_other_errors_are_not_hidden(monkeypatch):
    small = replace(training(num_gpu=0), network='nafnet-small', patch=32)
    options = yaml.safe_load(small.text(Path()))
    fails = Mock(side_effect=RuntimeError("can't allocate memory: 9 bytes"))
    monkeypatch.setattr(RestorationModel, 'optimize_parameters', fails)
    assert trial_step(options, 1) is None
    fails.side_effect = RuntimeError('shapes differ')
    with pytest.raises(RuntimeError, match='shapes differ'):
        trial_step(options, 1)


def test_the_schedule_grows_with_the_number_of_images_and_shrinks_with_the_time():
    counts = [replace(training(), images=n, iterations=0).iterations for n in (5, 200, 10**6)]
    assert counts == [2000, 12000, 300_000]
    few = training()
    assert few.iterations_of(1) + few.iterations_of(2) == few.iterations
    text = few.text(Path(), 2)
    assert [int(n) for n in re.findall('(?:total_iter|T_max): ([0-9]+)', text)] == [1700] * 2
    short = yaml.safe_load(training(iterations=120).text(Path(), 1))  # 20 in Phase I
    assert {v for k, v in (short['val'] | short['logger']).items() if '_freq' in k} == {20, 5}


def test_memory_is_that_of_the_gpu_or_of_the_machine(monkeypatch):
    free = {'cpu': 10 * 2**30, 'cuda': 20 * 2**30}
    monkeypatch.setattr(init_command, 'free_memory', lambda device: free[device.type])
    for there, given, expected in (
        (False, None, (True, 8.0)), (True, None, (False, 16.0)), (True, 'cpu', (True, 8.0)),
        (False, '30', (False, 24.0)),
    ):  # fmt: skip
        monkeypatch.setattr(init_command.torch.cuda, 'is_available', lambda there=there: there)
        assert memory_of(given) == expected


@pytest.mark.parametrize(
    ('task', 'isda', 'whole', 'dark'),
    [('denoise', False, False, False), ('blind', False, False, False),
     ('dehaze', True, True, False), ('lowlight', True, True, True)],
)  # fmt: skip
def test_noise_is_learned_without_isda_and_darkness_with_its_own_recipe(task, isda, whole, dark):
    data = {'type': 'SyntheticDegradationDataset', 'dataroot_gt': 'photos'}
    training = NewTraining('mine', 'unfoldldm-tiny', data, data, task, images=99 + dark, patch=48)
    recipe = {'base': 'x', 'wm_window': 48}
    for phase in training.phases:
        options = yaml.safe_load(training.text(Path(), phase))
        assert ('isda_opt' in options['train']) is isda
        assert (recipe.items() <= options['network_g'].items()) is dark
        train, network = options['datasets']['train'], options['network_g']
        seen = [network.get('prior_levels'), options['train'].get('prior_context')]
        levels = 'lq' if dark else True  # photos enough to learn from how bright a scene was
        assert (seen, train['gt_size']) == (([levels, True], 144) if whole else ([None] * 2, 48))
        progressive = options['train'].get('progressive')
        assert (progressive and progressive['gt_sizes']) == ([48] if whole else None)
        strengths = options['datasets']['val']['degradations'] == train['degradations']
        assert strengths is whole  # the middle of them would be a good guess for every photo
        assert preflight(options, '', True, here=False) == []


def test_no_photo_is_in_the_training_and_in_the_validation():
    squares = [f'p{photo}_s{number:03d}' for photo in range(12) for number in range(5)]
    pairs = [f'{photo}.png, {photo}/{haze}.png' for photo in 'abcd' for haze in range(3)]
    for names, photo in ((squares, lambda n: n.split('_')[0]), (pairs, lambda n: n[0])):
        train, val = held_back(names, 'x')
        assert not set(map(photo, train)) & set(map(photo, val))
        assert len(val) == len(set(map(photo, val))) == 1
    assert held_back(squares[:5], 'x')[1] == [squares[2]]  # of a single photo
