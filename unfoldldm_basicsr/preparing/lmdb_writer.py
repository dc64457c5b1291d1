"""Builds LMDBs in BasicSR's layout (``data.mdb`` and ``meta_info.txt``) from images.

The database is written into a temporary folder beside its destination, read back and compared, and
only then renamed, so that a destination that exists is complete.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

from unfoldldm_basicsr.data.images import Picture, decode, encode_bmp, encode_png
from unfoldldm_basicsr.data.listing import key_of, list_images
from unfoldldm_basicsr.data.pixels import ImageError

_MAX_KEY_BYTES = 511
_FIRST_MAP_SIZE = 64 * 2**20
_AHEAD = 8  # images of each thread that are decoded before the first is written
_MANY = 20  # damaged images, after which the rest is not looked at

Image = Path | Callable[[], np.ndarray]
"""A file, or a function that gives uint8 or uint16, H W (grey) or H W 3 (RGB)."""
Progress = Callable[[Iterable, str, int], Iterable]


class SubImages(NamedTuple):
    """Overlapping squares of side ``crop_size`` and distance ``step``; a last, shifted one is cut
    where more than ``thresh_size`` pixels would be left.
    """

    crop_size: int
    step: int
    thresh_size: int = 0

    def starts(self, side: int) -> list[int]:
        """Where the squares start along a side of this length."""
        last = max(side - self.crop_size, 0)
        starts = [*range(0, last + 1, self.step)]
        return [*starts, last] if last - starts[-1] > self.thresh_size else starts

    def cut(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """The squares row by row; an image smaller than one is a single piece."""
        for top in self.starts(image.shape[0]):
            for left in self.starts(image.shape[1]):
                yield image[top : top + self.crop_size, left : left + self.crop_size]


class Record(NamedTuple):
    """One entry of the database."""

    key: str
    payload: bytes
    shape: tuple[int, int, int]
    digest: bytes


def plan_keys(names: Iterable[str], *, sub_images: bool = False) -> dict[str, str]:
    """key -> name of every image, sorted by key, so that the database has the order of the folder;
    see :func:`..data.listing.key_of`. Keys of ``sub_images`` get ``_s001``, ... appended later.

    Raises ValueError: a key that BasicSR could not read back, or two images with one key.
    """
    keys: dict[str, str] = {}
    for name in names:
        key = key_of(name)
        if not key or key != key.strip():
            raise ValueError(f"{name}: the key '{key}' is empty or begins or ends with a space.")
        if (length := len(key) + 7 * sub_images) > _MAX_KEY_BYTES:
            raise ValueError(f'{name}: the key has {length} bytes, LMDB allows {_MAX_KEY_BYTES}.')
        if key in keys:
            raise ValueError(
                f"{name} and {keys[key]} would both have the key '{key}': rename or remove one."
            )
        keys[key] = name
    return dict(sorted(keys.items()))


def make_records(image: Image, key: str, payload: str, squares: SubImages | None) -> list[Record]:
    """Decodes one image and encodes it, or its sub-images, for the database."""
    source = image.read_bytes() if isinstance(image, Path) else b''
    pixels = decode(source, str(image)).opaque if isinstance(image, Path) else image()
    pieces = {key: pixels}
    if squares is not None:
        pieces = {f'{key}_s{i:03d}': piece for i, piece in enumerate(squares.cut(pixels), 1)}
    records = []
    for name, piece in pieces.items():
        try:
            encode = encode_bmp if payload == 'bmp' else lambda pixels: encode_png(Picture(pixels))
            content = source if payload == 'source' and source else encode(piece)
        except ValueError as error:
            raise ValueError(f'{image if source else key}: {error}') from error
        shape = (*piece.shape[:2], 1 if piece.ndim == 2 else 3)
        records.append(Record(name, content, shape, _digest(piece)))
    return records


def _digest(image: np.ndarray) -> bytes:
    header = f'{image.dtype}{image.shape}'.encode()
    return hashlib.blake2b(header + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def write_lmdb(
    images: str | Path | Mapping[str, Image],
    destination: str | Path,
    *,
    payload: str = 'png',
    sub_images: SubImages | None = None,
    force: bool = False,
    num_threads: int = 1,
    progress: Progress = lambda items, title, total: items,
) -> int:
    """Builds an LMDB (its name must end in ``.lmdb``, as BasicSR demands), verifies it, and returns
    the number of its entries.

    Args:
        images: a folder, searched recursively, or name -> image; names become keys as
            :func:`plan_keys` says.
        payload: ``png``, ``bmp`` (about twice as large, loads many times faster) or ``source``
            (the files' own bytes: right for JPEG data sets; not with sub-images).
        progress: wraps the images and then the keys to verify, as ``tqdm(items, title, total)``.

    Raises:
        FileExistsError: the destination exists (and ``force`` is not set, or it is no LMDB).
        ValueError: bad keys or images, each named; or the comparison failed.
        OSError: reading or writing failed, for example on a full disk.
    """
    destination = Path(destination)
    if payload == 'source' and sub_images is not None:
        raise ValueError('payload source stores whole files; use png or bmp for sub-images.')
    if not isinstance(images, Mapping):
        images = {name: Path(images, name) for name in list_images(images)}
    check_destination(destination, force)
    keys = plan_keys(images, sub_images=sub_images is not None)
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{destination.name}.', dir=destination.parent))
    try:
        jobs = [(images[name], key, payload, sub_images) for key, name in keys.items()]
        batches = progress(_records(jobs, num_threads), 'write', len(jobs))
        digests = _write(partial, batches, 0 if payload == 'bmp' else 1)
        _verify(partial, progress(digests.items(), 'verify', len(digests)))
        partial.chmod(0o755)  # mkdtemp makes private folders
        (partial / 'lock.mdb').unlink(missing_ok=True)
        old = partial.with_name(f'{partial.name}.old')
        if destination.exists():
            destination.rename(old)
        partial.rename(destination)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(digests)


def check_destination(destination: Path, force: bool) -> None:
    """Raises FileExistsError where it exists, and is not to be replaced or no LMDB."""
    if destination.exists() and not force:
        raise FileExistsError(f'{destination}: exists already; --force replaces it.')
    if destination.parent.is_file():
        raise FileExistsError(f'{destination.parent}: is a file; name a folder, or NAME.lmdb.')
    if destination.exists() and not (destination / 'data.mdb').is_file():
        raise FileExistsError(f'{destination}: exists and is not an LMDB; remove it yourself.')


def _records(jobs: Sequence[tuple], num_threads: int) -> Iterator[list[Record]]:
    """Decodes and encodes in threads, some images ahead; in order. ImageError names those that
    cannot be used, at the end or after ``_MANY`` of them.
    """
    problems: list[str] = []

    def attempt(*job: Any) -> list[Record]:
        try:
            return make_records(*job)
        except ValueError as error:
            problems.append(str(error))
            return []

    with ThreadPoolExecutor(num_threads) as pool:
        done = 0
        while done < len(jobs) and len(problems) < _MANY:
            part = jobs[done : done + _AHEAD * num_threads]
            yield from pool.map(attempt, *zip(*part, strict=True))
            done += len(part)
    if problems:
        rest = len(jobs) - done
        more = [f'The {rest} images after these were not looked at.'] if rest else []
        raise ImageError('\n'.join([*sorted(problems), *more]))


def _write(folder: Path, batches: Iterable[list[Record]], level: int) -> dict[str, bytes]:
    """Writes data.mdb and meta_info.txt; returns the digest of every key."""
    digests: dict[str, bytes] = {}
    try:
        with (
            lmdb.open(str(folder), map_size=_FIRST_MAP_SIZE, sync=False) as environment,
            (folder / 'meta_info.txt').open('w', encoding='utf-8') as meta,
        ):
            for records in batches:
                _commit(environment, records)
                for record in records:
                    height, width, channels = record.shape
                    meta.write(f'{record.key}.png ({height},{width},{channels}) {level}\n')
                    digests[record.key] = record.digest
            environment.sync(True)
    except lmdb.Error as error:
        raise OSError(f'{folder}: cannot write the LMDB: {error}. Is the disk full?') from error
    return digests


def _commit(environment: object, records: list[Record]) -> None:
    """Writes records in one transaction, doubling the map until they fit."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for record in records:
                    transaction.put(record.key.encode('ascii'), record.payload)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()['map_size'])


def _verify(folder: Path, digests: Iterable[tuple[str, bytes]]) -> None:
    """Decodes every entry as it is on disk and compares it with what was meant to be written."""
    with (
        lmdb.open(str(folder), readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        for key, digest in digests:
            content = transaction.get(key.encode('ascii'), b'')
            if _digest(decode(content, f'{folder} (key {key})').opaque) != digest:
                raise ValueError(f'{folder}: the image of key {key} differs from its source.')
