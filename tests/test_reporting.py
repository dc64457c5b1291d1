"""Pictures and tables: the numbers are right, everything asked for is on the page."""

from __future__ import annotations

import csv
import math

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from unfoldldm_basicsr.pictures import (
    comparison_grid,
    detail_boxes,
    markdown_table,
    mean_row,
    measure,
    psnr_captions,
    save_picture,
    trace_picture,
    write_table,
)
from unfoldldm_basicsr.pictures.drawing import (
    ACCENT,
    MARK,
    SECOND,
    Page,
    crop,
    detail_box,
    fit,
    printable,
    to_rgb8,
)
from unfoldldm_basicsr.pictures.trace_picture import CELL
from unfoldldm_basicsr.restoring.traces import StageImages, Trace


def photo(height=40, width=60, seed=0):
    """Noise, so that no two regions are alike."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def has_colour(page, colour):
    return bool((page == np.array(colour, np.uint8)).all(-1).any())


def contains(page, image):
    """Whether ``image`` lies somewhere on the page, pixel for pixel."""
    height, width = image.shape[:2]
    inner = page[: page.shape[0] - height + 1, : page.shape[1] - width + 1]
    # the last row tells apart where many places share a corner
    last = page[height - 1 :, width - 1 :][: inner.shape[0], : inner.shape[1]]
    places = (inner == image[0, 0]).all(-1) & (last == image[-1, -1]).all(-1)
    return any(
        np.array_equal(page[y : y + height, x : x + width], image) for y, x in np.argwhere(places)
    )


@pytest.mark.parametrize('grey', [False, True])
def test_eight_bit_scores_equal_scikit_image(grey):
    pair = [photo(seed=s)[..., 0] if grey else photo(seed=s) for s in (0, 1)]
    score = measure(*pair)
    assert score.domain == '8-bit'
    assert score.psnr == pytest.approx(peak_signal_noise_ratio(pair[1], pair[0]), abs=1e-9)
    # both leave out the rim of half a window
    expected = structural_similarity(
        *pair,
        channel_axis=None if grey else 2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert score.ssim == pytest.approx(expected, abs=1e-6)


def test_the_same_images_score_the_same_in_every_depth():
    pair = [photo(seed=s) for s in (0, 1)]
    shallow = measure(*pair)
    deep = measure(*(image.astype(np.uint16) * 257 for image in pair))
    floats = measure(*(image / 255 for image in pair))
    assert deep[:2] == pytest.approx(shallow[:2], abs=1e-6)
    assert floats[:2] == pytest.approx(shallow[:2], abs=1e-6)


def test_deeper_images_are_compared_without_rounding_to_eight_bit():
    truth = photo()
    deep, near = truth.astype(np.uint16) * 257, truth.astype(np.uint16) * 257 + 1 - 2 * (truth > 9)
    score = measure(near.astype(np.uint16), deep)
    assert score.domain == '16-bit'
    assert score.psnr == pytest.approx(20 * math.log10(65535), abs=1e-6)
    floats = measure(near.astype(np.uint16) / 65535, deep / 65535)
    assert floats.domain == 'float'
    assert floats[:2] == pytest.approx(score[:2], abs=1e-9)


def test_equal_and_tiny_images_are_scored_without_nonsense():
    assert measure(photo(), photo())[:2] == (math.inf, pytest.approx(1))
    small = measure(photo(8, 60), photo(8, 60, 1))
    assert math.isfinite(small.psnr)
    assert math.isnan(small.ssim)


def test_images_that_cannot_be_compared_are_refused():
    for other in (photo(41), photo() / 255.0, photo()[..., :2]):
        with pytest.raises(ValueError, match='Cannot compare'):
            measure(photo(), other)
    with pytest.raises(ValueError, match='int64'):
        measure(photo().astype(np.int64), photo().astype(np.int64))


def test_captions_score_every_image_but_the_truth():
    truth = photo()
    captions = psnr_captions([photo(seed=1), truth], truth)
    assert captions == [f'{measure(photo(seed=1), truth).psnr:.2f} dB', 'ground truth']


def test_every_photo_of_a_grid_is_on_the_page_unscaled_when_it_fits():
    rows = [[photo(30, 40, seed=s) for s in (1, 2, 3)], [photo(20, 40, seed=s) for s in (4, 5, 6)]]
    page = comparison_grid(rows, ['a', 'b', 'c'], cell_width=40)
    assert page.dtype == np.uint8
    assert all(contains(page, image) for row in rows for image in row)


def test_crops_captions_titles_and_footer_each_change_the_page():
    rows = [[photo(seed=1), photo(seed=2)]]
    plain = comparison_grid(rows, ['a', 'b'])
    assert not np.array_equal(comparison_grid(rows, ['a', 'c']), plain)
    captions = comparison_grid(rows, ['a', 'b'], [['1', '2']])
    assert captions.shape[0] > plain.shape[0]
    crops = comparison_grid(rows, ['a', 'b'], crops=detail_boxes(rows))
    assert crops.shape[0] > plain.shape[0] + 100
    assert has_colour(crops, MARK)
    assert not has_colour(plain, MARK)
    assert comparison_grid(rows, ['a', 'b'], footer='note').shape[0] > plain.shape[0]
    assert has_colour(comparison_grid(rows, ['a', 'b'], highlight=[1]), ACCENT)
    assert not has_colour(plain, ACCENT)


@pytest.mark.parametrize(
    ('rows', 'titles', 'options', 'message'),
    [
        ([], ['a'], {}, 'at least one row'),
        ([[photo()]], ['a', 'b'], {}, '1 images for 2 titles'),
        ([[photo(), photo(41)]], ['a', 'b'], {}, 'different sizes'),
        ([[photo()]], ['a'], {'captions': [['1', '2']]}, 'captions'),
        ([[photo()]], ['a'], {'crops': []}, '0 crops for 1 rows'),
    ],
)
def test_grids_that_do_not_add_up_are_refused(rows, titles, options, message):
    with pytest.raises(ValueError, match=message):
        comparison_grid(rows, titles, **options)


def test_grids_take_every_kind_of_image_and_any_proportion():
    kinds = [photo()[..., 0], photo() / 255.0, photo().astype(np.uint16) * 257, photo()]
    page = comparison_grid([kinds, [photo(1, 1)] * 4, [photo(90, 3)] * 4], list('abcd'))
    assert page.ndim == 3
    same = [to_rgb8(kind) for kind in kinds]
    assert np.array_equal(same[1], same[3])
    assert np.array_equal(same[2], same[3])
    assert np.array_equal(same[0][..., 2], photo()[..., 0])
    with pytest.raises(ValueError, match='Not an image'):
        to_rgb8(np.zeros((2, 3, 4, 5)))


def test_the_magnified_region_is_where_the_structure_is():
    image = np.full((100, 140, 3), 128, np.uint8)
    image[30:50, 90:110] = photo(20, 20)
    top, left, height, width = detail_box(image, 30)
    assert (height, width) == (30, 30)
    assert top <= 30
    assert top + 30 >= 50
    assert left <= 90
    assert left + 30 >= 110
    assert detail_box(photo(5, 9), 30) == (0, detail_box(photo(5, 9), 30)[1], 5, 5)


def test_enlarged_photos_keep_their_pixels_and_proportions():
    image = photo(4, 6)
    assert np.array_equal(fit(image, 60, 400), np.kron(image, np.ones((10, 10, 1), np.uint8)))
    assert fit(photo(100, 50), 20, 20).shape == (20, 10, 3)


def test_text_without_glyphs_is_replaced():
    assert printable('Größe 3×4 \u2192 x\u0302') == 'Gro?e 3x4 ? x'


def traced(count=2, height=40, width=60):
    rng = np.random.default_rng(0)

    def image():
        return rng.random((height, width, 3)).astype(np.float32)

    stages = [StageImages(image(), image(), image(), rng.normal(size=16), image())] * count
    return Trace(image(), tuple(stages), stages[-1].x)


def test_a_trace_has_one_line_per_stage_and_shows_the_prior():
    pages = [trace_picture(traced(count)) for count in (1, 2, 4)]
    heights = [page.shape[0] for page in pages]
    assert heights[2] - heights[1] == 2 * (heights[1] - heights[0])
    assert has_colour(pages[0], ACCENT)
    assert has_colour(pages[0], SECOND)
    assert has_colour(pages[0], MARK)


def test_a_trace_shows_the_estimates_and_the_output_of_the_marked_region():
    trace, box = traced(1), (4, 7, 20, 20)
    page = trace_picture(trace, box=box)
    stage = trace.stages[0]
    for image in (stage.x_hat, stage.x_tilde, stage.x):
        assert contains(page, fit(crop(to_rgb8(image), box), CELL, CELL))


def test_the_map_of_the_priors_effect_is_black_where_it_has_none():
    trace, box = traced(1), (4, 7, 20, 20)
    stage, null = trace.stages[0], trace.stages[0].x.copy()
    null[:, 17:] += 0.1  # right half of the box
    page = trace_picture(trace._replace(stages=(stage._replace(x_null=null),)), box=box)
    black = cv2.applyColorMap(np.zeros((1, 1), np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    assert contains(page, np.tile(black, (CELL, CELL // 2, 1)))
    assert not contains(page, np.tile(black, (CELL, CELL, 1)))
    page = trace_picture(trace._replace(stages=(stage._replace(x_null=stage.x),)), box=box)
    assert contains(page, np.tile(black, (CELL, CELL, 1)))


def test_a_trace_follows_every_part_of_its_data():
    trace = traced(1)
    plain, stage = trace_picture(trace), trace.stages[0]
    for field in ('x_hat', 'x_tilde', 'x', 'x_null', 'prior'):
        value = getattr(stage, field)
        changed = trace._replace(stages=(stage._replace(**{field: value * 0.5}),))
        assert not np.array_equal(trace_picture(changed), plain), field
    for field in ('lq', 'output'):
        changed = trace._replace(**{field: getattr(trace, field) * 0.5})
        assert not np.array_equal(trace_picture(changed), plain), field
    scored = trace_picture(trace, truth=trace.lq)
    assert not np.array_equal(scored, plain)
    assert not np.array_equal(trace_picture(trace, title='other'), plain)
    assert trace_picture(trace, note='x').shape[0] > plain.shape[0]


@pytest.mark.parametrize('size', [(1, 1), (3, 200), (200, 3)])
def test_traces_of_any_proportion_and_without_a_prior_are_drawn(size):
    trace = traced(1, *size)
    bare = trace.stages[0]._replace(prior=np.zeros(0), x_null=None)
    page = trace_picture(trace._replace(stages=(bare,)))
    assert page.shape[0] > 300
    assert trace_picture(trace).shape == page.shape


def test_symbols_are_told_apart_by_their_marks():
    marks = []
    for mark in ('', 'hat', 'tilde'):
        page = Page(80, 60)
        page.symbol(20, 45, 'x', 'k', mark)
        marks.append(page.array())
    assert not np.array_equal(marks[0], marks[1])
    assert not np.array_equal(marks[1], marks[2])


def test_pictures_are_saved_exactly_or_small(tmp_path):
    page = photo(60, 80)
    save_picture(tmp_path / 'new' / 'a.png', page)
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'new' / 'a.png')), page)
    save_picture(tmp_path / 'a.jpg', page)
    assert Image.open(tmp_path / 'a.jpg').size == (80, 60)
    with pytest.raises(ValueError, match=r'\.png or \.jpg'):
        save_picture(tmp_path / 'a.gif', page)


def test_a_picture_that_cannot_be_written_leaves_the_old_one_and_no_remains(tmp_path, monkeypatch):
    save_picture(tmp_path / 'a.png', photo(8, 8))

    def fail(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', fail)
    with pytest.raises(OSError, match='No space'):
        save_picture(tmp_path / 'a.png', photo(16, 16))
    assert Image.open(tmp_path / 'a.png').size == (8, 8)
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


ROWS = [
    {'photo': 'cat', 'noisy PSNR': 20.125, 'PSNR (dB)': 28.5, 'SSIM': 0.81234, 'n': 3},
    {'photo': 'a|b', 'noisy PSNR': 19.0, 'PSNR (dB)': float('nan'), 'SSIM': 0.8, 'n': 4},
]


def test_a_markdown_table_has_protocol_alignment_and_usual_decimals():
    text = markdown_table(ROWS, 'Protocol: RGB.', best={'psnr': ['noisy PSNR', 'PSNR (dB)']})
    lines = text.splitlines()
    assert lines[:2] == ['Protocol: RGB.', '']
    assert lines[2] == '| photo | noisy PSNR | PSNR (dB) | SSIM | n |'
    assert lines[3] == '| --- | ---: | ---: | ---: | ---: |'
    assert lines[4] == '| cat | 20.12 | **28.50** | 0.8123 | 3 |'
    assert lines[5] == '| a\\|b | **19.00** | - | 0.8000 | 4 |'


def test_the_mean_is_over_numbers_and_leaves_text_empty():
    row = mean_row(ROWS[:1] * 2 + [{**ROWS[0], 'SSIM': 0.5, 'n': 9}], 'photo', 'average')
    assert row == {
        'photo': 'average',
        'noisy PSNR': 20.125,
        'PSNR (dB)': 28.5,
        'SSIM': pytest.approx(0.70822667, abs=1e-7),
        'n': 5,
    }
    assert list(row) == list(ROWS[0]), 'same order of columns'


def test_csv_keeps_full_precision_and_the_protocol_in_every_row(tmp_path):
    write_table(ROWS, tmp_path / 'x' / 't.md', tmp_path / 't.csv', protocol='sigma 25,\nseed 0')
    with open(tmp_path / 't.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['noisy PSNR']) for row in rows] == [20.125, 19.0]
    assert rows[1]['photo'] == 'a|b'
    assert {row['protocol'] for row in rows} == {'sigma 25, seed 0'}
    assert (tmp_path / 'x' / 't.md').read_text() == markdown_table(ROWS, 'sigma 25,\nseed 0')


def test_tables_without_meaning_are_refused():
    with pytest.raises(ValueError, match='needs a protocol'):
        markdown_table(ROWS, ' ')
    with pytest.raises(ValueError, match='at least one row'):
        markdown_table([], 'p')
    with pytest.raises(ValueError, match='Row 1 has the columns'):
        markdown_table([ROWS[0], {'photo': 'x'}], 'p')
    with pytest.raises(ValueError, match='unknown columns'):
        markdown_table(ROWS, 'p', best={'a': ['PSNR']})
