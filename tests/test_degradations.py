"""The degradations follow their published formulas; chains are seeded; their preview."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from helpers import write_options, write_photos
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional as F

from unfoldldm_basicsr import cli
from unfoldldm_basicsr.commands import degrade_command
from unfoldldm_basicsr.common.declaration import OptionError
from unfoldldm_basicsr.data.degradations import DEGRADATIONS, DegradationChain, psf


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    coarse = generator(seed).random((7, 9, 3), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)


def chain_of(*steps: dict, output: str = 'clip') -> DegradationChain:
    return DegradationChain(degradations=list(steps), lq_output=output)


def flat(value: float, side: int = 200) -> np.ndarray:
    return np.full((side, side, 3), value, np.float32)


def degraded(image: np.ndarray, name: str, seed: int = 0, **parameters: float) -> np.ndarray:
    return DEGRADATIONS[name].apply(image, generator(seed), **parameters)


def moments(kernel: np.ndarray) -> np.ndarray:
    """Covariance (x, y up) of a PSF that is centred and sums to 1."""
    radius = kernel.shape[0] // 2
    y, x = np.mgrid[radius : -radius - 1 : -1, -radius : radius + 1]
    points = np.stack([x.ravel(), y.ravel()])
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(points @ kernel.ravel(), 0, atol=1e-5)
    return (points * kernel.ravel()) @ points.T


@pytest.mark.parametrize(('prob', 'least', 'most'), [(0.0, 0, 0), (0.3, 4, 26), (1.0, 40, 40)])
def test_noise_of_grey_photos_is_the_same_in_all_channels(prob, least, most):
    noise = {'type': 'gaussian_noise', 'sigma': 25, 'gray_prob': prob}
    images = [chain_of(noise)(flat(0.5), generator(seed)) for seed in range(40)]
    grey = [image for image in images if np.ptp(image, axis=2).max() == 0]
    assert least <= len(grey) <= most
    assert all(image.std() * 255 == pytest.approx(25, rel=0.02) for image in grey)


def test_noise_stays_the_same_random_numbers_where_none_is_that_of_grey_photos():
    assert DEGRADATIONS['gaussian_noise'](sigma=25).sample(generator()) == {'sigma': 25}
    expected = flat(0.5) + generator().standard_normal((200, 200, 3), np.float32) * (25 / 255)
    noisy = chain_of({'type': 'gaussian_noise', 'sigma': 25})(flat(0.5), generator())
    np.testing.assert_allclose(noisy, np.clip(expected, 0, 1), atol=1e-6)


@pytest.mark.parametrize('level', [0.1, 0.9])
def test_poisson_noise_has_variance_intensity_over_peak(level):
    noisy = degraded(flat(level), 'poisson_noise', peak=50)
    assert noisy.mean() == pytest.approx(level, rel=0.01)
    assert noisy.var() == pytest.approx(level / 50, rel=0.03)
    assert np.allclose(noisy * 50, np.round(noisy * 50), atol=1e-3)  # whole photons
    assert not degraded(flat(-level), 'poisson_noise', peak=50).any()  # of an unclipped step


@pytest.mark.parametrize('sigma', [0.0, 0.1, 0.4, 1.3, 4.0])
def test_isotropic_gaussian_blur_equals_scipy(sigma):
    image = picture()
    expected = scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), mode='mirror', truncate=4)
    for aspect, tolerance in ((1.0, 2e-6), (1 - 1e-9, 1e-5)):
        blurred = degraded(image, 'gaussian_blur', sigma=sigma, aspect=aspect, angle=30.0)
        np.testing.assert_allclose(blurred, expected, atol=tolerance)


def test_anisotropic_gaussian_psf_has_the_stated_covariance():
    covariance = moments(psf.gaussian_psf(3.0, aspect=0.5, angle=30.0))
    rotation = np.array([[np.sqrt(3) / 2, -0.5], [0.5, np.sqrt(3) / 2]])
    expected = rotation @ np.diag([9.0, 2.25]) @ rotation.T
    np.testing.assert_allclose(covariance, expected, rtol=0.01)


@pytest.mark.parametrize(('angle', 'bend'), [(35, 0), (90, 0), (35, 60), (35, -150), (-70, 180)])
def test_motion_psf_is_the_centred_path_of_stated_length_that_turns_evenly(angle, bend):
    headings = np.radians(angle + bend * np.linspace(-0.5, 0.5, 4001))
    path = np.cumsum([np.cos(headings), np.sin(headings)], axis=1) * 15 / 4001
    x, y = path = path - path.mean(axis=1, keepdims=True)
    kernel = psf.motion_psf(15.0, angle, bend)
    np.testing.assert_allclose(moments(kernel), path @ path.T / 4001, atol=0.3)  # splatting
    middle = kernel.shape[0] // 2
    assert scipy.ndimage.map_coordinates(kernel, [middle - y, middle + x], order=1).min() > 0.01


def test_convolve_gives_the_psf_itself_for_a_point_of_light():
    kernel = psf.motion_psf(9.0, 30.0, 120.0)
    assert (
        np.abs(kernel - kernel[::-1, ::-1]).max() > 0.01
    )  # not symmetric: a correlation would flip it
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    response = psf.convolve(point, kernel)[..., 0]
    radius = kernel.shape[0] // 2
    window = response[20 - radius : 21 + radius, 20 - radius : 21 + radius]
    np.testing.assert_allclose(window, kernel, atol=1e-6)


def test_low_light_without_noise_is_the_tone_curve():
    image = picture()
    options = {'gamma': 2.2, 'gain': 0.6, 'read_noise': 0.0}
    for shot_noise in (0.0, 1e-300):  # of more photons than can be counted
        dark = degraded(image, 'low_light', shot_noise=shot_noise, **options)
        np.testing.assert_allclose(dark, 0.6 * image**2.2, atol=1e-6)
        assert not degraded(-image, 'low_light', shot_noise=shot_noise, **options).any()


def test_low_light_noise_is_poisson_gaussian():
    shot, read = 0.004, 3.0
    noise = {'shot_noise': shot, 'read_noise': read}
    dark = degraded(flat(0.5), 'low_light', gamma=2.0, gain=0.8, **noise)
    level = 0.8 * 0.5**2
    assert dark.mean() == pytest.approx(level, rel=0.01)
    assert dark.var() == pytest.approx(shot * level + (read / 255) ** 2, rel=0.03)


def test_jpeg_is_8_bit_rgb_and_close_to_the_photo_at_a_high_quality():
    image = picture(64, 64)
    image[..., 2] *= 0.2  # swapped channels would show
    decoded = degraded(image, 'jpeg', quality=95)
    levels = decoded * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert peak_signal_noise_ratio(image, decoded, data_range=1) > 33
    assert (
        degraded(np.full((16, 16, 3), 100.6 / 255, np.float32), 'jpeg', quality=100).mean() * 255
        > 100.9
    )


def test_jpeg_halves_the_resolution_of_chroma_in_both_directions():
    stripes = np.full((32, 32, 3), 0.5, np.float32)
    stripes += np.float32([0, -0.069, 0.354]) * np.float32([[[1]], [[-1]]] * 16)  # of one luma
    for image in (stripes, stripes.swapaxes(0, 1)):
        np.testing.assert_allclose(degraded(image, 'jpeg', quality=100), 0.5, atol=4 / 255)


def test_rain_brightens_only_where_streaks_are_and_stays_in_range():
    image = picture(120, 120)
    parameters = {'density': 0.002, 'length': 15.0, 'angle': 10.0, 'thickness': 1.0}
    rainy = degraded(image, 'rain', intensity=0.7, **parameters)
    change = rainy - image
    assert change.min() > -1e-6
    assert rainy.max() <= 1 + 1e-6
    assert 0.02 < (change.max(axis=2) > 0.05).mean() < 0.5
    none = degraded(image, 'rain', intensity=0.0, **parameters)
    np.testing.assert_allclose(none, image, atol=1e-6)


@pytest.mark.parametrize(('angle', 'sign'), [(40.0, -1), (-40.0, 1)])
def test_rain_falls_along_the_stated_slant(angle, sign):
    parameters = {'density': 0.002, 'length': 25.0, 'thickness': 1.0, 'intensity': 1.0}
    streaks = degraded(flat(0.0, 160), 'rain', angle=angle, **parameters)[..., 0]
    dy, dx = np.gradient(streaks.astype(np.float64))
    # along a streak going down-left (positive angle) x falls while the row grows
    orientation = 0.5 * np.degrees(np.arctan2(2 * (dx * dy).sum(), (dx**2 - dy**2).sum()))
    assert orientation == pytest.approx(-sign * abs(angle), abs=6)


def test_half_of_the_rain_is_near_and_half_is_far_at_half_the_size():
    parameters = {'density': 1e-4, 'length': 60.0, 'angle': 0.0, 'thickness': 4.0}
    rain = degraded(flat(0.0, 1000), 'rain', intensity=1.0, **parameters)[..., 0]
    sizes, peaks = [], []
    for place in scipy.ndimage.find_objects(scipy.ndimage.label(rain > 1e-3)[0]):
        profiles = [rain[place].sum(axis=axis) for axis in (1, 0)]
        sizes.append([np.sqrt(np.cov(range(len(p)), aweights=p, ddof=0)) for p in profiles])
        peaks.append(rain[place].max())
    assert np.quantile(peaks, [0.1, 0.9]) == pytest.approx([0.46, 0.94], abs=0.06)  # of 0.4 to 1
    for length, thickness in ((60, 4), (30, 2)):  # raised cosine along, Gaussian across
        spread = length**2 * (1 / 12 - 1 / (2 * np.pi**2)) + thickness**2 / 4
        near = np.isclose(sizes, [np.sqrt(spread), thickness / 2], rtol=0.1).all(axis=1)
        assert 30 < near.sum() < 60  # of 50 less those that meet others or the border


def test_haze_is_the_atmospheric_scattering_model():
    image = picture()
    rng, depth = generator(5), np.linspace(1, 0, 40)[:, None]  # farther towards the top
    for cells, weight in ((3, 1.0), (6, 0.5)):
        grid = torch.from_numpy(rng.random((1, 1, cells + 1, cells + 1), np.float32))
        depth = depth + weight * F.interpolate(grid, (40, 56), mode='bicubic')[0, 0].numpy()
    depth = (depth - depth.min()) / np.ptp(depth)
    transmission = np.exp(-1.7 * depth.astype(np.float64))[..., None]
    expected = image * transmission + 0.85 * (1 - transmission)
    for beta, values in ((1.7, expected), (0.0, image)):
        hazy = degraded(image, 'haze', 5, beta=beta, airlight=0.85, depth_cells=3)
        np.testing.assert_allclose(hazy, values, atol=1e-5)


@pytest.mark.parametrize('name', DEGRADATIONS)
@pytest.mark.parametrize('size', [(40, 56), (1, 1)])
def test_degradations_are_seeded_and_leave_their_input_alone(name, size):
    image = picture(*size)
    before = image.copy()
    chain = chain_of({'type': name})
    first = chain(image, generator(1))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(first, chain(image, generator(1)))
    assert first.shape == image.shape
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    if size == (40, 56):
        assert np.abs(first - chain(image, generator(2))).max() > 1e-3
        assert np.abs(first - image).max() > 1e-3


@pytest.mark.parametrize('name', DEGRADATIONS)
def test_every_parameter_changes_the_result(name):
    image = picture(64, 64)
    degradation = DEGRADATIONS[name]
    middle = {k: sum(r) // 2 or sum(r) / 2 for k, r in degradation().ranges.items()}
    base = middle | {k: v for k, v in {'aspect': 0.5, 'bend': 40.0}.items() if k in middle}
    for key, parameter in degradation.parameters().items():
        far = base[key] / 2 if base[key] else parameter.maximum / 10
        other = base | {key: 2 if parameter.integer else far}
        first, second = (degraded(image, name, **p) for p in (base, other))
        assert np.abs(first - second).max() > 1e-3, key


@pytest.mark.parametrize('step', [
    {'type': 'gaussian_blur', 'sigma': 2.0, 'aspect': 0.6},
    {'type': 'motion_blur', 'length': 9.0, 'bend': [-90, 90]}, {'type': 'jpeg', 'quality': 90},
])  # fmt: skip
def test_a_pixel_has_no_influence_beyond_the_reach_of_the_chain(step):
    chain = chain_of(step, output='unclipped')
    image = picture(61, 61)
    changed = image.copy()
    changed[31, 31] += 1  # the last of a block of JPEG
    touched = np.abs(chain(image, generator()) - chain(changed, generator())).max(axis=2) > 1e-5
    rows, columns = np.nonzero(touched)
    furthest = max(np.abs(rows - 31).max(), np.abs(columns - 31).max())
    assert chain.reach / 3 < furthest <= chain.reach


def test_chain_applies_steps_in_order_with_parameters_from_their_ranges():
    chain = chain_of(
        {'type': 'gaussian_blur', 'sigma': [1, 2]},
        {'type': 'jpeg', 'quality': [30, 32]},
        {'type': 'gaussian_noise', 'sigma': 25},
    )
    drawn = [chain.sample(generator(seed)) for seed in range(60)]
    assert all([name for name, _ in d] == [s.type for s in chain.steps] for d in drawn)
    sigmas = [d[0][1]['sigma'] for d in drawn]
    assert 1 <= min(sigmas) < 1.1
    assert 1.9 < max(sigmas) <= 2
    assert {d[1][1]['quality'] for d in drawn} == {30, 31, 32}  # ends included
    assert {d[2][1]['sigma'] for d in drawn} == {25}
    assert chain.name == 'gaussian_blur+jpeg+gaussian_noise'
    blurs = {'type': 'gaussian_blur', 'sigma': [1, 2]}, {'type': 'motion_blur', 'length': [3, 9]}
    assert chain_of(*blurs).reach == 14  # of the largest, together


def test_probability_of_a_step_is_respected():
    chain = chain_of({'type': 'jpeg', 'prob': 0.75}, {'type': 'gaussian_noise', 'prob': 0})
    rng = generator()
    counts = [len(chain.sample(rng)) for _ in range(2000)]
    assert np.mean(counts) == pytest.approx(0.75, abs=0.03)


def test_output_modes_clip_quantise_or_leave_the_values():
    steps = [{'type': 'gaussian_noise', 'sigma': 80}]
    results = {
        output: chain_of(*steps, output=output)(picture(), generator())
        for output in ('unclipped', 'clip', 'uint8')
    }
    raw = results['unclipped']
    assert raw.min() < 0
    assert raw.max() > 1
    np.testing.assert_array_equal(results['clip'], np.clip(raw, 0, 1))
    levels = results['uint8'] * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    np.testing.assert_allclose(results['uint8'], results['clip'], atol=0.51 / 255)


@pytest.mark.parametrize('name', DEGRADATIONS)
def test_more_strength_degrades_more(name):
    (step,) = chain_of({'type': name}).steps
    image = picture(64, 64)
    strengths = (0.5, 1.0) if name == 'gaussian_noise' else (0.0, 0.5, 1.0)  # from infinite PSNR
    results = [degraded(image, name, **step.at_strength(strength)) for strength in strengths]
    quality = [peak_signal_noise_ratio(image, result, data_range=1) for result in results]
    assert quality == sorted(quality, reverse=True)


@pytest.mark.parametrize(('steps', 'place', 'words'), [
    ([{'type': 'gausian_noise'}], 'degradations.0.type', "Did you mean 'gaussian_noise'?"),
    ([{'type': 'jpeg'}, {'type': 'jpeg', 'qualty': 3}], 'degradations.1.qualty', "'quality'"),
    ([{'type': 'jpeg', 'quality': 0}], 'degradations.0.quality', 'outside 1..100'),
    ([{'type': 'jpeg', 'quality': 30.5}], 'degradations.0.quality', 'whole number'),
    ([{'type': 'jpeg', 'quality': [90, 20]}], 'degradations.0.quality', 'upside down'),
    ([{'type': 'jpeg', 'quality': [1, 2, 3]}], 'degradations.0.quality', '[low, high]'),
    ([{'type': 'gaussian_noise', 'sigma': '1e-3'}], 'degradations.0.sigma', 'without quotes'),
    ([{'type': 'gaussian_noise', 'sigma': 9, 'levels': [15]}], 'degradations.0.levels',
     'instead of sigma'), (['gaussian_noise'], 'degradations.0', 'mapping with a type'),
    ({'type': 'jpeg'}, 'degradations', 'must be a list'),
])  # fmt: skip
def test_bad_chains_are_refused_with_place_and_remedy(steps, place, words):
    with pytest.raises(OptionError) as error:
        DegradationChain(degradations=steps)
    (problem,) = error.value.problems
    assert problem.path == place
    assert words in problem.message


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


@pytest.mark.parametrize(('options', 'words'), [
    ({'datasets': {'train': {'dataroot_gt': 'x'}}}, 'no degradations'),
    ({'datasets': {'train': {'degradations': [{'type': 'jpg'}]}}},
     r"datasets\.train: .*degradations\.0\.type.*Did you mean 'jpeg'"),
    ({'datasets': 3}, 'no degradations'),
    ({'datasets': {'train': {'sets': 3}}}, r'datasets\.train\.sets must be a list, got 3'),
])  # fmt: skip
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
