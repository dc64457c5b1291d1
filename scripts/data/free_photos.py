"""Writes photographs with free licences as PNG: what the weights in this package are trained on.

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers
    for file in *.deb; do dpkg -x $file unpacked; done
    python scripts/data/free_photos.py -i unpacked -o datasets/free_photos

Photographs only, no drawings. Each is reduced by averaging, so that neither the noise of the camera
nor JPEG blocks are left to be learned; FOLDER/ATTRIBUTION.md names authors and licences.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import cv2

LONG_SIDE = 1100  # pixels after reduction: at least a factor of 2 for every photo but one


class Photo(NamedTuple):
    """A photograph of the packages: end of its path, author, licence, as their files say."""

    path: str
    author: str
    licence: str


def _lomiri(name: str, author: str, licence: str) -> Photo:
    return Photo(f'backgrounds/{name}', author, licence)


def _plasma(name: str, author: str) -> Photo:
    return Photo(f'wallpapers/{name}/contents/images/2560x1600', author, 'LGPL-3.0')


PHOTOS = (
    _lomiri('Bridge_by_Sander_Klootwijk', 'Sander Klootwijk', 'CC-BY-SA-4.0'),
    _lomiri('Dragonfly_by_Bolly', '"Bolly"', 'CC-BY-SA-4.0'),
    _lomiri('Picture_0B_by_freespace', 'Trevor "Freespace"', 'CC-BY-4.0'),
    _lomiri('Picture_1A_by_freespace', 'Trevor "Freespace"', 'CC-BY-4.0'),
    _lomiri('Wine_by_Jakkub_Mede', 'Jakub Mede', 'CC-BY-4.0'),
    _lomiri('aitzgorri_by_Aitzol_Berasategi', 'Aitzol Berasategi', 'CC-BY-4.0'),
    _lomiri('friends_by_Aitzol_Berasategi', 'Aitzol Berasategi', 'CC-BY-4.0'),
    _lomiri('greentock_by_Peter_Nerlich', 'Peter Nerlich', 'CC-BY-SA-4.0'),
    _lomiri('life_by_Aitzol_Berasategi', 'Aitzol Berasategi', 'CC-BY-4.0'),
    _lomiri('picosdeeuropa_by_Aitzol_Berasategi', 'Aitzol Berasategi', 'CC-BY-4.0'),
    _lomiri('seeding_by_Clements_Engelhardt', 'Clemens Engelhardt', 'CC0-1.0'),
    _lomiri('sunset_by_Aitzol_Berasategi', 'Aitzol Berasategi', 'CC-BY-4.0'),
    _lomiri('Kleiber_by_Lukas_Baubkus', 'Lukas Baubkus', 'CC-BY-SA-3.0'),
    _plasma('BytheWater', 'Maciej Wiklo'),
    _plasma('ColdRipple', 'Risto Saukonpää'),
    _plasma('ColorfulCups', 'Dmitri Popov'),
    _plasma('EveningGlow', 'Ian Hex'),
    _plasma('FallenLeaf', 'Martin Klapetek'),
    _plasma('Grey', 'Sigi Sagi'),
    _plasma('OneStandsOut', 'Risto Saukonpää'),
    _plasma('Path', 'Risto Saukonpää'),
)


def write_photos(source: Path, output: Path, long_side: int) -> int:
    """Writes all photographs and their attribution; their number. OSError: one is missing."""
    files = sorted(source.rglob('*.*'), reverse=True)  # of several copies the first one counts
    found = {
        photo: path
        for photo in PHOTOS
        for path in files
        if path.suffix in ('.jpg', '.png') and path.with_suffix('').as_posix().endswith(photo.path)
    }
    if missing := [photo.path for photo in PHOTOS if photo not in found]:
        raise OSError(
            f'{missing[0]}: not found; unpack the three packages into one folder (--help).'
        )
    output.mkdir(parents=True, exist_ok=True)
    lines = ['| file | author | licence |', '|---|---|---|']
    for photo, path in found.items():
        picture = cv2.imread(str(path))
        scale = long_side / max(picture.shape[:2])
        if scale < 1:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        name = Path(photo.path).name if 'backgrounds' in photo.path else photo.path.split('/')[1]
        if not cv2.imwrite(str(output / f'{name}.png'), picture):
            raise OSError(f'{output / name}.png: cannot be written.')
        lines.append(f'| {name}.png | {photo.author} | {photo.licence} |')
    (output / 'ATTRIBUTION.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return len(found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-i', '--input', type=Path, required=True, help='unpacked packages')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write to')
    parser.add_argument(
        '--long-side', type=int, default=LONG_SIDE, help='pixels (default: %(default)s)'
    )
    args = parser.parse_args(argv)
    try:
        count = write_photos(args.input, args.output, args.long_side)
    except OSError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{count} photographs in {args.output}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
