"""The player: what it copies, its HTML, and what a reader sees of it in a browser."""

import base64
import io
import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from urllib.request import urlopen

import av
import nbformat
import numpy as np
import pytest
from ipywidgets import VBox
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from traitlets import TraitError

from mrlib.video import Pixels, find, show
from mrlib.video.cut import cut
from mrlib.video.scene import scene
from mrlib.video.show import Player
from tests.support.browser import browser, errors, jupyterlab
from tests.support.videos import frame_number, make_video, overwrite, real_video, truncate

VIEW = "application/vnd.jupyter.widget-view+json"
ODD = 'a "door" & it\'s\n</script><b>open</b> <!-- \\u003c ${x} `y` {z}'


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 seconds at 10 frames a second; every frame shows its number."""
    return make_video(tmp_path_factory.mktemp("show") / "numbers.mp4", 40.0, size=(128, 72))


@pytest.fixture(scope="module")
def player(video):
    """Two predicted moments that overlap, one apart from them, and the truth."""
    moments = [[5, 8, 0.9], [30, 33, 0.2], [7, 9, 0.5]]
    return Player(video, moments, np.arange(20.0), [[5.5, 8.5]], query=ODD)


def first_frame(copy) -> np.ndarray:
    with av.open(io.BytesIO(base64.b64decode(copy["data"]))) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


# ---- what is copied


def test_moments_that_overlap_share_a_part_and_nothing_else_is_copied(player):
    copies = player.shown["copies"]
    assert [(copy["start"], copy["end"]) for copy in copies] == [(5, 9), (30, 33)]
    assert [moment["copy"] for moment in (*player.shown["moments"], *player.shown["truth"])] == [0, 1, 0, 0]
    for copy in copies:
        assert abs(frame_number(first_frame(copy)) / 10 - copy["start"]) <= 0.1


def test_a_short_video_is_copied_as_a_whole(tmp_path):
    shown = Player(make_video(tmp_path / "v.mp4", 3.0), []).shown
    assert [(copy["start"], copy["end"]) for copy in shown["copies"]] == [(0, shown["duration"])]


@pytest.mark.parametrize("seed", range(20))
def test_parts_last_thirty_seconds_at_most_and_hold_their_moments(seed, video):
    rng = np.random.default_rng(seed)
    starts, lengths = rng.uniform(0, 35, 12), rng.uniform(0.1, 40, 12)
    shown = scene(video, np.stack([starts, starts + lengths], 1))
    parts, places = show.parts(shown)
    assert set(places) == set(range(len(parts)))
    for part in parts:
        assert part.end_s - part.start_s <= show.LONGEST_S + 1e-9
    for (start, end, _), place in zip(shown.moments, places, strict=True):
        assert parts[place].start_s <= start and parts[place].end_s >= min(end, start + show.LONGEST_S) - 1e-9


def test_what_does_not_fit_the_budget_is_left_out_and_said(player, video, monkeypatch):
    sizes = [len(copy["data"]) * 3 // 4 for copy in player.shown["copies"]]
    monkeypatch.setattr(show, "BUDGET", sizes[0] + 10)
    shown = Player(video, [[5, 9], [30, 33]]).shown
    assert len(shown["copies"]) == 1 and [moment["copy"] for moment in shown["moments"]] == [0, None]
    assert shown["note"] == "Left out to keep this page small: the videos of 1 moment." and player.shown["note"] == ""


@pytest.mark.parametrize(("name", "codec"), [("v.webm", "libvpx-vp9"), ("v.mp4", "libx265"), ("v.avi", "mpeg4")])
def test_other_codecs_are_encoded_again_for_browsers(name, codec, tmp_path):
    file = make_video(tmp_path / name, 2.0, size=(128, 72), codec=codec)
    first_frame(Player(file, [[0, 1]]).shown["copies"][0])


@pytest.mark.parametrize("damage", [truncate, overwrite])
def test_what_can_be_read_of_a_damaged_video_is_copied(damage, tmp_path):
    file = make_video(tmp_path / ("v.mkv" if damage is truncate else "v.mp4"), 8.0, size=(128, 72))
    damage(file)
    first_frame(Player(file, [[0, 1]]).shown["copies"][0])


def test_a_second_of_a_real_video_takes_few_kilobytes():
    copies = Player(real_video(), [[6, 14], [20, 26]]).shown["copies"]
    assert len(copies) == 2
    for copy in copies:
        assert 2_000 < len(base64.b64decode(copy["data"])) / (copy["end"] - copy["start"]) < 20_000


def test_what_find_returns_is_shown_as_it_is(video, tmp_path):
    cut(video, 12.0, 16.0, tmp_path / "clip.mp4")
    moments = find(video, clip=tmp_path / "clip.mp4", encoder=Pixels())
    shown = Player(video, moments, query="clip.mp4").shown
    assert [moment["score"] for moment in shown["moments"]] == [moment["score"] for moment in moments]
    assert [shown["moments"][0][end] for end in ("start", "end")] == pytest.approx([12, 16], abs=1)


# ---- HTML and widget


class Scripts(HTMLParser):
    """The text of every script of a page, and all references to other files."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts, self.references, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        self.scripts += [""] * self.inside
        self.references += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.inside = False


