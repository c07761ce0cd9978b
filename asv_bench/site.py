"""Put copies of the scripts that asv's site loads from elsewhere beside it, so that its graphs are drawn without a network.

Run after `asv publish`. They come from npm; without npm the site stays as asv made it, and needs a network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

SITE = Path(__file__).parents[1] / ".asv" / "html"
MODULES = Path(__file__).parents[1] / ".asv" / "npm"
FILES = {
    "jquery-3.3.1.min.js": ("jquery@3.3.1", "dist/jquery.min.js"),
    "jquery.flot.min.js": ("jquery-flot@0.8.3", "jquery.flot.js"),
    "jquery.flot.time.min.js": ("jquery-flot@0.8.3", "jquery.flot.time.js"),
    "jquery.flot.selection.min.js": ("jquery-flot@0.8.3", "jquery.flot.selection.js"),
    "jquery.flot.categories.min.js": ("jquery-flot@0.8.3", "jquery.flot.categories.js"),
    "jquery.flot.orderBars.js": ("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js"),
    "stupidtable.min.js": ("stupid-table-plugin@1.1.3", "stupidtable.min.js"),
    "md5.min.js": ("blueimp-md5@2.19.0", "js/md5.min.js"),
    "bootstrap.min.js": ("bootstrap@3.1.1", "dist/js/bootstrap.min.js"),
    "bootstrap.min.css": ("bootstrap@3.1.1", "dist/css/bootstrap.min.css"),
}
LINK = re.compile(r'(src|href)="https://[^"]*/([^"/]+\.(?:js|css))"((?:\s+(?:integrity|crossorigin|referrerpolicy)="[^"]*")*)')


def main() -> int:
    """Fetch, copy, and point the page at the copies."""
    npm = shutil.which("npm")
    if npm is None:
        print(f"npm is not installed: {SITE}/index.html will load its scripts from the network")
        return 0
    packages = sorted({package for package, _ in FILES.values()})
    command = [npm, "install", "--prefix", str(MODULES), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([*command, *packages], check=True, stdout=subprocess.DEVNULL)
    (SITE / "vendor").mkdir(exist_ok=True)
    for name, (package, path) in FILES.items():
        shutil.copy(MODULES / "node_modules" / package.rpartition("@")[0] / path, SITE / "vendor" / name)
    page = SITE / "index.html"
    page.write_text(LINK.sub(_local, page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"the site is complete: {page} (serve it with {Path(sys.executable).name} -m http.server -d {SITE})")
    return 0


def _local(match: re.Match[str]) -> str:
    """The link to the copy, if there is one; it needs no check against a checksum."""
    attribute, name = match[1], match[2]
    return f'{attribute}="vendor/{name}"' if name in FILES else match[0]


if __name__ == "__main__":
    sys.exit(main())
