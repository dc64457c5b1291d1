"""Reports and pictures: verdicts, intervals, tables, and what is drawn."""

import re
import shutil
import sys
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, image_of
from matplotlib.text import Text
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from unfoldldm_basicsr.cli import main
from unfoldldm_basicsr.common.cost import network_cost
from unfoldldm_basicsr.comparing import report, single
from unfoldldm_basicsr.comparing.comparison import machines
from unfoldldm_basicsr.comparing.measuring import convolution_backward_flops
from unfoldldm_basicsr.comparing.runs import Run
from unfoldldm_basicsr.comparing.statistics import paired_difference
from unfoldldm_basicsr.comparing.tables import latex, markdown, read_csv, signed, write_csv
from unfoldldm_basicsr.comparing.testing import lpips_works, metrics_of, scores
from unfoldldm_basicsr.comparing.workspace import Workspace
from unfoldldm_basicsr.metrics import perceptual
from unfoldldm_basicsr.pictures import drawing, plots
from unfoldldm_basicsr.pictures.confusion import confusion_picture, write_confusion_csv
from unfoldldm_basicsr.pictures.drawing import save_picture
from unfoldldm_basicsr.pictures.stages import difference, trace_picture
from unfoldldm_basicsr.restoring.restorer import StageImages, Trace


def test_the_interval_is_that_of_a_case_worked_out_by_hand():
    # Means of 10 draws from five 0 and five 1 are binomial; symmetric, so BCa corrects nothing:
    # P(mean <= 0.1) = 11/1024 < 2.5 % < P(mean <= 0.2) = 56/1024.
    gain = paired_difference([0.0] * 5 + [1.0] * 5)
    assert (gain.mean, gain.low, gain.high) == (0.5, pytest.approx(0.2), pytest.approx(0.8))
    assert paired_difference([0.0] * 5 + [1.0] * 5 + [np.inf, np.nan]) == gain
    assert gain.verdict() == 'better'
    assert gain.verdict(higher_is_better=False) == 'worse'
    assert gain._replace(low=-0.1).verdict() == 'no verdict'
    assert gain._replace(low=-0.8, high=-0.2).verdict() == 'worse'
    assert 'fewer than' in gain._replace(images=7).verdict()
    assert paired_difference([0.0] * 9 + [5.0]).high == pytest.approx(
        2.5
    )  # BCa, always the same draws


def test_equal_networks_are_called_better_about_as_often_as_promised():
    rng, verdicts = np.random.default_rng(0), []
    for _ in range(400):
        images = rng.normal(28, 3, 40)  # hard and easy ones
        one, other = (images + rng.normal(0, 0.2, 40) for _ in range(2))
        verdicts.append(paired_difference(one - other, resamples=499).verdict())
    for verdict in ('better', 'worse'):
        assert 4 <= verdicts.count(verdict) <= 20  # 2.5 % of 400, with the bootstrap's small bias


def test_a_backward_convolution_costs_two_forward_ones():
    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    for layer in (
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.Conv2d(8, 12, 3, stride=2, padding=1),
        torch.nn.ConvTranspose2d(8, 4, 2, stride=2),
    ):
        with FlopCounterMode(display=False) as forward:
            y = layer(torch.rand(2, 8, 16, 16, requires_grad=True))
        with FlopCounterMode(display=False, custom_mapping=formulas) as backward:
            y.sum().backward()
        assert backward.get_total_flops() == 2 * forward.get_total_flops(), layer


def test_the_published_operation_counts_follow():
    nafnet = {'type': 'NAFNet', 'middle_blk_num': 12, 'enc_blk_nums': [2, 2, 4, 8],
              'dec_blk_nums': [2, 2, 2, 2]}  # fmt: skip
    counts = ({**nafnet, 'width': 64}, 63.33), ({**nafnet, 'width': 32}, 16)  # ptflops; paper
    for network, published in (*counts, ({'type': 'Restormer'}, 141 + 6.95 + 0.09)):
        assert network_cost(network, 256).macs == pytest.approx(published * 1e9, rel=0.003)


