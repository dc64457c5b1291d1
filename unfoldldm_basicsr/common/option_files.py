"""Reading the command line of a run, option files and ``--force_yml``, executing nothing they say.

BasicSR reads YAML with a loader that constructs arbitrary Python objects, runs ``exec`` on the
keys and ``eval`` on the lists of ``--force_yml``, keeps ``1e-4`` a text, knows no merge keys and
lets the last of two equal keys win. Here option files hold data only. Loads no torch, so that help
is there at once.
"""

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import yaml

from unfoldldm_basicsr.common.suggest import did_you_mean

# What YAML 1.1 leaves a text: an exponent without a dot or a sign, and a sign before a dot.
_FLOAT = re.compile(r'^[-+]?(?:(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+|\.\d[\d_]*)$')
_MERGE = 'tag:yaml.org,2002:merge'
_MOST = 100_000  # values of a file
_REMEDIES = {  # what a message of YAML holds: what to do about it
    r"'\t'": 'Indent with blanks instead of tabs.',
    'mapping values': 'Look at the indentation, and for a colon without a blank, also one line up.',
    'unknown escape': 'Put such a text in single quotes.',
}


def build_parser() -> argparse.ArgumentParser:
    """BasicSR's command line, with ``--local-rank`` as newer launchers spell it."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        epilog='python -m unfoldldm_basicsr.train and .test also take --root FOLDER: where '
        'experiments/ and results/ are (default: the current folder), and --import PACKAGE.',
    )
    add = parser.add_argument
    add('-opt', required=True, help='option file (YAML)')
    launchers = 'pytorch under torchrun, slurm under srun (default: none)'
    add('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help=launchers)
    add('--auto_resume', action='store_true', help='go on from the newest state of this experiment')
    add('--debug', action='store_true', help="name 'debug_...', log every step, validate every 8")
    add('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers, not used')
    changes = 'change options, for example train:total_iter=1000 train:optim_g:lr=1e-4'
    add('--force_yml', nargs='+', metavar='KEY:KEY=VALUE', help=changes)
    add('--no-strict', action='store_true', help='warn about unknown keys instead of refusing them')
    return parser


class OptionLoader(yaml.SafeLoader):
    """Safe YAML with ``1e-4`` as a number, merge keys, and an error on a repeated key."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()

    def scan_to_next_token(self) -> None:
        """A tab that does not indent is a blank, as in the parser that BasicSR uses."""
        super().scan_to_next_token()
        while self.peek() == '\t' and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Writes merge keys out, in the node itself, which anchors may name again."""
        if id(node) in self.checked:
            return
        self.checked.add(id(node))
        seen, refusal = {}, yaml.constructor.ConstructorError
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            key, mark = self.construct_object(key_node, deep=True), key_node.start_mark
            if isinstance(key, (dict, list)):
                raise refusal(None, None, 'a key must be a plain word', mark)
            if key in seen:
                nodes = seen[key][1], value_node
                first, second = (self.construct_object(node, deep=True) for node in nodes)
                if first not in (None, second):
                    twice = f"the key '{key}' appears twice, first here"
                    again = 'and again here: rename one, or remove the one that is not meant'
                    raise refusal(twice, seen[key][0], again, mark)
            seen[key] = mark, value_node
        super().flatten_mapping(node)


OptionLoader.add_constructor(  # no code, but data
    'tag:yaml.org,2002:python/tuple',
    lambda loader, node: tuple(loader.construct_sequence(node, True)),
)
OptionLoader.yaml_implicit_resolvers = {  # a date is the name of an experiment
    first: [(tag, form) for tag, form in known if not tag.endswith(':timestamp')]
    for first, known in OptionLoader.yaml_implicit_resolvers.items()
}
OptionLoader.add_implicit_resolver('tag:yaml.org,2002:float', _FLOAT, list('-+0123456789.'))


class OptionDumper(yaml.SafeDumper):
    """Also writes OrderedDict, as BasicSR's dumper does for projects that save their options."""


OptionDumper.add_representer(OrderedDict, yaml.SafeDumper.represent_dict)


def ordered_yaml() -> tuple[type[OptionLoader], type[OptionDumper]]:
    """Replaces ``basicsr.utils.options.ordered_yaml``: safe, mappings are plain dictionaries."""
    return OptionLoader, OptionDumper


