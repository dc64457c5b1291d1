"""Option files with a mistake: each gives one clear error, or runs; none a traceback or a folder.

Every key of every shipped option file is dropped, misspelt, given another type, and exchanged with
another. What the check accepts is trained for one step (or tested) on tiny pictures by BasicSR's
own pipeline, so that "accepted" means "works". Whole form: ``pytest -m faults -s`` on this file.
"""

import contextlib
import io
import re
import shutil
import sys
import warnings
from collections import Counter
from functools import cache, partial
from itertools import product
from pathlib import Path
from random import Random

import basicsr.test
import basicsr.train
import pytest
from helpers import OPTION_FILES, ROOT, write_options
from option_mutants import OPERATIONS, Mutant, drop, key_paths, mutant_of
from option_runs import short_run

from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.training import start as start_of_run

OPTIONS = ROOT / 'options'
FILES = [str(file.relative_to(OPTIONS)) for file in OPTION_FILES]
COUNTS: Counter[str] = Counter()  # over the whole form


@pytest.fixture(scope='module')
def entry(tmp_path_factory, networks_once):
    """BasicSR's start of a run in an empty folder, with the check for any machine."""
    folder = tmp_path_factory.mktemp('fuzzing')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', ['entry', '-opt', 'x.yml'])
        yield folder


def verdict(mutant: Mutant, folder: Path, *, run: bool) -> str:
    """'clear error' or what else became of a mutant; 'accepted' ones are run where asked.

    Raises:
        AssertionError: a traceback, an error that does not name the key, or a touched folder.
    """
    file = write_options(folder / 'x.yml', mutant.options)
    error = _refusal(partial(_start, mutant, folder), partial(examine, here=False))
    assert list(folder.iterdir()) == [file], f'{mutant}: touched {list(folder.iterdir())}'
    kind = 'accepted'
    if error is None and run:
        kind, scene = 'ran correctly', folder.with_name(f'{folder.name}_run')
        scene.mkdir(exist_ok=True)
        error = _refusal(partial(short_run, mutant, scene), examine)
        for run_folder in ('experiments', 'results'):
            shutil.rmtree(scene / run_folder, ignore_errors=True)
    if error is not None:
        kind = 'clear error'
        named = any(re.search(rf'(?<!\w){re.escape(name)}(?!\w)', error) for name in mutant.names)
        assert named, f'{mutant}: the error names none of {mutant.names}:\n{error}'
        assert 'Traceback' not in error
    COUNTS[kind] += 1
    return kind


def _start(mutant: Mutant, folder: Path) -> None:
    training = bool({'train', 'logger'} & mutant.options.keys())  # a test has neither
    module = basicsr.train if training else basicsr.test
    call = 'parse_options(folder, is_train=training)'  # by a pipeline, which is not lenient
    eval(call, vars(module), {'folder': str(folder), 'training': training})


def _refusal(start, check) -> str | None:
    errors = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(errors),
            warnings.catch_warnings(),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(start_of_run, 'examine', check)
            warnings.simplefilter('ignore')
            start()
    except SystemExit as end:
        return errors.getvalue() if end.code == 2 else f'status {end.code}'
    return None


@cache
def load(file: str) -> dict:
    return read_option_file(OPTIONS / file)


def test_a_mistake_in_any_file_gives_a_clear_error(entry):
    rng, seen = Random(0), Counter()
    for _ in range(100):
        options = load(rng.choice(FILES))
        path = rng.choice([*key_paths(options)])
        mutant = mutant_of(options, path, rng.choice(OPERATIONS), rng)
        seen[verdict(mutant, entry, run=False)] += 1
    assert seen['clear error'] > 60


def test_what_is_accepted_runs(entry):
    options, rng = load('smoke/unfoldldm_phase1.yml'), Random(0)
    paths = rng.sample([*key_paths(options)], 8)
    seen = Counter(verdict(drop(options, path), entry, run=True) for path in paths)
    assert seen['ran correctly'] >= 2


@pytest.mark.faults
@pytest.mark.parametrize('file', FILES)
def test_every_key_of_every_file(entry, file):
    options, counts, rng = load(file), Counter(), Random(file)
    for path, kind in product(key_paths(options), OPERATIONS):
        mutant = mutant_of(options, path, kind, rng)
        try:
            counts[verdict(mutant, entry, run=True)] += 1
        except Exception as error:
            error.add_note(f'{file}: {mutant}')
            raise
    assert set(counts) == {'clear error', 'ran correctly'}
    assert counts['clear error'] > counts['ran correctly'], 'most mistakes are found'
    total = ', '.join(f'{n} {kind}' for kind, n in COUNTS.items())
    sys.stdout.write(
        f'\n{file}: {dict(counts)}; so far {sum(COUNTS.values())}: {total}, 0 others\n'
    )
