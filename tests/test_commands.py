"""Commands and entry points: arguments, messages, exit status."""

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import ROOT, for_test, plugin_options, put, run_python, stock_options, write_options

import unfoldldm_basicsr.test
import unfoldldm_basicsr.train
from unfoldldm_basicsr import cli
from unfoldldm_basicsr.commands import doctor_command, list_command
from unfoldldm_basicsr.commands.check_command import commented
from unfoldldm_basicsr.common import process
from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.ops.ss2d import dispatch
from unfoldldm_basicsr.training import memory


@pytest.mark.usefixtures('project')
def test_check_names_what_the_file_describes_with_the_overrides_of_a_training(output_of):
    line = output_of('check', '-opt', 'x.yml')
    assert line.startswith('x.yml: OK (training, MSRResNet: 0.00 M parameters, ')
    assert 'GMACs for 256 x 256' in line
    said = output_of('check', '-opt', 'x.yml', '--force_yml', 'train:ema_decay=2', status=2)
    assert 'train.ema_decay: must be at most 1' in said


def test_check_reports_every_file_and_continues(project, capsys, output_of):
    faulty = put(stock_options(project), 'train.ema_decy', 0.9)
    write_options(project / 'y.yml', put(faulty, 'datasets.val.dataroot_lq', '/elsewhere'))
    (project / 'z.yml').write_text('a: [')
    assert cli.main(['check', '-opt', 'z.yml', 'y.yml', 'gone.yml', 'x.yml']) == 2
    out, err = capsys.readouterr()
    assert out.startswith('x.yml: OK')
    starts = [line.split(': ')[:2] for line in err.splitlines()]
    assert [s[0] for s in starts] == ['z.yml', 'y.yml', 'y.yml', 'gone.yml']
    lines = output_of('check', '-opt', 'y.yml', '--no-data', status=2).splitlines()
    assert [line.split(': ')[1] for line in lines] == ['train.ema_decy']


def test_a_migrated_file_has_no_aliases_and_keeps_its_letters(project, output_of):
    write_options(project / 'y.yml', put(stock_options(project), 'logger', {'print_freq': 7}))
    text = (project / 'y.yml').read_text().replace('print_freq: 7', '<<: &a {print_freq: 7}')
    (project / 'y.yml').write_text(text + '\nnote: grün\nother: {<<: *a}\nmore: &b [1]\nlast: *b\n')
    out = output_of('migrate', 'y.yml')
    assert 'note: grün' in out
    assert '&id' not in out
    assert 'm: {0: a}' in commented({'m': {0: 'a'}}, [])


def test_migrate_names_the_mistakes_that_are_left(project, capsys):
    write_options(project / 'y.yml', put(stock_options(project), 'train.ema_decy', 0.9))
    assert cli.main(['migrate', 'y.yml']) == 0
    out, err = capsys.readouterr()
    assert 'ema_decy: 0.9' in out
    assert err.startswith("y.yml: train.ema_decy: is not known here. Did you mean 'ema_decay'?")
    assert cli.main(['migrate', 'x.yml']) == 0
    assert capsys.readouterr().err == ''


