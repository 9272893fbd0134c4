"""Pictures of a study's page for the README, in both themes.

Run it by hand in an environment with playwright and Chromium, after `make study`:

    python docs/picture.py multirun/mnist5k_cnn/report/index.html
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH = 1400  # pixels
MAX_BYTES = 250_000
FIGURE = "figure[data-figure=sparsity-difference]"  # the last one on the picture


def main(page_path: Path) -> None:
    """Write the cards and first figures as page-light.png and page-dark.png beside this file."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": WIDTH, "height": 1600}, color_scheme=theme)
            page.goto(page_path.absolute().as_uri())
            page.locator(f"{FIGURE}[aria-busy=false] .main-svg").first.wait_for()
            # Filters and links are of no use on a picture.
            page.add_style_tag(content=".filters, nav, .choices { display: none !important; }")
            box = page.locator(FIGURE).bounding_box()
            assert box, "the page has no figure of sparsity"
            height = box["y"] + box["height"]
            shot = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
            image = Image.open(BytesIO(shot))
            path = Path(__file__).with_name(f"page-{theme}.png")
            image.convert("RGB").quantize(128).save(path, optimize=True)
            size = path.stat().st_size
            assert size <= MAX_BYTES, f"{path} has {size:,} bytes; at most {MAX_BYTES:,}"
            print(f"{path}: {image.width} x {image.height}, {size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
