"""Option files at published settings: data they read, lengths in epochs, and learning rates."""

import math
import re

import pytest
from basicsr.data import build_dataset
from basicsr.utils.registry import ARCH_REGISTRY
from helpers import ROOT, load_options, load_script
from miniatures import prepare_all
from option_runs import brief_run
from test_schedulers import cosine, schedule_of

from unfoldldm_basicsr.common.cost import build_on_meta
from unfoldldm_basicsr.preparing.sets import SETS

OPTIONS = ROOT / 'options'
CLASSES = ['noise15', 'noise25', 'noise50', 'rain', 'haze', 'blur', 'lowlight']
TASKS = ['nhr', 'nhrbl', 'denoise', 'dehaze', 'derain', 'deblur', 'lowlight']
REPEATS = {'noise15': 3, 'noise25': 3, 'noise50': 3, 'rain': 120}
GPUS, EPOCHS, WARMUP_EPOCHS = 8, 200, 15
EACH_TASK = pytest.mark.parametrize('task', TASKS)


FILES = sorted(f.relative_to(OPTIONS).as_posix() for f in OPTIONS.glob('t*/*/*.yml'))


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """A folder with ``datasets`` as ``unfoldldm prepare`` writes them for all files."""
    text = str([load_options(name) for name in FILES])
    names = sorted(set(re.findall(r'datasets/([^/\'"]+)/\w+_(?:gt|lq)\.lmdb', text)))
    return prepare_all(tmp_path_factory.mktemp('tree'), names)


def entries_of(data: dict) -> list[dict]:
    return data.get('sets', [data])


def test_files_are_those_of_the_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'scripts' / 'option_files')
    assert load_script('scripts/option_files/write.py').main(['--check']) == 0


DIFFERENT = {str(load_options(name)['datasets']): name for name in FILES}  # presets share theirs


@pytest.mark.parametrize('name', DIFFERENT.values())
def test_every_set_opens_as_prepare_writes_it(name, tree, monkeypatch):
    monkeypatch.chdir(tree)
    for phase, section in load_options(name)['datasets'].items():
        dataset = build_dataset({**section, 'phase': phase.split('_')[0], 'scale': 1})
        assert len(dataset) > 1
        for index in (0, len(dataset) - 1):
            item = dataset[index]
            assert item['lq'].shape == item.get('gt', item['lq']).shape
            if phase == 'train':
                assert item['lq'].shape[-2:] == (section['gt_size'],) * 2
            elif 'VLUNet' in name:
                assert item['lq'].shape[-2:] == (32, 48)  # 40 x 56 cut to multiples of 16
            if 'degradation_names' in section:
                name_of = section['degradation_names'].__getitem__
                assert name_of(item['degradation']) == item['degradation_name']


QUICK = ('train/Restormer/denoise.yml', 'train/VLUNet/nhr.yml')


@pytest.mark.parametrize(
    'name', [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FILES]
)
def test_two_iterations_and_a_validation(name, tree, tmp_path, log):
    (tmp_path / 'datasets').symlink_to(tree / 'datasets')
    options = load_options(name)
    brief_run(options, tmp_path, steps=2)
    tables = [*tmp_path.rglob('validation_*.csv')]
    measures = options['model_type'] == 'DegradationCLIPModel' or 'metrics' in options['val']
    assert bool(tables) == measures  # the tuning of CLIP counts what it tells apart
    assert bool([*tmp_path.rglob('net_g_latest.pth')]) == ('train' in options)
    losses = [float(value) for value in re.findall(r' l_pix: (\S+)', log.text)]
    assert len(losses) == 2 * ('pixel_opt' in options.get('train', ()))
    assert all(0 < loss < math.inf for loss in losses)
    for metric in options['val'].get('metrics', ()):
        values = re.findall(rf'# {metric}: (\S+)', log.text)
        assert values
        assert all(math.isfinite(float(value)) for value in values)
    for degradation in options['datasets'].get('val', {}).get('degradation_names', ()):
        assert re.search(rf'^\s+{degradation}\s.*\d\.\d', log.text, re.M)


