"""``unfoldldm prepare``: every known layout in miniature, and folders of one's own."""

import re
from contextlib import nullcontext
from functools import partial
from itertools import product

import numpy as np
import pytest
from basicsr.data import build_dataset
from dataset_options import paired
from miniatures import build, num_layouts, own_fields, shrunk
from scipy.io import savemat

from unfoldldm_basicsr.commands import prepare_command
from unfoldldm_basicsr.data.images import Picture, write_picture
from unfoldldm_basicsr.data.listing import read_meta_info
from unfoldldm_basicsr.data.sources import LmdbImages
from unfoldldm_basicsr.preparing import lmdb_writer
from unfoldldm_basicsr.preparing import prepare as preparing
from unfoldldm_basicsr.preparing.layouts import Layout, find
from unfoldldm_basicsr.preparing.matlab import dnd_crops, read_mat
from unfoldldm_basicsr.preparing.prepare import plan
from unfoldldm_basicsr.preparing.sets import SETS

SIZE = (12, 16)
SQUARES = [f'_s00{n}' for n in range(1, 7)]
PAIRS = ['--gt', 'gt/{n}', '--lq', 'lq/{n}']
CASES = [(name, n) for name, dataset in SETS.items() for n in range(num_layouts(dataset))]


@pytest.fixture
def miniature(monkeypatch):
    table = {name: shrunk(dataset, SIZE) for name, dataset in SETS.items()}
    monkeypatch.setattr(prepare_command, 'SETS', table)
    return table


@pytest.fixture
def prepare(output_of):
    return partial(output_of, 'prepare')


def values(root) -> dict[str, set[int]]:
    """Brightness of every image; squares of one image under its key."""
    images, found = LmdbImages(root), {}
    for key in images.names:
        found.setdefault(re.sub(r'_s\d+$', '', key), set()).update(np.unique(images.read(key)))
    return found


@pytest.mark.parametrize(('name', 'number'), CASES, ids=[f'{name}-{n}' for name, n in CASES])
def test_every_layout_gives_its_pairs(name, number, miniature, tmp_path, prepare):
    dataset = miniature[name]
    build(dataset, tmp_path / 'anything' / 'unpacked', number, SIZE)
    said = prepare(name, '-i', tmp_path / 'anything', '-o', tmp_path / 'out')
    for part, declared in dataset.parts.items():
        layouts = [s.layouts[min(number, len(s.layouts) - 1)] for s in declared.sources]
        expected = sum(source.count or 3 for source in declared.sources)
        assert f'{name} {part}: {expected} images in ' in said
        out = tmp_path / 'out'
        clean = values(out / f'{part}_gt.lmdb') if layouts[0].gt else {}
        noisy = values(out / f'{part}_lq.lmdb') if layouts[0].lq else {}
        assert len(noisy or clean) == expected
        pairs = {key: key for key in noisy} if clean else {}
        if any(map(own_fields, layouts)):
            listed = read_meta_info(out / f'{part}.txt')
            pairs = {lq.removesuffix('.png'): gt.removesuffix('.png') for gt, lq in listed}
            assert len(pairs) == 2 * len(clean)
        assert all({value + 100 for value in clean[gt]} == noisy[lq] for lq, gt in pairs.items())
        assert len(set().union(*clean.values())) == len(clean) // len(layouts)
    assert 'MiB, verified' in said


@pytest.mark.parametrize(('name', 'part', 'gt', 'lq'), [
    ('Rain100L', 'test', 'Rain100L/norain-001', 'Rain100L/rainy/rain-001'),  # PReNet's
    ('UIEB', 'train', 'reference-890/Reference-890/2_img_', 'raw-890/raw-890/2_img_'),
])  # fmt: skip
def test_archives_are_recognised_as_they_unpack(name, part, gt, lq):
    names, (source,) = [f'data/{gt}.png', f'data/{lq}.PNG'], SETS[name].parts[part].sources
    found = [pairs for layout in source.layouts if (pairs := find(names, layout).pairs)]
    assert [[(pair[0], pair[2]) for pair in pairs.values()] for pairs in found] == [[(*names,)]]


