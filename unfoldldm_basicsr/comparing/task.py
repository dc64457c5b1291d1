"""A comparison as a folder of option files: what is equal, and what each side has of its own.

``common.yml`` is an option file of BasicSR with a section ``compare``; every other file of the
folder is one side: its network and what it changes in the common options, once for each of its
``phases`` where it has several (``of: NAME`` takes all else from that side). The word ``previous``
stands for the weights of the phase before, and ``25 %`` for that share of a phase's iterations.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from unfoldldm_basicsr.common.declaration import Options, Tuple, read
from unfoldldm_basicsr.common.option_files import apply_overrides, read_option_file
from unfoldldm_basicsr.common.suggest import check_choice
from unfoldldm_basicsr.weights.checkpoint import read_checkpoint

COMMON, ROWS = 'common.yml', 'rows.yml'
PREVIOUS = 'previous'  # weights of the phase before
LATEST = Path('models', 'net_g_latest.pth')  # in the folder of a run
SHARE = re.compile(r'\s*(\d+(?:\.\d+)?)\s*%\s*')
Section = Mapping[str, Any]  # of an option file


class BudgetOptions(Options):
    """What every side may spend on its training, all phases together."""

    equal: Literal['iterations', 'time', 'macs']
    """What is equal: iterations, time of the steps, or multiply-accumulates of the steps."""
    amount: PositiveFloat
    """Iterations; seconds (of the process on CPU, of the device on GPU); or units of 1e12 MACs."""


class CompareOptions(Options):
    """The section ``compare`` of ``common.yml``."""

    budget: BudgetOptions
    """The budget of each side."""
    seeds: Annotated[Tuple[NonNegativeInt], Field(min_length=1)] = (0,)
    """Every side is trained once with each."""
    threads: PositiveInt = 1
    """CPU threads of every training, test and measurement."""
    sizes: Annotated[Tuple[PositiveInt], Field(min_length=1)] = (256,)
    """Sides of the square images that MACs, latency and memory are measured for; the first counts
    in pictures."""
    reference: str | None = None
    """The side that all others are compared with (none: every pair)."""
    allow: Tuple[str] = ()
    """Further option keys in which the sides may differ; they are named in the report."""
    out_of_distribution: Tuple[str] = ()
    """Names of test sets with degradations or strengths that the training has not seen."""


class CommonOptions(Options):
    """``common.yml``; its other keys are BasicSR's, and checked with those of each side."""

    model_config = ConfigDict(extra='allow')

    name: str
    """Beginning of the names of all runs."""
    compare: CompareOptions
    """Budget, seeds and what is measured."""
    datasets: dict[str, Any]
    """Training, validation and test sets of all sides."""


class TestOptions(Options):
    """The section ``test`` of a side: choices of the test alone."""

    network_g: dict[str, Any] = {}
    """Changes to the network, for example ``type: NAFNetLocal``."""
    val: dict[str, Any] = {}
    """Changes to ``val``, for example ``tile: 512`` or ``prior_source: 'null'``."""


class SideOptions(Options):
    """What a file of a side has besides option keys of BasicSR."""

    title: str | None = None
    """Name in tables and pictures (none: that of the file)."""
    paper: str | None = None
    """What the paper says about this row of an ablation."""
    classical: Literal['non_local_means', 'non_local_means_gamma'] | None = None
    """A method without training in place of a network (its noise level is estimated)."""
    phases: Annotated[Tuple[dict[str, Any]], Field(min_length=1)] = ({},)
    """Option keys of each phase, with its ``share`` of the budget (equal parts)."""
    test: TestOptions = TestOptions()
    """Choices of the test alone."""


class AblationOptions(Options):
    """``rows.yml``: one network with parts changed."""

    of: str
    """Folder of the comparison whose common options and base are used, seen from this file."""
    base: str
    """The network that every row changes: a file of that folder, without its ending."""
    rows: dict[str, dict[str, Any]] | str
    """Option keys of each row, or another ``rows.yml`` to take them from."""


@dataclass(frozen=True)
class Side:
    """One network of a comparison."""

    name: str  # of its runs and files
    file: SideOptions  # what its option file says besides keys of BasicSR
    phases: tuple[Section, ...]  # options of each, common ones too; none for a classical method
    trained_as: str  # the side whose trainings it uses; another where only the test differs

    @property
    def title(self) -> str:
        return self.file.title or self.name

    @property
    def shares(self) -> list[float]:
        """Parts of the budget, for each phase."""
        return [phase.get('share', 1 / len(self.phases)) for phase in self.file.phases]


