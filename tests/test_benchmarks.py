"""The benchmark scripts run at the smallest size and write what they promise; no timings."""

from __future__ import annotations

import csv
import importlib
import sys

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from helpers import ROOT

from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM

FOLDER = ROOT / 'scripts' / 'benchmark'


@pytest.fixture
def script(monkeypatch):
    """Imports a script as Python does that runs it: its folder on the path, one thread."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    known = set(sys.modules)
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in set(sys.modules) - known:
        if str(FOLDER) in str(getattr(sys.modules[name], '__file__', '')):
            del sys.modules[name]


def read(path) -> list[dict]:
    """Rows of a table; its first line names the machine."""
    lines = path.with_suffix('.csv').read_text(encoding='utf-8').splitlines()
    assert lines[0].startswith('# ')
    assert 'torch' in lines[0]
    assert path.with_suffix('.png').stat().st_size > 1000
    return list(csv.DictReader(lines[1:]))


SCAN = [
    'height', 'width', 'channels', 'd_state', 'task', 'implementation', 'milliseconds',
    'op_times_faster', 'bytes_per_element', 'op_relative_difference', 'floor_ms',
]  # fmt: skip


@pytest.mark.parametrize('core', [False, True])
def test_scan(script, tmp_path, core):
    """All implementations agree, and the op needs less memory than the loop."""
    words = ['--sizes', '12', '--channels', '16', '--d-states', '4', '--repeats', '1']
    script('scan').main([*words, *(['--core'] if core else []), '--out', str(tmp_path / 'scan')])
    rows = read(tmp_path / 'scan')
    assert list(rows[0]) == SCAN
    assert len(rows) == (2 if core else 6)
    assert all(float(row['op_relative_difference']) < 1e-5 for row in rows)
    memory = {r['implementation']: float(r['bytes_per_element']) for r in rows}
    assert 0 < memory['op'] < memory['unbind']


def test_backends_of_the_scan_are_measured_in_turn(script, monkeypatch):
    scan = script('scan')
    inputs = scan.make_inputs(4, 3, 2, 'cpu')
    chosen: list[str] = []
    monkeypatch.setattr(scan, 'set_scan_backend', chosen.append)
    calls = scan.make_calls(inputs, 'forward', ('torch', 'mamba'))
    assert list(calls) == ['op', 'op mamba', 'unbind', 'indexing']
    for call in calls.values():
        call()
    assert chosen == ['torch', 'mamba']
    assert scan.usable_backends(None, 'cpu') == ['torch']
    with pytest.raises(ValueError, match='triton is not usable: it needs --device cuda'):
        scan.usable_backends(['torch', 'triton'], 'cpu')


def test_the_core_of_a_vss_block_keeps_its_promise_on_memory(script):
    """Bytes per element of x at 64 x 64 x 96; the allocator's count does not depend on load."""
    scan = script('scan')
    for d_state, promise in ((1, 36), (16, 48)):
        core = scan.core_calls(64, 96, d_state, 'cpu')['op']
        core()
        assert scan.peak_bytes(core, 'cpu') / (64 * 64 * 96) <= promise


def test_vlunet_against_its_plain_implementation(script, tmp_path):
    networks = script('networks')
    words = ['--sizes', '16', '--repeats', '1', '--no-memory', '--threads', '1']
    args = networks.parse_arguments([*words, '--out', str(tmp_path / 'n')])
    rows = networks.compare_vlunet(args, dim=16, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1)
    assert [row['size'] for row in rows] == [16]
    assert all(float(row['max_difference']) < 1e-5 for row in rows)
    assert list(rows[0]) == [
        'batch', 'size', 'rounds', 'max_difference', 'plain_ms', 'package_ms', 'speedup',
    ]  # fmt: skip


