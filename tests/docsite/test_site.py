"""The site builds with warnings as errors, loads nothing from other machines, and no link is broken."""

import re

import pytest

pytestmark = pytest.mark.slow


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', text)
        assert not loaded, f"{page.name}: {loaded}"
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:", style.read_text())


def test_links_and_pictures_are_there(site):
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        text = page.read_text()
        for target in re.findall(r'(?:src|href)="([^":]+)"', text):
            path, _, anchor = target.partition("#")
            found = (page.parent / path) if path else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor and found.suffix == ".html":
                assert f'id="{anchor}"' in found.read_text(), f"{page.name}: {target}"
        assert "<!-- code" not in text
        assert "arithmatex" not in text
