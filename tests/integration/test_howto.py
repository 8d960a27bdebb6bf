"""Every how-to runs as its reader would run it."""

import shutil

import pytest

from tests import integration_packages
from tests.howto import PAGES, blocks, missing, reader_folder, run_page


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    reader_folder(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_how_to_runs_from_top_to_bottom(page, readers, tmp_path):
    if missing(page):
        integration_packages.missing(f"{page.name} needs {', '.join(missing(page))}")
    assert any(block.language in ("bash", "python") for block in blocks(page)), "nothing in it is run"
    run_page(page, shutil.copytree(readers, tmp_path / "reader"))


def test_a_failing_block_is_named_with_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# T\n\n```yaml title="a.yaml"\nx: 1\n```\n\n```bash\ngrep -q y a.yaml\n```\n')
    with pytest.raises(AssertionError, match=r"page\.md:8: exit 1"):
        run_page(page, tmp_path)
    page.write_text("```python\nx = 1\n```\n\n```python\ny = x + 1\n```\n")
    assert run_page(page, tmp_path)["y"] == 2