TABLE = pd.DataFrame(
    {
        'side': ['cat', 'a|b_'], 'psnr': [20.125, float('nan')], 'ssim_y': [0.81234, 0.8],
        'mine': [0.01234, 1.0], 'n': [3, 4], 'nothing': [float('nan')] * 2,
    }
)  # fmt: skip


def test_tables_have_the_usual_decimals_and_no_live_characters(tmp_path):
    first, empty, *lines = markdown(TABLE, 'RGB.').splitlines()
    assert (first, empty) == ('RGB.', '')
    cells = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]
    assert cells[0] == ['side', 'psnr', 'ssim_y', 'mine', 'n']
    assert [cell[-1] == ':' for cell in cells[1]] == [False, True, True, True, True]
    assert cells[2] == ['cat', '20.12', '0.8123', '0.0123', '3']
    assert cells[3] == [r'a\|b_', '-', '0.8000', '1.0000', '4']
    assert r'b\_' in latex(TABLE)
    gains = pd.DataFrame({'metric': 'ssim', 'difference': [0.25], 'low': [np.nan], 'high': 0.5})
    assert signed(gains).values.tolist() == [['ssim', '+0.2500', None, '+0.5000']]
    write_csv(TABLE, tmp_path / 'new' / 'x.csv')
    pd.testing.assert_frame_equal(read_csv(tmp_path / 'new' / 'x.csv'), TABLE)


def made_up_sides(folder: Path | None) -> tuple[list[report.Entry], dict[tuple, pd.DataFrame]]:
    """Two sides on ten images, with two seeds; they differ most on image 7, in its lower right."""
    rng, entries, scores = np.random.default_rng(0), [], {}
    truth = rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    for number, name in enumerate(('one', 'other_net')):
        for seed in range(2):
            scores[name, seed] = pd.DataFrame(
                {
                    'set': 'shown', 'image': f'{i:04d}_x', 'input': f'h{i}',
                    'psnr': 30 + i / 10 + number * (1 + 4 * (i == 7)) + seed / 100,
                    'degraded psnr': 20.0,
                }
                for i in range(10)
            )  # fmt: skip
        for i, image in enumerate(truth) if folder else ():
            image = image.copy()
            image[40:60, 40:60] += np.uint8(100 * number)
            for kind in (name, 'degraded', 'truth'):
                save_picture(folder / 'restored' / kind / 'shown' / f'{i:04d}_x.png', image)
        entries.append(report.Entry(name, name, None, [0, 1], [{'name': name}], []))
    return entries, scores


COSTS = pd.DataFrame(
    {'side': ['one', 'other_net'], 'size': 32, 'params_M': 1.0, 'GMACs': [2.0, 3.0],
     'latency_ms': [3.0, 4.0], 'peak_MiB': 4.0}
)  # fmt: skip
METRICS = {'psnr': {'type': 'calculate_psnr'}}


@pytest.fixture
def pages(monkeypatch) -> dict:
    """Pictures of a report by name, drawn but not rendered."""
    drawn = {}
    for place in (plots, report):
        monkeypatch.setattr(place, 'save_picture', lambda at, page: drawn.update({at.stem: page}))
    return drawn