@pytest.mark.parametrize('name', SETS)
def test_another_layout_is_refused_with_the_expected_tree(name, tmp_path, prepare):
    write_picture(tmp_path / 'in' / 'photos' / 'a' / '1.png', Picture(np.zeros((4, 4), np.uint8)))
    said = prepare(name, '-i', tmp_path / 'in', '-o', tmp_path / 'out', status=2)
    for part, declared in SETS[name].parts.items():
        for source in declared.sources:
            assert f'{part}: {source.name or "images"}: none found' in said
            assert all((layout.lq or layout.gt) in said for layout in source.layouts)
    assert f'obtained from {SETS[name].where}' in said
    assert not (tmp_path / 'out').exists()
    for words in ([name], []):  # what is expected of this set; the list of all
        assert SETS[name].where in prepare(*words)


def test_what_is_missing_is_said_and_taken_only_on_request(miniature, tmp_path, prepare):
    root = tmp_path / 'in'
    build(miniature['GoPro'], root, size=SIZE)
    (root / 'train' / 'scene000' / 'sharp' / 'frame000.png').unlink()
    for frame in root.glob('test/*/*/*'):
        frame.unlink()
    said = prepare('GoPro', '-i', root, '-o', tmp_path / 'out', status=2)
    assert 'train: 1 degraded images have no clean one, the first is train/scene000/blur' in said
    assert 'train: 2 of 3 images' in said
    assert 'test: images: none found' in said
    assert not (tmp_path / 'out').exists()
    said = prepare('GoPro', '-i', root, '-o', tmp_path / 'out', '--incomplete')
    assert 'note: GoPro train: 2 of 3 images' in said
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {'train_gt.lmdb', 'train_lq.lmdb'}


def test_sizes_and_second_copies_are_noticed(miniature, tmp_path, prepare):
    build(miniature['LOL-v1'], tmp_path / 'a', size=(16, 16))
    build(miniature['LOL-v1'], tmp_path / 'b', size=SIZE)
    said = prepare('LOL-v1', '-i', tmp_path / 'a', status=2)
    assert 'sizes 16 x 16 where 16 x 12 is published' in said
    assert 'remove one, or name its folder with -i' in prepare('LOL-v1', '-i', tmp_path, status=2)
    for path in [*(tmp_path / 'a').rglob('*.png')]:
        path.rename(path.with_name(f'other_{path.name}'))
    assert 'lies in several folders (a/, b/)' in prepare('LOL-v1', '-i', tmp_path, status=2)


def test_kodak_is_taken_whole_and_cut_as_ffdnet_has_it(tmp_path):
    for number in range(24):
        sides = (512, 768) if number else (500, 500)
        write_picture(tmp_path / 'Kodak24' / f'{number}.png', Picture(np.zeros(sides, np.uint8)))
    assert plan(SETS['Kodak24'], tmp_path)['test'].problems == []


@pytest.mark.parametrize('known', [True, False], ids=['in header', 'decoded'])
def test_pairs_of_two_sizes_are_noticed_and_never_cut_apart(tmp_path, prepare, monkeypatch, known):
    if not known:
        monkeypatch.setattr(preparing, 'size_in_header', lambda _: None)
    write_named(tmp_path / 'in', 'gt/1.png', 'gt/2.png', 'lq/1.png')
    write_picture(tmp_path / 'in' / 'lq' / '2.png', Picture(np.zeros((30, 41, 3), np.uint8)))
    command = ['folder', '-i', tmp_path / 'in', *PAIRS, '-o', tmp_path / 'out']
    assert '1 pairs differ in size, the first is 2' in prepare(*command, status=2)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'train.txt').touch()  # of another set
    prepare(*command, '--incomplete', '--crop-size', 20, '--force')
    assert all(values(tmp_path / 'out' / f'train_{s}.lmdb').keys() == {'1'} for s in ('gt', 'lq'))
    assert not (tmp_path / 'out' / 'train.txt').exists()