def test_the_page_holds_everything_and_odd_text_stays_text(player):
    page = Scripts(player.html())
    data, source = page.scripts
    assert json.loads(data) == player.shown and json.loads(data)["query"] == " ".join(ODD.split())
    assert source.startswith("\n// The player") and page.references == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", player.html())


def test_the_same_player_is_the_same_text(video):
    assert Player(video, [[5, 8]]).html() == Player(video, [[5, 8]]).html() != Player(video, [[5, 9]]).html()


def test_a_file_name_with_quotes_and_newlines_stays_text(tmp_path):
    file = make_video(tmp_path / "a \"b\" <i>'c'\n.mp4", 1.0)
    page = Player(file, []).html()
    assert json.loads(Scripts(page).scripts[0])["name"] == file.name
    assert "<i>" not in page


def test_a_player_without_a_front_end_is_html_beside_a_picture(player, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: displayed.append(data))
    player._ipython_display_()
    picture, page = displayed
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG")
    assert set(page) == {"text/plain", "text/html"} and page["text/plain"] == "Player('numbers.mp4', 3 moments)"


def test_a_player_in_a_front_end_is_a_widget_and_html(video, monkeypatch):
    monkeypatch.setattr(show, "_has_front_end", lambda: True)
    player = Player(video, [[5, 8]])
    bundle = player._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == player.model_id and bundle["text/html"] == player.html()


def test_a_player_fits_into_other_widgets(video):
    player = Player(video, [[5, 8]])
    assert VBox([player]).get_state()["children"] == [f"IPY_MODEL_{player.model_id}"]


@pytest.mark.parametrize("number", [-1, 3, "first", 1.5])
def test_only_a_moment_can_be_selected(number, player):
    with pytest.raises(TraitError, match="selected"):
        player.selected = number
    assert player.selected is None


def test_without_anywidget_the_player_says_so_and_the_picture_is_drawn(video):
    code = f"""
import sys
sys.modules["anywidget"] = None
import matplotlib
matplotlib.use("agg")
from mrlib import video
print(len(video.storyboard({str(video)!r}, [[5, 8]]).axes))
video.Player
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.stdout == "2\n"
    assert 'ImportError: Player needs anywidget: pip install -e ".[video]"' in process.stderr


# ---- in a browser


def executed(video) -> str:
    """An executed notebook with a player, as HTML."""
    code = f"""from mrlib.video import Player
