"""``gpu_report.py``: one table, whatever becomes of its steps; its commands are understood."""

import time

import pytest
import torch
from helpers import ROOT

from unfoldldm_basicsr.options.parse import build_parser
from unfoldldm_basicsr.options.preflight import preflight
from unfoldldm_basicsr.options.read import apply_overrides, read_option_file


@pytest.fixture
def report(script):
    return script('gpu_report')


@pytest.mark.parametrize('gpu', [False, True])
def test_every_command_is_understood_and_in_time(report, tmp_path, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    steps = report.steps(tmp_path, gpu=gpu)
    assert [step.title for step in steps] == [
        'tests', 'scan', 'forward', 'float32', 'bf16', 'several', 'compile',
    ]  # fmt: skip
    assert sum(step.seconds for step in steps) <= report.SECONDS == 8 * 60
    for step in steps:
        first, *words = step.words
        if first.endswith('.py'):
            script = __import__(first.split('/')[-1].removesuffix('.py'))
            if gpu:  # the devices are not there
                words = [word.replace('cuda', 'cpu') for word in words]
            assert script.parse_arguments(words).out == tmp_path / step.title
    several = steps[5].words
    assert several[several.index('--nproc_per_node') + 1] == ('4' if gpu else '2')
    build_parser().parse_args(several[several.index('-opt') :])
    monkeypatch.undo()
    report.common.write_photos(tmp_path / 'photos', 8, 256, 256)
    options = read_option_file(ROOT / several[several.index('-opt') + 1])
    apply_overrides(options, several[several.index('--force_yml') + 1 :])
    assert preflight(options | {'num_gpu': 0}, 'x', True) == []


def test_every_step_outlives_the_failure_of_another(report, tmp_path, monkeypatch, capsys):
    """One that fails after a row of its table, one that hangs with a child, one that trains."""
    table = tmp_path / 'fails.csv'
    row = f'open({str(table)!r}, "w").write("# x\\nnet,ms\\na,7\\n"); 1 / 0'
    child = 'import subprocess, sys; subprocess.run([sys.executable, "-c", "input()"])'
    log = 'print("it_per_s: 1e0 ... it_per_s: 2.5e+00")'
    steps = [
        report.Step('fails', ['-c', row], 60, ('net',), {'ms': 'ms'}),
        report.Step('hangs', ['-c', child.replace('input()', 'import time; time.sleep(99)')], 1),
        report.Step('trains', ['-c', log, 'x', 'y', '4'], 60),
        report.Step('tests', ['-c', 'print("3 passed, 1 skipped in 2.00s")', 'the file'], 60),
    ]
    monkeypatch.setattr(report, 'steps', lambda out, gpu: steps)
    begin = time.monotonic()
    assert report.main(['--cpu', '--out', str(tmp_path)]) == 1
    assert time.monotonic() - begin < 60
    lines = (tmp_path / 'report.md').read_text().splitlines()
    assert torch.__version__ in lines[0]
    assert lines[4:] == [
        '| fails | a | 7 ms |',
        '| fails | see fails.log | FAILED with status 1 |',
        '| hangs | see hangs.log | not done within 1 s |',
        '| trains | 4 processes | 2.5e+00 iterations/s |',
        '| tests | the file | 3 passed, 1 skipped in 2.00s |',
    ]
    assert 'ZeroDivisionError' in (tmp_path / 'fails.log').read_text()
    assert '| tests | the file' in capsys.readouterr().out
    assert len(list((tmp_path / 'photos').iterdir())) == 8

    monkeypatch.setattr(report, 'SECONDS', -1)
    assert report.main(['--cpu', '--out', str(tmp_path)]) == 1
    assert '| hangs | see hangs.log | no time was left' in (tmp_path / 'report.md').read_text()
