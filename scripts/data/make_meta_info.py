"""Lists which degraded image belongs to which clean one, for ``meta_info_file`` of paired data.

    python scripts/data/make_meta_info.py OTS/clear OTS/hazy --rule reside -o datasets/ots.txt
    python scripts/data/make_meta_info.py clean noisy --gt-name '_noisy$' '' -o datasets/mine.txt

Folders are searched recursively; folders whose names end in .lmdb are read as LMDBs. Every line of
the list is "gt_name, lq_name". A rule turns the name of a degraded image, without extension, into
the name of its clean one; a clean image may have any number of degraded ones.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from unfoldldm_basicsr.data.listing import without_extension
from unfoldldm_basicsr.data.sources import open_source


class Rule(NamedTuple):
    """How a data set names its pairs.

    Attributes:
        pattern: regular expression in the name of a degraded image.
        text: what replaces it to give the name of the clean image.
        only: regular expression that marks the degraded images, where both are in one folder.
        example: for the help text.
    """

    pattern: str
    text: str
    only: str = ''
    example: str = ''


RULES = {
    'same': Rule(r'$', '', example='a/1.png: a/1.png'),
    'rain100l': Rule(r'(^|/)rain-([^/]*)$', r'\1norain-\2', example='rain-1.png: norain-1.png'),
    'reside': Rule(r'^(?:.*/)?([^/_]+)_[^/]*$', r'\1', example='part1/0025_0.8_0.1.jpg: 0025.jpg'),
    'gopro': Rule(
        r'(^|/)blur/', r'\1sharp/', only=r'(^|/)blur/', example='S/blur/1.png: S/sharp/1.png'
    ),
}


def make_pairs(gt_names: list[str], lq_names: list[str], rule: Rule) -> list[tuple[str, str]]:
    """Finds the clean image of every degraded one.

    Args:
        gt_names: names in the folder or LMDB of clean images.
        lq_names: names of the degraded images.
        rule: how they belong together.

    Returns:
        (gt name, lq name) pairs in the order of ``lq_names``.

    Raises:
        ValueError: a degraded image without a clean one, or with several, or none is marked.
    """
    by_stem: dict[str, list[str]] = {}
    for name in gt_names:
        by_stem.setdefault(without_extension(name), []).append(name)
    marked = [name for name in lq_names if re.search(rule.only, name)]
    if not marked:
        raise ValueError(f'no name of a degraded image matches {rule.only}; first: {lq_names[0]}.')
    pairs, missing = [], []
    for name in marked:
        wanted = re.sub(rule.pattern, rule.text, without_extension(name), count=1)
        found = by_stem.get(wanted, [])
        if len(found) > 1:
            raise ValueError(f'{name} could belong to {" or ".join(found)}: remove all but one.')
        if found:
            pairs.append((found[0], name))
        else:
            missing.append((name, wanted))
    if missing:
        raise ValueError(
            f'{len(missing)} of {len(marked)} degraded images have no clean one, the first is '
            f'{missing[0][0]} (looked for {missing[0][1]}). Complete the data, or choose another '
            f'--rule or --gt-name.'
        )
    return pairs


def read_names(root: Path) -> list[str]:
    """Names of the images in a folder, or of an LMDB with the extension that lists need."""
    is_lmdb = root.suffix == '.lmdb'
    names = open_source(root, 'lmdb' if is_lmdb else 'disk').names
    return [f'{name}.png' for name in names] if is_lmdb else names


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    rules = '\n'.join(f'  {name:10}{rule.example}' for name, rule in RULES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f'rules (degraded: clean)\n{rules}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('gt', type=Path, help='folder or LMDB of the clean images')
    parser.add_argument('lq', type=Path, help='folder or LMDB of the degraded images')
    parser.add_argument('-o', '--output', type=Path, required=True, help='the list: NAME.txt')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--rule', choices=RULES, default='same', help='default: %(default)s')
    how.add_argument(
        '--gt-name', nargs=2, metavar=('REGEX', 'TEXT'),
        help='a rule of your own: replace REGEX in the name of the degraded image',
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.gt_name:
        try:
            re.sub(*args.gt_name, '')
        except (re.error, IndexError) as error:
            parser.error(f'--gt-name {" ".join(args.gt_name)}: {error}')
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    rule = Rule(*args.gt_name) if args.gt_name else RULES[args.rule]
    try:
        pairs = make_pairs(read_names(args.gt), read_names(args.lq), rule)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        lines = ''.join(f'{gt}, {lq}\n' for gt, lq in pairs)
        args.output.write_text(lines, encoding='utf-8')
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    clean = len({gt for gt, _ in pairs})
    print(f'{args.output}: {len(pairs)} pairs, {clean} clean images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
