"""Option files, command lines, weights and environments that try to execute something or to move
a folder, given to every entry: each is refused in one message, and nothing of it happens."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import Attack, for_test, plugin_options, put, write_options

import unfoldldm_basicsr.test
import unfoldldm_basicsr.train
from unfoldldm_basicsr import cli
from unfoldldm_basicsr.compat.imports import load_data_only

PROOF = 'proof'  # the folder that every attack tries to make
MEMCACHED = {'type': 'memcached', 'sys_path': 'plugin', 'server_list_cfg': 'a', 'client_cfg': 'b'}


def check(words: list[str]) -> None:
    opt, rest = words[1], words[2:]
    raise SystemExit(cli.main(['check', '-opt', opt, *[w for w in rest if w != '--launcher']]))


ENTRIES = {
    'train': unfoldldm_basicsr.train.main, 'test': unfoldldm_basicsr.test.main, 'check': check,
}  # fmt: skip


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A folder with data, an option file that is right, and a finished run of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['entry'])
    options = plugin_options(tmp_path)
    (tmp_path / 'experiments' / options['name'] / 'models').mkdir(parents=True)
    (tmp_path / 'elsewhere').mkdir()
    return options


def refused(entry: str, options: dict | str, capsys, *words: str) -> str:
    """Starts an entry, which must end with status 2, one message and everything as it was."""
    file = Path('x.yml')
    if isinstance(options, str):
        file.write_text(options)
    else:
        write_options(file, for_test(options) if entry == 'test' else options)
    before = sorted(Path().rglob('*'))
    with pytest.raises(SystemExit) as caught:
        ENTRIES[entry](['-opt', 'x.yml', *words])
    message = capsys.readouterr().err
    assert caught.value.code == 2, message
    assert not Path(PROOF).exists()
    assert sorted(Path().rglob('*')) == before
    assert 'Traceback' not in message
    return message


EACH = pytest.mark.parametrize('entry', ENTRIES)


@EACH
@pytest.mark.parametrize('value', [f'object/apply:os.mkdir [{PROOF}]', 'name:os.mkdir'])
def test_python_in_an_option_file_is_not_constructed(scene, capsys, entry, value):
    text = yaml.safe_dump(scene).replace('name: phase1', f'name: !!python/{value}')
    assert value in text
    assert 'python' in refused(entry, text, capsys)


@EACH
@pytest.mark.parametrize(('override', 'words'), [
    (f'name"];__import__("os").mkdir("{PROOF}");opt["name=zz', 'is not an option'),
    (f'name=[__import__("os").mkdir("{PROOF}")]', 'name: must be a text'),
    (f'name=!!python/object/apply:os.mkdir [{PROOF}]', 'is not YAML'),
])  # fmt: skip
def test_force_yml_is_no_code(scene, capsys, entry, override, words):
    assert words in refused(entry, scene, capsys, '--force_yml', override)


@EACH
@pytest.mark.parametrize('key', ['pretrain_network_g', 'pretrain_network_phase1', 'resume_state'])
@pytest.mark.parametrize('forced', ['', '1'])
def test_a_pickle_with_code_is_not_loaded(scene, capsys, monkeypatch, entry, key, forced):
    if entry == 'test' and key != 'pretrain_network_g':
        pytest.skip('a test reads no such file')
    if forced:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', forced)
    torch.save({'params': Attack(), 'iter': Attack()}, 'evil.pth')
    options = put(scene, f'path.{key}', 'evil.pth')
    if key == 'pretrain_network_phase1':
        options = put(put(options, 'model_type', 'UnfoldLDMPhase2Model'), 'network_g.phase', 2)
        options = put(options, 'train.diffusion_opt', {'type': 'LatentDiffusionLoss'})
    message = refused(entry, options, capsys)
    assert f'path.{key}: ' in message
    assert 'evil.pth' in message


@EACH
def test_a_network_that_loads_any_pickle_is_not_let(scene, capsys, monkeypatch, entry):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    torch.save(Attack(), 'evil.pth')
    network = {'type': 'SpyNet', 'load_path': 'evil.pth'}
    assert 'network_g' in refused(entry, put(scene, 'network_g', network), capsys)


def test_a_file_is_migrated_without_what_it_would_execute(scene, capsys, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(torch, 'load', getattr(torch.load, 'replaces', torch.load))
    torch.save(Attack(), 'evil.pth')
    network = {'type': 'SpyNet', 'load_path': 'evil.pth'}
    file = write_options(Path('x.yml'), put(scene, 'network_g', network))
    assert cli.main(['migrate', str(file)]) == 0
    assert 'could execute code' in capsys.readouterr().err
    assert not Path(PROOF).exists()


def test_entries_load_data_only_unless_the_caller_decides_otherwise(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(torch, 'load', getattr(torch.load, 'replaces', torch.load))
    torch.save(Attack(), 'evil.pth')
    torch.save(range(3), 'own.pth')  # a class that weights_only does not know
    load_data_only()
    with pytest.raises(Exception, match=r'[Ww]eights'):
        torch.load('evil.pth')
    assert not Path(PROOF).exists()
    assert torch.load('own.pth', weights_only=False) == range(3)


@pytest.mark.parametrize('nodes', [f'n1; mkdir {PROOF}', f'`mkdir {PROOF}`', '--help', 'a\nb', ''])
def test_a_node_list_reaches_no_shell(scene, capsys, monkeypatch, nodes):
    for name, value in (('PROCID', '0'), ('NTASKS', '1'), ('LOCALID', '0'), ('NODELIST', nodes)):
        monkeypatch.setenv(f'SLURM_{name}', value)
    for name in ('MASTER_ADDR', 'SLURM_JOB_NODELIST'):
        monkeypatch.delenv(name, raising=False)
    message = refused('train', scene, capsys, '--launcher', 'slurm')
    assert 'not a list of hosts. Set MASTER_ADDR' in message


@pytest.mark.parametrize('entry', ['train', 'test'])
@pytest.mark.parametrize('kind', ['SyntheticDegradationDataset', 'PairedImageDataset'])
@pytest.mark.parametrize(
    ('backend', 'keys'),
    [(MEMCACHED, [*MEMCACHED]), ({'type': 'lmdb', 'readonly': False}, ['readonly'])],
)
def test_only_known_backends_read_data(scene, capsys, entry, kind, backend, keys):
    """BasicSR's own data sets would import a module from the folder that an option names."""
    if kind == 'PairedImageDataset':
        data = {k: v for k, v in scene['datasets']['val'].items() if k != 'degradations'}
        data |= {'type': kind, 'dataroot_lq': data['dataroot_gt']}
        scene = put(scene, 'datasets.val', data)
    Path('plugin').mkdir()
    Path('plugin/mc.py').write_text(f'import os\nos.mkdir({PROOF!r})\n')
    message = refused(entry, put(scene, 'datasets.val.io_backend', backend), capsys)
    assert all(f'io_backend.{key}: ' in message for key in keys)
    assert not any(folder.endswith('plugin') for folder in sys.path)
    assert 'mc' not in sys.modules


