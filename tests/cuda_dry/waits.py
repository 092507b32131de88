"""The head's README says where the host waits for the device; here it is read."""

import re

from tests.cuda_dry.lines import ROOT

README = ROOT / "kappaface_dist" / "head" / "README.md"


def table(when: str) -> dict[str, str]:
    """place -> why, of the table's lines for that occasion."""
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", README.read_text(), re.MULTILINE)
    return {place: why.strip() for place, occasion, why in rows if occasion.strip() == when}
