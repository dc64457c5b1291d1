"""The benchmark scripts run at the smallest size and measure what they say."""

import csv
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY

from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.common.cost import Cost

SHORT = ['--repeats', '1', '--threads', '1']


def rows_of(path: Path) -> list[dict]:
    """Rows of a table; its first line names the machine."""
    lines = path.with_suffix('.csv').read_text(encoding='utf-8').splitlines()
    assert lines[0].startswith('# ')
    assert 'torch' in lines[0]
    return list(csv.DictReader(lines[1:]))


def drawn(path: Path) -> bool:
    return path.with_suffix('.png').stat().st_size > 1000


def test_calls_that_run_out_of_memory_are_left_out_only_where_that_is_wanted(script):
    common = script('common')
    rounds: list[str] = []

    def lacking():
        rounds.append('b')
        if len(rounds) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    def fails():
        raise RuntimeError('shapes differ')

    calls = {'a': lambda: rounds.append('a'), 'b': lacking}
    times = common.alternate(calls, 3, lenient=True)
    assert rounds == ['a', 'b', 'a', 'b', 'a', 'a']
    assert {name: len(seconds) for name, seconds in times.items()} == {'a': 3}
    with pytest.raises(RuntimeError, match='allocate memory'):
        common.alternate(calls, 3)
    with pytest.raises(RuntimeError, match='shapes differ'):
        common.alternate({'c': fails}, 1, lenient=True)


def test_what_cannot_be_measured_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script('scan').parse_arguments(['--backends', 'triton'])
    assert 'triton is not usable: it needs --device cuda' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize(('name', 'words'), [
    ('networks', ['--networks', 'unfoldldm-tiny', '--sizes', '64']),
    ('scaling', ['--axes', 'size', '--sizes', '64']),
])  # fmt: skip
def test_time_and_memory_are_measured(script, tmp_path, monkeypatch, name, words):
    for module in (script('common'), script(name)):
        monkeypatch.setattr(module, 'in_own_process', lambda f, *rest: f(*rest), raising=False)
    script(name).main([*words, *SHORT, '--out', str(tmp_path / 'new' / 'm')])
    (row,) = rows_of(tmp_path / 'new' / 'm')
    assert float(row['peak_MiB']) > 1
    assert float(row['ms']) > float(row.get('floor_ms', 0)) >= 0


@pytest.mark.parametrize('core', [False, True])
def test_scan(script, tmp_path, core):
    words = ['--sizes', '12', '--channels', '16', '--d-states', '4', '--repeats', '1']
    script('scan').main([*words, *['--core'] * core, '--out', str(tmp_path / 'scan')])
    rows = rows_of(tmp_path / 'scan')
    assert drawn(tmp_path / 'scan')
    assert len(rows) == (2 if core else 4)
    assert all(float(row['op_relative_difference']) < 1e-5 for row in rows)
    memory = {r['implementation']: float(r['bytes_per_element']) for r in rows}
    assert 0 < memory['op'] < memory['loop']


def test_the_core_of_a_vss_block_keeps_its_promise_on_memory(script):
    """Bytes per element of x at 64 x 64 x 96; the allocator's count does not depend on load."""
    scan = script('scan')
    for d_state, promise in ((1, 36), (16, 48)):
        core = scan.core_calls(64, 96, d_state, 'cpu')['op']
        core()
        assert scan.peak_bytes(core, 'cpu') / (64 * 64 * 96) <= promise


def test_vlunet_equals_its_plain_implementation(script):
    networks = script('network_set')
    small = {'dim': 16, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1}
    net = networks.build(networks.network_options('vlunet-plain', **small)).eval()
    inputs = networks.make_inputs(net, (2, 3, 16, 24))
    with torch.no_grad():
        plain, own = (networks.called(n, net)(*inputs) for n in ('vlunet-plain', 'vlunet'))
    assert plain is not own
    torch.testing.assert_close(plain, own, atol=1e-5, rtol=0)