def test_networks_side_by_side(script, tmp_path):
    names = ['unfoldldm-tiny', 'nafnet']
    script('networks').main([
        '--networks', *names, '--sizes', '16', '--repeats', '1', '--no-memory', '--threads', '1',
        '--out', str(tmp_path / 'n'),
    ])  # fmt: skip
    rows = read(tmp_path / 'n')
    assert [row['network'] for row in rows] == names
    assert list(rows[0]) == [
        'network', 'batch', 'size', 'params_M', 'GMACs', 'rounds', 'ms', 'floor_ms',
        'ms_over_unfoldldm-tiny', 'GMACs_over_unfoldldm-tiny',
    ]  # fmt: skip
    assert all(float(row['ms']) > float(row['floor_ms']) > 0 for row in rows)


def watch_training(monkeypatch) -> tuple[dict[bool, set[str]], set[str]]:
    """What the forward passes (of recomputing networks or not) and the losses are seen to use."""
    used: dict[bool, set[str]] = {}
    losses: set[str] = set()
    forward = UnfoldLDM.forward

    def watched(self, lq, *args, **kwargs):
        found = used.setdefault(torch.is_autocast_enabled('cpu'), set())
        found |= {'bf16'} if torch.is_autocast_enabled('cpu') else {'plain'}
        recomputes = any(getattr(m, 'use_checkpoint', False) for m in self.modules())
        found |= {'checkpoint'} if recomputes else set()
        channels_last = lq.is_contiguous(memory_format=torch.channels_last)
        found |= {'channels_last'} if channels_last else set()
        return forward(self, lq, *args, **kwargs)

    monkeypatch.setattr(UnfoldLDM, 'forward', watched)
    for name in ('L1Loss', 'ISDALoss', 'LatentDiffusionLoss'):
        kind = LOSS_REGISTRY.get(name)

        def measured(self, *args, name=name, compute=kind.forward, **kwargs):
            losses.add(name)
            return compute(self, *args, **kwargs)

        monkeypatch.setattr(kind, 'forward', measured)
    return used, losses


def test_training_step(script, tmp_path, monkeypatch):
    """With the losses of its phase; a variant is compared with the same network without it."""
    used, losses = watch_training(monkeypatch)
    script('training_step').main([
        '--networks', 'unfoldldm-tiny-phase2', '--sizes', '16',
        '--variants', 'plain', 'bf16+checkpoint+channels_last', '--repeats', '1', '--no-memory',
        '--threads', '1', '--out', str(tmp_path / 't'),
    ])  # fmt: skip
    rows = read(tmp_path / 't')
    assert list(rows[0]) == [
        'network', 'variant', 'batch', 'size', 'rounds', 'ms', 'floor_ms', 'ms_over_restormer',
        'ms_over_plain_variant',
    ]  # fmt: skip
    assert float(rows[0]['ms']) > float(rows[0]['floor_ms']) > 0
    assert rows[1]['floor_ms'] == '', 'float32 limits say nothing of bf16'
    assert [bool(row['ms_over_plain_variant']) for row in rows] == [False, True]
    assert used == {False: {'plain'}, True: {'bf16', 'checkpoint', 'channels_last'}}
    assert losses == {'L1Loss', 'ISDALoss', 'LatentDiffusionLoss'}


def test_scaling(script, tmp_path, capsys):
    scaling = script('scaling')
    scaling.main([
        '--axes', 'size', 'size-tiled', '--sizes', '16', '48', '--tile', '40', '--repeats', '1',
        '--no-memory', '--threads', '1', '--out', str(tmp_path / 's'),
    ])  # fmt: skip
    rows = read(tmp_path / 's')
    assert list(rows[0]) == [
        'network', 'axis', 'value', 'size', 'batch', 'GMACs', 'runs', 'ms', 'peak_MiB',
        'exponent', 'macs_exponent',
    ]  # fmt: skip
    assert [row['axis'] for row in rows] == ['size', 'size', 'size-tiled']
    assert 0.9 < float(rows[1]['macs_exponent']) < 1.2
    points = scaling.plan(scaling.parse_arguments(['--axes', 'd_state', '--d-state', '1', '8']))
    assert [point['options']['mgda_d_state'] for point in points] == [1, 8]
    assert 'size: from 16 to 48 time grows as pixels^' in capsys.readouterr().out


