"""``unfoldldm degrade``: a contact sheet of the degradations of an option file on a photo."""

import argparse
import textwrap
from collections.abc import Mapping

import numpy as np

from unfoldldm_basicsr.common.declaration import OptionError
from unfoldldm_basicsr.common.files import refuse_existing
from unfoldldm_basicsr.common.option_files import read_option_file
from unfoldldm_basicsr.data.degradations import (
    DEGRADATIONS,
    ChainOptions,
    Degradation,
    DegradationChain,
)  # fmt: skip
from unfoldldm_basicsr.data.images import read_picture
from unfoldldm_basicsr.data.pixels import center_crop, to_float, with_three_channels
from unfoldldm_basicsr.options.aliases import translate
from unfoldldm_basicsr.options.run import section_values
from unfoldldm_basicsr.pictures.drawing import comparison_grid, save_picture, to_rgb8

_STRENGTHS = {'low': 0.0, 'middle': 0.5, 'high': 1.0}
_CELL_WIDTH, _CELL_HEIGHT = 320, 240


def run_degrade(args: argparse.Namespace) -> int:
    """Writes the sheet."""
    refuse_existing(args.image, args.output, overwrite=args.overwrite)
    if args.seed < 0:
        raise ValueError(f'--seed must be at least 0, got {args.seed}.')
    pixels = with_three_channels(read_picture(args.image).opaque)
    image = center_crop(pixels, _CELL_HEIGHT, _CELL_WIDTH)
    if args.opt is None:
        chains = {name: DegradationChain(degradations=[{'type': name}]) for name in DEGRADATIONS}
        title = 'All degradations at their default ranges'
    else:
        translate(options := read_option_file(args.opt))  # names of forks
        chains = find_chains(options, str(args.opt))
        title = f'Degradations of {args.opt.name}'
    sheet = contact_sheet(to_float(image), chains, title=title, seed=args.seed)
    save_picture(args.output, sheet)
    print(f'{args.output}: {sum(len(c.steps) for c in chains.values())} degradations')
    return 0


def find_chains(options: Mapping, file: str) -> dict[str, DegradationChain]:
    """The degradation chains of the first data set that has some, by name.

    ValueError: there are none, or they are wrong.
    """
    for name, section in section_values(options, 'datasets').items():
        chains, parts = {}, section.get('sets') if isinstance(section, Mapping) else None
        if not isinstance(parts, list | None):
            raise ValueError(f'{file}: datasets.{name}.sets must be a list, got {parts!r}.')
        for part in (section, *(parts or ())):
            if not isinstance(part, Mapping) or 'degradations' not in part:
                continue
            try:
                keys = ChainOptions.model_fields.keys() & part.keys()
                chain = DegradationChain(**{key: part[key] for key in keys})
            except OptionError as error:
                raise ValueError(f'{file}: datasets.{name}: {error}') from error
            chains[part.get('degradation_name') or chain.name] = chain
        if chains:
            return chains
    raise ValueError(f'{file}: no degradations in datasets; only synthetic data sets have them.')


def contact_sheet(
    image: np.ndarray, chains: Mapping[str, DegradationChain], *, title: str = '', seed: int = 0
):
    """A figure, a row per degradation: the photo, low, middle and high strength, drawn alike.

    A degradation of fixed strength is shown in three random draws instead. Chains of several steps
    get one more row with three draws of the whole chain. ``image``: float32 H W 3, RGB, [0, 1].
    """
    rows, captions = [], []
    draws = {f'draw {n}': [seed, n] for n in (1, 2, 3)}

    def add(heading: str, cells: Mapping[str, np.ndarray]) -> None:
        rows.append([image, *cells.values()])
        decibels = (f'{caption}, {_decibels(cell, image)}' for caption, cell in cells.items())
        captions.append([textwrap.fill(heading, 40), *decibels])

    for name, chain in chains.items():
        for step in chain.steps:
            if step.has_strengths:
                drawn = {k: (seed, step.at_strength(part)) for k, part in _STRENGTHS.items()}
            else:
                drawn = {k: (s, step.sample(np.random.default_rng(s))) for k, s in draws.items()}
            cells = {
                caption: step.apply(image, np.random.default_rng(start), **parameters)
                for caption, (start, parameters) in drawn.items()
            }
            add(_describe(step, name if len(chains) > 1 else step.type), cells)
        if len(chain.steps) > 1:
            cells = {k: chain(image, np.random.default_rng(s)) for k, s in draws.items()}
            add(f'{name}: the whole chain', cells)
    footer = f'{title}. Left: the photo.'
    return comparison_grid(rows, [''] * 4, captions, cell_width=_CELL_WIDTH, footer=footer)


def _describe(step: Degradation, chain_name: str) -> str:
    """Name of a step and the parameters that do something at these settings."""
    of = '' if chain_name == step.type else f' of {chain_name}'
    words = [f'in {100 * step.prob:g} % of the images'] if step.prob < 1 else []
    for name, (low, high) in step.ranges.items():
        if step.parameters()[name].stronger == 'down':
            low, high = high, low  # as the columns go, from weak to strong
        words.append(f'{name} {low:g}' if low == high else f'{name} {low:g} ... {high:g}')
    return f'{step.type}{of}: {", ".join(words)}'


def _decibels(image: np.ndarray, clean: np.ndarray) -> str:
    if np.array_equal(to_rgb8(image), to_rgb8(clean)):
        return 'unchanged'
    return f'{-10 * np.log10(np.square(image.clip(0, 1) - clean).mean()):.1f} dB'
