"""The README's picture of a report's first screen: `python -m tests.report_picture PROFILE`."""

import sys
import tempfile
from pathlib import Path

from tests.controller.report.browser import browser
from trt_mtp.controller.report.report import read_report, render

PICTURE = Path(__file__).parents[1] / "docs" / "report.png"
WIDTH, HEIGHT = 900, 1045


def draw(profile: Path, picture: Path = PICTURE) -> None:
    """Write the upper end of a profile's page, light, as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_bytes(render(read_report(profile), "html"))
        with browser(Path(folder) / "browser") as page:
            page.open(file, width=WIDTH)
            picture.write_bytes(page.picture(height=HEIGHT))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