def test_data_loading(script, tmp_path, capsys):
    """Modes give equal batches; a database with other pixels is noticed."""
    loading = script('data_loading')
    words = [
        '--pairs', '2', '--picture', '64', '48', '--gt-size', '16', '--sub-images', '32', '--batch',
        '2', '--batches', '2', '--workers', '0', '--repeats', '1', '--out', str(tmp_path / 'd'),
    ]  # fmt: skip
    loading.main(words)
    rows = read(tmp_path / 'd')
    assert [row['mode'] for row in rows] == list(loading.MODES)
    assert list(rows[0]) == [
        'mode', 'workers', 'gt_size', 'batch', 'rounds', 'pairs_per_s', 'over_basicsr_folder',
        'over_basicsr_lmdb',
    ]  # fmt: skip
    assert 'identical batches for one seed: folder, lmdb png, lmdb bmp' in capsys.readouterr().out

    args = loading.parse_arguments(words)
    (tmp_path / 'other').mkdir()
    loading.make_pairs(tmp_path / 'other', 2, 64, 48)
    loading.make_databases(tmp_path / 'other', 32)
    for side in ('gt', 'lq'):
        picture = tmp_path / 'other' / side / '0000.png'
        picture.write_bytes((picture.parent / '0001.png').read_bytes())
    with pytest.raises(AssertionError, match='other batches'):
        loading.check_batches(tmp_path / 'other', args, 0)
    loading.close_lmdbs()


def test_restoring_in_tiles(script, tmp_path):
    tiled = script('restore_tiled')
    words = ['--tasks', 'difference', '--small', '48', '40', '--small-tile', '40', '--threads', '1']
    tiled.main([*words, '--out', str(tmp_path / 'r')])
    rows = read(tmp_path / 'r')
    assert list(rows[0]) == [
        'task', 'network', 'width', 'height', 'tile', 'statistics', 'rms', 'max', 'seam',
    ]  # fmt: skip
    assert [row['statistics'] for row in rows] == ['own', 'fixed']
    assert (tmp_path / 'r_pictures.png').stat().st_size > 10_000
    assert float(rows[1]['rms']) != float(rows[0]['rms']) > 0
    assert float(rows[0]['seam']) > 0
    if sys.platform == 'linux':
        peak, seconds = tiled.restore_large('unfoldldm-tiny', 48, 40, 40, 'cpu', 1, False)
        assert peak > 50
        assert seconds > 0


def test_a_seam_is_told_from_texture(script):
    tiled = script('restore_tiled')
    texture = 20 * torch.randn(1, 3, 80, 90, generator=torch.Generator().manual_seed(0))
    seamed = texture.clone()
    seamed[..., 40:] += 20
    assert tiled.seam(torch.full((1, 3, 80, 90), 5.0), 40) == 0
    assert tiled.seam(texture, 40) < 10
    assert 15 < tiled.seam(seamed, 40) < 30
    assert 15 < tiled.seam(seamed.mT, 40) < 30


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_the_peak_of_a_call_is_found(script):
    """A tensor of 64 MiB that is gone again after the call."""
    common = script('common')
    assert 60 < common.growth_of(lambda: torch.ones(16 * 2**20).sum(), 'cpu') < 80


def test_import_time(script, tmp_path, monkeypatch):
    """Sides alternate; the ratio is that of neighbouring runs."""
    module = script('import_time')
    assert 0.2 < module.import_seconds('time.sleep(0.2)') < 60
    seconds = iter([9.0, 9.0, 1.0, 1.1, 2.0, 2.4, 4.0, 4.2])
    monkeypatch.setattr(module, 'import_seconds', lambda code: next(seconds))
    monkeypatch.setattr(module, 'print_row', lambda row: None)
    module.main(['--repeats', '3', '--out', str(tmp_path / 'i')])
    lines = (tmp_path / 'i.csv').read_text().splitlines()
    assert lines[1] == 'basicsr_s,package_s,rounds,ratio,promise'
    assert lines[2] == '2.000,2.400,3,1.100,1.10'


