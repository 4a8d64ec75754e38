"""A hook of mkdocs: links of docs/ to other files of the repository, which a site doesn't have.

On GitHub they lead to the file; on the site they are its path.
"""

import re
from posixpath import normpath
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the links of one page that lead out of docs/."""
    folder = page.file.src_uri.rpartition("/")[0]

    def replaced(link: "re.Match[str]") -> str:
        path = normpath(f"docs/{folder}/{link[2]}")
        if path.startswith("docs/"):
            return link[0]
        return f"`{path}`" if link[1] in path else f"{link[1]} (`{path}`)"

    return _LINK.sub(replaced, markdown)