def test_training_step(script, tmp_path, monkeypatch):
    used, losses = {}, {}
    forward = UnfoldLDM.forward

    def watched(self, lq, gt=None, **kwargs):
        if gt is not None:
            recomputes = any(getattr(m, 'use_checkpoint', False) for m in self.modules())
            layouts = [t.is_contiguous(memory_format=torch.channels_last) for t in (lq, gt)]
            used.setdefault(torch.is_autocast_enabled('cpu'), set()).add((recomputes, *layouts))
        return forward(self, lq, gt, **kwargs)

    monkeypatch.setattr(UnfoldLDM, 'forward', watched)
    for name in ('L1Loss', 'ISDALoss', 'LatentDiffusionLoss'):
        kind = LOSS_REGISTRY.get(name)

        def measured(self, *args, name=name, compute=kind.forward, **kwargs):
            losses[name] = compute(self, *args, **kwargs)
            return losses[name]

        monkeypatch.setattr(kind, 'forward', measured)
    script('training_step').main([
        '--networks', 'unfoldldm-tiny-phase2', '--sizes', '16', *SHORT, '--no-memory',
        '--variants', 'plain', 'bf16+checkpoint+channels_last', '--out', str(tmp_path / 't'),
    ])  # fmt: skip
    rows = rows_of(tmp_path / 't')
    assert float(rows[0]['ms']) > float(rows[0]['floor_ms']) > 0
    assert rows[1]['floor_ms'] == '', 'float32 limits say nothing of bf16'
    assert [bool(row['ms_over_plain_variant']) for row in rows] == [False, True]
    assert used == {False: {(False, False, False)}, True: {(True, True, True)}}
    module, name = script('training_step'), 'unfoldldm-tiny-phase2'
    net = module.build(module.options_of(name, [])).train()
    value = module.loss_of(name)(net, [torch.rand(1, 3, 16, 16)], torch.rand(1, 3, 16, 16))
    assert losses.keys() == {'L1Loss', 'ISDALoss', 'LatentDiffusionLoss'}
    assert all(loss.item() > 0 for loss in losses.values())
    torch.testing.assert_close(value, sum(losses.values()))
    net, (step,) = module.make_steps(name, 'plain', [(1, 3, 16, 16)], 'cpu')
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in net.named_parameters() if (p != before[name]).any()}
    assert len(trained) < len(before), 'the teacher is frozen'


def test_scaling(script, tmp_path, capsys):
    scaling = script('scaling')
    scaling.main([
        '--axes', 'size', 'size-tiled', '--sizes', '32', '96', '--tile', '64', '--no-memory',
        *SHORT, '--out', str(tmp_path / 's'),
    ])  # fmt: skip
    rows = rows_of(tmp_path / 's')
    assert drawn(tmp_path / 's')
    assert [row['axis'] for row in rows] == ['size', 'size', 'size-tiled']
    assert 0.9 < float(rows[1]['macs_exponent']) < 1.2
    points = scaling.plan(scaling.parse_arguments(['--axes', 'd_state', '--d-state', '1', '8']))
    assert [point['options']['mgda_d_state'] for point in points] == [1, 8]
    assert 'size: from 32 to 96 time grows as pixels^' in capsys.readouterr().out


def test_operations_in_tiles_are_those_of_all_tiles(script, monkeypatch):
    """The overlap counts: 3 x 3 and 5 x 5 tiles, not 2 x 2 and 4 x 4."""
    scaling = script('scaling')
    monkeypatch.setattr(scaling, 'network_cost', lambda _, size: Cost(1, size))
    words = ['--axes', 'size-tiled', '--sizes', '1024', '2048', '--tile', '512']
    points = scaling.plan(scaling.parse_arguments(words))
    assert [scaling.count_macs(point) for point in points] == [9 * 512, 25 * 512]


