"""A Markdown extension for the documentation site: links to files outside `docs/` become text that shows the path.

On the repository's pages they lead to the source, which the site does not contain.
"""

from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

__all__ = ["makeExtension"]


class _OutsideLinks(Treeprocessor):
    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            target = link.get("href", "")
            if target.startswith("../") and ".md" not in target:
                link.tag = "span"
                link.attrib.clear()
                link.set("title", target.removeprefix("../"))


class _SiteLinks(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(_OutsideLinks(md), "outside_links", 15)  # after links are parsed, before they change


def makeExtension(**kwargs: object) -> Extension:
    return _SiteLinks(**kwargs)
