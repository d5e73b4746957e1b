"""Every equation of the papers has its tag in the code, in a test and in a notebook."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "mrlib": sorted((ROOT / "mrlib").rglob("*.py")),
    "tests": [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if file != Path(__file__).resolve()],
    "notebooks": sorted((ROOT / "notebooks").glob("*.py")),
}
TAGS = [f"[A2FA Eq. {k}]" for k in range(1, 13)] + [f"[F2SGD Eq. {k}]" for k in range(13, 16)]
TAGS += ["[MATR §3.2]", "[MATR, losses]", "[MATR, pre-training]"]  # its equations have no numbers
TAGS += [f"[AMR, {part}]" for part in ("splice", "mining", "fusion", "encoder", "heads", "losses")] + ["[AMR stage 2]"]
TAGS += [f"[TD-DETR Eq. {k}]" for k in range(1, 7)] + [f"[TD-DETR, {part}]" for part in ("synthesis", "spurious")]
TAGS += ["[2D-TAN]", "[UVCOM]", "[CG-DETR]", "[TaskWeave]"]


@pytest.mark.parametrize("place", FILES)
@pytest.mark.parametrize("tag", TAGS)
def test_every_tag_is_in_the_code_the_tests_and_the_notebooks(tag, place):
    assert [file for file in FILES[place] if tag in file.read_text("utf-8")], f"{tag} is not in {place}"


@pytest.mark.parametrize("place", FILES)
def test_a_tag_names_one_equation(place):
    """With a range such as 1 to 5 in one tag, a search for an equation inside the range would fail."""
    several = re.compile(r"\[\w+ Eq\. \d+ *[-\u2013,][^]]*\]")
    assert {f"{f.name}: {tag}" for f in FILES[place] for tag in several.findall(f.read_text("utf-8"))} == set()
