"""From an unpacked data set to the LMDBs and lists that the option files name."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.data.images import read_picture, size_in_header
from unfoldldm_basicsr.data.listing import check_folder, find_images, key_of
from unfoldldm_basicsr.data.sources import read_lmdb_index
from unfoldldm_basicsr.preparing.layouts import Found, find, matches
from unfoldldm_basicsr.preparing.lmdb_writer import Image, write_lmdb
from unfoldldm_basicsr.preparing.sets import DataSet, Part, Source

MATLAB = ('.mat',)  # files that may hold images


@dataclass
class Plan:
    """Images of a part."""

    gt: dict[str, Image] = field(default_factory=dict)  # by name, empty where there is no such side
    lq: dict[str, Image] = field(default_factory=dict)
    pairs: list[tuple[str | None, str | None]] = field(default_factory=list)  # names in gt and lq
    layouts: list[str] = field(default_factory=list)  # where they were found
    problems: list[str] = field(default_factory=list)  # what is missing or wrong, in words
    notes: list[str] = field(default_factory=list)  # what else should be known


def plan(dataset: DataSet, root: Path) -> dict[str, Plan]:
    """Finds the images of every part; reads headers only, and MATLAB files.

    Raises FileNotFoundError: no such folder; ValueError: a file, or two files for one image.
    """
    check_folder(root)
    root = root.resolve()
    names = find_images(root, more=MATLAB)[0]
    return {name: _plan_part(part, names, root) for name, part in dataset.parts.items()}


def _plan_part(part: Part, names: list[str], root: Path) -> Plan:
    whole = Plan()
    above = [f'{root.name}/{name}' for name in names]  # that folder may be part of a layout
    for source in part.sources:
        tries = (
            (layout, find(relative, layout), folder)
            for layout in source.layouts
            for folder, relative in ((root, names), (root.parent, above))
        )
        layout, found, folder = next((t for t in tries if t[1].pairs), (None, None, root))
        if found is None:
            layout = source.layouts[0]
            counts = {side: sum(1 for _ in matches(names, side)) for side in layout[:2] if side}
            known = ', '.join(f'{n} match {side}' for side, n in counts.items())
            paired = len(counts) == 2 and all(counts.values())
            about = f': {known}, but no braces of both agree' if paired else ''
            whole.problems.append(f'{source.name or "images"}: none found{about}')
            continue
        prefix = f'{source.name}/' if len(part.sources) > 1 else ''
        own = _images(found, source, folder, prefix)
        whole.problems.extend(_problems(source, found, own))
        whole.gt.update(own.gt)
        whole.lq.update(own.lq)
        whole.pairs.extend(own.pairs)
        whole.layouts.append(layout.lq or layout.gt)
        if found.unused:
            text = f'{len(found.unused)} clean images have no degraded one, the first is '
            whole.notes.append(text + min(found.unused))
    return whole


def _images(found: Found, source: Source, folder: Path, prefix: str) -> Plan:
    """The images of one source; their names get the prefix."""
    own = Plan()
    for lq_name, (gt_file, gt_name, lq_file) in found.pairs.items():
        if source.read is not None:
            clean, noisy = (source.read(folder / f) if f else {} for f in (gt_file, lq_file))
            if clean and clean.keys() != noisy.keys():
                raise ValueError(f'{gt_file} and {lq_file} in {folder} hold other images.')
        else:
            clean = {gt_name: folder / gt_file} if gt_file else {}
            noisy = {lq_name: folder / lq_file} if lq_file else {}
            if clean and noisy and source.border:
                clean[gt_name] = _cut(clean[gt_name], noisy[lq_name], source.border)
        own.gt.update({prefix + name: image for name, image in clean.items()})
        own.lq.update({prefix + name: image for name, image in noisy.items()})
        for name in noisy or [None]:
            partner = name if source.read else gt_name
            own.pairs.append((prefix + partner if clean else None, name and prefix + name))
    return own


def _cut(clean: Path, degraded: Path, border: int) -> Image:
    """The clean image without its border, where it is larger than the degraded one by it."""
    sides = _size(clean), _size(degraded)
    if None in sides or any(a - b != 2 * border for a, b in zip(*sides, strict=True)):
        return clean
    return lambda: read_picture(clean).opaque[border:-border, border:-border]


def _size(image: Path) -> tuple[int, int] | None:
    """(height, width); of the few whose header does not say it, decoded. None: damaged."""
    try:
        return size_in_header(image) or read_picture(image).pixels.shape[:2]
    except ValueError:  # named when it is written, with all others
        return None


def _problems(source: Source, found: Found, own: Plan) -> Iterator[str]:
    """What is missing or wrong; leaves out pairs of two sizes, whose squares would not match."""
    of = f'{source.name}: ' if source.name else ''
    if len(found.above) > 1:
        folders = ', '.join(sorted(above or './' for above in found.above)[:3])
        yield f'{of}lies in several folders ({folders}): name one of them with -i'
    if found.unpaired:
        first = sorted(found.unpaired)[0]
        yield f'{of}{len(found.unpaired)} degraded images have no clean one, the first is {first}'
    for what, published, number in (
        ('images', source.count, len(own.pairs)),
        ('clean images', source.clean, len(own.gt)),
    ):
        if published not in (None, number):
            yield f'{of}{number} of {published} {what}'
    clean, noisy = (
        {n: _size(image) for n, image in side.items() if isinstance(image, Path)}
        for side in (own.gt, own.lq)
    )
    differ = [b for a, b in own.pairs if clean.get(a) and noisy.get(b) and clean[a] != noisy[b]]
    if differ:
        yield f'{of}{len(differ)} pairs differ in size, the first is {differ[0]}'
        own.pairs = [(a, b) for a, b in own.pairs if b not in differ]
        own.gt = {a: own.gt[a] for a, _ in own.pairs}
        own.lq = {b: own.lq[b] for _, b in own.pairs}
    other = {tuple(sorted(size)) for size in clean.values() if source.size and size}
    other -= {source.size}
    if other:
        text = ', '.join(f'{w} x {h}' for h, w in sorted(other)[:3])
        yield f'{of}sizes {text} where {source.size[1]} x {source.size[0]} is published'


def expected(dataset: DataSet) -> str:
    """The layouts that a set is known to come in, and where it is obtained."""
    lines = ['expected below the folder, one line of each group:']
    for name, part in dataset.parts.items():
        for source in part.sources:
            count = '' if source.count is None else f' ({source.count} images)'
            lines.append(f'  {" ".join(filter(None, (name, source.name)))}{count}')
            for layout in source.layouts:
                sides = filter(None, (layout.lq, layout.gt))
                lines.append(f'    {"    with ".join(sides)}')
    return '\n'.join([*lines, f'obtained from {dataset.where}.'])


def refusal(dataset: DataSet, plans: dict[str, Plan], root: Path) -> str:
    """What is wrong with a folder, and what is expected; '' if nothing."""
    problems = [f'  {name}: {text}' for name, found in plans.items() for text in found.problems]
    lines = [f'{root} is not the whole set:', *problems, expected(dataset)]
    return '\n'.join(lines) if problems else ''


def destinations(found: Plan, name: Path) -> dict[Path, dict[str, Image]]:
    """The LMDBs of a part and their images: ``NAME_gt.lmdb`` and ``NAME_lq.lmdb``; a name that ends
    in ``.lmdb`` is the LMDB of clean images itself (ValueError with degraded ones).
    """
    if name.suffix == '.lmdb' and found.lq:
        raise ValueError(f'{name}: two LMDBs are written, name a folder for them.')
    if name.suffix == '.lmdb':
        return {name: found.gt}
    sides = {'lq': found.lq, 'gt': found.gt}  # clean images alone would look like a set of them
    return {name.with_name(f'{name.name}_{k}.lmdb'): v for k, v in sides.items() if v}


def write(part: Part, found: Plan, name: Path, **options: Any) -> dict[Path, int]:
    """Writes and verifies the LMDBs of a part (-> number of images), and the list of pairs
    ``NAME.txt`` (``meta_info_file``) where their keys differ.
    """
    written = {
        root: write_lmdb(images, root, payload=part.payload, sub_images=part.squares, **options)
        for root, images in destinations(found, name).items()
    }
    if options.get('force'):
        name.with_name(f'{name.name}.txt').unlink(missing_ok=True)  # of what was there before
    if found.gt and any(a != b for a, b in found.pairs if b):
        lq, gt = (_entries(root, part.squares is not None) for root in written)
        pairs = (zip(gt[key_of(a)], lq[key_of(b)], strict=True) for a, b in found.pairs)
        lines = (f'{a}.png, {b}.png\n' for pair in pairs for a, b in pair)
        write_bytes_atomic(name.with_name(f'{name.name}.txt'), ''.join(lines).encode())
    return written


def _entries(root: Path, in_squares: bool) -> dict[str, list[str]]:
    """Key of an image -> its entries in the LMDB, those of its squares in order."""
    entries = defaultdict(list)
    for key in read_lmdb_index(str(root)):
        entries[key.rpartition('_s')[0] if in_squares else key].append(key)
    return entries
