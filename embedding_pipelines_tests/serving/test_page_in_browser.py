"""The search page, used in Chromium as people use it. `make browser` runs these tests."""

import base64
import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from pillow_heif import register_heif_opener
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from embedding_pipelines.serving import searching
from embedding_pipelines.serving.admission import Line
from embedding_pipelines.serving.api import create_app
from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import TooManyRequests
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.clips import tiny_clip
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.test_pictures import COLOURS, PHOTOS, drawn

pytestmark = pytest.mark.browser

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ROWS = [
    (1, "the red fox sleeps in the forest", "animal"),
    (2, "a blue whale sleeps in the sea", "animal"),
    (3, "it's raining on the roof of the house", "it's weather"),
    (4, "<img src=x onerror=\"document.title='broken'\"> fox & 'hound'", "<b>bold</b>"),
    ("<script>document.title='broken'</script>", "a fox in the id", "animal"),
    *(
        (10 + number, f"filler text number {number} of the forest", "filler")
        for number in range(20)
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert program, f"Install Chromium: none of {', '.join(PROGRAMS)} is here."
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("page")
    write_pipeline(home, "things", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "things")
    return home


@contextlib.contextmanager
def serve(home: Path, key: str | None = None) -> Iterator[str]:
    """The address of a server of this home."""
    config = uvicorn.Config(create_app(Server(home, Keys(key))), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    with serve(home) as address:
        yield address


@contextlib.contextmanager
def opened(
    browser: Browser, address: str, status: str = "no error", **options: object
) -> Iterator[Page]:
    """The page in a window of its own, in which nothing may go wrong unseen but replies of
    `status`."""
    problems = list[str]()

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and f"status of {status}" not in message.text:
            problems.append(message.text)

    def fail(error: Error) -> None:
        problems.append(str(error))

    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", hear)
    page.on("pageerror", fail)
    page.goto(address)
    yield page
    context.close()
    assert not problems


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address) as page:
        yield page


def ask(page: Page, query: str) -> None:
    page.fill("#query", query)
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('status').textContent.includes(' ms.')")


def drop(page: Page, name: str, kind: str, data: bytes) -> None:
    """Drop a file on the page."""
    page.evaluate(
        """([data, name, type]) => {
          const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
          const dropped = new DataTransfer();
          dropped.items.add(new File([bytes], name, { type }));
          dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, cancelable: true }));
        }""",
        [base64.b64encode(data).decode(), name, kind],
    )


def documents(page: Page) -> list[str]:
    return page.locator("#hits .document").all_inner_texts()


def test_a_query_shows_hits_with_scores_words_and_metadata(page: Page) -> None:
    ask(page, "red fox")
    first = page.locator("#hits > li").first
    assert documents(page)[0] == "1"
    assert first.locator("mark").all_inner_texts() == ["fox"] or "fox" in first.inner_text()
    assert float(first.locator(".score").inner_text()) > 0
    assert "cat: animal" in first.locator(".metadata").inner_text()
    assert "release 1" in page.inner_text("#release")


def test_a_map_behind_others_is_waited_for_but_not_for_ever(
    browser: Browser, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = [1.0, 1.0]

    def refuse(server: Server, line: Line, kind: str, *_: object) -> None:
        if kind == "map" and waits:
            raise TooManyRequests("The map is behind.", retry_after_seconds=waits.pop(0))

    monkeypatch.setattr(searching, "_refuse_late", refuse)
    with opened(browser, address, "429") as page:
        page.wait_for_function(
            "() => document.getElementById('release').textContent.includes('waits')"
        )
        ask(page, "red fox")  # meanwhile
        page.wait_for_selector("#map:not([hidden])")
        assert "release 1" in page.inner_text("#release")
        assert " ms." in page.inner_text("#status")
    waits.append(1000.0)
    with opened(browser, address, "429") as page:
        page.wait_for_selector("#status.wrong")
        assert page.inner_text("#status") == "The map is behind."


def test_it_is_used_by_keyboard_alone(page: Page) -> None:
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("fox")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits > li")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    assert page.locator("#hits > li").nth(1).evaluate("item => item === document.activeElement")
    page.keyboard.press("Enter")
    assert "whole" in str(page.locator("#hits > li").nth(1).get_attribute("class"))
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "go"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"


def test_more_like_a_result_by_click_and_by_key(page: Page) -> None:
    def like(name: str) -> None:
        page.wait_for_function(
            "(text) => document.getElementById('sought-name').textContent === text"
            " && document.getElementById('status').textContent.includes(' ms.')",
            arg=f"like {name}",
        )
        page.wait_for_function(
            "() => document.activeElement === document.getElementById('hits').firstElementChild"
        )
        assert name not in documents(page)
        assert page.input_value("#query") == ""

    ask(page, "red fox")
    page.locator("#hits > li").first.get_by_role("button", name="more like this").click()
    like("1")
    assert page.url.endswith("?pipeline=things&like=1")
    second = documents(page)[1]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("m")
    like(second)
    page.go_back()
    page.wait_for_function("() => document.getElementById('sought-name').textContent === 'like 1'")
    page.reload()
    page.wait_for_selector("#hits > li")
    assert "1" not in documents(page)
    ask(page, "blue whale")
    assert page.is_hidden("#sought")
    assert documents(page)[0] == "2"


def test_a_click_on_metadata_narrows_the_search_quotes_and_all(page: Page) -> None:
    ask(page, "rain on the roof")
    page.get_by_role("button", name="cat: it's weather").click()
    page.wait_for_function("() => document.querySelectorAll('#hits > li').length === 1")
    assert documents(page) == ["3"]
    assert page.input_value("#filter") == "cat = 'it''s weather'"


def test_the_address_holds_the_search_and_goes_back(page: Page) -> None:
    ask(page, "red fox")
    ask(page, "blue whale")
    assert "q=blue+whale" in page.url
    page.go_back()
    page.wait_for_function("() => document.getElementById('query').value === 'red fox'")
    page.wait_for_function("() => document.querySelector('.document').textContent === '1'")
    page.reload()
    page.wait_for_selector("#hits > li")
    assert page.input_value("#query") == "red fox"


def test_a_wrong_filter_is_answered_in_a_sentence(browser: Browser, address: str) -> None:
    with opened(browser, address, "400") as page:
        page.fill("#query", "fox")
        page.locator("summary").click()
        page.fill("#filter", "colour = 'red'")
        page.click("#go")
        page.wait_for_selector("#status.wrong")
        assert "colour" in page.inner_text("#status")


def test_nothing_in_a_document_is_run(page: Page) -> None:
    ask(page, "fox hound")
    shown = page.inner_text("#hits")
    assert "<img src=x onerror=" in shown
    assert "<b>bold</b>" in shown
    ask(page, "a fox in the id")
    assert "<script>document.title='broken'</script>" in documents(page)
    assert page.locator("#hits img, #hits script, #hits b").count() == 0
    assert page.title() == "Search · embedding_pipelines"


def test_hits_are_marked_on_the_map(page: Page) -> None:
    page.wait_for_selector("#map:not([hidden])")
    pixels = """() => {
        const canvas = document.getElementById("canvas");
        const pen = canvas.getContext("2d");
        const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
        const count = {};
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] === 255) {
                const name = `${data[i]},${data[i + 1]},${data[i + 2]}`;
                count[name] = (count[name] || 0) + 1;
            }
        return count;
    }"""
    accent = "28,95,191"
    assert accent not in page.evaluate(pixels)
    ask(page, "red fox")
    assert page.evaluate(pixels)[accent] > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_it_fits_in_both_schemes(browser: Browser, address: str, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "color_scheme": scheme}
    with opened(browser, address, **phone) as page:
        ask(page, "red fox")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.documentElement).color")
        brightness = [sum(map(int, text[4:-1].split(","))) for text in (ground, ink)]
        assert (brightness[0] > brightness[1]) == (scheme == "light")
        assert page.locator("#go").bounding_box()["height"] >= 44  # type: ignore[index]


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Browser, home: Path) -> None:
    with serve(home, "secret") as address, opened(browser, address, "401") as page:
        page.wait_for_selector("#access:not([hidden])")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#status.wrong")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#access", state="hidden")
        ask(page, "red fox")
        page.reload()
        page.wait_for_selector("#hits > li")
        assert "secret" not in page.url


def test_the_description_of_the_api_asks_no_other_host(browser: Browser, address: str) -> None:
    context = browser.new_context()
    asked = list[str]()
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    problems = list[str]()
    page.on("console", lambda each: problems.append(each.text) if each.type == "error" else None)
    page.goto(f"{address}/docs")
    page.locator(".opblock-summary-path", has_text="/search").first.click()
    page.get_by_text("The best chunks for a query.").first.wait_for()
    context.close()
    assert all(url.startswith((address, "data:")) for url in asked), asked
    assert problems == []


def test_an_image_is_chosen_or_dropped_and_hits_are_seen(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / f"{name}.png").write_bytes(drawn(colour))
    tiny_clip(tmp_path / "tiny")
    write_pipeline(tmp_path, "photos", PHOTOS)
    run_steps(tmp_path, "photos")
    write_pipeline(tmp_path, "things", HASHING)
    write_csv(tmp_path, "a.csv", ROWS)
    run_steps(tmp_path, "things")
    seen = (
        "() => [...document.querySelectorAll('img.thumbnail')].filter((i) => i.naturalWidth).length"
    )
    searched = "() => document.getElementById('status').textContent.includes(' ms.')"
    with serve(tmp_path, "a-key") as address, opened(browser, address, "401") as page:
        page.fill("#key", "a-key")
        page.keyboard.press("Enter")
        page.wait_for_selector("#by-image:not([hidden])")
        file = {"name": "sky.png", "mimeType": "image/png", "buffer": drawn(COLOURS["blue"])}
        page.set_input_files("#file", file)  # type: ignore[arg-type]
        page.wait_for_function(searched)
        page.wait_for_function(f"{seen} === 3")
        assert documents(page)[0] == "blue.png"
        assert page.inner_text("#sought-name") == "sky.png"
        # One that is on its way takes the room of a picture, whatever its caption.
        shape = page.evaluate(
            """() => {
              const image = document.querySelector("img.thumbnail");
              const coming = image.cloneNode();
              coming.removeAttribute("src");
              coming.alt = "many words ".repeat(100);
              image.after(coming);
              const { width, height } = coming.getBoundingClientRect();
              coming.remove();
              return height / width;
            }"""
        )
        assert shape == pytest.approx(3 / 4, rel=0.01)
        page.select_option("#pipeline", "things")
        assert page.is_hidden("#by-image")
        ask(page, "red fox")
        assert page.locator("img.thumbnail").count() == 0
        page.select_option("#pipeline", "photos")
        page.wait_for_selector("#by-image:not([hidden])")
        drop(page, "rose.png", "image/png", drawn(COLOURS["red"]))
        page.wait_for_function(
            "() => document.querySelector('.document')?.textContent === 'red.png'"
        )
        assert page.is_visible("#sought-image")
        # What the browser neither knows nor shows.
        register_heif_opener()
        drop(page, "phone.heic", "", drawn(COLOURS["green"], "HEIF"))
        page.wait_for_function(
            "() => document.querySelector('.document')?.textContent === 'green.png'"
        )
        page.wait_for_selector("#sought-image", state="hidden")
        assert page.inner_text("#sought-name") == "phone.heic"
        page.click("#forget")
        assert page.is_hidden("#sought")
        # One that is gone when it is read.
        gone = tmp_path / "gone.png"
        gone.write_bytes(drawn(COLOURS["red"]))
        page.evaluate(
            """() => addEventListener("change", (event) => {
              window.held = event.target.files[0];
              event.stopImmediatePropagation();
            }, { capture: true, once: true })"""
        )
        page.set_input_files("#file", gone)
        gone.unlink()
        page.evaluate("takeImage(window.held)")
        page.wait_for_selector("#status.wrong")
        assert "gone.png cannot be read" in page.inner_text("#status")
        assert page.is_hidden("#sought")