@EACH_TASK
def test_order_of_classes_and_repeat_factors_are_the_released_ones(task):
    train = load_options(f'train/VLUNet/{task}.yml')['datasets']['train']
    test = load_options(f'test/VLUNet/{task}.yml')['datasets']['test']
    names = train['degradation_names']
    assert names == [name for name in CLASSES if name in names] == test['degradation_names']
    assert [entry['degradation_name'] for entry in entries_of(train)] == names
    assert [entry['degradation_name'] for entry in entries_of(test)] == names
    for entry in entries_of(train):
        assert entry.get('repeat', 1) == REPEATS.get(entry['degradation_name'], 1)
        if entry['degradation_name'].startswith('noise'):
            sigma = int(entry['degradation_name'].removeprefix('noise'))
            assert entry['degradations'] == [{'type': 'gaussian_noise', 'sigma': sigma}]


@EACH_TASK
def test_iterations_are_200_epochs_of_the_public_data(task):
    def published_count(section: dict) -> int:
        _, name, lmdb = section['dataroot_gt'].split('/')
        return sum(s.count for s in SETS[name].parts[lmdb.removesuffix('_gt.lmdb')].sources)

    opt = load_options(f'train/VLUNet/{task}.yml')
    data, train = opt['datasets']['train'], opt['train']
    images = sum(published_count(s) * s.get('repeat', 1) for s in entries_of(data))
    per_epoch = math.ceil(images / GPUS) // data['batch_size_per_gpu']
    assert data['batch_size_per_gpu'] == 4
    assert train['total_iter'] == EPOCHS * per_epoch
    assert train['warmup_iter'] == WARMUP_EPOCHS * per_epoch
    text = (OPTIONS / 'train' / 'VLUNet' / f'{task}.yml').read_text(encoding='utf-8')
    for figure in (images, per_epoch, train['total_iter'], train['warmup_iter']):
        assert f' {figure} ' in text or f' {figure}.' in text


def rates(train: dict, iterations: list[int]) -> list[float]:
    schedule, found = schedule_of(train), []
    for iteration in iterations:
        schedule.last_epoch = iteration - 1
        found += schedule.get_lr()
    return found


@EACH_TASK
def test_vlunet_follows_the_published_schedule_at_every_epoch(task):
    """Linear over 15 epochs, then the cosine of the epochs that are left, down to zero."""
    train = load_options(f'train/VLUNet/{task}.yml')['train']
    per_epoch = train['total_iter'] // EPOCHS
    warm = train['warmup_iter']
    assert rates(train, [1, warm]) == pytest.approx([2e-4 / warm, 2e-4])
    epochs = [15, 16, 60, 107, 199]
    found = rates(train, [epoch * per_epoch + 1 for epoch in epochs])
    assert found == pytest.approx([cosine(2e-4, 0, (e - 15) / 185) for e in epochs])
    (last,) = rates(train, [train['total_iter']])
    assert 0 < last < 1e-7


@pytest.mark.parametrize(('name', 'lr', 'end', 'held', 'total'), [
    ('Restormer/denoise', 3e-4, 1e-6, 92_000, 300_000),
    ('NAFNet/deblur_gopro', 1e-3, 1e-7, 0, 200_000),
])  # fmt: skip
def test_baselines_follow_the_published_schedule(name, lr, end, held, total):
    train = load_options(f'train/{name}.yml')['train']
    shares = [0, 0.25, 0.5, 1 - 1 / (total - held)]
    places = [round(held + share * (total - held)) + 1 for share in shares]
    expected = [cosine(lr, end, share) for share in shares]
    assert rates(train, [1, *places]) == pytest.approx([lr, *expected], rel=1e-6)
    sizes = train.get('progressive', {'iters': [total]})
    assert sum(sizes['iters']) == train['total_iter'] == total


@pytest.mark.parametrize(('name', 'millions'), [
    ('VLUNet/nhrbl.yml', 35.353), ('VLUNet/nhr.yml', 35.353), ('Restormer/denoise.yml', 26.112),
    ('NAFNet/deblur_gopro.yml', 17.112),
])  # fmt: skip
def test_networks_have_the_published_size(name, millions):
    train, test = (load_options(f'{kind}/{name}')['network_g'] for kind in ('train', 'test'))
    assert train == test
    network = build_on_meta(ARCH_REGISTRY.get(train.pop('type')), train)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-3)