def test_data_loading(script, tmp_path, capsys, monkeypatch):
    loading, folder = script('data_loading'), tmp_path / 'data'
    folder.mkdir()
    monkeypatch.setattr(loading.tempfile, 'TemporaryDirectory', lambda: nullcontext(str(folder)))
    once = partial(loading.common.alternate, repeats=1, warm_up=False)
    monkeypatch.setattr(loading.common, 'alternate', lambda calls, _, **how: once(calls, **how))
    words = [
        '--pairs', '2', '--picture', '64', '48', '--gt-size', '16', '--sub-images', '32', '--batch',
        '2', '--batches', '2', '--workers', '0', '--repeats', '1', '--out', str(tmp_path / 'd'),
    ]  # fmt: skip
    loading.main(words)
    assert drawn(tmp_path / 'd')
    assert [row['mode'] for row in rows_of(tmp_path / 'd')] == list(loading.MODES)
    assert 'identical batches for one seed: folder, lmdb png, lmdb bmp' in capsys.readouterr().out
    formats = rows_of(tmp_path / 'd_formats')
    assert {row['format'] for row in formats} == {'png', 'jpg', 'bmp'}
    assert all(float(row['over_before']) > 0.2 for row in formats)
    for side in ('gt', 'lq'):
        shutil.copy(folder / side / '0001.png', folder / side / '0000.png')
    with pytest.raises(AssertionError, match='other batches'):
        loading.check_batches(folder, loading.parse_arguments(words), 0)
    loading.close_lmdbs()


def test_restoring_in_tiles(script, tmp_path):
    tiled = script('restore_tiled')
    words = ['--tasks', 'difference', '--small', '64', '56', '--small-tile', '48', '--threads', '1']
    out = tmp_path / 'results' / 'r'
    tiled.main([*words, '--out', str(out)])
    rows = rows_of(out)
    assert [row['statistics'] for row in rows] == ['own', 'fixed']
    assert out.with_name('r_pictures.png').stat().st_size > 10_000
    assert float(rows[1]['rms']) != float(rows[0]['rms']) > 0
    assert float(rows[0]['seam']) > 0
    if sys.platform == 'linux':
        peak, seconds = tiled.restore_large('unfoldldm-tiny', 64, 56, 48, 'cpu', 1, False)
        assert peak > 50
        assert seconds > 0


def test_import_time(script, tmp_path, monkeypatch):
    module = script('import_time')
    assert 0.2 < module.import_seconds('time.sleep(0.2)') < 60
    seconds = iter([9.0, 9.0, 1.0, 1.1, 2.0, 2.4, 4.0, 4.2])
    monkeypatch.setattr(module, 'import_seconds', lambda code: next(seconds))
    module.main(['--repeats', '3', '--out', str(tmp_path / 'i')])
    (row,) = rows_of(tmp_path / 'i')
    assert list(row.values()) == ['2.000', '2.400', '3', '1.100', '1.10']


def test_overhead(script, tmp_path, capsys):
    overhead = script('overhead')
    sizes = ['--size', '16', '--batch', '2', '--picture', '48', '32']
    overhead.main([*sizes, *SHORT, '--out', str(tmp_path / 'o')])
    parts = [row['part'] for row in rows_of(tmp_path / 'o')]
    assert parts == ['step', 'batch', 'iteration', 'checkpoint'] * 2
    assert capsys.readouterr().out.count('promised less than 3 %') == 2
    times = {'plain': [1.0, 2.0, 4.0], 'package': [1.1, 2.2, 4.4]}
    row = overhead.row_of('x', 'checkpoint', times, iteration=0.5, each=10)
    assert (row['ratio'], row['percent_of_iteration']) == ('1.1000', '4.000')
    iteration = row | {'part': 'iteration', 'percent_of_iteration': '2.9'}
    less = row | {'percent_of_iteration': '0.05'}
    assert overhead.verdict('x', [iteration, less]).endswith(
        '2.95 % in all, promised less than 3 %: kept'
    )
    assert overhead.verdict('x', [iteration, row]).endswith(': NOT kept')
