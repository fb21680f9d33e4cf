"""Brings into the site what its pages link to outside docs/.

Pages are written to be read on their own, too: their links are those of the repository. Here a link
to a Markdown file of `PAGES` becomes one to its page, one to any other file of the repository a
download. A link to what does not exist is left as it is, so that the strict build refuses it.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "CHANGELOG.md": "changes.md",
    "train/tabular/data/README.md": "table.md",
    "docs/decisions": "design.md#decisions",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_config(config):
    """Let headings have the anchors that they have where the repository is read."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files, config):
    """Add the files of the repository that are pages, and those that pages link to."""
    for source, page in PAGES.items():
        if "#" not in page:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        for target, _ in LINK.findall(Path(file.abs_src_path).read_text()):
            found = in_the_site(target, folder_of(file))
            if found and not files.get_file_from_path(found.partition("#")[0]):
                source = str(ROOT / found)
                files.append(File.generated(config, found, abs_src_path=source))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links of a page to what they are in the site."""
    here = PurePosixPath(page.file.src_uri).parent

    def rewritten(match):
        found = in_the_site(match[1], folder_of(page.file))
        if found is None:
            return match[0]
        path, _, anchor = found.partition("#")
        return os.path.relpath(path, here) + (match[2] or (f"#{anchor}" if anchor else ""))

    return LINK.sub(rewritten, markdown)


def on_page_content(html, page, config, files):
    """Leave out the `::` that opens a literal block in a docstring."""
    return html.replace("<p>::</p>\n", "")


def folder_of(file):
    """Return the folder in the repository that a page's source lies in."""
    return Path(file.abs_src_path).parent


def in_the_site(target, folder):
    """Return where in docs/ the target of a link lies or comes to lie, or None if nowhere."""
    path = (folder / target).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        return None
    source = path.relative_to(ROOT).as_posix()
    if source in PAGES:
        return PAGES[source]
    if path.is_dir():
        return None
    return source.removeprefix("docs/")
