"""The data sets of the papers' tables: layouts, pairing rules, splits, published counts and sizes.

One declaration per set. Layouts (see :mod:`.layouts`) are those in which the authors' archives and
the common redistributions unpack; they are tried in order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from unfoldldm_basicsr.preparing.layouts import Layout
from unfoldldm_basicsr.preparing.lmdb_writer import SubImages
from unfoldldm_basicsr.preparing.matlab import Images, dnd_crops, sidd_blocks


class Source(NamedTuple):
    """Images that come together."""

    name: str  # where a part has several sources
    count: int | None  # published, of degraded images (clean ones where there are no others)
    layouts: tuple[Layout, ...]  # in order of preference
    clean: int | None = None  # published number, where several degraded images share a clean one
    size: tuple[int, int] | None = None  # published (height, width), either way round
    read: Callable[[Path], Images] | None = None  # images inside a file, for MATLAB files
    border: int = 0  # pixels by which clean images are larger on every side


class Part(NamedTuple):
    """What becomes one LMDB of clean and one of degraded images."""

    sources: tuple[Source, ...]  # all are needed
    squares: SubImages | None = None  # so that a patch does not cost a whole frame
    payload: str = 'png'  # see :func:`.lmdb_writer.write_lmdb`


class DataSet(NamedTuple):
    """A data set."""

    parts: dict[str, Part]  # by name; the LMDBs are called NAME_gt.lmdb and NAME_lq.lmdb
    where: str  # it is usually obtained
    note: str = ''  # what the reader of results must know


def _pairs(gt: str, lq: str, *places: str) -> tuple[Layout, ...]:
    """Layouts of which only the folder (``@``) differs."""
    return tuple(Layout(gt.replace('@', p), lq.replace('@', p)) for p in places or ('',))


def _clean(*paths: str) -> tuple[Layout, ...]:
    return tuple(Layout(path) for path in paths)


def _part(
    count: int | None,
    layouts: tuple[Layout, ...],
    squares: SubImages | None = None,
    payload: str = 'png',
    **more: Any,
) -> Part:
    return Part((Source('', count, layouts, **more),), squares, payload)


def _gopro(squares: SubImages | None, payload: str) -> dict[str, Part]:
    def layouts(split: str) -> tuple[Layout, ...]:
        scenes = _pairs('@/{scene}/sharp/{frame}', '@/{scene}/blur/{frame}', split)
        return scenes + _pairs('@/target/{frame}', '@/input/{frame}', f'{split}/GoPro', split)

    return {
        'train': _part(2103, layouts('train'), squares, payload, size=(720, 1280)),
        'test': _part(1111, layouts('test'), size=(720, 1280)),
    }


def _rain100(letter: str, train_count: int) -> dict[str, Part]:
    def layouts(split: str, *flat: str) -> tuple[Layout, ...]:
        jorder = f'rain_data_{split}_{"Light" if letter == "L" else "Heavy"}'
        rainy = ['train/Derain'] * (split == 'train')
        return (
            *_pairs('@/norain-{n}', '@/rain-{n}', f'Rain100{letter}/{split}', *flat),
            *_pairs('@/gt/norain-{n}', '@/rainy/rain-{n}', f'Rain100{letter}/{split}', *rainy),
            *_pairs('@/norain/norain-{n}', '@/rain/*/norain-{n}x2', jorder),
            *_pairs('@/norain/norain-{n}', '@/rain/norain-{n}x2', jorder),
        )

    test = layouts('test', f'Rain100{letter}')
    test += _pairs('@/norain-{n}', '@/rainy/rain-{n}', f'Rain100{letter}')
    test += _pairs('@/target/{n}', '@/input/{n}', f'Rain100{letter}')
    return {
        'train': _part(train_count, layouts('train', f'RainTrain{letter}')),
        'test': _part(100, test, size=(321, 481)),
    }


def _rain13k() -> dict[str, Part]:
    folders = ('train/Rain13K', 'Rain13K', 'train')
    train = _pairs('@/target/{n}', '@/input/{n}', *folders)
    # of the papers' 13712 and 100 pairs the authors give away these: issues 74 and 23 of MPRNet
    tests = {'Test100': 98, 'Rain100H': 100, 'Rain100L': 100, 'Test2800': 2800, 'Test1200': 1200}
    return {'train': _part(13711, train, payload='source')} | {
        name: _part(count, _pairs('@/target/{n}', '@/input/{n}', name))
        for name, count in tests.items()
    }


def _lol1(split: str, folder: str, count: int) -> Part:
    layouts = _pairs('@/high/{n}', '@/low/{n}', folder)
    layouts += _pairs('@/target/{n}', '@/input/{n}', split)
    return _part(count, layouts, size=(400, 600))


def _lol2(folder: str, train: int, size: tuple[int, int] | None) -> dict[str, Part]:
    def part(split: str, count: int) -> Part:
        names = ('@/Normal/normal{n}', '@/Low/low{n}'), ('@/Normal/{n}', '@/Low/{n}')
        layouts = [_pairs(gt, lq, f'{folder}/{split}') for gt, lq in names]
        return _part(count, layouts[0] + layouts[1], size=size)

    return {'train': part('train', train), 'test': part('test', 100)}


def _uieb(split: str, share: slice) -> Part:
    names = ('target', 'input'), ('hq', 'lq'), ('gt', 'input')
    ready = [Layout(f'{split}/{gt}/{{n}}', f'{split}/{lq}/{{n}}') for gt, lq in names]
    unsplit = Layout('reference-890/{n}', 'raw-890/{n}', share)
    return _part(share.stop - share.start, (*ready, unsplit))


def _baid(split: str, count: int | None, *more: str) -> Part:
    folders = (f'BAID_FULL/{split}', f'BAID/{split}', split, *more)
    return _part(count, _pairs('@/output/{n}', '@/input/{n}', *folders))


def _sots(place: str, clean: int, border: int, *more: str) -> Part:
    layouts = _pairs('@/gt/{scene}', '@/hazy/{scene}_{haze}', place, *more)
    layouts += _pairs('@/clear/{scene}', '@/hazy/{scene}_{haze}', place)
    return _part(500, layouts, clean=clean, border=border)


_OTS = tuple(
    Layout(f'{clear}/{{scene}}', f'{hazy}/{{scene}}_{{haze}}')
    for clear, hazy in (
        ('clear', 'hazy/*'), ('clear', 'hazy'), ('clear', 'part*'),
        ('clear/clear_images', 'haze/OTS'), ('original', 'synthetic/*'), ('original', 'synthetic'),
    )
)  # fmt: skip
_HIDE = _pairs('GT/{frame}', 'test/*/{frame}')
_HIDE += _pairs('@/target/{frame}', '@/input/{frame}', 'HIDE')
_BSDS500 = ('BSDS500/data/images/[train|test]/{n}', 'BSDS500/[train|test]/{n}')
_BSD400 = Source('BSD400', 400, _clean('BSD400/{n}', 'BSD500/{n}', *_BSDS500))
_WED = Source('WED', 4744, _clean('pristine_images/{n}', 'WED/{n}', 'WaterlooED/{n}'))
_DIV2K = Source('DIV2K', 800, _clean('DIV2K_train_HR/{n}', 'DIV2K/{n}'))
_FLICKR2K = Source('Flickr2K', 2650, _clean('Flickr2K_HR/{n}', 'Flickr2K/{n}'))
_CBSD68 = _clean('CBSD68/original_png/{n}', 'CBSD68/original/{n}', 'CBSD68/{n}')
_URBAN100 = _clean('image_SRF_4/{n}_SRF_4_HR', 'Urban100/HR/{n}', 'Urban100/{n}')

_AUTHORS = 'the page of its authors'
_GOPRO = f'{_AUTHORS} (Nah et al., CVPR 2017, GOPRO_Large), or the links of NAFNet'
_JORDER = f'{_AUTHORS} (Yang et al., CVPR 2017, JORDER); test images also with Restormer'
_LOL2 = f'{_AUTHORS} (Yang et al., TIP 2021), or the links of Retinexformer'
_RESIDE = f'{_AUTHORS} (Li et al., TIP 2019, RESIDE)'
_BSD_WHERE = 'the Berkeley Segmentation Data Set BSDS500: its images of train and test'
_WED_WHERE = 'the Waterloo Exploration Database of its authors (Ma et al., TIP 2017)'
_DENOISING = 'the links of the denoising benchmarks of Restormer or DnCNN'


SETS: dict[str, DataSet] = {
    'SIDD': DataSet(
        {
            'train': _part(
                320, _pairs('{scene}/*GT_SRGB_{n}', '{scene}/*NOISY_SRGB_{n}'), SubImages(512, 384)
            ),
            'val': _part(
                1280, _pairs('ValidationGtBlocksSrgb.mat', 'ValidationNoisyBlocksSrgb.mat'),
                size=(256, 256), read=sidd_blocks,
            ),
        },
        f'{_AUTHORS} (Abdelhamed et al., CVPR 2018): SIDD-Medium sRGB, and the validation blocks '
        '(sRGB) of its benchmark',
    ),
    'DND': DataSet(
        {'test': _part(1000, (Layout(None, 'images_srgb/{n}.mat'),), read=dnd_crops)},
        f'{_AUTHORS} (Plotz and Roth, CVPR 2017), after a registration',
        'no clean images: results are scored by its authors. Crops are rounded to 8 bits.',
    ),
    'GoPro': DataSet(_gopro(SubImages(512, 256), 'bmp'), _GOPRO),
    'GoPro_frames': DataSet(
        _gopro(None, 'png'), _GOPRO,
        'GoPro with whole training frames, as the epochs of VLU-Net count them.',
    ),
    'HIDE': DataSet(
        {'test': _part(2025, _HIDE, size=(720, 1280))},
        f'{_AUTHORS} (Shen et al., ICCV 2019), or the links of Restormer',
    ),
    'Rain100L': DataSet(_rain100('L', 200), _JORDER),
    'Rain100H': DataSet(_rain100('H', 1800), _JORDER),
    'Rain13K': DataSet(_rain13k(), 'the links of MPRNet or Restormer (Deraining)'),
    'LOL-v1': DataSet(
        {'train': _lol1('train', 'our485', 485), 'test': _lol1('test', 'eval15', 15)},
        f'{_AUTHORS} (Wei et al., BMVC 2018), or the links of Retinexformer',
    ),
    'LOL-v2-real': DataSet(_lol2('Real_captured', 689, (400, 600)), _LOL2),
    'LOL-v2-synthetic': DataSet(_lol2('Synthetic', 900, None), _LOL2),
    'UIEB': DataSet(
        {'train': _uieb('train', slice(0, 800)), 'test': _uieb('test', slice(800, 890))},
        f'{_AUTHORS} (Li et al., TIP 2020): raw-890 and reference-890',
        'papers use 800 and 90 pairs without naming them: another 90 than theirs, unless the '
        'folder comes split into train and test.',
    ),
    'BAID': DataSet(
        {'train': _baid('train', None), 'test': _baid('test', 368, 'BAID_Official')},
        f'{_AUTHORS} (Lv et al., 2022, BAID), or the links of CLIP-LIT',
    ),
    'OTS': DataSet({'train': _part(72135, _OTS, payload='source', clean=2061)}, _RESIDE),
    'SOTS': DataSet(
        {'outdoor': _sots('outdoor', 492, 0), 'indoor': _sots('indoor', 50, 10, 'nyuhaze500')},
        _RESIDE,
    ),
    'BSD400': DataSet({'train': Part((_BSD400,))}, _BSD_WHERE),
    'WED': DataSet({'train': Part((_WED,))}, _WED_WHERE),
    'BSD400_WED': DataSet({'train': Part((_BSD400, _WED))}, f'{_BSD_WHERE}; {_WED_WHERE}'),
    'DFWB': DataSet(
        {'train': Part((_DIV2K, _FLICKR2K, _WED, _BSD400), SubImages(512, 416), 'bmp')},
        f'DIV2K (Timofte et al., 2017) and Flickr2K of their authors; {_WED_WHERE}; {_BSD_WHERE}',
    ),
    'CBSD68': DataSet({'test': _part(68, _CBSD68, size=(321, 481))}, _DENOISING),
    'Urban100': DataSet(
        {'test': _part(100, _URBAN100)},
        f'{_AUTHORS} (Huang et al., CVPR 2015); {_DENOISING}',
    ),
    'Kodak24': DataSet(
        {'test': _part(24, _clean('Kodak24/{n}', 'Kodak/{n}', 'kodim{n}'))},
        f'the Kodak Lossless True Color Image Suite; {_DENOISING}',
        'Restormer measures whole photos of 768 x 512, FFDNet squares of 500 cut from them: the '
        'figures of one are not those of the other.',
    ),
}  # fmt: skip