def test_overhead(script, tmp_path, capsys):
    """Every part of both networks; what is added is counted against the iteration."""
    overhead = script('overhead')
    overhead.main([
        '--size', '16', '--batch', '2', '--picture', '48', '32', '--repeats', '1', '--threads', '1',
        '--networks', 'nafnet', 'unfoldldm', '--out', str(tmp_path / 'o'),
    ])  # fmt: skip
    rows = read(tmp_path / 'o')
    assert [row['part'] for row in rows] == ['step', 'batch', 'iteration', 'checkpoint'] * 2
    assert list(rows[0]) == [
        'network', 'part', 'rounds', 'plain_ms', 'package_ms', 'ratio', 'percent_of_iteration',
    ]  # fmt: skip
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


def test_profile_of_a_network(script, tmp_path):
    """Kinds and parts account for the same time, and nothing is lost outside the parts."""
    module = script('profile_network')
    module.main([
        '--networks', 'unfoldldm-tiny', 'restormer', '--size', '32', '--out', str(tmp_path / 'p'),
    ])  # fmt: skip
    ours, restormer = read(tmp_path / 'p')
    for row in (ours, restormer):
        assert abs(sum(float(row[kind]) for kind in module.KINDS) - 100) < 1
    assert float(restormer['selective scan']) == 0 < float(ours['selective scan'])
    assert all(float(row['depthwise convolution']) > 0 for row in (ours, restormer))
    lines = (tmp_path / 'p_parts.csv').read_text(encoding='utf-8').splitlines()
    parts = next(csv.DictReader(lines[1:]))
    assert {'mgda', 'ocformer', 'denoiser', 'outside'} <= parts.keys()
    assert abs(sum(float(parts[name] or 0) for name in list(parts)[4:]) - 100) < 2
    assert float(parts['outside']) < 5


def test_profile_of_a_training_step(script, tmp_path):
    module = script('profile_network')
    names = ['unfoldldm-tiny-phase2', 'nafnet']
    module.main([
        '--task', 'training', '--networks', *names, '--size', '32', '--out', str(tmp_path / 'p'),
    ])  # fmt: skip
    rows = read(tmp_path / 'p')
    assert all(float(row['optimiser']) > 0 for row in rows)
    assert all(0 <= float(row['system_percent']) < 100 for row in rows)
    lines = (tmp_path / 'p_parts.csv').read_text(encoding='utf-8').splitlines()
    ours, nafnet = csv.DictReader(lines[1:])
    assert float(ours['mgda']) + float(ours['ocformer']) > 60
    for row, network in ((nafnet, rows[1]), (ours, rows[0])):
        assert float(row['outside']) < float(network['optimiser']) + 15


def test_backward_operations_count_as_those_of_the_forward_pass(script):
    module = script('profile_network')
    net = torch.nn.Sequential(
        torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 8, 3),
        torch.nn.GELU(), torch.nn.Unflatten(1, (2, 4)),
    )  # fmt: skip
    matrix = torch.rand(5, 2, 2, requires_grad=True)
    image = torch.rand(5, 8, 9, 9, requires_grad=True)
    module.mark_parts(net)
    with torch.profiler.profile(record_shapes=True) as profiler:
        (matrix @ net(image).flatten(2)).sum().backward()
    events = list(profiler.events())
    forward = module.originals(events)
    found = {}
    for event in events:
        name = event.name.removeprefix(module._BACKWARD)
        if name != event.name and 'AccumulateGrad' not in name:
            source = forward[event.sequence_nr]
            part = module.within(source, 'part ')
            found[part.name if part else 'outside', name] = module.kind_of(source)
    assert found['part 0', 'ConvolutionBackward0'] == '1x1 convolution'
    assert found['part 1', 'ConvolutionBackward0'] == 'depthwise convolution'
    assert found['part 2', 'ConvolutionBackward0'] == 'other convolution'
    assert found['part 3', 'GeluBackward0'] == 'elementwise and copies'
    assert found['outside', 'BmmBackward0'] == 'matrix product'
