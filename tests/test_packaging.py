"""requirements.txt installs what setup.cfg's requirements and extras name."""

import configparser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_requirements_are_the_package_s_and_those_of_its_extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    named = setup["options"]["install_requires"].split()
    for extra in ("data", "cli", "experiments", "test"):
        named += extras[extra].split()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == named
