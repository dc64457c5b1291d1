"""``unfoldldm restore`` and ``export``: names, what is refused, what goes on after a bad file."""

import errno
import io
import os
import re
import sys
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from helpers import write_photos
from PIL import Image
from tiny_network import TinyConvNet, save_trained, save_weights

from unfoldldm_basicsr import cli
from unfoldldm_basicsr.commands import restore_command
from unfoldldm_basicsr.restoring import Restorer, read_picture
from unfoldldm_basicsr.weights import packaged
from unfoldldm_basicsr.weights.checkpoint import CheckpointError
from unfoldldm_basicsr.weights.convert import export_checkpoint


def call(*words) -> int:
    """Restores, and raises what the command line would report."""
    return cli.main(['restore', '--debug', *map(str, words)])


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_weights(tmp_path_factory.mktemp('weights') / 'net_g.pth', TinyConvNet())


def restore(folder, weights, *arguments, source='in', output='out') -> int:
    return call(*('-i', folder / source, '-o', folder / output, '-w', weights, *arguments))


def result(path) -> np.ndarray:
    return read_picture(path).pixels


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def test_names_and_folders_are_kept_and_lossy_formats_become_png(tmp_path, weights, capsys):
    write_photos(tmp_path / 'in', 1)
    write_photos(tmp_path / 'in' / 'deep' / 'er', 1)
    picture = cv2.imread(str(tmp_path / 'in' / 'img_0.png'))
    cv2.imwrite(str(tmp_path / 'in' / 'a.b.JPG'), picture)
    cv2.imwrite(str(tmp_path / 'in' / 'c.tif'), picture)
    (tmp_path / 'in' / 'notes.txt').write_text('no image')
    assert restore(tmp_path, weights) == 0
    assert 'in: 1 file is left out, it is no image (.txt).' in capsys.readouterr().out
    assert files_in(tmp_path / 'out') == ['a.b.png', 'c.tif', 'img_0.png']
    assert restore(tmp_path, weights, '--recursive', '--suffix', '_x') == 0
    assert 'deep/er/img_0_x.png' in files_in(tmp_path / 'out')
    expected = Restorer(weights).restore(result(tmp_path / 'in' / 'a.b.JPG'))
    assert np.array_equal(result(tmp_path / 'out' / 'a.b.png'), expected)


def test_an_input_is_never_overwritten(tmp_path, weights):
    image = write_photos(tmp_path / 'in', 1)[0]
    before = image.read_bytes()
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    with pytest.raises(FileExistsError, match='would overwrite the input'):
        restore(tmp_path, weights, '--overwrite', output='link')
    assert image.read_bytes() == before


def test_a_suffix_makes_the_input_folder_usable_unless_it_names_an_input(tmp_path, weights):
    first, second = write_photos(tmp_path / 'in', 2)
    assert restore(tmp_path, weights, '--suffix', '_r', source=first, output='in') == 0
    assert files_in(tmp_path / 'in') == ['img_0.png', 'img_0_r.png', 'img_1.png']
    second.rename(second.with_name('img_0_r_r.png'))
    with pytest.raises(FileExistsError, match='would overwrite the input'):
        restore(tmp_path, weights, '--suffix', '_r', output='in')


def test_results_are_replaced_only_when_asked(tmp_path, weights):
    write_photos(tmp_path / 'in', 2)
    (tmp_path / 'out').mkdir()
    mine = tmp_path / 'out' / 'img_0.png'
    mine.write_bytes(b'mine')
    with pytest.raises(FileExistsError, match=r'1 of 2 results exist.*--overwrite'):
        restore(tmp_path, weights)
    assert files_in(tmp_path / 'out') == ['img_0.png'], 'refused before anything was written'
    assert restore(tmp_path, weights, '--skip-existing') == 0
    assert mine.read_bytes() == b'mine'
    assert files_in(tmp_path / 'out') == ['img_0.png', 'img_1.png']
    assert restore(tmp_path, weights, '--overwrite') == 0
    assert result(mine).shape == (48, 64, 3)


def test_a_result_of_another_format_is_not_taken_for_that_of_a_later_photo(tmp_path, weights):
    first, second = write_photos(tmp_path / 'in', 2)
    jpg = second.rename(tmp_path / 'in' / 'photo.jpg')
    moved = first.rename(tmp_path / 'later.png')
    assert restore(tmp_path, weights) == 0
    moved.rename(tmp_path / 'in' / 'photo.png')
    for _ in range(2):
        assert restore(tmp_path, weights, '--skip-existing') == 0
        for name, source in (('photo.png', 'photo.png'), ('photo.jpg.png', jpg.name)):
            expected = Restorer(weights).restore(result(tmp_path / 'in' / source))
            assert np.array_equal(result(tmp_path / 'out' / name), expected)


