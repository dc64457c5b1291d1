"""Every test starts from the same random state, on few threads, with the package registered."""

import importlib
import logging
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, model_options, plugin_options, stock_options, write_options
from model_runs import begin, steps
from tiny_network import TWO_GROUPS

import unfoldldm_basicsr  # noqa: F401  (makes `import basicsr` work and registers the classes)
from unfoldldm_basicsr.cli import main
from unfoldldm_basicsr.models import RestorationModel
from unfoldldm_basicsr.options import preflight
from unfoldldm_basicsr.training.interruption import stop_request
from unfoldldm_basicsr.training.progress import progress


def pytest_configure(config):
    """Hides GPUs but from the tests that ask for one: the others compare bits made on a CPU."""
    if config.option.markexpr != 'gpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _same_start():
    """One random state; what a test left in the environment and in BasicSR's logger is undone."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (BasicSR draws from the global generator)
    torch.manual_seed(0)
    progress.begin()
    environment, logger = dict(os.environ), logging.getLogger('basicsr')
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    os.environ.clear()
    os.environ.update(environment)
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate
    stop_request.remove()


@pytest.fixture
def log(caplog, monkeypatch):
    """What BasicSR's logger wrote, from level INFO."""
    from basicsr.utils import get_root_logger  # importable only with the package

    monkeypatch.setattr(get_root_logger(), 'propagate', True)  # which its first call switches off
    with caplog.at_level(logging.INFO, 'basicsr'):
        yield caplog


@pytest.fixture
def stock(tmp_path) -> dict:
    return stock_options(tmp_path)


@pytest.fixture
def plugin(tmp_path) -> dict:
    return plugin_options(tmp_path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder, with data and a correct option file ``x.yml``."""
    write_options(tmp_path / 'x.yml', stock_options(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make(tmp_path):
    """Builds a model of a network in ``tmp_path``; keywords change its section ``train``."""

    def build(network=TWO_GROUPS, **train) -> RestorationModel:
        torch.manual_seed(0)
        return RestorationModel(model_options(tmp_path, network, **train))

    return build


@pytest.fixture(scope='module')
def networks_once():
    """The check builds equal networks once, for the files that share theirs."""
    build, built = preflight.build_on_meta, {}

    def build_once(cls, arguments):
        key = cls, repr(sorted(arguments.items(), key=str))
        if key not in built:
            if len(built) > 100:
                built.clear()
            built[key] = build(cls, arguments)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, 'build_on_meta', build_once)
        yield


@pytest.fixture
def run_here(tmp_path, monkeypatch, log):
    """Trains, or tests, an option file in ``tmp_path`` as its user would; gives what was logged."""

    def run(options: dict, program: str = 'train') -> str:
        log.clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [program])
        file = write_options(tmp_path / 'x.yml', options)
        importlib.import_module(f'unfoldldm_basicsr.{program}').main(['-opt', str(file)])
        return log.text

    return run


@pytest.fixture
def output_of(capsys):
    """What a command prints that ends with a status; for 2, where it is refused, why."""

    def run(*words: object, status: int = 0) -> str:
        capsys.readouterr()
        assert main([*map(str, words)]) == status
        return capsys.readouterr()[status == 2]

    return run


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark script as Python does that runs it: its folder on the path."""
    folder, threads, known = ROOT / 'scripts' / 'benchmark', torch.get_num_threads(), {*sys.modules}
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in {*sys.modules} - known:
        if str(folder) in str(getattr(sys.modules[name], '__file__', '')):
            del sys.modules[name]


@pytest.fixture(scope='session')
def _two_checkpoints(tmp_path_factory) -> Path:
    """Only to be copied: see ``two``."""
    folder = tmp_path_factory.mktemp('written')
    model = begin(folder)
    for iteration in range(1, 5):
        steps(model, iteration)
        if iteration % 2 == 0:
            model.save(0, iteration)
    stop_request.remove()
    return folder


@pytest.fixture
def two(tmp_path, _two_checkpoints) -> Path:
    """A folder with the checkpoints 2 and 4."""
    return Path(shutil.copytree(_two_checkpoints, tmp_path, dirs_exist_ok=True))
