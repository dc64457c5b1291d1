"""The benchmark scripts run at the smallest size and write what they promise; no timings."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from benchmark_scripts import imported_scripts, read, read_table


@pytest.fixture
def script(monkeypatch):
    yield from imported_scripts(monkeypatch)


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


def test_the_core_of_a_vss_block_takes_one_backend(script, capsys):
    with pytest.raises(SystemExit):
        script('scan').parse_arguments(['--core', '--backends', 'torch', 'torch'])
    assert '--core measures one backend' in capsys.readouterr().err


def test_the_core_of_a_vss_block_keeps_its_promise_on_memory(script):
    """Bytes per element of x at 64 x 64 x 96; the allocator's count does not depend on load."""
    scan = script('scan')
    for d_state, promise in ((1, 36), (16, 48)):
        core = scan.core_calls(64, 96, d_state, 'cpu')['op']
        core()
        assert scan.peak_bytes(core, 'cpu') / (64 * 64 * 96) <= promise


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
    formats = read_table(tmp_path / 'd_formats')
    assert [(row['format'], row['width']) for row in formats] == [
        (kind, width)
        for width in ('64', '128', '256', '512', '64')
        for kind in ('png', 'jpg', 'bmp')
    ]
    assert all(float(row['over_before']) > 0.2 for row in formats)

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
    words = ['--tasks', 'difference', '--small', '64', '56', '--small-tile', '48', '--threads', '1']
    out = tmp_path / 'results' / 'r'
    tiled.main([*words, '--out', str(out)])
    rows = read(out)
    assert list(rows[0]) == [
        'task', 'network', 'width', 'height', 'tile', 'statistics', 'rms', 'max', 'seam',
    ]  # fmt: skip
    assert [row['statistics'] for row in rows] == ['own', 'fixed']
    assert out.with_name('r_pictures.png').stat().st_size > 10_000
    results = {name: torch.rand(1, 3, 9, 9) for name in 'ab'}
    tiled.draw_difference(results, tmp_path / 'new' / 'p.png')
    assert (tmp_path / 'new' / 'p.png').exists()
    assert float(rows[1]['rms']) != float(rows[0]['rms']) > 0
    assert float(rows[0]['seam']) > 0
    if sys.platform == 'linux':
        peak, seconds = tiled.restore_large('unfoldldm-tiny', 64, 56, 48, 'cpu', 1, False)
        assert peak > 50
        assert seconds > 0


def test_a_process_that_is_ended_by_the_system_has_no_memory(script):
    common = script('common')
    with pytest.raises(common.OutOfMemoryError, match='code -6, probably for lack of memory'):
        common.in_own_process(os.abort)
    assert common.in_own_process(os.getpid) != os.getpid()


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


@pytest.mark.parametrize(
    'name', ['networks', 'overhead', 'restore_tiled', 'scaling', 'scan', 'training_step']
)
def test_a_gpu_that_is_not_there_is_an_error_of_the_command_line(script, monkeypatch, capsys, name):
    module = script(name)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        module.parse_arguments(['--device', 'cuda'])
    assert 'PyTorch finds no GPU here' in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert module.parse_arguments(['--device', 'cuda']).device == 'cuda'


def test_a_gpu_is_measured_as_the_trainer_uses_it(script, monkeypatch):
    common = script('common')
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Some GPU')
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    assert 'TF32' not in common.prepare_machine('cpu', 1)
    assert not torch.backends.cudnn.benchmark
    assert common.prepare_machine('cuda', 1).startswith('Some GPU, TF32 off, cudnn.benchmark on')
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


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
