"""BasicSR 1.4.2 on today's stack: what is replaced, that it is in place, and importing it."""

import hashlib
import inspect
import sys
import types

import basicsr.data.prefetch_dataloader as prefetch
import basicsr.utils.options
import pytest
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from helpers import ROOT, run_python

from unfoldldm_basicsr import compat
from unfoldldm_basicsr.compat import imports, stock
from unfoldldm_basicsr.training.pipeline import install

# What is replaced, and the beginning of the sha256 of BasicSR's source of it.
REPLACED = {
    (basicsr.utils.registry.Registry, '_do_register'): 'af03a785c44a',
    (basicsr.utils.options, 'ordered_yaml'): '1fb04e3900bc',
    (basicsr.utils.options, '_postprocess_yml_value'): 'db4d8cf06906',
    (basicsr.utils.options, 'parse_options'): '347305bea18e',
    (basicsr.utils.options, 'dict2str'): '769e9c110eeb',
    (basicsr.utils.options, 'copy_opt_file'): '51833866f607',
    (basicsr.utils.logger, 'get_root_logger'): 'fa49ed80ef6b',
    (basicsr.utils.logger.MessageLogger, '__init__'): '9e6bfa289433',
    (basicsr.utils.dist_util, '_init_dist_pytorch'): '221ad79b2125',
    (basicsr.utils.dist_util, '_init_dist_slurm'): '09a06fc3c9bc',
    (basicsr.data, 'build_dataset'): 'e40d296218c7',
    (basicsr.train, 'train_pipeline'): 'daf6515cece6',
    (basicsr.utils, 'make_exp_dirs'): '12f9afe99aa1',
    (basicsr.train, 'load_resume_state'): '9f0a2c11735b',
    (basicsr.train, 'create_train_val_dataloader'): '7dc43480652e',
    (prefetch.PrefetchGenerator, 'run'): 'faae2c8597aa',
    (prefetch.PrefetchGenerator, '__next__'): 'aca178171474',
    (basicsr.metrics, 'calculate_metric'): '39447a3cb01a',
    (BaseModel, 'reduce_loss_dict'): 'b14c18fe64b6',
    (BaseModel, 'load_network'): '719e2df3d186',
    (BaseModel, 'model_to_device'): 'e3172982283d',
}
# What the replacements rely on: who calls them, in which order, with what.
RELIED_ON = {
    (basicsr.test, 'test_pipeline'): '6500d8cc3c47',
    (basicsr.data, 'build_dataloader'): '5a72348149df',
    (basicsr.utils.logger.MessageLogger, '__call__'): 'bd962d17ef86',
    (basicsr.utils.dist_util, 'init_dist'): '38c1b5671709',
    (prefetch.CPUPrefetcher, '__init__'): '29caf7fc1b84',
    (prefetch.CPUPrefetcher, 'reset'): '753893332e63',
    (basicsr.metrics, 'calculate_psnr'): 'dac9f0d6e875',
    (basicsr.metrics, 'calculate_ssim'): '303b7527ab0f',
    (BaseModel, 'validation'): '0b8825204831',
    (BaseModel, '_update_best_metric_result'): '0cac0c14ac43',
    (SRModel, 'save'): '8c3a0e9b2c63',
}


def fingerprint(owner: object, name: str) -> str:
    source = inspect.getsource(stock(getattr(owner, name)))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def test_sources_of_basicsr_are_the_known_ones():
    changed = [key for key, known in (REPLACED | RELIED_ON).items() if fingerprint(*key) != known]
    assert changed == [], 'BasicSR changed: read it again, then update what stands for it'


def test_no_module_of_basicsr_still_holds_a_stock_function():
    modules = [m for n, m in sys.modules.items() if n.split('.')[0] == 'basicsr']
    for owner, name in REPLACED:
        original = getattr(owner, name).replaces
        assert [m.__name__ for m in modules if getattr(m, name, None) is original] == []
    functions = filter(inspect.isfunction, (f for m in modules for f in vars(m).values()))
    assert {f for f in functions if hasattr(f, 'replaces')} <= {getattr(*k) for k in REPLACED}


def test_applying_again_changes_nothing():
    before = {key: getattr(*key) for key in REPLACED}
    compat.apply()
    install()
    assert all(getattr(*key) is function for key, function in before.items())
    assert all(function.replaces.__module__.startswith('basicsr') for function in before.values())


@pytest.mark.parametrize(
    ('name', 'attribute'),
    [
        ('torchvision.transforms.functional_tensor', 'rgb_to_grayscale'),
        ('scipy.ndimage.filters', 'convolve'),
    ],
)
def test_shims_fill_in_for_a_module_that_is_gone_only(name, attribute, monkeypatch):
    present = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, present)
    imports.provide_removed_modules()
    assert sys.modules[name] is present
    monkeypatch.setitem(sys.modules, name, None)  # as if it could not be imported
    imports.provide_removed_modules()
    assert callable(getattr(sys.modules[name], attribute))


def test_distutils_comes_from_setuptools_or_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'distutils', None)
    monkeypatch.setitem(sys.modules, 'setuptools', None)
    with pytest.raises(ImportError, match='pip install setuptools'):
        imports.provide_distutils()


def test_missing_packages_are_named_with_the_commands():
    code = "import sys; sys.modules |= {'torch': None, 'basicsr': None}; import unfoldldm_basicsr"
    result = run_python('-c', code)
    assert result.returncode == 1
    last = result.stderr[result.stderr.rindex('ImportError') :]
    assert 'needs torch and basicsr, not installed' in last
    assert 'pip install torch torchvision' in last
    assert 'pip install --no-build-isolation basicsr==1.4.2' in last


@pytest.mark.parametrize(
    ('version_file', 'says'),
    [("__version__ = '1.2.0+1386'\n", 'version 1.2.0'), (None, 'without version.py')],
)
def test_another_package_named_basicsr_is_recognised(tmp_path, version_file, says):
    fork = tmp_path / 'basicsr'
    fork.mkdir()
    (fork / '__init__.py').write_text('')
    if version_file:
        (fork / 'version.py').write_text(version_file)
    code = (
        f'import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import unfoldldm_basicsr'
    )
    last = run_python('-c', code).stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError')
    assert says in last
    assert str(fork) in last


def test_registering_again_from_the_same_module_replaces_the_class():
    registry = basicsr.utils.registry.Registry('arch')
    first, second = (types.new_class('Net') for _ in range(2))
    registry.register(first)
    registry.register(second)
    assert registry.get('Net') is second