def read_option_file(path: str | Path) -> dict:
    """The options in ``path`` as written, nothing added.

    ValueError: no file there, not UTF-8, not YAML, or not a mapping; one line that names the file
    and, for YAML errors, line and column.
    """
    try:
        options = _load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f'{path}: cannot be read: {error.strerror}.') from error
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not a UTF-8 text file (byte {error.start}).') from error
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    if not isinstance(options, dict):
        raise ValueError(f'{path}: not an option file: the top level must be "key: value" lines.')
    return options


def parse_value(text: str) -> object:
    """Replaces ``basicsr.utils.options._postprocess_yml_value``: ``text`` as a YAML value.

    As in BasicSR ``none`` is None, digits are decimal, and a text is what nobody marks as something
    else: ``{}``, ``no``, ``12_30``, ``a: b`` and what is not YAML; sections are written in braces.

    Raises ValueError: a list that is not YAML, or a construct that would need more than plain data.
    """
    if text.lower() == 'none' or text.isdigit():
        return int(text) if text.isdigit() else None
    try:
        value = _load(text)
    except ValueError as error:
        if text[0] in '[!':
            raise ValueError(f"the value '{text}' is not YAML: {error}") from error
        return text
    if isinstance(value, bool):
        meant = text.lower() in ('true', 'false')
    elif isinstance(value, int | float):
        meant = '_' not in text and ':' not in text
    else:
        meant = not isinstance(value, dict) or (value and text[0] == '{')
    return value if meant else text


def _load(text: str) -> object:
    """A YAML document; ValueError says in one line what is wrong where."""
    try:
        return _apart(yaml.load(text, Loader=OptionLoader), count())  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(_one_line(error)) from error


def _apart(value: object, made: Iterator[int]) -> object:
    """A copy in which an anchor and its aliases are sections of their own, to be changed alone."""
    if next(made) > _MOST:
        raise ValueError(f'aliases of aliases make more than {_MOST} values.')
    if isinstance(value, dict):
        return {key: _apart(inner, made) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_apart(inner, made) for inner in value)
    return value


def apply_overrides(options: dict, entries: Iterable[str]) -> None:
    """Writes the ``KEY:KEY=VALUE`` entries of ``--force_yml`` into ``options``.

    Every section named must exist. The last key may be missing from the file (BasicSR allows
    ``train:ema_decay=0.999``); whether it is a known one is for the check of the whole file.
    A number selects an item of a list: ``datasets:train:degradations:0:prob=1``.

    Raises ValueError: names the entry, with the nearest key that exists.
    """
    for entry in entries:
        keys, equals, text = entry.partition('=')
        names = [k.strip() for k in keys.split(':')]
        try:
            if not equals or not all(names) or not text.strip():
                example = 'for example train:total_iter=1000 (VALUE ~ for none)'
                raise ValueError(f'write KEY:KEY=VALUE, {example}.')
            _assign(options, names, parse_value(text.strip()))
        except ValueError as error:
            raise ValueError(f"--force_yml '{entry}': {error}") from error


def _assign(place: object, names: list[str], value: object) -> None:
    for depth, name in enumerate(names):
        key: object = name
        where, last = ':'.join(names[:depth]) or 'the option file', depth == len(names) - 1
        if isinstance(place, list):
            key = int(name) if name.isdigit() else len(place)
            if key >= len(place):
                raise ValueError(
                    f"{where} is a list of {len(place)} items, '{name}' is none of them (counted "
                    'from 0).'
                )
        elif not isinstance(place, dict):
            raise ValueError(f"{where} is a single value, it has no '{name}'.")
        elif name not in place and name.partition('.')[0] in place:
            right = name.replace('.', ':')
            raise ValueError(f"keys are joined by colons, '{right}' instead of '{name}'.")
        elif name not in place and not last:
            if depth or name not in ('path', 'val', 'logger'):  # sections that need not be there
                raise ValueError(f"{where} has no '{name}'.{did_you_mean(name, place)}")
            place[name] = {}
        if last:
            place[key] = value
        else:
            place = place[key]


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return 'too deeply nested.'
    if not isinstance(error, yaml.MarkedYAMLError):
        return f'{error}'.rstrip('.') + '.'
    mark = error.problem_mark or error.context_mark
    place = f'line {mark.line + 1}, column {mark.column + 1}: ' if mark else ''
    parts = [p for p in (error.context, error.problem) if p]
    if error.context_mark and error.problem_mark and error.context:
        parts[0] += f' (line {error.context_mark.line + 1})'
    text = f'{place}{"; ".join(parts)}.'
    return ' '.join([text, *(remedy for part, remedy in _REMEDIES.items() if part in text)])
