"""Training and testing, as a user starts them."""

import sys

import pytest
from helpers import for_test, plugin_options, run_python, stock_options, write_options

import unfoldldm_basicsr.test
import unfoldldm_basicsr.train

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
