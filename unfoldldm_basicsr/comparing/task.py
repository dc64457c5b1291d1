"""A comparison as a folder of option files: what is equal, and what each side has of its own.

``common.yml`` is an option file of BasicSR without a network, with a section ``compare``; every
other file of the folder is one side: ``network_g``, ``model_type`` and what it changes in the
common options, once for each of its ``phases`` where it has several (``of: NAME`` takes all else
from that side). The word ``previous`` stands
for the weights of the phase before, and ``25 %`` for that share of a phase's iterations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, Tuple, read
from unfoldldm_basicsr.common.suggest import did_you_mean
from unfoldldm_basicsr.options.read import apply_overrides, read_option_file

COMMON, ROWS = 'common.yml', 'rows.yml'
SHARE = re.compile(r'\s*(\d+(?:\.\d+)?)\s*%\s*')
PREVIOUS = 'previous'


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
    classical: Literal['non_local_means'] | None = None
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
    """One network of a comparison.

    Attributes:
        name: of its runs and files.
        own: its option keys, laid over the common ones; ``phases`` apart.
        shares: of the budget, for each phase.
        phases: option keys of each phase, laid over ``own``.
        trained_as: the side whose trainings it uses; differs from ``name`` where only the test
            differs.
        classical: method without training, in place of a network.
    """

    name: str
    title: str
    paper: str | None
    own: Mapping[str, Any]
    phases: tuple[Mapping[str, Any], ...]
    shares: tuple[float, ...]
    test: TestOptions
    trained_as: str
    classical: str | None = None


@dataclass(frozen=True)
class Task:
    """A comparison: common options and sides."""

    folder: Path
    name: str
    settings: CompareOptions
    common: Mapping[str, Any]
    sides: tuple[Side, ...]

    @property
    def label(self) -> str:
        """Task and budget: the beginning of the names of all its runs."""
        budget = self.settings.budget
        return f'{self.name}_{budget.equal}{budget.amount:g}'

    def run_name(self, side: Side, seed: int, phase: int) -> str:
        """Name of a training: its folder below ``experiments``."""
        part = f'_phase{phase + 1}' if len(side.phases) > 1 else ''
        return f'{self.label}_{side.trained_as}_seed{seed}{part}'

    def options(self, side: Side, phase: int, iterations: int, seed: int, root: Path) -> dict:
        """The complete option file of one training, with nothing left to resolve."""
        options = merged(merged(self.common, side.own), side.phases[phase])
        before = None
        if phase:
            before = str(weights_of(root, self.run_name(side, seed, phase - 1)))
        options = resolved(options, iterations, before)
        datasets = options.get('datasets', {})
        options |= {
            'name': self.run_name(side, seed, phase),
            'manual_seed': seed,
            'datasets': {k: v for k, v in datasets.items() if not k.startswith('test')},
        }
        options.setdefault('train', {})['total_iter'] = iterations
        return {'name': options.pop('name'), **options}

    @property
    def test_sets(self) -> dict[str, Any]:
        """Sections of ``datasets`` to test on: the test sets, else the validation sets."""
        data = self.common['datasets']
        return sections(data, 'test') or sections(data, 'val')

    def test_options(self, side: Side, seed: int, root: Path) -> dict:
        """The option file of a side's test."""
        options = self.options(side, len(side.phases) - 1, 100, seed, root)
        name = f'{self.label}_{side.name}_seed{seed}'
        weights = weights_of(root, options['name'])
        return options_of_test(name, options, self.test_sets, weights, side.test)


def options_of_test(
    name: str,
    options: Mapping[str, Any],
    sets: Mapping[str, Any],
    weights: Path,
    changes: TestOptions | None = None,
) -> dict[str, Any]:
    """The option file of a test.

    Args:
        name: of the test.
        options: of the training of the weights.
        sets: sections of ``datasets`` to test on.
        weights: to be tested.
        changes: choices of the test.
    """
    changes = changes or TestOptions()
    val = {
        k: v
        for k, v in (options.get('val') or {}).items()
        if k in ('metrics', 'tile', 'tile_overlap')
    }
    dropped = ('train', 'logger', 'manual_seed', 'dist_params')
    return {k: v for k, v in options.items() if k not in dropped} | {
        'name': name,
        'network_g': options.get('network_g', {}) | changes.network_g,
        'datasets': {k.replace('val', 'test'): deepcopy(v) for k, v in sets.items()},
        'val': val | changes.val,
        'path': {'pretrain_network_g': str(weights)},
    }