def test_nothing_is_written_where_one_of_the_lmdbs_exists(miniature, tmp_path, prepare):
    build(miniature['LOL-v1'], tmp_path / 'in', size=SIZE)
    (tmp_path / 'out' / 'test_lq.lmdb').mkdir(parents=True)
    said = prepare('LOL-v1', '-i', tmp_path / 'in', '-o', tmp_path / 'out', status=2)
    assert 'test_lq.lmdb: exists already; --force' in said
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['test_lq.lmdb']


def test_a_set_of_which_only_a_part_was_written_is_none(tmp_path, prepare, monkeypatch):
    write_named(tmp_path / 'in', 'gt/1.png', 'gt/2.png', 'lq/1.png', 'lq/2.png')
    write, left = lmdb_writer._write, [1]
    monkeypatch.setattr(lmdb_writer, '_write', lambda *a: write(*a) if left.pop() else 1 / 0)
    with pytest.raises(IndexError):
        prepare('folder', '-i', tmp_path / 'in', *PAIRS, '-o', tmp_path / 'out')
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['train_lq.lmdb']


def test_shares_of_an_unsplit_set_are_disjoint_and_fixed():
    names = [f'{kind}-890/{n}.png' for kind in ('raw', 'reference') for n in range(890)]
    layout = SETS['UIEB'].parts['train'].sources[0].layouts[-1]
    train, test = (
        find(names, layout._replace(share=share)).pairs for share in (slice(800), slice(800, 890))
    )
    assert (len(train), len(test)) == (800, 90)
    assert not train.keys() & test.keys()
    assert sorted(test, key=int)[:5] == ['5', '6', '15', '20', '31']


def write_hdf5(path, variables: dict) -> None:
    """As MATLAB 7.3 does: axes reversed, cells as references."""
    pytest.importorskip('pymatreader')  # reads with h5py
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w', userblock_size=512) as file:
        for name, value in variables.items():
            if value.dtype != object:
                file[name] = value.T
                continue
            cells = file.create_dataset(name, value.T.shape, h5py.ref_dtype)
            for place in np.ndindex(*value.shape):
                file[f'#refs#/{"_".join(map(str, place))}'] = value[place].T
                cells[place[::-1]] = file[f'#refs#/{"_".join(map(str, place))}'].ref
    with path.open('r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\0\2IM')


def test_dnd_is_cut_at_its_boxes_in_version_73(miniature, tmp_path, prepare):
    rng = np.random.default_rng(0)
    photos = [rng.random((30, 40, 3), np.float32) for _ in range(3)]
    boxes = np.empty((3, 1), object)
    for n, photo in enumerate(photos):
        boxes[n, 0] = np.array([[n + 1, 3, n + 12, 18], [9, 20, 20, 35]], float)
        write_hdf5(tmp_path / 'in' / 'images_srgb' / f'{n + 1:04d}.mat', {'InoisySRGB': photo})
    write_hdf5(tmp_path / 'in' / 'info.mat', {'info/boundingboxes': boxes})
    (tmp_path / 'in' / 'images_srgb' / '._0001.mat').write_bytes(b'what a Mac leaves')
    prepare('DND', '-i', tmp_path / 'in', '-o', tmp_path / 'out')
    images = LmdbImages(tmp_path / 'out' / 'test_lq.lmdb')
    assert images.names == [f'{n:04d}_{k:02d}' for n in (1, 2, 3) for k in (1, 2)]
    expected = (photos[2][2:14, 2:18] * 255).round()
    np.testing.assert_array_equal(images.read('0003_01'), expected)


def test_other_matlab_files_are_named(tmp_path):
    path = tmp_path / 'ValidationGtBlocksSrgb.mat'
    for content in (b'', b'cut', b'nonsense' * 40, b'MATLAB 7.3' * 40):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='no MATLAB file, or a damaged one'):
            read_mat(path)


