"""An option file as typed sections, and what is wrong with them."""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from pydantic import ValidationError
from torch import nn

from unfoldldm_basicsr.common.declaration import OptionError, Options, Problem, keys_of, problems_of
from unfoldldm_basicsr.common.registration import KNOWN, whose
from unfoldldm_basicsr.common.sections import ANY_SECTIONS, SECTIONS, AnyDataset, BasicDataset
from unfoldldm_basicsr.common.suggest import nearest, one_slip

# Written into the option dict when a run is started; no keys of an option file.
SET_AT_START = {
    '': ('is_train', 'dist', 'rank', 'world_size', 'auto_resume', 'root_path'),
    'path': (
        'experiments_root', 'results_root', 'models', 'training_states', 'log', 'visualization',
    ),
}  # fmt: skip
_OF_TRAINING = ('train', 'logger')  # sections that a test does not read
_COUNT_OF = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS'}


@dataclass
class Run:
    """What an option file describes: its sections typed, ``top`` is the top level.

    The check alone knows ``datasets``, ``networks``, on the meta device, None for what cannot be
    built there, and where and how the run is started.
    """

    model: type | None  # class of ``model_type``, if there is one
    is_train: bool
    opt: Mapping[str, Any]  # the option dict itself; not to be changed
    top: Options = field(init=False)
    val: Options = field(init=False)
    path: Options = field(init=False)
    train: Options | None = None
    logger: Options | None = None
    datasets: dict[str, Options] = field(default_factory=dict)
    networks: dict[str, nn.Module | None] = field(default_factory=dict)
    here: bool = True  # data, weights and GPUs of this machine belong to it, and are looked at
    launcher: str | None = None  # that of the command line; None where no run is started
    resuming: bool | None = None  # from a state; None: if ``path.resume_state`` names one

    @property
    def processes(self) -> int:
        return process_count(self.launcher)

    @property
    def replicas(self) -> int:
        """Batches of ``batch_size_per_gpu`` that each process draws, as DataParallel does."""
        gpus, alone = self.top.num_gpu, self.launcher in (None, 'none')
        return max(gpus, 1) if alone and isinstance(gpus, int) else 1

    @property
    def network_sections(self) -> dict[str, Mapping[str, Any]]:
        """``network_g`` and the like: type and arguments."""
        named = {k: v for k, v in self.opt.items() if str(k).startswith('network_')}
        return {key: section for key, section in named.items() if isinstance(section, Mapping)}

    def sets(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Path and section of every data set that is read."""
        for phase, section in section_values(self.opt, 'datasets').items():
            if isinstance(section, Mapping) and is_read(str(phase), self.is_train):
                yield f'datasets.{phase}', section


def section_values(opt: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section of an option dict ('' for the top level), empty where there is none."""
    values = opt.get(section) if section else opt
    values = values if isinstance(values, Mapping) else {}
    return {k: v for k, v in values.items() if k not in SET_AT_START.get(section, ())}


def plain(value: Any) -> Any:
    """Option values as plain dicts and lists, which ``weights_only=True`` loads."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def flatten(value: Any, prefix: str) -> dict[str, Any]:
    """Key path -> plain value, through mappings and lists of mappings."""
    if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {prefix: plain(value)}
    parts = [flatten(inner, f'{prefix}.{key}'.lstrip('.')) for key, inner in value.items()]
    return {path: item for part in parts for path, item in part.items()}


def is_training(opt: Mapping[str, Any]) -> bool:
    """Whether an option dict describes a training; files of tests have no ``train``."""
    training = 'train' in opt or 'train' in section_values(opt, 'datasets')
    return bool(opt.get('is_train', training))


def is_read(phase: str, is_train: bool) -> bool:
    """Whether a training, or a test, reads ``datasets.PHASE``."""
    kind = phase.split('_')[0]
    return phase == 'train' or kind == 'val' if is_train else kind in ('val', 'test')


class Report:
    """What a check found, by key path; the first problem of a place stands, as it has the cause.

    Keys that nothing reads are taken out of ``options``: rules and data sets look at the others.
    Where the check is not ``strict``, they are warnings.
    """

    run: Run
    notes: Sequence[str] = ()  # what was translated

    def __init__(self, options: dict | None = None, file: str = '', strict: bool = True):
        self.options, self.file, self.strict = options, file, strict
        self.refused: dict[str, str] = {}
        self.warned: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """``FILE: key.path: message`` for what a run is refused for."""
        return [f'{self.file}: {path}: {text}' for path, text in self.refused.items()]

    @property
    def warnings(self) -> list[str]:
        """The same for what is worth a warning only."""
        return [f'{self.file}: {path}: {text}' for path, text in self.warned.items()]

    def add(self, path: str, message: str, kind: str = 'fault') -> None:
        """``message`` continues the sentence that ``path`` begins; see :class:`.Problem`."""
        message = ' '.join(message.split())
        if any(f'{path}.'.startswith(f'{place}.') for place in self.refused):
            return
        if kind == 'warning' or (kind in ('unknown', 'slip') and not self.strict):
            self.warned.setdefault(path, message)
        else:
            self.refused[path] = message
        if kind == 'unknown':
            _remove(self.options, path)

    def at(self, path: str) -> bool:
        """Whether ``path``, a section around it or anything in it has a problem."""
        places = (f'{place}.' for place in self.refused)
        return any(p.startswith(f'{path}.') or f'{path}.'.startswith(p) for p in places)

    def read(
        self, prefix: str, declared: type[Options], values: Mapping[str, Any], owner: Any
    ) -> Options:
        """A section as its declaration types it, as far as it is right; the rest is added.

        ``prefix`` is its key path, ``owner`` the class that it is for, None where that is not
        known. One without a declaration of its own reads the keys of ``also`` beside, and may read
        more: of those that are unknown, only slips of known ones are refused then, and in one of
        somebody else none that stands beside what it might be a slip of: game is not name.
        """
        values = {str(key): value for key, value in values.items()}
        also = declared.also if owner else re.compile('.*', re.DOTALL)
        sections = getattr(owner, 'sections', None)
        own = sections.values() if isinstance(sections, Mapping) else ()
        if declared in (getattr(owner, 'Options', None), *own):
            also = None
        try:
            return declared.model_validate(values)
        except ValidationError as error:
            found = problems_of(error, declared, values, getattr(owner, '__name__', ''))
        known, theirs = keys_of(declared), whose(owner) in ('derived', 'theirs')
        own_way = issubclass(declared, BasicDataset) and reads_itself(owner)
        judged = AnyDataset.model_fields if own_way else known
        for path, message, kind in found:
            if own_way and kind == 'fault' and path not in judged:
                kind = 'warning'  # it may mean what BasicSR's would not take
            if kind == 'unknown' and '.' not in path:
                if also and also.fullmatch(path):
                    continue
                near = nearest(path, known)
                possible = [key for key in judged if not (theirs and key in values)]
                if also and (slip := _slip_of(path, possible, values)):
                    message, kind = f"is not known here. Did you mean '{slip}'?", 'slip'
                elif also or not (prefix or near):  # at the top: a note
                    kind = 'warning'
                    message = f'is nothing that is known here; left as it is.{near}'
            self.add(f'{prefix}.{path}'.strip('.'), message, kind)
        faulty = {problem.path.partition('.')[0] for problem in found}
        right = {k: v for k, v in values.items() if k in known and k not in faulty}
        try:
            return declared.model_validate(right)
        except ValidationError:  # a required key is missing, or keys that depend on a faulty one
            return declared.model_construct(**right)


def _slip_of(key: str, known: list[str], present: Mapping[str, Any]) -> str:
    """The known key that ``key`` is a slip of, '' for none.

    ``dataroot_gt2`` is none, nor is a longer key beside the one that it contains.
    """
    slips = (near for near in known if one_slip(key, near) and key.rstrip('0123456789') != near)
    return next((near for near in slips if not (near in key and near in present)), '')


def _remove(values: Any, path: str) -> None:
    """Takes the key at a path out of sections in sections and lists."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    for key, inner in [*values.items()] if isinstance(values, dict) else ():
        if str(key) == path:
            del values[key]
        elif path.startswith(f'{key}.'):
            _remove(inner, path.removeprefix(f'{key}.'))


def typed(
    model: type | None, opt: Mapping[str, Any], report: Report | None = None, **start: Any
) -> Run:
    """The typed options of a run with ``model``; one without ``sections`` reads as BasicSR's do.

    One of somebody else only shares what the pipelines read; without one, every key is known.

    ``report`` gets what does not fit its declaration; ``start`` is what the check alone knows.

    Raises OptionError: all that does not fit, where there is no ``report``.
    """
    started = report is None  # the option dict holds what a start has set
    if started:
        report, opt = Report(), {'model_type': model.__name__, **opt}
    run = Run(model, is_training(opt), opt, **start)
    stock = ANY_SECTIONS if whose(model) == 'theirs' else SECTIONS
    set_up = (('optim_g', 'optimizers'), ('scheduler', 'schedulers'))
    for name, declared in getattr(model, 'sections', stock).items():
        if run.is_train or name not in _OF_TRAINING:
            values = section_values(opt, name)
            if name == 'train' and whose(model) in ('derived', 'basicsr'):
                ours = hasattr(model, 'sections')
                if not (ours or whose(getattr(model, 'init_training_settings', None)) in KNOWN):
                    # losses may be anything
                    values = {k: v for k, v in values.items() if not str(k).endswith('_opt')}
                # so may what a project sets up itself, or be missing
                theirs = {k: {} for k, by in set_up if not inherits(model, by)}
                values = theirs | values if ours else values | theirs
            section = report.read(name, declared, values, model)
            setattr(run, name or 'top', section)
    if started and report.refused:
        raise OptionError('options', [Problem(*item) for item in report.refused.items()])
    return run


def inherits(model: type | None, set_up: str) -> bool:
    """Whether a model leaves its ``optimizers`` or ``schedulers`` to what it has of BasicSR.

    One of a project may do so in an ``init_training_settings`` of its own, too.
    """
    first, last = 'init_training_settings', f'setup_{set_up}'
    inits = [vars(base)[first] for base in getattr(model, '__mro__', ()) if first in vars(base)]
    own = (getattr(f, '__code__', None) for f in inits if whose(f) == 'theirs')
    handed_on = all({first, last} & {*getattr(code, 'co_names', ())} for code in own)
    methods = (*inits[-1:], getattr(model, 'get_optimizer', None), getattr(model, last, None))
    return bool(inits) and handed_on and all(whose(method) == 'basicsr' for method in methods)


def reads_itself(cls: type | None) -> bool:
    """Whether a data set reads its section in a way of a project: its class, or a patch of it."""
    methods = (getattr(cls, name, None) for name in ('__init__', '__getitem__') if cls)
    own = [method for method in methods if whose(method) == 'theirs']
    patched = any(not str(getattr(m, '__module__', '')).startswith('torch.') for m in own)
    return patched or (bool(own) and whose(cls) in ('derived', 'theirs'))


@functools.cache
def constants(model: type | None) -> frozenset:
    """Texts and numbers in the code of a class."""
    bases = getattr(model, '__mro__', ())  # none of no model
    methods = (method for base in bases for method in functions_of(base))
    return frozenset(value for method in methods for value in method.__code__.co_consts)


def functions_of(cls: type) -> list[FunctionType]:
    """What a class defines itself."""
    return [value for value in vars(cls).values() if isinstance(value, FunctionType)]


def process_count(launcher: str | None) -> int:
    """Processes of the whole run, as the launcher's environment tells; 1 without a launcher.

    The variables alone mean nothing: inside a Slurm allocation every single process has them.
    """
    text = os.environ.get(_COUNT_OF.get(launcher, ''), '')
    return max(int(text), 1) if text.isdigit() else 1
