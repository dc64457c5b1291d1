"""Pictures: everything that was asked for is on the page, and it is what it says."""

import numpy as np
import pytest
from helpers import image_of
from matplotlib.text import Text
from PIL import Image

from unfoldldm_basicsr.pictures import drawing
from unfoldldm_basicsr.pictures.confusion import confusion_picture, write_confusion_csv
from unfoldldm_basicsr.pictures.stages import difference, trace_picture
from unfoldldm_basicsr.restoring.restorer import StageImages, Trace

NAMES = ['noise', 'rain', 'haze']
PHOTO = image_of((40, 60, 3))


def shown(figure) -> list[np.ndarray]:
    """Photos and maps of a page in the order of its cells."""
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def words(figure) -> str:
    return ' | '.join(text.get_text() for text in figure.findobj(Text) if text.get_text().strip())


def pixels(figure, path) -> np.ndarray:
    drawing.save_picture(path, figure)
    return np.asarray(Image.open(path))


def test_a_grid_shows_every_photo_and_all_texts():
    rows = [[image_of((h, 40, 3), seed=h + s) for s in (1, 2)] for h in (30, 20)]
    titles, captions = ['a title', 'b title'], [['1.1', '1.2'], ['2.1', '2.2']]
    page = drawing.comparison_grid(rows, titles, captions, footer='a footer')
    for cell, image in zip(shown(page), [*rows[0], *rows[1]], strict=True):
        assert np.array_equal(cell, image)
    for text in (*titles, *captions[0], *captions[1], 'a footer'):
        assert text in words(page)


def test_grids_take_every_kind_of_image_any_proportion_and_names_that_are_no_formulas(tmp_path):
    kinds = [PHOTO[..., 0], PHOTO / 255.0, PHOTO.astype(np.uint16) * 257, PHOTO]
    rows = [kinds, [PHOTO[:1, :1]] * 4, [image_of((90, 3, 3))] * 4]
    titles, footer = ['a$b$c', *'bcd'], 'caf\udce9 \u96ea \\frac'
    page = drawing.comparison_grid(rows, titles, [[''] * 4] * 3, footer=footer)
    cells = shown(page)
    assert np.array_equal(cells[1], PHOTO)
    assert np.array_equal(cells[2], PHOTO)
    assert np.array_equal(cells[0][..., 2], PHOTO[..., 0])
    assert pixels(page, tmp_path / 'x.png').shape[1] == 1200


def traced(count=2, height=40, width=60):
    rng = np.random.default_rng(0)

    def image():
        return rng.random((height, width, 3)).astype(np.float32)

    stages = [StageImages(image(), image(), image(), rng.normal(size=16), image())] * count
    return Trace(image(), tuple(stages), stages[-1].x)


def test_a_trace_shows_what_every_stage_made_of_the_marked_region():
    trace = traced(2)
    box = drawing.detail_box(trace.output, 14)
    page = trace_picture(trace, note='a note')
    cells, stage = shown(page), trace.stages[0]
    assert np.array_equal(cells[0], drawing.to_rgb8(trace.lq))
    assert np.array_equal(cells[1], drawing.to_rgb8(trace.output))
    assert len(cells) == 2 + 2 * 5
    for number, image in ((2, stage.x_hat), (3, stage.x_tilde), (6, stage.x)):
        assert np.array_equal(cells[number], drawing.to_rgb8(drawing.crop(image, box)))
    assert np.array_equal(cells[4], difference(stage.x_hat, stage.x_tilde, box))
    assert np.array_equal(cells[5], difference(stage.x, stage.x_null, box))
    bars = [patch.get_height() for patch in page.axes[2 + 3].patches]
    assert bars == pytest.approx(stage.prior.tolist())
    apart = 255 * np.abs(stage.x_hat - stage.x_tilde).mean()
    assert all(text in words(page) for text in ('a note', f'apart by {apart:.2f}', 'stage 2'))


def test_maps_are_amplified_as_their_headings_say():
    trace, stage = traced(1), traced(1).stages[0]
    near = stage._replace(x_tilde=stage.x_hat + 0.05, x_null=stage.x + 0.2)
    page = trace_picture(trace._replace(stages=(near,)))
    assert 'their difference x 16' in words(page)
    assert 'effect of the prior x 4' in words(page)
    scales = [axes.images[0].get_clim() for axes in (page.axes[4], page.axes[6])]
    assert scales == [(0, 1 / 16), (0, 1 / 4)]


@pytest.mark.parametrize('size', [(1, 1), (3, 200)])
def test_traces_of_any_proportion_and_without_a_prior_are_drawn(size, tmp_path):
    trace = traced(1, *size)
    bare = trace.stages[0]._replace(prior=np.zeros(0), x_null=None)
    page = trace_picture(trace._replace(stages=(bare,)))
    assert 'no prior' in words(page)
    assert pixels(page, tmp_path / 'x.png').shape[0] > 300


def test_cells_have_count_and_share_of_the_row():
    counts = np.array([[10, 0, 0], [0, 3, 1], [0, 0, 0]])
    page = confusion_picture(counts, NAMES, '13 of 14 right', 'held out')
    assert shown(page)[0].tolist() == [[1, 0, 0], [0, 0.75, 0.25], [0, 0, 0]]
    for text in ('10\n100 %', '3\n75 %', '1\n25 %', *NAMES, 'true', '13 of 14 right', 'held out'):
        assert text in words(page)


def test_a_class_without_items_has_no_accuracy(tmp_path):
    write_confusion_csv(np.array([[1, 1], [0, 0]]), ['a', 'b'], tmp_path / 'new' / 'c.csv')
    lines = (tmp_path / 'new' / 'c.csv').read_text(encoding='utf-8').splitlines()
    assert lines == ['true class,a,b,items,accuracy', 'a,1,1,2,0.5000', 'b,0,0,0,']


def test_pictures_are_saved_exactly_or_small(tmp_path):
    page = image_of((60, 80, 3))
    drawing.save_picture(tmp_path / 'new' / 'a.png', page)
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'new' / 'a.png')), page)
    drawing.save_picture(tmp_path / 'a.jpg', page)
    assert Image.open(tmp_path / 'a.jpg').size == (80, 60)
    with pytest.raises(ValueError, match=r'\.png or \.jpg'):
        drawing.save_picture(tmp_path / 'a.gif', page)