def test_plots_show_phases_in_a_row_quality_over_cost_and_gains_over_the_reference(tmp_path, pages):
    entries, scores = made_up_sides(tmp_path)
    phases = []
    for seconds, metric in ((2.0, 'oracle_psnr'), (3.0, 'psnr')):
        rows = {'iteration': [2, 4], 'degradation': 'all', 'images': 1, metric: [20.0, 21.0]}
        write_csv(pd.DataFrame(rows), tmp_path / metric / 'validation_x.csv')
        run = {'folder': tmp_path / metric, 'iterations': 5, 'seconds': seconds, 'macs': 1}
        phases.append(types.SimpleNamespace(**run))
    entries[0] = replace(entries[0], runs=[phases] * 2)
    report.build(tmp_path, entries, scores, {'title': 'x'}, COSTS, METRICS)
    for key, x in (('iteration', [2, 4, 7, 9]), ('seconds', [4, 8, 16, 22])):
        curve, hollow = pages[f'quality_over_{key}'].axes[0].lines
        assert curve.get_xdata().tolist() == x
        assert hollow.get_xdata().tolist() == x[:2]  # the prior of Phase I is taken from the truth
        assert 'hollow' in pages[f'quality_over_{key}'].axes[0].get_title('left')
    assert 'bars' in pages['quality_against_GMACs'].axes[0].get_title('left')
    bars = pages['quality_against_GMACs'].axes[0].containers
    points = [tuple(bar[0].get_xydata()[0]) for bar in bars]
    assert points == [(2, pytest.approx(30.455)), (3, pytest.approx(31.855))]
    gains = pages['images'].axes[0].lines[-1]
    assert gains.get_ydata() == pytest.approx([1.0] * 7 + [5] + [1] * 2)


def test_a_report_says_what_differs_by_how_much_and_how_often_it_was_asked(tmp_path):
    entries, scores = made_up_sides(tmp_path)
    seeds = [[types.SimpleNamespace(iterations=n, seconds=2.0, macs=1e12)] for n in (10, 30)]
    table = report.cost_table([report.Entry('one', 'one', None, [0, 1], [], seeds)], COSTS)
    assert table[['training_s', 'training_TMACs']].values.tolist() == [[40, 20]]  # of one seed
    protocol = {'title': 'made up', 'test data': 'ten images'}
    report.build(tmp_path, entries, scores, protocol, COSTS, METRICS)
    quality = read_csv(tmp_path / 'quality.csv').set_index('side')
    assert list(quality['psnr']) == pytest.approx([20, 30.455, 31.855])
    assert quality['psnr spread']['one'] == pytest.approx(0.01 / 2**0.5)
    images = report.image_table(scores)
    assert report.difference_table(images, entries, METRICS, 'one')['difference'].item() > 0
    (row,) = read_csv(tmp_path / 'differences.csv').to_dict('records')
    assert (row['difference'], row['verdict']) == (pytest.approx(-1.4), 'worse')
    page = (tmp_path / 'report.md').read_text()
    assert all(text in page for text in ('Comparisons in this report: 1;', 'other_net', '31.86'))
    assert r'other\_net' in (tmp_path / 'quality.tex').read_text()
    shown = latex(signed(read_csv(tmp_path / 'differences.csv')))  # with the metric's decimals
    assert (tmp_path / 'differences.tex').read_text() == shown
    for name in ('quality_against_GMACs', 'quality_against_latency_ms', 'images', 'crops'):
        assert f'{name}.png' in page
        assert (tmp_path / f'{name}.png').stat().st_size > 1000
    assert page == report.render(tmp_path)
    for words in ([], ['--no-crops']):
        copies = tmp_path / f'docs{len(words)}' / 'page' / tmp_path.name
        file = copies.parent.with_suffix('.md')
        assert main(['report', str(tmp_path), *words, '--page', str(file)]) == 0
        text = file.read_text()
        assert f'](page/{tmp_path.name}/images.png)' in text
        assert re.search(rf'\n\| \[{copies.name}]\(#{copies.name}\) \|.* -1.40 .* worse', text)
        assert ('crops.png' in text) == (copies / 'crops.png').exists() == (not words)
        assert (copies / 'quality.csv').read_bytes() == (tmp_path / 'quality.csv').read_bytes()
    for words in (['--page', str(file), '-o', 'x'], ['--no-crops']):
        with pytest.raises(ValueError, match='name one RUN'):
            main(['report', str(tmp_path), *words, '--debug'])


