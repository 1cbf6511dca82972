"""The page of rows: one file, with thumbnails, in which nothing of the data is markup."""

import html.parser
import json

from data import commands
from launch.report.rows import write_rows
from tests.helpers.picture_samples import data_config, picture

EVIL = "<script>alert(1)</script><img src=http://example.org/x onerror=alert(1)>"


class Tags(html.parser.HTMLParser):
    """Names and attributes of all tags, and the text."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_thumbnails_and_escapes_texts(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1, (300, 500)))
    said = [{"from": "human", "value": f"<image>{EVIL}"}, {"from": "gpt", "value": EVIL}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "conversations": said}))
    config = data_config(tmp_path, {"path": str(tmp_path / "a.jsonl")}, sequence_length=512)
    found = commands.inspect(config, 0, count=1, thumbnails=True)
    path = write_rows(found, tmp_path / "rows.html")
    page = Tags(path.read_text("utf-8"))
    names = [tag for tag, _ in page.found]
    images = [attributes for tag, attributes in page.found if tag == "img"]
    assert "script" not in names and len(images) == 1 and images[0]["src"].startswith("data:image/png;base64,")
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    assert page.text.count(EVIL) == 2 and "picture of 500 x 300 pixels" in page.text
    assert "default-src 'none'" in path.read_text("utf-8")
