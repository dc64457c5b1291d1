"""The contact sheet of ``unfoldldm degrade``."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import write_options, write_photos

from unfoldldm_basicsr import cli
from unfoldldm_basicsr.commands import degrade_command
from unfoldldm_basicsr.data.degradations import DEGRADATIONS, DegradationChain

BLUR_AND_NOISE = [
    {'type': 'gaussian_blur', 'sigma': [0.5, 3]},
    {'type': 'gaussian_noise', 'sigma': 15},
]


def run(*words: object) -> int:
    return cli.main(['degrade', '--debug', *map(str, words)])


@pytest.fixture
def photo(tmp_path) -> Path:
    return write_photos(tmp_path, 1, (60, 80))[0]


def test_cells_show_the_photo_then_growing_strength(photo):
    image = cv2.imread(str(photo))[:, :, ::-1].astype(np.float32) / 255
    blur = DegradationChain(degradations=BLUR_AND_NOISE[:1])
    sheet = degrade_command.contact_sheet(image, {'b': blur})
    cells = [np.asarray(axes.images[0].get_array(), float) for axes in sheet.axes]
    distance = [np.abs(cell - cells[0]).mean() for cell in cells]
    assert distance[0] == 0
    assert distance == sorted(distance)
    assert distance[3] > 3
    chain = DegradationChain(degradations=BLUR_AND_NOISE)
    whole = degrade_command.contact_sheet(image, {chain.name: chain})
    assert len(whole.axes) == 4 * 3, 'each step, and all of them'
    assert whole.axes[0].get_xlabel().startswith('gaussian_blur: sigma'), 'no name of the chain'


def test_all_degradations_are_shown_without_an_option_file(photo, tmp_path, capsys):
    assert run(photo, '-o', tmp_path / 'sheet.jpg') == 0
    assert f'{len(DEGRADATIONS)} degradations' in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / 'sheet.jpg')).shape[0] > len(DEGRADATIONS) * 240


def test_the_sheet_is_the_same_for_the_same_seed(photo, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(degrade_command, 'save_picture', lambda _, sheet: saved.append(sheet))
    noise = {'type': 'Dataset_GaussianDenoising', 'sigma_type': 'constant', 'sigma_range': 25}
    file = write_options(tmp_path / 'o.yml', {'datasets': {'train': noise}})  # Restormer's
    for seed in (1, 1, 2):
        run(photo, '-opt', file, '-o', tmp_path / 'x.png', '--seed', seed)
    a, b, c = (sheet.axes[2].images[0].get_array() for sheet in saved)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_chains_are_found_in_the_sets_of_a_mixture():
    sets = [
        None,
        {'degradation_name': 'rain', 'dataroot_lq': 'x'},
        {'degradation_name': 'both', 'degradations': BLUR_AND_NOISE},
    ]
    val = {'degradations': BLUR_AND_NOISE[1:], 'lq_output': 'uint8'}
    options = {'datasets': {'note': 'mixed', 'train': {'sets': sets}, 'val': val}}
    chains = degrade_command.find_chains(options, 'o.yml')
    names = {name: chain.name for name, chain in chains.items()}
    assert names == {'both': 'gaussian_blur+gaussian_noise'}
    (chain,) = degrade_command.find_chains({'datasets': {'val': val}}, 'o.yml').values()
    assert chain.output == 'uint8'


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'datasets': {'train': {'dataroot_gt': 'x'}}}, 'no degradations'),
        (
            {'datasets': {'train': {'degradations': [{'type': 'jpg'}]}}},
            r"datasets\.train: .*degradations\.0\.type.*Did you mean 'jpeg'",
        ),
        ({'datasets': 3}, 'datasets must be a section'),
        ({'datasets': {'train': {'sets': 3}}}, r'datasets\.train\.sets must be a list, got 3'),
    ],
)
def test_option_files_without_usable_degradations_are_explained(photo, tmp_path, options, words):
    file = write_options(tmp_path / 'o.yml', options)
    with pytest.raises(ValueError, match=rf'o\.yml: .*{words}|o\.yml: {words}'):
        run(photo, '-opt', file, '-o', tmp_path / 'sheet.png')


def test_no_photo_is_overwritten_unasked_and_bad_files_are_named(photo, tmp_path):
    with pytest.raises(ValueError, match='--seed must be at least 0, got -1'):
        run(photo, '-o', tmp_path / 'sheet.png', '--seed', -1)
    with pytest.raises(FileExistsError, match='is the file that is read'):
        run(photo, '-o', photo, '--overwrite')
    other = tmp_path / 'other.jpg'
    other.touch()
    with pytest.raises(FileExistsError, match=r'other\.jpg: exists.* --overwrite'):
        run(photo, '-o', other)
    assert run(photo, '-o', other, '--overwrite') == 0
    assert other.stat().st_size
    with pytest.raises(ValueError, match=r'nowhere\.png: cannot be read'):
        run(tmp_path / 'nowhere.png', '-o', tmp_path / 'sheet.png')
    photo.write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'img_0\.png: cannot be decoded'):
        run(photo, '-o', tmp_path / 'sheet.png')