def test_several_images_and_folders_are_restored_together(tmp_path, weights):
    first = write_photos(tmp_path / 'a', 2)
    write_photos(tmp_path / 'b' / 'deep', 2)[0].rename(tmp_path / 'b' / 'deep' / 'img_1.jpg')
    words = ('-i', first[1], tmp_path / 'b', tmp_path / 'b', '--recursive')
    assert restore(tmp_path, weights, *words) == 0
    assert files_in(tmp_path / 'out') == ['deep/img_1.jpg.png', 'deep/img_1.png', 'img_1.png']
    again = write_photos(tmp_path / 'd', 2)[1]
    with pytest.raises(ValueError, match=r'img_1\.png: would be the result of '):
        restore(tmp_path, weights, '-i', first[1], again, output='no')
    assert not (tmp_path / 'no').exists()


def test_the_output_may_name_the_result_of_one_image(tmp_path, weights):
    image, target = write_photos(tmp_path / 'in', 1)[0], tmp_path / 'deep' / 'result.tif'
    assert restore(tmp_path, weights, source=image, output=target) == 0
    assert np.array_equal(result(target), Restorer(weights).restore(result(image)))
    for source, name, message, *words in (
        (image, 'x.jpg', 'results are stored without loss'),
        (image.parent, 'x.png', 'names one image'),
        (image, 'x.png', 'names the result', '--suffix', '_x'),
        (image, 'y', 'must not contain a folder', '--suffix', '/../../x'),
    ):
        with pytest.raises(ValueError, match=message):
            restore(tmp_path, weights, *words, source=source, output=name)
        assert not (tmp_path / name).exists()


def test_metadata_are_kept_unless_refused(tmp_path, weights):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = 'A camera', 6  # maker; a quarter turn
    photo = write_photos(tmp_path / 'in', 1)[0]
    Image.open(photo).save(photo, exif=exif)
    assert restore(tmp_path, weights) == 0
    restored = Image.open(tmp_path / 'out' / photo.name)
    assert restored.size == (48, 64)
    assert (restored.getexif()[0x010F], restored.getexif()[0x0112]) == ('A camera', 1)
    assert restore(tmp_path, weights, '--no-keep-metadata', '--overwrite') == 0
    assert not Image.open(tmp_path / 'out' / photo.name).getexif()


@pytest.mark.parametrize('fault', ['name too long', 'a folder'])
def test_a_result_that_cannot_be_written_is_named_and_the_others_are_restored(
    tmp_path, weights, fault, capsys
):
    write_photos(tmp_path / 'in', 3)
    suffix = ''
    if fault == 'name too long':
        (tmp_path / 'in' / 'img_1.png').rename(tmp_path / 'in' / f'{"long" * 62}.jpg')
        assert restore(tmp_path, weights, output='whole') == 0, 'a name of 252 bytes is none'
        suffix = '_bright'
        (tmp_path / 'out').mkdir()  # a folder that is there tells more than a missing one
    else:
        (tmp_path / 'out' / 'img_1.png').mkdir(parents=True)
    assert restore(tmp_path, weights, '--suffix', suffix) == 1
    assert files_in(tmp_path / 'out') == [f'img_0{suffix}.png', f'img_2{suffix}.png']
    out = capsys.readouterr().out
    assert re.search(rf'Restored 2 of 3 images in .* with {Path(weights).name}: ', out)
    assert re.search(r'failed: .*(long_bright|img_1)\.png: cannot be written: ', out)


def test_an_interrupted_folder_goes_on_where_it_stopped(tmp_path, weights, capsys, monkeypatch):
    """Results lie beside the images."""
    out, restored = tmp_path / 'in', Restorer.restore
    write_photos(out, 2)
    words = (tmp_path, weights, '--suffix', '_r', '--skip-existing')
    with monkeypatch.context() as patch:
        image = read_picture(out / 'img_0.png').pixels
        stopped = Mock(side_effect=[restored(Restorer(weights), image), KeyboardInterrupt])
        patch.setattr(Restorer, 'restore', stopped)
        assert restore(*words, output='in') == 130
    assert 'The images from img_1.png on are not restored' in capsys.readouterr().out
    assert files_in(out) == ['img_0.png', 'img_0_r.png', 'img_1.png']
    for done in (1, 2):
        assert restore(*words, output='in') == 0
        assert f'{done} of 2 results exist already.\n' in capsys.readouterr().out
    assert files_in(out) == ['img_0.png', 'img_0_r.png', 'img_1.png', 'img_1_r.png']


def test_names_that_the_terminal_cannot_show_are_restored_and_named(tmp_path, weights, monkeypatch):
    """A Windows zip leaves names that are no UTF-8; the terminal here knows ASCII only."""
    photos = write_photos(tmp_path / 'in', 2)
    photos[0].rename(os.fsdecode(os.fsencode(tmp_path / 'in') + b'/caf\xe9.png'))
    photos[1].unlink()
    (tmp_path / 'in' / '\u96ea.png').write_bytes(b'no image')
    terminal = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', terminal)
    monkeypatch.chdir(tmp_path)
    assert cli.main(['restore', '-i', 'in', '-o', 'out', '-w', str(weights)]) == 1
    terminal.flush()
    assert b'failed: in/\\u96ea.png: ' in terminal.buffer.getvalue()
    assert os.listdir(os.fsencode(tmp_path / 'out')) == [b'caf\xe9.png']