@pytest.mark.parametrize(('noisy', 'boxes', 'says'), [
    (np.zeros((9, 9, 3)), [[1, 1, 9, 9]], None),
    (np.zeros((9, 9, 3), np.uint8), [[1, 1, 9, 9]], 'floats'),
    (np.float64(1), [[1, 1, 9, 9]], 'floats'),
    (np.zeros((9, 9, 3)), [[1, 1, 10, 9]], 'smaller than its boxes'),
    (np.zeros((9, 9, 3)), [], r'info.mat: has no .* for 0001.mat'),
    (np.zeros((9, 9, 3)), None, r'info.mat: has no .* for 0001.mat'),
])  # fmt: skip
def test_a_photo_of_dnd_that_does_not_suit_its_boxes_is_named(tmp_path, noisy, boxes, says):
    path = tmp_path / 'images_srgb' / '0001.mat'
    path.parent.mkdir()
    savemat(path, {'InoisySRGB': noisy})
    boxes = {'boundingboxes': np.array([boxes, boxes], object)} if boxes is not None else 1.0
    savemat(tmp_path / 'info.mat', {'info': boxes})
    with pytest.raises(ValueError, match=says) if says else nullcontext():
        assert [crop().shape for crop in dnd_crops(path).values()] == [(9, 9, 3)]


def write_named(folder, *names, value=0):
    for index, name in enumerate(names):
        write_picture(folder / name, Picture(np.full((30, 40, 3), value + index, np.uint8)))


def test_clean_photos_become_one_lmdb_of_squares(tmp_path, prepare):
    write_named(tmp_path / 'in', 'a.v1.png', 'sub/b.png')
    output = tmp_path / 'photos.lmdb'
    squares = ['--crop-size', 20, '--step', 10, '--payload', 'bmp']
    (tmp_path / 'in' / 'sub' / 'notes.txt').touch()
    out = prepare('folder', '-i', tmp_path / 'in', '-o', output, *squares)
    assert f'{output}: 12 images' in out
    assert 'in: 1 file is left out, it is no image (.txt).' in out
    assert values(output) == {'a_v1': {0}, 'sub/b': {1}}
    assert '--force' in prepare('folder', '-i', tmp_path / 'in', '-o', output, status=2)
    prepare('folder', '-i', tmp_path / 'in', '-o', output, '--force')
    assert LmdbImages(output).names == ['a_v1', 'sub/b']


@pytest.mark.parametrize(('parts', 'ends'), [((1, 2), ['']), ((2,), ['']), ((1, 2), SQUARES)])
def test_pairs_by_their_names_read_alike_from_folder_and_lmdb(tmp_path, prepare, parts, ends):
    """Many degraded images of a clean one: the list goes with the LMDBs."""
    write_named(tmp_path / 'in', 'clear/0025.png', 'clear/0039.png', 'clear/0041.png')
    hazy = [f'hazy/part{i}/{clear}_0.{i}.png' for clear in ('0025', '0039') for i in parts]
    write_named(tmp_path / 'in', *hazy, value=100)
    rule = ['--gt', 'clear/{photo}', '--lq', 'hazy/*/{photo}_{haze}', '--part', 'val']
    rule += ['--crop-size', 20] * (ends is SQUARES)
    said = prepare('folder', '-i', tmp_path / 'in', '-o', tmp_path / 'out', *rule)
    assert '1 clean images have no degraded one, the first is clear/0041.png' in said
    roots = [tmp_path / 'out' / f'val_{side}.lmdb' for side in ('gt', 'lq')]
    pairs = str(tmp_path / 'out' / 'val.txt')
    dataset = build_dataset(paired(*roots, 'val', meta_info_file=pairs))
    found = {item['lq_path']: round(item['gt'].mean().item() * 255) for item in dataset}
    keys = product((('0025', 0), ('0039', 1)), parts, ends)
    assert found == {f'{clear}/0_{i}{end}': value for (clear, value), i, end in keys}


