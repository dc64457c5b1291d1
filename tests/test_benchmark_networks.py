"""The benchmark scripts of networks and training steps measure what they say; no timings."""

from __future__ import annotations

import sys

import pytest
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from benchmark_scripts import imported_scripts, read, read_table

from unfoldldm_basicsr.archs.unfoldldm_arch import UnfoldLDM
from unfoldldm_basicsr.common.cost import Cost
from unfoldldm_basicsr.restoring.tiling import tiled_forward


@pytest.fixture
def script(monkeypatch):
    yield from imported_scripts(monkeypatch)


NO_MEMORY = 'CUDA out of memory. Tried to allocate 2.00 GiB.'
linux = pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')


@linux
@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('networks', ['--networks', 'unfoldldm-tiny', '--sizes', '64']),
        ('training_step', ['--networks', 'unfoldldm-tiny-phase1', '--sizes', '32']),
        ('scaling', ['--axes', 'size', '--sizes', '64']),
    ],
)
def test_time_and_memory_are_measured(script, tmp_path, monkeypatch, name, words):
    """Here in this process, which has imported everything."""
    for module in (script('common'), script(name)):
        monkeypatch.setattr(module, 'in_own_process', lambda f, *rest: f(*rest), raising=False)
    script(name).main(
        [*words, '--repeats', '1', '--threads', '1', '--out', str(tmp_path / 'new' / 'm')]
    )
    (row,) = read(tmp_path / 'new' / 'm')
    assert float(row['peak_MiB']) > 1
    assert float(row['ms']) > 0


def test_vlunet_against_its_plain_implementation(script, tmp_path):
    networks = script('networks')
    words = ['--sizes', '16', '--repeats', '1', '--no-memory', '--threads', '1']
    args = networks.parse_arguments([*words, '--out', str(tmp_path / 'n')])
    small = {'dim': 16, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1}
    rows = list(networks.compare_vlunet(args, **small))
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


def watch_training(monkeypatch) -> tuple[dict[bool, set[str]], dict[str, torch.Tensor]]:
    """What the forward passes are seen to use, by whether they are in bf16, and the losses."""
    used: dict[bool, set[str]] = {}
    losses: dict[str, torch.Tensor] = {}
    forward = UnfoldLDM.forward

    def watched(self, lq, gt=None, **kwargs):
        found = used.setdefault(torch.is_autocast_enabled('cpu'), set())
        found |= {'bf16'} if torch.is_autocast_enabled('cpu') else {'plain'}
        recomputes = any(getattr(m, 'use_checkpoint', False) for m in self.modules())
        found |= {'checkpoint'} if recomputes else set()
        weights = [p for p in self.parameters() if p.ndim == 4]
        for name, tensors in (('input', [lq]), ('target', [gt]), ('weights', weights)):
            if all(
                t is not None and t.is_contiguous(memory_format=torch.channels_last)
                for t in tensors
            ):
                found.add(f'channels_last {name}')
        return forward(self, lq, gt, **kwargs)

    monkeypatch.setattr(UnfoldLDM, 'forward', watched)
    for name in ('L1Loss', 'ISDALoss', 'LatentDiffusionLoss'):
        kind = LOSS_REGISTRY.get(name)

        def measured(self, *args, name=name, compute=kind.forward, **kwargs):
            losses[name] = compute(self, *args, **kwargs)
            return losses[name]

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
    layouts = {f'channels_last {name}' for name in ('input', 'target', 'weights')}
    assert used == {False: {'plain'}, True: {'bf16', 'checkpoint', *layouts}}
    assert losses.keys() == {'L1Loss', 'ISDALoss', 'LatentDiffusionLoss'}
    module, name = script('training_step'), 'unfoldldm-tiny-phase2'
    net = module.build(module.options_of(name, [])).train()
    value = module.loss_of(name)(net, [torch.rand(1, 3, 16, 16)], torch.rand(1, 3, 16, 16))
    assert all(loss.item() > 0 for loss in losses.values())
    torch.testing.assert_close(value, sum(losses.values()))


def test_a_training_step_computes_gradients_and_moves_the_weights(script):
    name = 'unfoldldm-tiny-phase2'
    net, (step,) = script('training_step').make_steps(name, 'plain', [(1, 3, 16, 16)], 'cpu')
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in net.named_parameters() if (p != before[name]).any()}
    assert len(trained) < len(before), 'the teacher is frozen'


