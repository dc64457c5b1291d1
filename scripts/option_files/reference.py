"""Prints docs/options.md: every option, from the declarations beside the classes that use it.

python scripts/option_files/reference.py > docs/options.md
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import unfoldldm_basicsr  # noqa: F401  (makes `import basicsr` work)

# isort: split
from basicsr.utils import registry

from unfoldldm_basicsr.common.declaration import Options, declared_at, help_of
from unfoldldm_basicsr.common.sections import SECTIONS, BasicDataset, LoaderOptions, MetricOptions
from unfoldldm_basicsr.data.degradations import DEGRADATIONS, Degradation, Parameter
from unfoldldm_basicsr.data.restoration_dataset import DatasetOptions
from unfoldldm_basicsr.options.declared import options_of
from unfoldldm_basicsr.training.restoration_model import RestorationModel
from unfoldldm_basicsr.training.schedules import SCHEDULES

INTRODUCTION = """\
# Options

Every key of an option file that this package declares, made from those declarations by
`python scripts/option_files/reference.py > docs/options.md`. Keys without a default are needed; `~`
is nothing. A key that is not here belongs to BasicSR or to a class of your own: `unfoldldm check`
names keys that nothing reads. What the option files of this repository choose is in
[options/README.md](../options/README.md).
"""
BASICSR_METRICS = """\
Of BasicSR's `calculate_psnr`, `calculate_ssim` and `calculate_niqe`, which needs no clean image:
"""
_PLAIN = {'integer': 'whole number', 'string': 'text', 'boolean': 'true or false', 'null': '~'}
_LIMITS = {'minimum': '≥', 'exclusiveMinimum': '>', 'maximum': '≤', 'exclusiveMaximum': '<'}


def reference() -> str:
    parts = [INTRODUCTION, *_sections(), *_datasets()]
    parts += _classes('Networks (`network_g`, `network_e`)', registry.ARCH_REGISTRY)
    parts += _classes('Losses (`train.pixel_opt` and the like)', registry.LOSS_REGISTRY)
    parts += ['## Schedules (`train.scheduler`)\n']
    for name, declared in SCHEDULES.items():
        parts += [f'### {name}\n', table(declared)]
    given = ('img', 'img2')
    parts += ['## Metrics (`val.metrics`)\n', BASICSR_METRICS, table(MetricOptions)]
    parts += _classes('', registry.METRIC_REGISTRY, given)
    return '\n'.join(part for part in parts if part)


def _sections() -> Iterator[str]:
    """The sections of BasicSR, and what models of this package read beside."""
    models = [cls for _, cls in _ours(registry.MODEL_REGISTRY)]
    models.sort(key=lambda cls: cls is not RestorationModel)
    for name, basic in SECTIONS.items():
        yield f'## `{name}`\n' if name else '## Top level\n'
        yield table(basic)
        shown = {table(basic)}
        for cls in models:
            base = basic if cls is RestorationModel else RestorationModel.sections[name]
            rows = table(cls.sections[name], base)
            if not rows or rows in shown:
                continue
            shown.add(rows)
            same = [c.__name__ for c in models if table(c.sections[name], base) == rows]
            every = cls is RestorationModel
            yield ('Every model of this package also' if every else ', '.join(same)) + ':\n'
            yield rows


def _datasets() -> Iterator[str]:
    yield '## Data sets (`datasets.PHASE`)\n'
    yield 'Whatever the class:\n'
    yield table(LoaderOptions)
    yield "BasicSR's data sets of pairs also:\n"
    yield table(BasicDataset, LoaderOptions)
    yield 'Those of this package also:\n'
    yield table(DatasetOptions, LoaderOptions)
    for name, cls in _ours(registry.DATASET_REGISTRY):
        yield f'### {name}\n\n{_summary(cls)}\n'
        yield table(cls.Options, DatasetOptions)
    yield '## Degradations (`degradations` of SyntheticDegradationDataset)\n'
    yield table(Degradation)
    for name, declared in DEGRADATIONS.items():
        yield f'### {name}\n\n{_summary(declared)}\n'
        yield table(declared, Degradation)


def _classes(title: str, known: Iterable, given: tuple[str, ...] = ()) -> Iterator[str]:
    yield f'## {title}\n' if title else ''
    for name, cls in _ours(known):
        yield f'### {name}\n\n{_summary(cls)}\n'
        yield table(options_of(cls, given), texts=_arguments(cls))


def _ours(known: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return sorted((n, cls) for n, cls in known if cls.__module__.startswith('unfoldldm_basicsr.'))


def _summary(cls: Any) -> str:
    text = (inspect.getdoc(cls) or '').partition('\n')[0].replace('``', '`')
    return re.sub(r':\w+:`', '`', text)


def _arguments(owner: Callable) -> dict[str, str]:
    """The texts under ``Args:`` of a docstring, for classes declared by their signature."""
    _, _, text = (inspect.getdoc(owner) or '').partition('Args:\n')
    block = textwrap.dedent(re.split(r'\n\n', text)[0])
    return dict(re.findall(r'^(\w+): (.*(?:\n .*)*)', block, re.MULTILINE))


# ---- tables -------------------------------------------------------------------------------------


def table(
    declared: type[Options], base: type[Options] | None = None, texts: dict[str, str] | None = None
) -> str:
    """A Markdown table of the keys of a declaration, of those that ``base`` lacks or has otherwise,
    with ``texts`` as help where the declaration has none.
    """
    told = set(_rows(base)) if base else set()
    rows = [row for row in _rows(declared, texts or {}) if row not in told]
    if not rows:
        return ''
    head = '| key | value | default | |\n| --- | --- | --- | --- |\n'
    return head + ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _rows(
    declared: type[Options], texts: dict[str, str] | None = None, prefix: str = ''
) -> Iterator[tuple[str, str, str, str]]:
    schema, helps = declared.model_json_schema(), {**(texts or {}), **help_of(declared)}
    needed = schema.get('required', ())
    for key, about in schema.get('properties', {}).items():
        default = f'`{_value(about.get("default"))}`'
        default = '' if key in needed and 'default' not in about else default
        text = ' '.join(helps.get(key, '').split()).replace('|', '\\|').replace('``', '`')
        value = _words(about)
        for limits in declared.model_fields[key].metadata if key in declared.model_fields else ():
            if isinstance(limits, Parameter):
                value = f'number or [low, high], {limits.minimum:g} to {limits.maximum:g}'
        yield f'`{prefix}{key}`', value, default, text[:1].upper() + text[1:]
        inner = declared_at(declared, [key])
        if inner is not declared:
            yield from _rows(inner, prefix=f'{prefix}{key}.')


def _words(about: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if 'enum' in about or 'const' in about:
        return ' or '.join(f'`{_value(v)}`' for v in about.get('enum', [about.get('const')]))
    if 'anyOf' in about:
        kinds = list(dict.fromkeys(map(_words, about['anyOf'])))
        return ' or '.join(k for k in kinds if k != 'whole number' or 'number' not in kinds)
    kind = about.get('type')
    if kind == 'array':
        inner = _words(about.get('items') if isinstance(about.get('items'), dict) else {})
        return f'list of {inner}' if inner != 'any' else 'list'
    if kind == 'object' or '$ref' in about:
        return 'section'
    limits = [f'{sign} {about[limit]}' for limit, sign in _LIMITS.items() if limit in about]
    return ' '.join([_PLAIN.get(kind, kind or 'any'), *limits])


def _value(value: Any) -> str:
    """A value as it stands in an option file."""
    if value is None or isinstance(value, bool):
        return '~' if value is None else str(value).lower()
    return "''" if value == '' else str(value).replace("'", '')


if __name__ == '__main__':
    print(reference(), end='')
