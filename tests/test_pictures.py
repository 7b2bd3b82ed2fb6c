"""Pictures in the fonts of this machine."""

import pytest
from matplotlib.figure import Figure

from evergreen import pictures
from evergreen.home import append_jsonl
from evergreen.train.progress import plot_loss


@pytest.fixture
def title_of(monkeypatch, tmp_path):
    """Draws the loss of a run in a folder of this name; (its title, the fonts that it is drawn in)."""
    seen = []
    save = Figure.savefig

    def savefig(figure, *given, **options):
        title = figure.axes[0].title
        seen.append((title.get_text(), title.get_fontfamily()))
        return save(figure, *given, **options)

    def draw(name):
        (tmp_path / name).mkdir()
        for step in (1, 2, 3):
            append_jsonl(tmp_path / name / "trainer_log.jsonl", {"current_steps": step, "loss": 1 / step})
        monkeypatch.setattr(Figure, "savefig", savefig)
        assert plot_loss(tmp_path / name).stat().st_size > 5000
        return seen[-1]

    return draw


def test_the_loss_of_a_chinese_folder_is_titled_in_a_font_that_has_the_characters(title_of):
    if not pictures.can_draw("增量一"):
        pytest.skip("no Chinese font here (apt-get install fonts-noto-cjk)")
    title, families = title_of("增量一")
    assert title == "增量一" and set(families) & set(pictures.FONTS)


def test_a_title_that_no_font_can_draw_is_left_out_instead_of_boxes(title_of, monkeypatch):
    monkeypatch.setattr(pictures, "FONTS", ())
    assert title_of("增量一")[0] == "" and title_of("increment_1")[0] == "increment_1"


def test_style_is_given_back_after_a_picture():
    import matplotlib

    before = matplotlib.rcParams["font.family"]
    with pictures.drawing(hatch_linewidth=0.3):
        assert matplotlib.rcParams["hatch.linewidth"] == 0.3
    assert matplotlib.rcParams["font.family"] == before