Player({str(video)!r}, [[5, 8, 0.9], [30, 33, 0.2], [7, 9, 0.5]], range(20), [[5.5, 8.5]], {ODD!r})"""
    notebook = new_notebook(
        cells=[new_code_cell(code)], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    NotebookClient(notebook, kernel_name="python3").execute()
    assert "widgets" not in notebook.metadata, "a page with the state of widgets needs a network"
    return HTMLExporter().from_notebook_node(notebook)[0]


class Seen:
    """The player in an open page."""

    def __init__(self, chrome):
        self.chrome = chrome
        self.root = chrome.find_element(By.CLASS_NAME, "mrlib-player")
        self.moments = self.root.find_elements(By.CLASS_NAME, "mrlib-moment")
        self.bars = self.root.find_elements(By.CLASS_NAME, "mrlib-bar")

    @property
    def time(self) -> float:
        return float(self.root.find_element(By.CLASS_NAME, "mrlib-time").get_attribute("data-seconds"))

    @property
    def paused(self) -> bool:
        return self.chrome.execute_script("return arguments[0].querySelector('video').paused", self.root)

    def text(self, name: str) -> str:
        return self.root.find_element(By.CLASS_NAME, f"mrlib-{name}").text

    def wait(self, condition, seconds: float = 15.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited for {seconds} s; time {self.time}, paused {self.paused}"
            time.sleep(0.02)

    def plays_inside(self, start: float, end: float) -> None:
        """The time is inside a moment, and advances there."""
        self.wait(lambda: not self.paused and start <= self.time <= end)
        before = self.time
        self.wait(lambda: self.time > before)
        assert start <= self.time <= end

    def frame(self) -> int:
        """The number that the frame on the screen shows."""
        script = """
        const video = arguments[0].querySelector("video"), canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [128, 72];
        const context = canvas.getContext("2d");
        context.drawImage(video, 0, 0, 128, 72);
        return [...context.getImageData(0, 0, 128, 72).data];
        """
        pixels = self.chrome.execute_script(script, self.root)
        return frame_number(np.array(pixels, np.uint8).reshape(72, 128, 4)[..., :3])


@pytest.fixture(scope="module")
def chrome(video, tmp_path_factory):
    with browser() as chrome:
        file = tmp_path_factory.mktemp("page") / "notebook.html"
        file.write_text(executed(video), encoding="utf-8")
        chrome.get(file.as_uri())
        yield chrome


@pytest.fixture
def seen(chrome):
    """The page as it is when it opens."""
    chrome.refresh()
    seen = Seen(chrome)
    seen.wait(lambda: seen.time == pytest.approx(5, abs=0.01) and seen.paused)
    yield seen
    assert errors(chrome) == []


def test_a_click_plays_a_moment_from_its_start_to_its_end(seen):
    seen.moments[1].click()
    seen.plays_inside(30, 33)
    seen.bars[0].click()
    seen.plays_inside(5, 8)
    assert abs(seen.frame() / 10 - seen.time) < 0.5
    seen.wait(lambda: seen.paused)
    assert seen.time == pytest.approx(8, abs=0.01)
    seen.wait(lambda: seen.frame() in (78, 79))
    assert seen.text("time") == "0:08.0 / 0:40.0"


def test_the_first_frame_of_a_moment_is_its_own(seen):
    seen.wait(lambda: seen.frame() == 50)


def test_hovering_shows_score_and_times(seen):
    for places in (seen.bars, seen.moments):
        ActionChains(seen.chrome).move_to_element(places[2]).perform()
        assert seen.text("tooltip") == "Moment 3 · score 0.5 · 0:07.0–0:09.0"
        assert "mrlib-light" in seen.bars[2].get_attribute("class")
        ActionChains(seen.chrome).move_to_element(seen.root.find_element(By.CLASS_NAME, "mrlib-query")).perform()
        assert seen.text("tooltip") == ""


def test_the_keyboard_reaches_plays_and_pauses_moments(seen):
    """Tab: the play button, the list, the timeline."""
    keys = lambda *keys: ActionChains(seen.chrome).send_keys(*keys).perform()  # noqa: E731
    focus = lambda: seen.chrome.switch_to.active_element.get_attribute("aria-label")  # noqa: E731
    seen.chrome.execute_script("arguments[0].querySelector('.mrlib-play').focus()", seen.root)
    keys(Keys.TAB)
    assert focus() == "Moment 1, from 5.0 to 8.0 seconds, score 0.9"
    keys(Keys.ARROW_DOWN)
    assert focus() == "Moment 2, from 30.0 to 33.0 seconds, score 0.2"
    keys(Keys.ENTER)
    seen.plays_inside(30, 33)
    keys(Keys.SPACE)
    seen.wait(lambda: seen.paused)
    before = seen.time
    keys(Keys.SPACE)
    seen.wait(lambda: before < seen.time <= 33)
    keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert focus() == "Truth, from 5.5 to 8.5 seconds"
    keys(Keys.TAB)
    assert focus() == "Moment 1, from 5.0 to 8.0 seconds, score 0.9"
    assert seen.chrome.switch_to.active_element.get_attribute("class").startswith("mrlib-bar")
    keys(Keys.END, Keys.ENTER)
    seen.plays_inside(5.5, 8.5)


def test_the_focus_is_visible(seen):
    ActionChains(seen.chrome).send_keys(Keys.TAB).perform()
    seen.chrome.execute_script("arguments[0].focus()", seen.moments[0])
    ActionChains(seen.chrome).send_keys(Keys.ARROW_DOWN).perform()
    assert seen.moments[1].value_of_css_property("outline-style") == "solid"


def test_the_timeline_plays_what_the_page_holds_and_says_what_it_does_not(seen):
    over = seen.root.find_element(By.CLASS_NAME, "mrlib-saliency")

    def click(share: float) -> None:
        mouse = ActionChains(seen.chrome).move_to_element_with_offset(over, (share - 0.5) * over.size["width"], 0)
        mouse.click().perform()

    click(20 / 40)
    assert seen.text("status").endswith("cannot be shown: this page holds the moments, not the whole video.")
    assert seen.paused
    click(31 / 40)
    seen.plays_inside(30.9, 33)
    assert seen.text("status") == ""


def test_odd_text_is_shown_as_it_is(seen):
    assert seen.text("query") == f"“{' '.join(ODD.split())}”"
    assert seen.root.find_elements(By.TAG_NAME, "b") == []


def test_the_picture_stands_above_the_player(seen):
    picture = seen.chrome.find_element(By.CSS_SELECTOR, ".jp-RenderedImage img")
    assert picture.size["width"] > 500 and picture.location["y"] < seen.root.location["y"]


def test_a_player_without_moments_says_not_here(chrome, video, tmp_path):
    (tmp_path / "page.html").write_text(Player(video, [], query="a dog").html(), encoding="utf-8")
    chrome.switch_to.new_window("tab")
    try:
        chrome.get((tmp_path / "page.html").as_uri())
        root = chrome.find_element(By.CLASS_NAME, "mrlib-player")
        assert "Not here" in root.text and root.find_elements(By.CLASS_NAME, "mrlib-moment") == []
        assert errors(chrome) == []
    finally:
        chrome.close()
        chrome.switch_to.window(chrome.window_handles[0])


def test_in_jupyterlab_the_player_is_a_widget_that_python_sees_and_sets(video, tmp_path):
    code = f"from mrlib.video import Player\nplayer = Player({str(video)!r}, [[5, 8, 0.9], [30, 33, 0.2]])\nplayer"
    cells = [code, "print('played', player.selected)\nplayer.selected = 0"]
    kernel = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(
        new_notebook(cells=[*map(new_code_cell, cells)], metadata={"kernelspec": kernel}), tmp_path / "lab.ipynb"
    )
    with jupyterlab(tmp_path) as address, browser() as chrome:
        wait = WebDriverWait(chrome, 90, ignored_exceptions=[WebDriverException, IndexError, OSError])
        chrome.get(f"{address}/lab/tree/lab.ipynb")

        def find(selector: str):
            return chrome.find_elements(By.CSS_SELECTOR, selector)

        def run(cell: int) -> None:
            wait.until(lambda _: find(".jp-CodeCell .cm-content")[cell].click() is None)
            ActionChains(chrome).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()

        def kernel_is_ready(_) -> bool:
            with urlopen(f"{address}/api/kernels", timeout=10) as reply:
                return any(each["connections"] and each["execution_state"] == "idle" for each in json.load(reply))

        wait.until(kernel_is_ready)
        run(0)
        wait.until(lambda _: find(".lm-Widget.mrlib-player .mrlib-moment"))
        seen = Seen(chrome)
        seen.wait(lambda: seen.time == pytest.approx(5, abs=0.01))
        seen.moments[0].send_keys(Keys.ARROW_DOWN)
        seen.moments[1].send_keys(Keys.ENTER)
        seen.plays_inside(30, 33)
        seen.moments[1].send_keys(Keys.SPACE)
        seen.wait(lambda: seen.paused)
        run(1)
        seen.plays_inside(5, 8)
        wait.until(lambda _: "played 1" in find(".jp-Notebook")[0].text)
        ActionChains(chrome).key_down(Keys.CONTROL).send_keys("s").key_up(Keys.CONTROL).perform()
        wait.until(lambda _: VIEW in (tmp_path / "lab.ipynb").read_text())
        assert errors(chrome) == []
    saved = nbformat.read(tmp_path / "lab.ipynb", 4)
    assert {"image/png", "text/html", VIEW} <= {kind for output in saved.cells[0].outputs for kind in output.data}
    name = re.search('data-name="([0-9a-f]+)"', Player(video, [[5, 8, 0.9], [30, 33, 0.2]]).html())[0]
    assert name in HTMLExporter().from_notebook_node(saved)[0]