@dataclass(frozen=True)
class Task:
    """A comparison: common options and sides."""

    folder: Path
    name: str
    settings: CompareOptions
    common: Section
    sides: tuple[Side, ...]

    @property
    def label(self) -> str:
        """Task and budget: the beginning of the names of all its runs."""
        budget = self.settings.budget
        return f'{self.name}_{budget.equal}{budget.amount:g}'

    def options(self, side: Side, phase: int, iterations: int, seed: int, root: Path) -> dict:
        """The complete option file of one training, with nothing left to resolve."""

        def name(phase: int) -> str:
            part = f'_phase{phase + 1}' if len(side.phases) > 1 else ''
            return f'{self.label}_{side.trained_as}_seed{seed}{part}'

        before = str(root / 'experiments' / name(phase - 1) / LATEST) if phase else None
        options = resolved(side.phases[phase], iterations, before)
        data = {k: v for k, v in options['datasets'].items() if not k.startswith('test')}
        options |= {'manual_seed': seed, 'datasets': data}
        options.setdefault('train', {})['total_iter'] = iterations
        return {'name': name(phase), **options}

    def test_options(self, side: Side, seed: int, root: Path) -> dict:
        """The option file of a side's test."""
        name = f'{self.label}_{side.name}_seed{seed}'
        if side.file.classical:
            own = {'classical': side.file.classical, 'val': self.common['val']}
            return options_of_test(side.name, own, test_sets(self.common))
        options = self.options(side, len(side.phases) - 1, 100, seed, root)
        weights = root / 'experiments' / options['name'] / LATEST
        return options_of_test(name, options, test_sets(self.common), weights, side.file.test)


def options_of_test(
    name: str,
    options: Section,
    sets: Section,
    weights: Path | None = None,
    changes: TestOptions = TestOptions(),  # noqa: B008  (immutable)
) -> dict[str, Any]:
    """The option file of a test with these ``sets``.

    ``options`` are those of the training of the weights, or ``classical`` and ``val`` alone.
    """
    kept = ('metrics', 'tile', 'tile_overlap')
    val = {k: v for k, v in (options.get('val') or {}).items() if k in kept}
    dropped = ('train', 'logger', 'manual_seed', 'dist_params')
    path = {'pretrain_network_g': str(weights) if weights else None}
    if (options.get('train') or {}).get('ema_decay'):  # what it was validated with, of any model
        trained = weights and weights.exists()  # a model of a project may keep no average
        found = read_checkpoint(weights, 'params_ema', fallback=True) if trained else None
        path['param_key_g'] = found.param_key if found else 'params_ema'
    return {k: v for k, v in options.items() if k not in dropped} | {
        'name': name,
        'network_g': options.get('network_g', {}) | changes.network_g,
        'datasets': {k.replace('val', 'test'): deepcopy(v) for k, v in sets.items()},
        'val': val | changes.val,
        'path': path,
    }


def test_sets(options: Section) -> dict[str, Any]:
    """The test sets of an option file, else its validation sets; none that is taken away (~)."""
    data = options.get('datasets') or {}
    tests = {key: value for key, value in data.items() if key.startswith('test') and value}
    return tests or {key: value for key, value in data.items() if key.startswith('val') and value}