def sections(datasets: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The sections of ``datasets`` that begin so: 'train', 'val' or 'test'; none taken away (~)."""
    return {key: value for key, value in datasets.items() if key.startswith(kind) and value}


def weights_of(root: Path, run: str) -> Path:
    """The file that a training writes at its very end."""
    return root / 'experiments' / run / 'models' / 'net_g_latest.pth'


def read_task(folder: Path, overrides: Iterable[str] = ()) -> Task:
    """A folder of option files: of a comparison, or with ``rows.yml`` of an ablation.

    Args:
        folder: of the option files.
        overrides: ``KEY:KEY=VALUE`` for ``common.yml``, as of ``--force_yml``.

    Raises:
        ValueError: a file is missing or wrong; the message names file and key.
    """
    if (folder / ROWS).is_file():
        name, place, files, reference = ablation(folder)
    else:
        name, place, reference = None, folder, None
        found = sorted(folder.glob('*.yml'))
        files = {file.stem: read_option_file(file) for file in found if file.name != COMMON}
        for side, values in files.items():
            if 'of' in values:
                base = values.pop('of')
                known(base, files, f'{folder / side}.yml: of')
                files[side] = merged(files[base], {'title': side} | values)
    file = place / COMMON
    if not file.is_file():
        raise ValueError(f'{place}: no {COMMON} there; a comparison is a folder of option files.')
    common = read_option_file(file)
    apply_overrides(common, overrides)
    _check_common(common, file)
    settings = _read(CompareOptions, common.pop('compare', {}), f'{file}: compare')
    if reference is not None:
        settings = settings.model_copy(update={'reference': reference})
    sides = share_trainings(side_of(name, values, folder) for name, values in files.items())
    if not sides:
        raise ValueError(f'{folder}: no file besides {COMMON}: one for each network is needed.')
    titles = [side.title for side in sides]
    if len({*titles}) < len(titles):
        raise ValueError(f'{folder}: every side needs a title of its own, got {titles}.')
    known(settings.reference, [side.name for side in sides], f'{file}: compare.reference')
    own_name = common.pop('name')
    return Task(folder, name or str(own_name), settings, common, sides)


def ablation(folder: Path) -> tuple[str, Path, dict[str, dict], str]:
    """Name, folder of the common options, option keys of every row, and the row changed by all."""
    options = _read(AblationOptions, read_option_file(folder / ROWS), str(folder / ROWS))
    place, rows = folder / options.of, options.rows
    if isinstance(rows, str):
        rows = _read(AblationOptions, read_option_file(folder / rows), str(folder / rows)).rows
    base = read_option_file(place / f'{options.base}.yml')
    files = {options.base: base} | {
        name: merged(base, {'title': name} | row) for name, row in rows.items()
    }
    return f'ablate_{folder.resolve().name}', place, files, options.base


def known(name: str | None, names: Iterable[str], where: str) -> None:
    """
    Raises:
        ValueError: no side has that name.
    """
    if name is not None and name not in names:
        raise ValueError(f"{where}: no side '{name}'.{did_you_mean(name, names)}")


def side_of(name: str, values: Mapping[str, Any], folder: Path) -> Side:
    """A side from its option keys."""
    own = dict(values)
    mine = {key: own.pop(key) for key in SideOptions.model_fields if key in own}
    options = _read(SideOptions, mine, f'{folder}: {name}')
    if options.classical is not None:
        title = options.title or name
        return Side(name, title, None, own, (), (), options.test, name, options.classical)
    phases = [dict(phase) for phase in options.phases]
    shares = [phase.pop('share', 1 / len(phases)) for phase in phases]
    good = all(isinstance(s, int | float) and 0 < s <= 1 for s in shares)
    if not good or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f'{folder}: {name}: phases: each share lies in (0, 1] and their sum is 1, got {shares}.'
        )
    return Side(
        name, options.title or name, options.paper, own, tuple(phases), tuple(shares),
        options.test, name,
    )  # fmt: skip


def share_trainings(sides: Iterable[Side]) -> tuple[Side, ...]:
    """Sides that are trained alike use the trainings of the first of them."""
    first: list[Side] = []
    result = []
    for side in sides:
        same = (
            s for s in first if (s.own, s.phases, s.shares) == (side.own, side.phases, side.shares)
        )
        teacher = next(same, side)
        first.append(teacher)
        result.append(replace(side, trained_as=teacher.name))
    return tuple(result)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
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


def _read(declared: type[Options], values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f'{where}: must be a section, got {values!r}.')
    return read(declared, values, where)


def _check_common(common: Mapping[str, Any], file: Path) -> None:
    problems = [Problem(key, 'is missing.') for key in ('name', 'datasets') if key not in common]
    if 'network_g' in common:
        problems.append(Problem('network_g', 'belongs into the file of a side.'))
    if not problems and 'train' not in common['datasets']:
        problems.append(Problem('datasets.train', 'is missing.'))
    if problems:
        raise OptionError(str(file), problems)