@pytest.mark.parametrize('entry', ['train', 'check'])
@pytest.mark.parametrize(('place', 'value'), [
    *(('name', value) for value in ('..', '{here}/elsewhere', 'a/b', '', '~')),
    ('path.my_models', PROOF), ('datasets.val.name', f'../../{PROOF}'),
    ('val.suffix', f'/../../{PROOF}'),
])  # fmt: skip
def test_no_option_makes_or_moves_a_folder_elsewhere(scene, capsys, entry, place, value):
    message = refused(entry, put(scene, place, value.format(here=Path.cwd())), capsys)
    assert f'x.yml: {place}: ' in message


def package_text() -> str:
    files = sorted(Path(unfoldldm_basicsr.__file__).parent.rglob('*.py'))
    return '\n'.join(file.read_text(encoding='utf-8') for file in files)


def test_every_torch_load_of_the_package_names_its_safety():
    # (`convert` reads old pickles where its user says so in a flag of that name)
    calls = re.findall(r'torch\.load\([^)]*', package_text())
    assert calls
    assert [c for c in calls if not re.search('weights_only=(True|not unsafe_pickle)|`', c)] == []


def test_this_package_runs_no_shell_and_no_text_as_code():
    words = r'os\.system|shell=True|getoutput|yaml\.unsafe_load|pickle\.load\('
    assert re.findall(rf'{words}|(?:^|[^\w.])(?:eval|exec)\(', package_text(), re.MULTILINE) == []