def read_task(folder: Path, overrides: Iterable[str] = (), only: Sequence[str] = ()) -> Task:
    """A folder of option files: of a comparison, or with ``rows.yml`` of an ablation.

    ``overrides`` are ``KEY:KEY=VALUE`` for ``common.yml``, as of ``--force_yml``; ``only`` names
    the sides that are wanted (none: all), to which those that they need are added.

    Raises ValueError: a file is missing or wrong; the message names file and key.
    """
    if folder.is_file():
        raise ValueError(f'{folder}: is a file. Name its folder, {folder.resolve().parent}.')
    name, place, reference = None, folder, None
    if (folder / ROWS).is_file():
        name, place, files, reference = _ablation(folder)
    else:
        found = sorted(folder.glob('*.yml'))
        files = {file.stem: read_option_file(file) for file in found if file.name != COMMON}
    for side, values in files.items():
        if base := values.pop('of', None):
            check_choice(f'{folder / side}.yml: of', base, files.keys() - {side})
            files[side] = merged(files[base], {'title': side} | values)
    file = place / COMMON
    common = read_option_file(file)
    named = common.get('name')
    apply_overrides(common, overrides)
    head = read(CommonOptions, common, str(file))
    name = name if name and head.name == named else head.name
    settings = head.compare.model_copy(update={'reference': reference or head.compare.reference})
    common = {key: value for key, value in common.items() if key not in ('name', 'compare')}
    sides: list[Side] = []
    for side_name, values in files.items():
        side = _side(side_name, values, common, folder)
        alike = [s for s in sides if s.phases == side.phases != () and s.shares == side.shares]
        sides.append(replace(side, trained_as=alike[0].trained_as) if alike else side)
    if not any(side.phases for side in sides):
        raise ValueError(f'{folder}: no network besides {COMMON}: one file for each is needed.')
    titles = [side.title for side in sides]
    if len({*titles}) < len(titles):
        raise ValueError(f'{folder}: every side needs a title of its own, got {titles}.')
    if settings.reference is not None:
        check_choice(f'{file}: compare.reference', settings.reference, files)
    for wanted in only:
        check_choice('--only', wanted, files)
    needed = {s.trained_as for s in sides if s.name in only} | {*only, settings.reference}
    chosen = tuple(side for side in sides if not only or side.name in needed)
    return Task(folder, name, settings, common, chosen)


def _ablation(folder: Path) -> tuple[str, Path, dict[str, dict], str]:
    """Name, folder of the common options, option keys of every row, and the row changed by all."""

    def rows_of(file: Path) -> AblationOptions:
        return read(AblationOptions, read_option_file(file), str(file))

    options = rows_of(folder / ROWS)
    place, rows = folder / options.of, options.rows
    if isinstance(rows, str):
        rows = rows_of(folder / rows).rows
    if options.base in rows:
        raise ValueError(f'{folder / ROWS}: rows.{options.base} has the name of the base.')
    files = {options.base: read_option_file(place / f'{options.base}.yml')}
    files |= {name: {'of': options.base, **row} for name, row in rows.items()}
    return f'ablate_{folder.resolve().name}', place, files, options.base


def _side(name: str, values: Section, common: Section, folder: Path) -> Side:
    own = dict(values)
    mine = {key: own.pop(key) for key in SideOptions.model_fields if key in own}
    file = read(SideOptions, mine, f'{folder}: {name}')
    if file.classical:
        return Side(name, file, (), name)
    own = merged(common, own)
    phases = [{k: v for k, v in phase.items() if k != 'share'} for phase in file.phases]
    side = Side(name, file, tuple(merged(own, phase) for phase in phases), name)
    for phase in side.phases:
        train = phase['train'] if isinstance(phase.get('train'), Mapping) else ()
        keys = {*phase, *(f'train.{key}' for key in train)}
        for key, by in (('manual_seed', 'seeds'), ('train.total_iter', 'budget')):
            if key in keys:
                raise ValueError(f'{folder}: {name}: {key} is set by compare.{by}; remove it.')
    good = all(isinstance(s, int | float) and s > 0 for s in side.shares)
    if not good or abs(sum(side.shares) - 1) > 1e-6:
        rule = 'each share is positive and their sum is 1'
        raise ValueError(f'{folder}: {name}: phases: {rule}, got {side.shares}.')
    return side


def merged(below: Section, above: Section) -> dict[str, Any]:
    """``above`` laid over ``below``: sections key by key, everything else replaced.

    A section with another ``type`` replaces the one below as a whole: its keys mean other things.
    """
    result = deepcopy(dict(below))
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        if both and value.get('type', old.get('type')) == old.get('type'):
            result[key] = merged(old, value)
        else:
            result[key] = deepcopy(value)
    return result


def resolved(value: Any, iterations: int, before: str | None) -> Any:
    """Option values with shares of the iterations and ``previous`` replaced."""
    if isinstance(value, Mapping):
        return {key: resolved(item, iterations, before) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item, iterations, before) for item in value]
    if value == PREVIOUS and before is not None:
        return before
    share = SHARE.fullmatch(value) if isinstance(value, str) else None
    return max(1, round(iterations * float(share[1]) / 100)) if share else value
