"""The data sets of the papers' tables: layouts, pairing rules, splits, published counts and sizes.

One declaration per set. Layouts (see :mod:`.layouts`) are those in which the authors' archives and
the common redistributions unpack; they are tried in order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from unfoldldm_basicsr.preparing.layouts import Layout, Share
from unfoldldm_basicsr.preparing.lmdb_writer import SubImages
from unfoldldm_basicsr.preparing.matlab import Images, dnd_crops, sidd_blocks


class Source(NamedTuple):
    """Images that come together.

    Attributes:
        name: what they are called where a part has several sources.
        count: published number of degraded images (clean ones where there are no others); None
            where it is not known.
        layouts: in order of preference.
        clean: published number of clean images, where several degraded ones share one.
        size: published (height, width), either way round.
        read: images inside a file, for MATLAB files.
        border: pixels by which clean images are larger on every side, if they are.
    """

    name: str
    count: int | None
    layouts: tuple[Layout, ...]
    clean: int | None = None
    size: tuple[int, int] | None = None
    read: Callable[[Path], Images] | None = None
    border: int = 0


class Part(NamedTuple):
    """What becomes one LMDB of clean and one of degraded images.

    Attributes:
        sources: all are needed.
        squares: cut into overlapping squares, so that a patch does not cost a whole frame.
        payload: see :func:`.lmdb_writer.write_lmdb`.
    """

    sources: tuple[Source, ...]
    squares: SubImages | None = None
    payload: str = 'png'


class DataSet(NamedTuple):
    """A data set.

    Attributes:
        parts: name -> part; the LMDBs are called ``NAME_gt.lmdb`` and ``NAME_lq.lmdb``.
        where: where it is usually obtained.
        note: what the reader of results must know.
    """

    parts: dict[str, Part]
    where: str
    note: str = ''


def _pairs(gt: str, lq: str, *places: str) -> tuple[Layout, ...]:
    """Layouts of which only the folder (``@``) differs."""
    places = places or ('',)
    return tuple(Layout(gt.replace('@', p), lq.replace('@', p)) for p in places)


def _clean(*paths: str) -> tuple[Layout, ...]:
    return tuple(Layout(path) for path in paths)


def _one(count: int | None, layouts: tuple[Layout, ...], **more: object) -> tuple[Source, ...]:
    return (Source('', count, layouts, **more),)


_GOPRO_TRAIN = _one(
    2103,
    (
        *_pairs('train/{scene}/sharp/{frame}', 'train/{scene}/blur/{frame}'),
        *_pairs('@/target/{frame}', '@/input/{frame}', 'train/GoPro', 'train'),
    ),
    size=(720, 1280),
)
_GOPRO_TEST = Part(
    _one(
        1111,
        (
            *_pairs('test/{scene}/sharp/{frame}', 'test/{scene}/blur/{frame}'),
            *_pairs('@/target/{frame}', '@/input/{frame}', 'test/GoPro', 'test'),
        ),
        size=(720, 1280),
    )
)
_GOPRO = 'the page of its authors (Nah et al., CVPR 2017, GOPRO_Large), or the links of NAFNet'


def _rain100(letter: str, train_count: int) -> dict[str, Part]:
    heavy = {'L': 'Light', 'H': 'Heavy'}[letter]
    jorder = 'rain_data_{}_' + heavy
    train = (
        *_pairs(
            '@/norain-{n}', '@/rain-{n}', f'RainTrain{letter}', f'Rain100{letter}/train',
        ),
        *_pairs('@/gt/norain-{n}', '@/rainy/rain-{n}', f'Rain100{letter}/train', 'train/Derain'),
        *_pairs('@/norain/norain-{n}', '@/rain/*/norain-{n}x2', jorder.format('train')),
        *_pairs('@/norain/norain-{n}', '@/rain/norain-{n}x2', jorder.format('train')),
    )  # fmt: skip
    test = (
        *_pairs('@/norain-{n}', '@/rain-{n}', f'Rain100{letter}/test', f'Rain100{letter}'),
        *_pairs('@/gt/norain-{n}', '@/rainy/rain-{n}', f'Rain100{letter}/test'),
        *_pairs('@/target/{n}', '@/input/{n}', f'Rain100{letter}'),
        *_pairs('@/norain/norain-{n}', '@/rain/*/norain-{n}x2', jorder.format('test')),
        *_pairs('@/norain/norain-{n}', '@/rain/norain-{n}x2', jorder.format('test')),
    )
    return {
        'train': Part(_one(train_count, train)),
        'test': Part(_one(100, test, size=(321, 481))),
    }


_JORDER = (
    'the page of its authors (Yang et al., CVPR 2017, JORDER); test images also with Restormer'
)


def _rain_test(name: str, count: int | None) -> Part:
    return Part(_one(count, _pairs('@/target/{n}', '@/input/{n}', name)))


def _lol2(folder: str, train: int, size: tuple[int, int] | None) -> dict[str, Part]:
    return {
        split: Part(
            _one(
                count,
                (
                    *_pairs('@/Normal/normal{n}', '@/Low/low{n}', f'{folder}/{split}'),
                    *_pairs('@/Normal/{n}', '@/Low/{n}', f'{folder}/{split}'),
                ),
                size=size,
            )
        )
        for split, count in (('train', train), ('test', 100))
    }


_LOL2 = 'the page of its authors (Yang et al., TIP 2021), or the links of Retinexformer'


def _uieb(split: str, share: Share) -> tuple[Source, ...]:
    ready = _pairs('@/target/{n}', '@/input/{n}', split)
    ready += _pairs('@/hq/{n}', '@/lq/{n}', split) + _pairs('@/gt/{n}', '@/input/{n}', split)
    unsplit = Layout('reference-890/{n}', 'raw-890/{n}', share)
    return _one(share.count, (*ready, unsplit))


def _baid(split: str, count: int | None) -> Part:
    folders = (f'BAID_FULL/{split}', f'BAID/{split}', split)
    if split == 'test':
        folders = (*folders, 'BAID_Official')
    return Part(_one(count, _pairs('@/output/{n}', '@/input/{n}', *folders)))


_BSD400 = Source(
    'BSD400', 400,
    _clean('BSD400/{n}', 'BSD500/{n}', 'BSDS500/data/images/[train|test]/{n}',
           'BSDS500/[train|test]/{n}'),
)  # fmt: skip
_WED = Source('WED', 4744, _clean('pristine_images/{n}', 'WED/{n}', 'WaterlooED/{n}'))
_DIV2K = Source('DIV2K', 800, _clean('DIV2K_train_HR/{n}', 'DIV2K/{n}'))
_FLICKR2K = Source('Flickr2K', 2650, _clean('Flickr2K_HR/{n}', 'Flickr2K/{n}'))
_BSD_WHERE = 'the Berkeley Segmentation Data Set BSDS500: its images of train and test'
_WED_WHERE = 'the Waterloo Exploration Database of its authors (Ma et al., TIP 2017)'
_DENOISING = 'the links of the denoising benchmarks of Restormer or DnCNN'


SETS: dict[str, DataSet] = {
    'SIDD': DataSet(
        {
            'train': Part(
                _one(320, _pairs('{scene}/*GT_SRGB_{n}', '{scene}/*NOISY_SRGB_{n}')),
                squares=SubImages(512, 384),
            ),
            'val': Part(
                _one(
                    1280,
                    _pairs('ValidationGtBlocksSrgb.mat', 'ValidationNoisyBlocksSrgb.mat'),
                    size=(256, 256),
                    read=sidd_blocks,
                )
            ),
        },
        'the page of its authors (Abdelhamed et al., CVPR 2018): SIDD-Medium sRGB, and the '
        'validation blocks (sRGB) of its benchmark',
    ),
    'DND': DataSet(
        {
            'test': Part(
                _one(
                    1000, (Layout(None, 'images_srgb/{n}.mat'),), size=(512, 512), read=dnd_crops
                )
            )
        },
        'the page of its authors (Plotz and Roth, CVPR 2017), after a registration',
        'no clean images: results are scored by its authors. Crops are rounded to 8 bits.',
    ),
    'GoPro': DataSet(
        {'train': Part(_GOPRO_TRAIN, SubImages(512, 256), 'bmp'), 'test': _GOPRO_TEST}, _GOPRO
    ),
    'GoPro_frames': DataSet(
        {'train': Part(_GOPRO_TRAIN), 'test': _GOPRO_TEST},
        _GOPRO,
        'GoPro with whole training frames, as the epochs of VLU-Net count them.',
    ),
    'HIDE': DataSet(
        {
            'test': Part(
                _one(
                    2025,
                    (
                        *_pairs('GT/{frame}', 'test/*/{frame}'),
                        *_pairs('@/target/{frame}', '@/input/{frame}', 'HIDE'),
                    ),
                    size=(720, 1280),
                )
            )
        },
        'the page of its authors (Shen et al., ICCV 2019), or the links of Restormer',
    ),
    'Rain100L': DataSet(_rain100('L', 200), _JORDER),
    'Rain100H': DataSet(_rain100('H', 1800), _JORDER),
    'Rain13K': DataSet(
        {
            'train': Part(
                _one(
                    13712,
                    _pairs('@/target/{n}', '@/input/{n}', 'train/Rain13K', 'Rain13K', 'train'),
                ),
                payload='source',
            ),
            'Test100': _rain_test('Test100', None),
            'Rain100H': _rain_test('Rain100H', 100),
            'Rain100L': _rain_test('Rain100L', 100),
            'Test2800': _rain_test('Test2800', 2800),
            'Test1200': _rain_test('Test1200', 1200),
        },
        'the links of MPRNet or Restormer (Deraining)',
    ),
    'LOL-v1': DataSet(
        {
            split: Part(
                _one(
                    count,
                    (
                        *_pairs('@/high/{n}', '@/low/{n}', folder),
                        *_pairs('@/target/{n}', '@/input/{n}', split),
                    ),
                    size=(400, 600),
                )
            )
            for split, folder, count in (('train', 'our485', 485), ('test', 'eval15', 15))
        },
        'the page of its authors (Wei et al., BMVC 2018), or the links of Retinexformer',
    ),
    'LOL-v2-real': DataSet(_lol2('Real_captured', 689, (400, 600)), _LOL2),
    'LOL-v2-synthetic': DataSet(_lol2('Synthetic', 900, None), _LOL2),
    'UIEB': DataSet(
        {
            'train': Part(_uieb('train', Share(0, 800))),
            'test': Part(_uieb('test', Share(800, 90))),
        },
        'the page of its authors (Li et al., TIP 2020): raw-890 and reference-890',
        'papers use 800 and 90 pairs without naming them: another 90 than theirs, unless the '
        'folder comes split into train and test.',
    ),
    'BAID': DataSet(
        {'train': _baid('train', None), 'test': _baid('test', 368)},
        'the page of its authors (Lv et al., 2022, BAID), or the links of CLIP-LIT',
    ),
    'OTS': DataSet(
        {
            'train': Part(
                _one(
                    72135,
                    (
                        *_pairs('@/{scene}', 'hazy/*/{scene}_{haze}', 'clear'),
                        *_pairs('@/{scene}', 'hazy/{scene}_{haze}', 'clear'),
                        *_pairs('@/{scene}', 'part*/{scene}_{haze}', 'clear'),
                        *_pairs('@/{scene}', 'haze/OTS/{scene}_{haze}', 'clear/clear_images'),
                        *_pairs('@/{scene}', 'synthetic/*/{scene}_{haze}', 'original'),
                        *_pairs('@/{scene}', 'synthetic/{scene}_{haze}', 'original'),
                    ),
                    clean=2061,
                ),
                payload='source',
            )
        },
        'the page of RESIDE (Li et al., TIP 2019): OTS of RESIDE-beta',
    ),
    'SOTS': DataSet(
        {
            place: Part(
                _one(
                    500,
                    (
                        *_pairs('@/gt/{scene}', '@/hazy/{scene}_{haze}', place, *more),
                        *_pairs('@/clear/{scene}', '@/hazy/{scene}_{haze}', place),
                    ),
                    clean=clean,
                    border=border,
                )
            )
            for place, more, clean, border in (
                ('outdoor', (), 492, 0),
                ('indoor', ('nyuhaze500',), 50, 10),
            )
        },
        'the page of RESIDE (Li et al., TIP 2019): SOTS of RESIDE-standard',
    ),
    'BSD400': DataSet({'train': Part((_BSD400,))}, _BSD_WHERE),
    'WED': DataSet({'train': Part((_WED,))}, _WED_WHERE),
    'BSD400_WED': DataSet({'train': Part((_BSD400, _WED))}, f'{_BSD_WHERE}; {_WED_WHERE}'),
    'DFWB': DataSet(
        {
            'train': Part(
                (_DIV2K, _FLICKR2K, _WED, _BSD400), squares=SubImages(512, 416), payload='bmp'
            )
        },
        f'DIV2K (Timofte et al., 2017) and Flickr2K of their authors; {_WED_WHERE}; {_BSD_WHERE}',
    ),
    'CBSD68': DataSet(
        {
            'test': Part(
                _one(
                    68,
                    _clean('CBSD68/original_png/{n}', 'CBSD68/original/{n}', 'CBSD68/{n}'),
                    size=(321, 481),
                )
            )
        },
        _DENOISING,
    ),
    'Urban100': DataSet(
        {
            'test': Part(
                _one(100, _clean('image_SRF_4/{n}_SRF_4_HR', 'Urban100/HR/{n}', 'Urban100/{n}'))
            )
        },
        f'the page of its authors (Huang et al., CVPR 2015); {_DENOISING}',
    ),
    'Kodak24': DataSet(
        {
            'test': Part(
                _one(24, _clean('Kodak24/{n}', 'Kodak/{n}', 'kodim{n}'), size=(512, 768))
            )
        },
        f'the Kodak Lossless True Color Image Suite; {_DENOISING}',
    ),
}  # fmt: skip
