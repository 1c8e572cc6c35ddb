"""Links in documents lead somewhere: to a file of the repository, and to a heading that is there."""

import re
from functools import cache

import pytest

from tests.house.test_house import ROOT

OUTSIDE = ("node_modules", "build", "dist")


def pages(top):
    """Every page below a directory; what was made or installed there is not looked into."""
    for path in top.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in OUTSIDE:
            yield from pages(path)
        elif path.suffix == ".md":
            yield path


FILES = sorted(pages(ROOT))
FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(
    r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s]*)*)>?(?:\s+\"[^\"]*\")?\s*\)"
)
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
ANCHOR = re.compile(r"""<a\s+(?:id|name)=["']([^"']+)["']""")


def named(path):
    return str(path.relative_to(ROOT))


def prose(text):
    """The text without its blocks of code."""
    return FENCE.sub("", text)


def links(text):
    return LINK.findall(CODE.sub("", prose(text)))


@cache
def anchors(path):
    """The names of a page's headings, as GitHub makes them."""
    text = prose(path.read_text())
    found = set(ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        unique, count = name, 0
        while unique in found:
            count += 1
            unique = f"{name}-{count}"
        found.add(unique)
    return found


def wrong_with(path, link):
    """What is wrong with a link of a page; None when nothing is, or when it leads out of the repository."""
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        return None
    file, _, anchor = link.partition("#")
    if file.startswith("/"):
        return f"{link} begins at the root of something: write it relative to the page"
    target = (path.parent / file).resolve() if file else path
    if not target.is_relative_to(ROOT) or not target.exists():
        return f"{link} leads nowhere"
    if anchor and (target.suffix != ".md" or anchor not in anchors(target)):
        return f"{link}: there is no such heading in {named(target)}"
    return None


def test_links_lead_somewhere():
    found = {path: links(path.read_text()) for path in FILES}
    assert sum(map(len, found.values())) > 100
    wrong = [(named(path), wrong_with(path, link)) for path in found for link in found[path]]
    assert [each for each in wrong if each[1]] == []


@pytest.mark.parametrize("index", ["docs/README.md", "docs/adr/README.md"])
def test_an_index_has_every_page(index):
    top = (ROOT / index).parent
    listed = {(top / link.partition("#")[0]).resolve() for link in links((ROOT / index).read_text())}
    below = {path for path in FILES if top in path.parents and (top.name == "adr" or "adr" not in path.parts)}
    assert sorted(map(named, below - listed - {ROOT / index})) == [], f"link it from {index}"


def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    """The checks above can fail."""
    monkeypatch.setattr("tests.house.test_links.ROOT", tmp_path)
    page, other = tmp_path / "a.md", tmp_path / "other page.md"
    other.write_text("# The `--one` [of](x) two\n\n## Again\n\n## Again\n\n```\n# no heading\n```\n")
    monkeypatch.setattr("tests.house.test_links.named", lambda path: path.name)
    page.write_text(
        "# Here\n[a](b.md) `[b](c.md)` [c](#here) [d](#there) [`e`](https://x.example/#y)\n"
        "```\n[f](d.md)\n```\n[g](</a.md>) ![h](../x.png) [i\n](a.md#here)\n"
    )
    wrong = [sentence for link in links(page.read_text()) if (sentence := wrong_with(page, link))]
    assert wrong == [
        "b.md leads nowhere",
        "#there: there is no such heading in a.md",
        "/a.md begins at the root of something: write it relative to the page",
        "../x.png leads nowhere",
    ]
    assert anchors(other) == {"the---one-of-two", "again", "again-1"}