def test_a_report_leaves_out_the_score_of_an_exact_copy_of_the_truth(tmp_path, pages):
    entries, scores = made_up_sides(tmp_path)
    next(iter(scores.values())).loc[0, 'psnr'] = np.inf
    scores = {key: table for key, table in scores.items() if key[1] == 0}
    entries = [replace(entry, seeds=[0]) for entry in entries]
    report.build(tmp_path, entries, scores, {'title': 'x'}, COSTS, METRICS)
    assert 'left out: 1 of ' in (tmp_path / 'report.md').read_text()
    assert np.isfinite(read_csv(tmp_path / 'quality.csv')['psnr']).all()
    assert 'bars' not in pages['quality_against_GMACs'].axes[0].get_title('left')  # one seed


def test_a_run_is_tested_with_the_priors_that_there_are_and_its_model_takes(tmp_path, monkeypatch):
    def tested(options: dict, *_, **__) -> pd.DataFrame:
        worth = {'null': -3, 'oracle': 2}.get(options['val']['prior_source'], 0)
        return pd.DataFrame({'set': 'held', 'image': '0', 'psnr': [20.0 + worth, 22.0 + worth]})

    monkeypatch.setattr(single, 'tested', tested)  # two draws of one image
    val = {'datasets': {'val': {'name': 'held'}}, 'val': {'metrics': METRICS}}
    run = Run(tmp_path, {'name': 'x', **val})
    found = single.prior_table(run, Workspace(tmp_path, tmp_path, 1))
    assert list(found['prior']) == ['generated', 'null', 'oracle']
    assert {*found['images']} == {1}
    assert list(found['psnr']) == [21, 18, 23]
    assert list(found['difference']) == [0, -3, 2]
    for kind, own in (('RestorationModel', False), ('UnfoldLDMPhase2Model', True)):
        assert single.generates_prior({'model_type': kind}) is own


def test_sides_are_told_apart_on_the_same_images_only():
    _, tables = made_up_sides(None)
    scores = report.by_image(report.image_table(tables), 'shown', 'psnr')
    assert scores['one']['0003_x'] == pytest.approx(30.305)  # mean of the seeds
    assert report.most_disagreeing(scores)[0] == '0007_x'
    flat, spot = np.zeros((2, 64, 64, 3), np.uint8)
    spot[40:60, 30:50] = 90
    assert report.disagreement_box([flat, spot, flat], 20) == (40, 30, 20, 20)
    shown = {key: table.filter(regex='^(?!degraded )') for key, table in tables.items()}
    assert report.DEGRADED not in {*report.image_table(shown)['side']}, 'of super-resolution'
    tables['other_net', 1].loc[3, 'input'] = 'h_other'
    with pytest.raises(ValueError, match='other_net and one were not tested on the same degraded'):
        report.image_table(tables)


class LPIPS(torch.nn.Module):
    reachable = False

    def __init__(self, **_):
        super().__init__()
        if not self.reachable:
            raise OSError('no network')

    def forward(self, x, y):
        return (x - y).abs().mean()


def test_lpips_is_reported_where_it_can_be_measured(monkeypatch, log):
    def measured() -> dict:
        lpips_works.cache_clear()
        return metrics_of({'val': {'metrics': {'psnr': {}}}})

    assert measured() == {'psnr': {}}
    package = types.ModuleType('lpips')
    package.LPIPS, package.__spec__ = LPIPS, ModuleSpec('lpips', None)
    monkeypatch.setitem(sys.modules, 'lpips', package)
    assert measured() == {'psnr': {}}
    assert 'no weights for it: no network' in log.text
    monkeypatch.setattr(LPIPS, 'reachable', True)
    monkeypatch.setattr(perceptual, '_lpips', perceptual._lpips.__wrapped__)  # keeps no stand-in
    metric = {'lpips': measured()['lpips']}
    lpips_works.cache_clear()
    black, grey = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 51, np.uint8)
    assert scores(black, grey, metric) == {'lpips': pytest.approx(0.4)}
    entries, tables = made_up_sides(None)
    images = report.image_table(tables).rename(columns={'psnr': 'lpips'})
    (row,) = report.difference_table(images, entries, metric, None).to_dict('records')
    assert row['verdict'] == 'better'  # the first has less