def test_braces_stars_and_choices_match_as_described():
    names = [f'root/{n}' for n in ('Test/S/Blur/1.PNG', 'test/S/blur_gamma/2.png', 'x/rain-1.png')]
    names += ['root/test/S/sharp/1.jpg', 'root/x/norain-1.png', 'root/a/b/c.png']
    pair = Layout('test/{s}/sharp/{f}', 'test/{s}/blur/{f}')
    assert find(names, pair).pairs == {'S/1': (names[3], 'S/1', names[0])}
    assert find(names, Layout('norain-{n}', 'rain-{n}')).pairs == {'1': (names[4], '1', names[2])}
    names += [f'hazy/{n}_0.{i}_x.png' for n in ('a', 'a_b', 'c_d') for i in (1, 2)]
    names += ['clear/a.png', 'clear/a_b.png', 'clear/c_d.png', 'clear/c_d_e.png']
    hazy = find(names, Layout('clear/{n}', 'hazy/{n}_{haze}'))
    expected = {f'{n}/0.{i}_x': n for n in ('a', 'a_b', 'c_d') for i in (1, 2)}
    assert {key: gt for key, (_, gt, _) in hazy.pairs.items()} == expected, 'the longest name'
    assert (hazy.unpaired, hazy.unused) == ([], {'clear/c_d_e.png'})
    names = [*names[:6], 'two\nlines.png']
    assert find(names, Layout('{path}')).pairs.keys() == {n.rsplit('.', 1)[0] for n in names}
    assert find(names, Layout('[a|x]/{path}')).pairs.keys() == {'b/c', 'rain-1', 'norain-1'}
    assert find(names, Layout('S/blur*/{f}')).above == {'root/Test/', 'root/test/'}


@pytest.mark.parametrize(('arguments', 'words'), [
    (['GoPr'], "did you mean 'GoPro'"),
    (['GoPro', '--crop-size', '8'], '--crop-size is for folder'),
    (['folder', '--step', '8'], 'need --crop-size'), (['folder', '--crop-size', '0'], 'at least 1'),
    (['folder', '--crop-size', '9', '--thresh-size', '-1'], '--thresh-size must be at least 0'),
    (['folder', '-i', 'in', '--part', 'a', '-o', 'x.lmdb'], '--part names LMDBs in a folder'),
    (['GoPro', '--threads', '0'], '--threads must be at least 1'),
    (['folder', '-i', 'nowhere'], 'nowhere: no such folder'),
    (['folder', '-i', 'in', '-o', 'x.lmdb', '--lq', '{n}', '--gt', '1'], 'name a folder'),
    (['folder', '-i', 'in', '--gt', 'a/{n}', '--lq', 'b/{n}'], 'none found'),
    (['folder', '-i', 'in', '--gt', '{n}', '--lq', '*{n}_{m}'], 'none found: 2 match {n}'),
    (['folder', '-i', 'in', '--gt', '{n}', '--lq', '{n}'], 'names the clean images'),
    (['folder', '-i', 'in', '-o', 'in/1.png'], '1.png: is a file; name a folder'),
    (['-i', 'in'], 'SET is missing'), (['GoPro', '-o', 'out'], '-i is missing'),
    (['folder', '-i', 'in', '--crop-size', '8', '--payload', 'source'], 'whole files'),
])  # fmt: skip
def test_bad_arguments_are_explained(arguments, words, tmp_path, monkeypatch, prepare):
    monkeypatch.chdir(tmp_path)
    write_named(tmp_path / 'in', '1.png', 'b_2.png')
    assert words.lower() in prepare(*arguments, status=2).lower()


def test_two_files_for_one_place_are_named(tmp_path, prepare):
    write_named(tmp_path / 'in', 'gt/1.png', 'gt/1.tif', 'gt/2.png', 'gt/2.tif', 'lq/1.png')
    command = ['folder', '-i', tmp_path / 'in', '-o', tmp_path / 'out']
    assert 'could belong to gt/1.png or gt/1.tif' in prepare(*command, *PAIRS, status=2)
    said = prepare(*command, *PAIRS[:2], status=2)
    assert 'gt/1.png and gt/1.tif would have one key, as keys of' in said