def test_options_of_tiles_are_refused_without_tiles(tmp_path, weights):
    write_photos(tmp_path / 'in', 1)
    for option in (['--tile-overlap', 8], ['--no-global-statistics']):
        with pytest.raises(ValueError, match='are for --tile'):
            restore(tmp_path, weights, *option)


def test_an_image_that_needs_more_memory_than_is_free_is_found_before_the_run(
    tmp_path, weights, monkeypatch
):
    write_photos(tmp_path / 'in', 2, (64, 96))
    monkeypatch.setattr('unfoldldm_basicsr.restoring.restorer.free_memory', lambda _: 200_000)
    with pytest.raises(ValueError, match=r'img_0\.png: 96x64 pixels need about .* --tile 512'):
        restore(tmp_path, weights)
    assert not (tmp_path / 'out').exists()
    assert restore(tmp_path, weights, '--tile', '24', '--tile-overlap', '8') == 0


def test_without_named_weights_those_of_the_package_restore(tmp_path, weights, monkeypatch):
    photo, folder = write_photos(tmp_path / 'in', 1)[0], tmp_path / 'package'
    folder.mkdir()
    words = ('-i', photo, '-o', tmp_path / 'out', '--overwrite')
    monkeypatch.setattr(packaged, 'FOLDER', folder)
    lines = []
    for name in ('noise', 'dark'):
        export_checkpoint(weights, folder / f'{name}.safetensors')
        (folder / f'{name}.md').write_text(f'# Restores {name} photos\n\nDetails.\n')
        lines.append(f'0  {name}.safetensors\n')
    (folder / 'SHA256SUMS').write_text(''.join(lines))
    assert call(*words) == 0
    expected = Restorer(weights).restore(result(photo))
    assert np.array_equal(result(tmp_path / 'out' / photo.name), expected)
    summaries = {n: packaged.summary(path) for n, path in packaged.packaged_weights().items()}
    assert summaries == {'noise': 'Restores noise photos', 'dark': 'Restores dark photos'}
    with pytest.raises(ValueError, match=r"--pretrained: .*'drak'\. Did you mean 'dark'\?.* noise"):
        call(*words[:-1], '--pretrained', 'drak')  # before the results that exist
    with pytest.raises(CheckpointError, match='is a folder'):
        call(*words, '-w', '')


def test_a_full_disk_ends_the_folder_with_what_was_restored(tmp_path, weights, monkeypatch, capsys):
    paths = write_photos(tmp_path / 'in', 4)
    paths[0].write_bytes(b'no image')
    write = restore_command.write_picture

    def fill_up(path, picture):
        if path.name == 'img_2.png':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, picture)

    monkeypatch.setattr(restore_command, 'write_picture', fill_up)
    with pytest.raises(OSError, match=r'img_2\.png: cannot be written: No space left'):
        restore(tmp_path, weights)
    out = capsys.readouterr().out
    assert 'Restored 1 of 4 images' in out
    assert f'failed: {paths[0]}' in out
    assert files_in(tmp_path / 'out') == ['img_1.png'], 'the images after it are not tried'
    monkeypatch.undo()
    assert restore(tmp_path, weights, '--skip-existing') == 1
    assert files_in(tmp_path / 'out') == ['img_1.png', 'img_2.png', 'img_3.png']


def test_earlier_results_inside_the_input_folder_are_not_restored_again(tmp_path, weights):
    write_photos(tmp_path / 'in', 1)
    for _ in range(2):
        words = ('--recursive', '--overwrite')
        assert restore(tmp_path, weights, *words, output='in/restored') == 0
    assert files_in(tmp_path / 'in') == ['img_0.png', 'restored/img_0.png']


def test_missing_inputs_say_where_images_are(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match='no such file or folder'):
        restore(tmp_path, weights)
    write_photos(tmp_path / 'in' / 'deep', 2)
    with pytest.raises(FileNotFoundError, match='2 lie in folders inside it: pass --recursive'):
        restore(tmp_path, weights)
    (tmp_path / 'out').write_text('a file')
    with pytest.raises(OSError, match='out/deep: cannot write there: Not a directory'):
        restore(tmp_path, weights, '--recursive')


def test_unfoldldm_is_exported_and_restores_with_tiles(tmp_path, capsys):
    path, deploy = tmp_path / 'net_g.pth', tmp_path / 'deploy.pth'
    save_trained(path)
    assert cli.main(['export', '-w', str(path), '-o', str(deploy)]) == 0
    assert 'without prior_encoder' in capsys.readouterr().out
    write_photos(tmp_path / 'in', 1)
    assert restore(tmp_path, deploy, '--tile', 40, '--tile-overlap', 16) == 0
    assert files_in(tmp_path / 'out') == ['img_0.png']
