"""Writes the photos that scikit-image's wheel contains as PNG: data for a first run, no download.

    python scripts/data/skimage_photos.py -o datasets/photos

DIR/val holds the photos kept for validation, DIR/train the others. Grey photos stay grey.
"""

import argparse
import sys
from pathlib import Path

import cv2

SPLITS = {
    'train': (
        'motorcycle_left.png', 'motorcycle_right.png', 'rocket.jpg', 'hubble_deep_field.jpg',
        'ihc.png', 'retina.jpg', 'camera.png', 'brick.png', 'grass.png', 'gravel.png', 'coins.png',
        'moon.png',
    ),
    'val': ('astronaut.png', 'chelsea.png', 'coffee.png'),
}  # fmt: skip


def photo_folder() -> Path:
    try:
        import skimage
    except ImportError as error:
        raise OSError('scikit-image is missing: pip install scikit-image') from error
    return Path(skimage.__file__).parent / 'data'


def write_photos(source: Path, output: Path) -> int:
    """Writes both splits; the number of photos. OSError: one is not there, or not as expected."""
    missing = [name for names in SPLITS.values() for name in names if not (source / name).is_file()]
    if missing:
        raise OSError(
            f'{source} lacks {", ".join(missing)}: this scikit-image ships other pictures than the '
            f'releases 0.19 to 0.26 do. Install one of them, or train on a folder of your own.'
        )
    count = 0
    for split, names in SPLITS.items():
        folder = output / split
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            picture = cv2.imread(str(source / name), cv2.IMREAD_ANYCOLOR)
            if picture is None:
                raise OSError(f'{source / name}: cannot be decoded; reinstall scikit-image.')
            target = folder / f'{Path(name).stem}.png'
            if not cv2.imwrite(str(target), picture):
                raise OSError(f'{target}: cannot be written.')
            count += 1
    return count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write to')
    args = parser.parse_args(argv)
    try:
        count = write_photos(photo_folder(), args.output)
    except OSError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{count} photos in {args.output}/train and {args.output}/val')
    return 0


if __name__ == '__main__':
    sys.exit(main())
