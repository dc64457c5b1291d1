"""Layouts of data sets on disk, and the images of a folder that belong to one.

A layout is written as two paths, those of a clean image and of its degraded one, with braces where
names differ from image to image. What has the same name in braces must agree, so that the pairing
rule of a data set is read off its layout::

    train/{scene}/sharp/{frame}        train/{scene}/blur/{frame}
    norain/norain-{n}                  rain/norain-{n}x2
    clear/{scene}                      hazy/*/{scene}_{haze}       many degraded of one clean image

Braces and ``*`` (any characters, also none) stand for part of one name, ``{path}`` for any number
of folders too, ``[a|b]`` for either. Of several ways to read the name of a degraded image, the one
with the longest name of a clean image counts. Case and image endings do not count, the folders
above may be any, and a first folder may lie in one of its own name, as archives are unpacked. A
path that ends in ``.mat`` names a MATLAB file that holds images.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from unfoldldm_basicsr.data.listing import without_extension

_TOKEN = re.compile(r'\{(\w+)\}|(\*)|\[([^\]]+)\]')


class Layout(NamedTuple):
    """Where clean and degraded images lie; one is None where there are no such images."""

    gt: str | None
    lq: str | None = None
    share: slice | None = None  # of a set that comes unsplit, in the order of digests of the keys


class Found(NamedTuple):
    """Images of one layout."""

    # key of the degraded image -> (clean name or None, its key, degraded name or None), in the
    # order of the keys; clean images alone are listed under their own key
    pairs: dict[str, tuple[str | None, str, str | None]]
    unpaired: list[str]  # degraded images without a clean one
    above: set[str]  # the folders above, of which there should be one
    unused: Collection[str] = ()  # clean images without a degraded one


def fields_of(template: str) -> list[str]:
    """Names in braces, in order."""
    return [name for name, *_ in _TOKEN.findall(template) if name]


def pattern_of(template: str, lengths: Mapping[str, int]) -> re.Pattern:
    text, end, (first, below, _) = '(?P<_above>(?:.*?/)??)', 0, template.partition('/')
    if below and not _TOKEN.search(first):
        text += f'(?:{re.escape(first)}/)??'
    for token in _TOKEN.finditer(template):
        name, star, either = token.groups()
        text += re.escape(template[end : token.start()])
        if name:
            many = f'{{{lengths[name]}}}' if name in lengths else '+' if name == 'path' else '+?'
            text += f'(?P<{name}>{"." if name == "path" else "[^/]"}{many})'
        else:
            text += '[^/]*?' if star else f'(?:{"|".join(map(re.escape, either.split("|")))})'
        end = token.end()
    return re.compile(text + re.escape(template[end:]), re.IGNORECASE | re.DOTALL)


def matches(
    names: Iterable[str], template: str, lengths: Iterable[tuple[str, int]] = ()
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The files that a path describes: name, folders above, what braces stand for.

    ``lengths`` of what some braces stand for choose among several ways to read a name.
    """
    pattern = pattern_of(template, dict(lengths))
    for name in names:
        if match := pattern.fullmatch(without_extension(name)):
            fields = match.groupdict()
            yield name, fields.pop('_above'), fields


def find(names: list[str], layout: Layout) -> Found:
    """The images among ``names`` (relative paths) that lie as ``layout`` says.

    Raises ValueError: images have one place in the layout, such as ``1.png`` and ``1.jpg``.
    """
    pairs: dict[str, tuple[str | None, str, str | None]] = {}
    if layout.lq is None or layout.gt is None:
        side, above = layout.gt or layout.lq, set()
        for name, folders, fields in matches(names, side):
            key = '/'.join(map(fields.get, fields_of(side))) or Path(without_extension(name)).name
            _add(pairs, key, (name, key, None) if layout.gt else (None, key, name))
            above.add(folders)
        return Found(_share_of(pairs, layout.share), [], above)
    shared = [name for name in fields_of(layout.gt) if name in fields_of(layout.lq)]
    own = [name for name in fields_of(layout.lq) if name not in shared]
    clean: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name, folders, fields in matches(names, layout.gt):
        clean[folders.lower(), tuple(map(fields.get, shared))].append(name)
    left = {name: folders for name, folders, _ in matches(names, layout.lq)}
    above = set(left.values())
    unused = {name for group in clean.values() for name in group} - left.keys()
    lengths = {tuple(map(len, values)) for _, values in clean}
    for sizes in sorted(lengths, key=sum, reverse=True):
        for name, folders, fields in matches([*left], layout.lq, zip(shared, sizes, strict=True)):
            values = tuple(map(fields.get, shared))
            found = clean.get((folders.lower(), values), [])
            if len(found) > 1:
                raise ValueError(f'{name} could belong to {" or ".join(found)}: remove one.')
            if found:
                key = '/'.join([*values, *map(fields.get, own)])
                _add(pairs, key, (found[0], '/'.join(values), name))
                unused.discard(found[0])
                del left[name]
    return Found(_share_of(pairs, layout.share), [*left], above, unused)


def _add(pairs: dict, key: str, pair: tuple[str | None, str, str | None]) -> None:
    if key in pairs:
        first, second = (lq or gt for gt, _, lq in (pairs[key], pair))
        raise ValueError(
            f'{first} and {second} would have one key, as keys of an LMDB have no ending: rename '
            'or remove one, or name its folder with -i.'
        )
    pairs[key] = pair


def _share_of(pairs: dict, share: slice | None) -> dict:
    keys = sorted(pairs)
    if share is not None:  # fixed, and no source of images comes first
        keys.sort(key=lambda key: hashlib.sha256(key.encode()).digest())
        keys = sorted(keys[share])
    return {key: pairs[key] for key in keys}
