"""Every shipped option file passes the check, which builds its network and losses."""

import re
from itertools import product

import pytest
from helpers import OPTION_FILES, ROOT, load_options

from unfoldldm_basicsr.options.preflight import examine
from unfoldldm_basicsr.options.run import is_training

EACH = pytest.mark.parametrize(
    'file', OPTION_FILES, ids=lambda f: str(f.relative_to(ROOT / 'options'))
)


@pytest.mark.usefixtures('networks_once')
@EACH
def test_option_file_passes_the_check(file):
    options = load_options(file)
    report = examine(options, str(file), is_training(options), here=False)
    assert report.problems == []
    assert report.run.networks['network_g'] is not None


@EACH
def test_first_lines_give_purpose_and_a_command_for_this_very_file(file):
    first = file.read_text(encoding='utf-8').splitlines()[:3]
    assert first[0].startswith('# ')
    name = str(file.relative_to(ROOT))
    command = next(line for line in first if '-m unfoldldm_basicsr' in line)
    assert name in command
    assert ('unfoldldm_basicsr.test' in command) == ('train' not in load_options(file))


def test_readme_lists_every_option_file_and_no_other():
    text = (ROOT / 'options' / 'README.md').read_text(encoding='utf-8')
    listed = set()
    for entry in re.findall(r'^\| `(\S+\.yml)`', text, re.M):
        parts = [part.strip('{}').split(',') for part in re.split(r'(\{.*?\})', entry)]
        listed |= {''.join(choice) for choice in product(*parts)}
    assert listed == {file.relative_to(ROOT / 'options').as_posix() for file in OPTION_FILES}
