"""``unfoldldm explain``: its figures are those of the network, and every file is written."""

import re

import cv2
import numpy as np
import pytest
import torch
from helpers import csv_rows, image_of, write_photos
from tiny_network import TinyConvNet, save_trained, save_weights
from tiny_vlunet import CLASSES, EMBEDDINGS, TEXTS, build_vlunet, embedding_of, save_vlunet
from torch.nn import functional as F

from unfoldldm_basicsr.commands import explain_command
from unfoldldm_basicsr.common.files import write_bytes_atomic
from unfoldldm_basicsr.pictures import stages as pictures
from unfoldldm_basicsr.restoring import Restorer, read_picture
from unfoldldm_basicsr.restoring.explanation import (
    NoAttentionError,
    clip_attention,
    explain_vlunet,
    reduce_image,
)

STAGES = ['encoder_level1', 'encoder_level2', 'encoder_level3', 'latent', 'decoder_level3',
          'decoder_level2', 'decoder_level1', 'refinement']  # fmt: skip


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('weights')
    return {
        source: save_vlunet(folder / f'{source}.pth', build_vlunet(), source, embedding_of(source))
        for source in ('clip', 'label')
    }


@pytest.fixture(scope='module')
def restorer(weights):
    return Restorer(weights['clip'])


@pytest.fixture(scope='module')
def explained(restorer):
    image = image_of((42, 53, 3))
    return explain_vlunet(restorer, image), image


def test_probabilities_are_those_of_the_network(explained, restorer):
    explanation, image = explained
    vector = restorer.conditioning(restorer.to_tensor(image))
    assert [stage.name for stage in explanation.stages] == STAGES
    for stage in explanation.stages:
        expected = getattr(restorer.net, stage.name).gradient_descent.linear(vector).softmax(-1)
        np.testing.assert_allclose(stage.weights, expected[0].numpy(), rtol=1e-6)
        np.testing.assert_allclose(stage.weights.sum(), 1, rtol=1e-6)
    assert np.ptp([stage.weights for stage in explanation.stages], axis=0).min() > 0.01