def test_what_a_resumed_training_repeats_counts_once(tmp_path):
    rows = 'iteration,degradation,images,psnr\n4,all,3,20.5\n8,all,3,21\n8,all,3,21.25\n'
    (tmp_path / 'validation_set.csv').write_text(rows)
    assert list(single.validations(tmp_path)['value']) == [20.5, 21.25]
    line = '2026 INFO: [a][epoch:  0, iter:{:>8}, lr:(1.0e-03,)] [eta: 0:0] l_pix: {} l_t: 0.0e+0\n'
    (tmp_path / 'train_a.log').write_text(line.format('1,025', '5.0e-01'))
    (tmp_path / 'train_b.log').write_text(line.format('1,025', '4.0e-01'))
    expected = [{'figure': 'l_pix', 'iteration': 1025, 'value': 0.4}]
    assert single.log(tmp_path).to_dict('records') == expected


def test_stages_of_a_run_are_means_over_the_images(tmp_path):
    rows = 'iteration,image,stage,psnr_hat,psnr_tilde,psnr\n8,a,1,20,21,22\n8,b,1,22,25,28\n'
    (tmp_path / 'stage_psnr_set.csv').write_text(rows)
    assert single.stages(tmp_path).values.tolist() == [[8, 1, 21, 23, 25, 'set']]


def test_the_results_page_is_rendered_from_the_tables_of_real_runs(tmp_path, monkeypatch):
    shutil.copytree(ROOT / 'docs' / 'results', tmp_path / 'docs' / 'results')
    monkeypatch.chdir(tmp_path)
    report.write_page(Path('docs/results.md'), [])
    assert Path('docs/results.md').read_text() == (ROOT / 'docs' / 'results.md').read_text()


def test_a_report_says_where_its_trainings_ran_if_that_was_elsewhere(tmp_path):
    place = Workspace(tmp_path, tmp_path, threads=1)
    here = machines(place)
    steps = pd.DataFrame({'run': ['a', 'b'], 'machine': [here, 'NVIDIA H200']})
    steps.to_csv(tmp_path / 'steps.csv', index=False)
    assert machines(place) == f'{here}; trained on NVIDIA H200'


NAMES = ['noise', 'rain', 'haze']
PHOTO = image_of((40, 60, 3))


def shown(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


def words(figure) -> str:
    return ' | '.join(text.get_text() for text in figure.findobj(Text) if text.get_text().strip())


def pixels(figure, path) -> np.ndarray:
    drawing.save_picture(path, figure)
    return np.asarray(Image.open(path))


def test_grids_show_images_of_every_kind_and_proportion_and_all_texts_as_they_are(tmp_path):
    kinds = [PHOTO[..., 0], PHOTO / 255.0, PHOTO.astype(np.uint16) * 257, PHOTO]
    rows = [kinds, [PHOTO[:1, :1]] * 4, [image_of((90, 3, 3))] * 4]
    titles, footer = ['a$b$c', *'bcd'], 'caf\udce9 \u96ea \\frac'
    captions = [[f'caption {row} {n}' for n in range(4)] for row in range(3)]
    page = drawing.comparison_grid(rows, titles, captions, footer=footer)
    cells = shown(page)
    assert np.array_equal(cells[1], PHOTO)
    assert np.array_equal(cells[2], PHOTO)
    assert np.array_equal(cells[0][..., 2], PHOTO[..., 0])
    assert [cell.shape[:2] for cell in cells[3:]] == [(40, 60), *[(1, 1)] * 4, *[(90, 3)] * 4]
    named = {r'a\$b\$c', *'bcd', 'caf? \u96ea \\frac', *captions[0], *captions[1], *captions[2]}
    assert {*words(page).split(' | ')} == named
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