@pytest.mark.parametrize(
    ('name', 'words', 'message'),
    [
        (
            'training_step', ['--networks', 'nafnet', '--variants', 'checkpoint'],
            'checkpoint is an option of vlunet, unfoldldm-base-phase1, unfoldldm-base-phase2, '
            'restormer',
        ),
        ('training_step', ['--networks', 'unfoldldm-tiny'], 'unfoldldm-tiny-phase1 or -phase2'),
        (
            'profile_network', ['--task', 'training', '--networks', 'unfoldldm-tiny'],
            'unfoldldm-tiny-phase1 or -phase2',
        ),
        (
            'profile_network', ['--task', 'training', '--networks', 'vlunet-plain'],
            'vlunet-plain consists of functions',
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(script, capsys, name, words, message):
    with pytest.raises(SystemExit):
        script(name).parse_arguments(words)
    assert message in capsys.readouterr().err


def test_scaling(script, tmp_path, capsys):
    scaling = script('scaling')
    scaling.main([
        '--axes', 'size', 'size-tiled', '--sizes', '32', '96', '--tile', '64', '--repeats', '1',
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
    assert 'size: from 32 to 96 time grows as pixels^' in capsys.readouterr().out


def test_operations_in_tiles_are_those_of_all_tiles(script, tmp_path, monkeypatch):
    """The overlap counts: 3 x 3 and 5 x 5 tiles, not 2 x 2 and 4 x 4."""
    scaling = script('scaling')
    tiles = []
    for size in (1024, 2048):
        done: list[int] = []
        tiled_forward(
            lambda part: part, torch.zeros(1, 1, size, size), tile=512, overlap=32,
            size_multiple=8, on_tile=lambda number, _, done=done: done.append(number),
        )  # fmt: skip
        tiles.append(len(done))
    assert tiles == [9, 25]
    monkeypatch.setattr(scaling, 'run_point', lambda *_: ([1.0], None))
    monkeypatch.setattr(scaling, 'network_cost', lambda _, size: Cost(1, 10**6 * size))
    words = ['--axes', 'size-tiled', '--sizes', '1024', '2048', '--tile', '512', '--no-memory']
    scaling.main([*words, '--out', str(tmp_path / 's')])
    rows = read(tmp_path / 's')
    assert [float(row['GMACs']) for row in rows] == [4.608, 12.8]
    assert [row['macs_exponent'] for row in rows] == ['', '0.74']


def test_points_that_run_out_of_memory_leave_the_others_their_rows(script, tmp_path, monkeypatch):
    scaling = script('scaling')

    def run_point(point, *_):
        if point['value'] == 8:
            raise RuntimeError(NO_MEMORY)
        return [1.0], None

    monkeypatch.setattr(scaling, 'run_point', run_point)
    monkeypatch.setattr(scaling, 'count_macs', lambda point: 10**9)
    words = ['--axes', 'batch', '--base-size', '16', '--no-memory', '--out', str(tmp_path / 's')]
    scaling.main([*words, '--batch', '1', '8', '9'])
    assert [row['ms'] for row in read(tmp_path / 's')] == ['1000.0', '', '1000.0']
    with pytest.raises(SystemExit, match='nothing could be measured'):
        scaling.main([*words, '--batch', '8'])
    assert [row['ms'] for row in read_table(tmp_path / 's') if 'ms' in row] == []


SMALL = {'num_stages': 1}


@pytest.fixture
def profiling(script, monkeypatch):
    """The script, measuring one stage in this process, which has imported everything."""
    module = script('profile_network')
    monkeypatch.setattr(module, 'in_own_process', lambda function, *args: function(*args))
    steps, options_of = script('training_step'), script('training_step').options_of
    monkeypatch.setattr(steps, 'options_of', lambda *args: options_of(*args) | SMALL)
    make = module.network_options
    monkeypatch.setattr(
        module, 'network_options', lambda name: make(name) | (SMALL if 'ldm' in name else {})
    )
    return module


def test_profile_of_a_network(profiling, tmp_path):
    """Kinds and parts account for the same time, and nothing is lost outside the parts."""
    profiling.main([
        '--networks', 'unfoldldm-tiny', 'restormer', '--size', '16', '--out', str(tmp_path / 'p'),
    ])  # fmt: skip
    ours, restormer = read(tmp_path / 'p')
    for row in (ours, restormer):
        assert abs(sum(float(row[kind]) for kind in profiling.KINDS) - 100) < 1
    assert float(restormer['selective scan']) == 0 < float(ours['selective scan'])
    assert all(float(row['depthwise convolution']) > 0 for row in (ours, restormer))
    parts = read_table(tmp_path / 'p_parts')[0]
    assert {'mgda', 'ocformer', 'denoiser', 'outside'} <= parts.keys()
    assert abs(sum(float(parts[name] or 0) for name in list(parts)[4:]) - 100) < 2
    assert float(parts['outside']) < 5


def test_profile_of_a_training_step(profiling, tmp_path):
    profiling.main([
        '--task', 'training', '--networks', 'unfoldldm-tiny-phase1', '--size', '16',
        '--out', str(tmp_path / 'p'),
    ])  # fmt: skip
    (row,) = read(tmp_path / 'p')
    assert float(row['optimiser']) > 0
    assert 0 <= float(row['system_percent']) < 100
    (parts,) = read_table(tmp_path / 'p_parts')
    assert float(parts['mgda']) + float(parts['ocformer']) > 60
    assert float(parts['outside']) < float(row['optimiser']) + 15