def test_maps_are_recomputed_by_hooks(explained, restorer):
    """|Phi(x) - y| and |old x - new x|, from what goes in and out of the modules."""
    explanation, image = explained
    found, handles = {}, []

    def watch(name, module):
        def keep_phi(_, __, output):
            found[name] = [output]

        def keep_step(_, inputs, output):
            x, y, _ = inputs
            found[name] = [found[name][0] - y, x - output[0]]

        handles.append(module.phi.register_forward_hook(keep_phi))
        handles.append(module.register_forward_hook(keep_step))

    for name in STAGES:
        watch(name, getattr(restorer.net, name).gradient_descent)
    output = restorer.restore_tensor(restorer.to_tensor(image))
    for handle in handles:
        handle.remove()
    assert np.array_equal(explanation.output, output[0].clamp(0, 1).permute(1, 2, 0).numpy())
    for stage, scale in zip(explanation.stages, (1, 2, 4, 8, 4, 2, 1, 1), strict=True):
        rows, columns = -(-42 // scale), -(-53 // scale)
        assert stage.scale == scale
        residual, step = (m.abs().mean(1)[0, :rows, :columns].numpy() for m in found[stage.name])
        np.testing.assert_allclose(stage.residual, residual, rtol=1e-5)
        np.testing.assert_allclose(stage.step, step, rtol=1e-3, atol=1e-6)
        assert stage.channels == found[stage.name][0].shape[1]
        assert stage.residual.min() > 0


def test_an_image_of_one_pixel_is_explained_and_drawn(restorer):
    explanation = explain_vlunet(restorer, image_of((1, 1), np.uint16))
    assert explanation.lq.shape == explanation.output.shape == (1, 1, 3)
    for draw in (pictures.prompt_picture, pictures.step_picture):
        assert draw(explanation).get_figwidth() >= 9


def test_every_figure_shows_in_its_picture(explained):
    explanation, _ = explained
    weights, maps = ([stage.weights for stage in explanation.stages], explanation.stages)
    table = pictures.prompt_picture(explanation, note='a note')
    assert np.array_equal(table.axes[2].images[0].get_array(), weights)
    texts = {text.get_text() for text in table.axes[2].texts}
    assert {f'{100 * v:.1f} %' for v in np.ravel(weights)} <= texts
    steps = pictures.step_picture(explanation)
    for number, stage in enumerate(maps):
        drawn = steps.axes[3 + 2 * number : 5 + 2 * number]
        for axes, values in zip(drawn, (stage.residual, stage.step), strict=True):
            large = pictures.enlarge(values, stage.scale, explanation.lq.shape[:2])
            assert np.array_equal(axes.images[0].get_array(), large)
    attention = explanation.attention
    page = pictures.attention_picture(attention)
    heats = attention.attention, attention.before, attention.after
    for axes, patches in zip(page.axes[1:4], heats, strict=True):
        assert f'{100 * patches.max():.1f} %' in axes.get_xlabel()
        heat = np.asarray(axes.images[1].get_array())
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        side = heat.shape[0] // patches.shape[0]
        assert patches[row // side, column // side] == patches.max()
    bars = [bar.get_width() for bar in page.axes[4].patches]
    assert bars == pytest.approx([*attention.scores_before, *attention.scores_after])


def test_maps_are_shares_of_the_patches_and_scores_those_of_clip_and_of_the_adapters():
    x, embedding = torch.rand(1, 3, 50, 41), embedding_of('clip')
    clip = embedding.clip_model
    found = clip_attention(embedding, x)
    for maps in (found.attention, found.before, found.after):
        assert maps.shape == (4, 4)
        assert maps.min() >= 0
        np.testing.assert_allclose(maps.sum(), 1, rtol=1e-5)
    assert found.view.shape == (32, 32, 3)
    assert found.texts == tuple(TEXTS)
    logits = embedding(x, return_logits=True).logits[0]
    np.testing.assert_allclose(found.scores_after, logits.softmax(0).numpy(), rtol=1e-4)
    assert found.asked == int(logits.argmax())
    with torch.no_grad():
        image = clip.encode_image(embedding.preprocess(x))
        cosines = F.cosine_similarity(image, embedding.encode_raw_texts())
    expected = (cosines * clip.logit_scale.exp()).softmax(0).numpy()
    np.testing.assert_allclose(found.scores_before, expected, rtol=1e-4)


def test_relevance_is_the_gradient_of_the_score_along_the_attention():
    """Against differences: the last block's attention is changed by a little in one place."""
    embedding = embedding_of('clip').double()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    found = clip_attention(embedding, x)
    layer = embedding.clip_model.visual.transformer.resblocks[-1].attn
    changed: list[int] = []

    def attend(module, inputs, _):
        tokens = inputs[0]
        _, weights = module.forward(*3 * [tokens], need_weights=True, average_attn_weights=False)
        for patch in changed:
            weights[0, 0, 0, 1 + patch] += 1e-6
        value = F.linear(tokens, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)[2]
        return module.out_proj(weights[:, 0] @ value), weights  # one head

    handle = layer.register_forward_hook(attend)

    def score() -> torch.Tensor:
        logits = embedding(x, return_logits=True).logits[0]
        return logits[found.asked] - logits.mean()

    start, gradient = score(), []
    for patch in range(16):
        changed[:] = [patch]
        gradient.append((score() - start) / 1e-6)
    handle.remove()
    expected = (torch.stack(gradient) * torch.from_numpy(found.attention.ravel())).clamp(min=0)
    expected = (expected / expected.sum()).numpy()
    np.testing.assert_allclose(found.after.ravel(), expected, atol=1e-4)
    assert np.ptp(expected) > 0.02
    assert not layer._forward_hooks, 'nothing stays behind in the network'


def test_embeddings_without_attention_say_so():
    for source in ('label', 'learned'):
        embedding = embedding_of(source)
        with pytest.raises(NoAttentionError, match=f'{type(embedding).__name__} has no attention'):
            clip_attention(embedding, torch.rand(1, 3, 32, 32))
    convolutions = {'layers': [1, 1, 1, 1], 'width': 8, 'image_size': 32, 'head_width': 16}
    config = {**EMBEDDINGS['clip']['clip_config'], 'vision_cfg': convolutions}
    with pytest.raises(NoAttentionError, match=r'ModifiedResNet.* is not the vision transformer'):
        clip_attention(embedding_of('clip', clip_config=config), torch.rand(1, 3, 32, 32))


def test_maps_are_enlarged_to_the_pixels_that_they_describe():
    maps = np.zeros((6, 7), np.float32)
    maps[5, 6] = 1  # describes rows 40 to 41 and columns 48 to 52 of 42 x 53
    large = pictures.enlarge(maps, 8, (42, 53))
    assert large.shape == (42, 53)
    assert np.unravel_index(large.argmax(), large.shape) >= (40, 48)
    assert large[:32, :40].max() == 0


@pytest.fixture
def unsaved(monkeypatch):
    """Pictures are drawn and named, but not rendered, which takes a second each."""
    monkeypatch.setattr(
        explain_command, 'save_picture', lambda path, _: write_bytes_atomic(path, b'')
    )
    monkeypatch.setattr(pictures, 'attention_picture', lambda *_, **__: None)


@pytest.fixture
def explain(output_of):
    def run(weights, image, folder, *arguments, **settings) -> str:
        return output_of('explain', '-w', weights, image, '-o', folder, *arguments, **settings)

    return run


def test_the_command_writes_pictures_and_the_figures_in_them(weights, tmp_path, explain):
    photo = write_photos(tmp_path, 1)[0]
    printed = explain(weights['clip'], photo, tmp_path / 'out').split()
    names = [f'img_0_{kind}.{suffix}' for kind in ('prompts', 'steps', 'attention')
             for suffix in ('png', 'csv')]  # fmt: skip
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == sorted(names)
    assert sorted(printed) == sorted(str(tmp_path / 'out' / name) for name in names)
    explanation = explain_vlunet(Restorer(weights['clip']), read_picture(photo).pixels)
    table = csv_rows(tmp_path / 'out' / 'img_0_prompts.csv')
    assert list(table[0]) == ['stage', *CLASSES]
    for row, stage in zip(table, explanation.stages, strict=True):
        assert [float(row[name]) for name in CLASSES] == stage.weights.tolist()
    steps = csv_rows(tmp_path / 'out' / 'img_0_steps.csv')
    means = [float(stage.step.mean()) for stage in explanation.stages]
    assert [float(row['mean_step']) for row in steps] == means
    scores = csv_rows(tmp_path / 'out' / 'img_0_attention.csv')
    assert [row['text'] for row in scores] == TEXTS
    for side in ('before', 'after'):
        expected = getattr(explanation.attention, f'scores_{side}')
        assert [float(row[side]) for row in scores] == pytest.approx(expected.tolist())


@pytest.mark.usefixtures('unsaved')
def test_without_clip_the_attention_is_left_out_with_the_reason(weights, tmp_path, explain):
    photo = write_photos(tmp_path, 1)[0]
    said = explain(weights['label'], photo, tmp_path / 'out', '--degradation', 'rain')
    assert 'LabelDegradationEmbedding has no attention' in said
    kinds = {p.name.split('_')[2] for p in (tmp_path / 'out').iterdir()}
    assert kinds == {'prompts.png', 'prompts.csv', 'steps.png', 'steps.csv'}


def test_unfoldldm_is_explained_by_its_trace_and_figures_per_stage(tmp_path, explain):
    save_trained(tmp_path / 'net.pth')
    photo, names = write_photos(tmp_path, 1)[0], {'img_0_trace.png', 'img_0_stages.csv'}
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'img_0_prompts.png').touch()  # of VLU-Net, which nothing here replaces
    explain(tmp_path / 'net.pth', photo, tmp_path / 'out')
    assert {p.name for p in (tmp_path / 'out').iterdir()} == names | {'img_0_prompts.png'}
    trace = Restorer(tmp_path / 'net.pth').trace(read_picture(photo).pixels)
    before = trace.lq
    rows = csv_rows(tmp_path / 'out' / 'img_0_stages.csv')
    for row, stage in zip(rows, trace.stages, strict=True):
        assert float(row['moved']) == pytest.approx(255 * np.abs(stage.x - before).mean())
        apart = 255 * np.abs(stage.x_hat - stage.x_tilde).mean()
        assert float(row['between_estimates']) == pytest.approx(apart)
        effect = 255 * np.abs(stage.x - stage.x_null).mean()
        assert float(row['effect_of_prior']) == pytest.approx(effect)
        before = stage.x


@pytest.mark.usefixtures('unsaved')
def test_the_picture_says_what_was_reduced_and_what_was_told(
    weights, tmp_path, monkeypatch, explain
):
    image = image_of((60, 100, 3))
    assert reduce_image(image, 100) is image
    assert reduce_image(image, 50).shape == (30, 50, 3)
    assert reduce_image(image[:, :1], 30).shape == (30, 1, 3)
    with pytest.raises(ValueError, match='at least 16 pixels'):
        reduce_image(image, 15)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    notes = []
    for name in ('prompt_picture', 'step_picture'):
        monkeypatch.setattr(
            pictures, name, lambda found, *, note: notes.append((note, found.lq.shape))
        )
    explain(weights['clip'], tmp_path / 'a.png', tmp_path / 'out', '--max-size', '50')
    note = 'a.png (50 x 30 pixels, reduced from 100 x 60), VLUNet, clip.pth'
    assert notes.pop() == (note, (30, 50, 3))
    explain(weights['label'], tmp_path / 'a.png', tmp_path / 'told', '--degradation', 1)
    assert notes.pop()[0] == "a.png (100 x 60 pixels), VLUNet, label.pth, told 'rain'"


@pytest.mark.usefixtures('unsaved')
def test_what_cannot_be_explained_or_written_is_refused(weights, tmp_path, monkeypatch, explain):
    clip, photo, out = weights['clip'], write_photos(tmp_path, 1)[0], tmp_path / 'out'
    tiny = save_weights(tmp_path / 'tiny.pth', TinyConvNet())
    assert 'TinyConvNet has no unfolding stages' in explain(tiny, photo, out, status=2)
    with monkeypatch.context() as patch:
        patch.setattr('unfoldldm_basicsr.restoring.restorer.free_memory', lambda _: 1000)
        said = explain(clip, photo, out, status=2)
    assert re.search('64x48 pixels need about .* lower --max-size', said)
    assert not out.exists()
    out.mkdir()
    mine = out / 'img_0_steps.csv'
    mine.write_text('mine')
    assert '--overwrite' in explain(clip, photo, out, status=2)
    assert [p.name for p in out.iterdir()] == [mine.name], 'nothing else was written'
    assert mine.read_text() == 'mine'
    explain(clip, photo, out, '--overwrite')
    assert mine.read_text().startswith('stage,')
    assert 'img_0_steps.csv' in explain(clip, photo, mine, status=2)  # a file, no folder
    assert 'no.png: cannot be read' in explain(clip, tmp_path / 'no.png', out, status=2)
