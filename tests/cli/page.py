"""Reads what `interflow explore` wrote, as data and in a browser."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def content(file):
    """What the page shows; arrays decoded, [images] and [images, depths]."""
    (text,) = re.findall(r'type="application/json" id="data">(.*)</script>', file.read_text())
    page = json.loads(text)
    for name, kind in (("labels", "<u2"), ("said", "<u2"), ("confidence", "<f4")):
        page[name] = np.frombuffer(base64.b64decode(page[name]), kind)
        if name != "labels":
            page[name] = page[name].reshape(-1, len(page["depths"]))
    return page


def in_browser(file, fragment=""):
    """A page's HTML after its script ran."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent}/user"]
    return subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", f"{file.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def text_of(name, page):
    """The text of an element by its id."""
    (element,) = re.findall(rf'<(\w+) id="{name}"[^>]*>(.*?)</\1>', page, re.DOTALL)
    return re.sub(r"<[^>]*>", "", element[1])