def test_list_shows_what_the_import_registered(output_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out = output_of('list')
    for name in ('UnfoldLDM', 'RestorationModel', 'ISDALoss', 'SyntheticDegradationDataset'):
        assert f'\n{name} ' in out
    assert 'MSRResNet' not in out
    entries = [e for group in list_command.registered_classes().values() for e in group]
    assert [name for name, summary in entries if len(summary) < 20] == []
    monkeypatch.setenv('UNFOLDLDM_IMPORT', 'basicsr')
    assert 'MSRResNet' in dict(list_command.registered_classes()['Networks (network_g: type)'])
    assert 'No folder ./options here' in out


def test_list_shows_each_network_of_the_option_files_once(project, output_of):
    folder = project / 'options' / 'deep'
    folder.mkdir(parents=True)
    options = stock_options(project)
    write_options(folder / 'a.yml', options)
    write_options(folder / 'b.yml', put(options, 'name', 'other'))
    write_options(folder / 'c.yml', put(options, 'network_g.num_feat', 64))
    rows, faulty = list_command.networks_in(project / 'options')
    assert [row[3] for row in rows] == ['deep/a.yml, deep/b.yml', 'deep/c.yml']
    assert not faulty
    write_options(folder / 'd.yml', put(options, 'network_g.num_fea', 64))
    out = output_of('list', '--options', project / 'options', status=1)
    assert 'num_fea' in out
    assert 'deep/a.yml, deep/b.yml' in out


def test_the_presets_have_the_parameters_and_operations_that_the_readme_says():
    row = r'\| (\d[\d.]*) M \| ([\d.]+) \| `(options/train/UnfoldLDM/\w+phase)\*\.yml` \|'
    found = re.findall(row, (ROOT / 'README.md').read_text())
    assert len(found) == 4
    for params, gmacs, file in found:
        cost = network_cost(read_option_file(ROOT / f'{file}2.yml')['network_g'], 256)
        assert (f'{cost.params / 1e6:.2f}', f'{cost.macs / 1e9:.1f}') == (params, gmacs)


def test_doctor_finds_this_installation_sound(output_of):
    out = output_of('doctor')
    for word in ('python', 'torch', 'basicsr          1.4.2', 'classes of this package', 'GPU'):
        assert word in out
    assert 'FAULT' not in out


BROKEN = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == 'torch':
            print('policy', os.environ.get('OMP_WAIT_POLICY'))
sys.meta_path.insert(0, Watch())
sys.orig_argv = ['python', 'unfoldldm', 'doctor']
sys.argv = sys.orig_argv[1:]
sys.modules['basicsr'] = None
from unfoldldm_basicsr.cli import main
print('status', main(['doctor']))
import torch
x = torch.ones(2**26)
print('kB', open('/proc/self/smaps_rollup').read().split('AnonHugePages:')[1].split()[0])
"""


def test_doctor_runs_on_a_broken_installation_and_gives_the_fix(monkeypatch):
    """Without BasicSR; large tensors lie on large pages, and OpenMP loads with waiting chosen."""
    for name in (*process.WAITING, memory.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    broken = run_python('-c', BROKEN)
    assert 'status 1' in broken.stdout, broken.stderr
    assert 'pip install --no-build-isolation basicsr==1.4.2' in broken.stdout
    assert 'Traceback' not in broken.stderr
    assert broken.stdout.startswith('policy PASSIVE')
    mode = Path('/sys/kernel/mm/transparent_hugepage/enabled')
    if mode.is_file() and '[madvise]' in mode.read_text():  # large pages on demand
        assert int(broken.stdout.split('kB')[-1]) > 2**17  # of 2**18


@pytest.mark.parametrize('program', ['train', 'test'])
def test_trainings_and_tests_ask_for_large_pages_too(program, monkeypatch):
    asked = []
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    monkeypatch.setattr(sys, 'argv', [program])
    monkeypatch.setattr(
        f'basicsr.{program}.{program}_pipeline',
        lambda root: asked.append(os.environ.get(memory.VARIABLE)),
    )
    getattr(unfoldldm_basicsr, program).main(['-opt', 'x.yml'])
    assert asked == ['1']


def test_a_plain_kill_and_a_closed_pipe_are_no_success(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['unfoldldm', 'prepare'])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main() == 0
        with pytest.raises(SystemExit) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    command = f'{sys.executable} -m unfoldldm_basicsr.cli prepare | :; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ('141\n', '')


@pytest.mark.parametrize(('gpu', 'named', 'expected'), [
    (False, 'triton', 'torch (on the CPU, UNFOLDLDM_SCAN=triton only counts on a GPU)'),
    (False, 'tritn', "UNFOLDLDM_SCAN: unknown value 'tritn'. Did you mean 'triton'?"),
    (True, '', 'triton (on the GPU)'),
    (True, 'mamba', "UNFOLDLDM_SCAN: scan backend 'mamba' is not usable here: no"),
])  # fmt: skip
def test_doctor_shows_the_scan_backend_that_will_be_taken(monkeypatch, gpu, named, expected):
    monkeypatch.setenv(dispatch.ENVIRONMENT, named)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    usable = ('torch', 'triton') if gpu else ('torch',)
    monkeypatch.setattr(dispatch, '_why_not', lambda name: '' if name in usable else 'no')
    lines = list(doctor_command.check_device())
    assert expected in lines[-1].state
    faulty = 'UNFOLDLDM_SCAN: ' in expected
    fix = 'unset UNFOLDLDM_SCAN, or set it to one of: torch'
    assert lines[-1].fix.startswith(fix) if faulty else lines[-1].fix == ''


def test_doctor_names_missing_and_unsuitable_versions(monkeypatch):
    versions = {'torch': '2.3.1', 'scipy': '2.0.0', 'lmdb': None, 'numpy': '2.1.0'}
    monkeypatch.setattr(doctor_command, 'installed_version', lambda name: versions.get(name, '99'))
    lines = {line.name: line for line in doctor_command.check_required()}
    assert lines['torch'].fix == "pip install 'torch>=2.4' torchvision"
    assert lines['scipy'].fix == "pip install 'scipy<2'"
    assert lines['lmdb'].state == 'not installed'
    assert not lines['numpy'].fix


def test_every_command_explains_itself(capsys):
    files = {p.stem for p in (ROOT / 'unfoldldm_basicsr' / 'commands').glob('*_command.py')}
    modules = {name: f'{cli.MODULES.get(name, name)}_command' for name in cli.COMMANDS}
    assert {*modules.values()} == files, 'none is left out'
    for name, module in modules.items():
        found = importlib.import_module(f'unfoldldm_basicsr.commands.{module}')
        assert callable(getattr(found, f'run_{name}'))
        with pytest.raises(SystemExit) as caught:
            cli.main([name, '--help'])
        assert caught.value.code == 0
        assert f'usage: unfoldldm {name}' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([])
    out = capsys.readouterr().out
    assert all(f'\n    {name} ' in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ('words', 'status'), [('cli restore --help', 0), ('cli list -x', 2), ('train --help', 0)]
)
def test_what_needs_no_torch_is_answered_without_it(words, status):
    told = run_python('-X', 'importtime', '-m', *f'unfoldldm_basicsr.{words}'.split())
    assert told.returncode == status
    loaded = {line.rpartition('|')[2].strip() for line in told.stderr.splitlines()}
    assert 'unfoldldm_basicsr.common.process' in loaded
    assert loaded.isdisjoint({'torch', 'basicsr', 'numpy', 'pydantic'})


def test_user_errors_are_one_line_and_status_2(monkeypatch, output_of):
    said = output_of('list', '--options', '/no/such/folder', status=2)
    assert said == 'unfoldldm list: --options /no/such/folder: no such folder.\n'
    with pytest.raises(FileNotFoundError):
        cli.main(['list', '--options', '/no/such/folder', '--debug'])
    monkeypatch.setattr(list_command, 'run_list', Mock(side_effect=KeyError('network_g: no type.')))
    assert output_of('list', status=2) == 'unfoldldm list: network_g: no type.\n'


def test_scripts_are_sound_shell():
    for script in (*(ROOT / 'scripts').glob('*.sh'), ROOT / '.ci' / 'run'):
        subprocess.run(['bash', '-n', str(script)], check=True)
    assert 'scripts/test.sh' in (ROOT / '.ci' / 'run').read_text()


def test_setup_refuses_a_python_that_basicsr_cannot_be_built_with(tmp_path):
    code = (
        'import setuptools, sys; sys.version_info = (3, 13, 0); '
        'sys.argv = ["setup.py", "--version"]; '
        f'exec(compile(open({str(Path(ROOT, "setup.py"))!r}).read(), "setup.py", "exec"), '
        '{"__file__": "setup.py", "__name__": "__main__"})'
    )
    result = run_python('-c', code, cwd=tmp_path)
    assert result.returncode == 1
    assert 'BasicSR 1.4.2 is published as source only' in result.stderr


@pytest.mark.parametrize(('script', 'words', 'variables', 'policy'), [
    ('-m', ['-m', 'unfoldldm_basicsr.train', '-opt', 'x.yml'], {}, 'PASSIVE'),
    ('/env/bin/unfoldldm', ['/env/bin/unfoldldm', 'restore'], {}, 'PASSIVE'),
    ('-m', ['-m', 'unfoldldm_basicsr.train'], {'OMP_WAIT_POLICY': 'ACTIVE'}, 'ACTIVE'),
    ('-m', ['-m', 'unfoldldm_basicsr.train'], {'GOMP_SPINCOUNT': '100'}, None),
    ('notebook.py', ['notebook.py', 'unfoldldm'], {}, None),
    ('/env/bin/unfoldldm', ['-c', 'from multiprocessing.spawn import spawn_main'], {}, None),
])  # fmt: skip
def test_threads_of_programs_sleep_while_they_wait_unless_the_user_decided(
    monkeypatch, script, words, variables, policy
):
    for name in process.WAITING:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, 'argv', [script])
    monkeypatch.setattr(sys, 'orig_argv', ['python', *words])
    process.let_threads_sleep()
    assert os.environ.get('OMP_WAIT_POLICY') == policy


@pytest.mark.parametrize(('name', 'policy'), [('X', 'PASSIVE'), ('KMP_BLOCKTIME', '')])
def test_scripts_choose_the_policy_as_programs_do(tmp_path, name, policy):
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').symlink_to(sys.executable)
    code = (
        'cat setup.py pyproject.toml scripts/env.sh | cksum >"$UNFOLDLDM_VENV/unfoldldm.stamp"\n'
        'source scripts/env.sh\nprintf "%s" "${OMP_WAIT_POLICY:-}"'
    )
    environment = {key: text for key, text in os.environ.items() if key not in process.WAITING}
    environment |= {'UNFOLDLDM_VENV': str(tmp_path), name: '0'}
    words = ['bash', '-c', code]
    assert subprocess.check_output(words, cwd=ROOT, env=environment, text=True) == policy


def test_a_start_that_is_interrupted_ends_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(unfoldldm_basicsr, 'register', Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as caught:
        unfoldldm_basicsr.train.main(['-opt', 'x.yml'])
    assert caught.value.code == 130
    assert capsys.readouterr().err == 'Stopped. The same command starts again.\n'


OWN_SCRIPT = """
import sys
import unfoldldm_basicsr
import basicsr.train

if __name__ == '__main__':
    basicsr.train.train_pipeline(sys.argv.pop())
"""


def test_train_resume_and_test_run_through_basicsr(project, monkeypatch):
    """The entries of the package, and between them a script of the user's in another folder."""
    monkeypatch.setattr(sys, 'argv', ['train'])
    unfoldldm_basicsr.train.main(['-opt', 'x.yml', '--root', 'runs'])
    run = project / 'runs' / 'experiments' / 'stock'
    assert (run / 'x.yml').is_file()
    assert {p.name for p in (run / 'training_states').iterdir()} == {'2.state', '4.state'}
    script = project / 'scripts' / 'mine.py'
    script.parent.mkdir()
    script.write_text(OWN_SCRIPT)
    words = ['-opt', '../x.yml', '--auto_resume', '--force_yml', 'train:total_iter=6']
    second = run_python(str(script), *words, str(project / 'runs'), cwd=script.parent)
    assert second.returncode == 0, second.stderr
    assert 'iter: 4' in second.stderr
    assert (run / 'training_states' / '6.state').is_file()
    assert not list(run.parent.glob('*archived*'))
    options = for_test(stock_options(project))
    options['path']['pretrain_network_g'] = 'runs/experiments/stock/models/net_g_latest.pth'
    write_options(project / 'test.yml', options)
    monkeypatch.setattr('basicsr.utils.logger.initialized_logger', {})  # as in a new process
    unfoldldm_basicsr.test.main(['-opt', 'test.yml'])
    (written,) = (project / 'results' / 'stock').glob('*.log')
    assert '# psnr' in written.read_text()


def test_root_and_packages_are_split_off_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    take, rest = unfoldldm_basicsr.train.take_own, ['-opt', 'x.yml']
    assert take(rest) == (str(tmp_path), [], rest)
    assert take(['--root', 'a', *rest, '--import', 'b']) == (str(tmp_path / 'a'), ['b'], rest)


TWO_RANKS = """
import multiprocessing, os
import unfoldldm_basicsr, basicsr.train, torch.distributed as dist

opt, _ = basicsr.train.parse_options('.', is_train=True)
total = dist.torch.tensor([opt['manual_seed']])
dist.all_reduce(total)
same = total.item() == 2 * opt['manual_seed']
line = ['RANK', opt['rank'], opt['world_size'], dist.get_backend(), same,
        multiprocessing.get_start_method()]
os.write(1, (' '.join(map(str, line)) + chr(10)).encode())  # in one piece: ranks share the pipe
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='expects fork')
def test_torchrun_on_the_cpu_starts_ranks_that_agree(project):
    write_options(project / 'x.yml', plugin_options(project))
    (project / 'ranks.py').write_text(TWO_RANKS)
    words = ['-opt', 'x.yml', '--launcher', 'pytorch', '--force_yml', 'manual_seed=~']
    launch = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone']
    result = run_python(*launch, 'ranks.py', *words, cwd=project)
    assert result.returncode == 0, result.stderr
    lines = sorted(line for line in result.stdout.splitlines() if line.startswith('RANK'))
    assert lines == ['RANK 0 2 gloo True fork', 'RANK 1 2 gloo True fork']
