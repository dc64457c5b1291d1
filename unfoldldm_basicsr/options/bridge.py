"""Until every class declares ``sections`` or ``Options``: declarations of ``option_keys``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Union

from pydantic import create_model

from unfoldldm_basicsr.common.declaration import Options, Problem
from unfoldldm_basicsr.options.networks import VALUE_ERRORS
from unfoldldm_basicsr.options.problems import Problems
from unfoldldm_basicsr.options.schema import SECTIONS


@functools.cache
def sections_of(model: type | None) -> dict[str, type[Options]]:
    if hasattr(model, 'sections'):
        return model.sections
    old = getattr(model, 'option_keys', {})
    return {name: _extended(base, old.get(name, {})) for name, base in SECTIONS.items()}


def _extended(base: type[Options], keys: Mapping[str, tuple]) -> type[Options]:
    new = {k: (_type(types), None) for k, (types, _) in keys.items() if k not in base.model_fields}
    return create_model(base.__name__, __base__=base, **new)


def _type(types: tuple[type, ...]) -> Any:
    return Union[tuple(Any if t is list else t for t in types)]  # noqa: UP007


def declares(cls: type | None, *names: str) -> bool:
    return any(hasattr(cls, name) for name in (*names, 'option_keys'))


def check_model(
    problems: Problems, model: type | None, options: Mapping, skipped: frozenset, here: bool
) -> None:
    if not hasattr(model, 'check_options'):
        return
    paths = options['path'] if isinstance(options['path'], Mapping) else {}
    try:
        found = list(model.check_options(options))
    except VALUE_ERRORS:
        if not problems.refused:
            raise
        return
    for path, message in found:
        section, _, key = path.partition('.')
        if path not in skipped and (here or section != 'path' or not paths.get(key)):
            problems.add(path, message)


def tile_fits(run: Any) -> Any:
    from unfoldldm_basicsr.common.contract import check_tile

    tile, overlap = getattr(run.val, 'tile', None), getattr(run.val, 'tile_overlap', None) or 32
    if isinstance(tile, int) and isinstance(overlap, int):
        try:
            check_tile(tile, overlap, getattr(run.networks.get('network_g'), 'size_multiple', 1))
        except ValueError as error:
            yield Problem('val.tile', f'{error}')


def limits_name_groups(run: Any) -> Any:
    from unfoldldm_basicsr.training.optimisation import GradientClipper

    limits = getattr(run.train, 'grad_clip_norm', None)
    if isinstance(limits, Mapping) and hasattr(run.model, 'trained_groups'):
        try:
            GradientClipper(run.model.trained_groups(run.networks), limits)
        except ValueError as error:
            message = str(error).removeprefix('train.grad_clip_norm: ')
            yield Problem('train.grad_clip_norm', message)


RULES = (tile_fits, limits_name_groups)
