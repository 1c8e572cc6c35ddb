"""Commands of the documents that are not run here: by which test they are, or why they can't be in any."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from typing import NamedTuple

from tests.deploy.pages import ROOT, Command, ours, parse

COVERED = {
    ("docs/any-language.md", "shell"): "tests/e2e/test_clients.py::TestNode",
    ("docs/any-language.md", "sh"): "tests/e2e/test_clients.py::TestShell::test_buf_curl",
    ("docs/any-language.md", "bash"): "tests/e2e/test_clients.py::TestShell::test_grpcurl",
    ("docs/gateway.md", "sh"): "tests/gateway/test_gateway.py::test_the_programs_on_the_page_run",
}
"""Blocks of a language in a page that another test takes from there, and runs as a whole."""
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def of_ours(command: Command) -> None:
    """The commands of holdfast in it are some."""
    for arguments in ours(command.text):
        parse(arguments)


def make(command: Command) -> None:
    """There are such targets, and such variables."""
    for word in command.words[1:]:
        name, variable, _ = word.partition("=")
        assert re.search(rf"^{name} *\?=|\b{name}=" if variable else rf"^{name}:", MAKEFILE, re.MULTILINE), (
            word
        )


def pip(command: Command) -> None:
    """The extras are some of ours."""
    for word in command.words[2:]:
        if found := re.fullmatch(r"(?:holdfast|\.)\[(.+)\]", word):
            assert set(found[1].split(",")) <= EXTRAS.keys()


def systemctl(command: Command) -> None:
    """The units are there; tests/deploy/test_systemd.py has systemd read them."""
    for word in command.words[2:]:
        assert not word.startswith("holdfast") or (ROOT / f"docs/deploy/systemd/{word}.service").is_file()


def kubectl(command: Command) -> None:
    """The files are there; what runs in a pod, or around it, is a command of ours."""
    for path in re.findall(r"\bk8s/\S+", command.text):
        assert (ROOT / path).exists()
    of_ours(command)


def docker(command: Command) -> None:
    """What it names as `holdfast …` is a command of ours; tests/deploy/test_images.py looks at the rest."""
    assert command.words[1] in ("build", "compose", "run", "stop")
    of_ours(command)


def torchrun(command: Command) -> None:
    """Its flags are in the table, which is held to torch; one is the program's."""
    table = (ROOT / "docs/migrating-from-torchrun.md").read_text()
    flags = {word for word in command.words if word.startswith("--")}
    assert [flag for flag in flags - {"--lr"} if f"| `{flag}` |" not in table] == []


def ssh(command: Command) -> None:
    """ssh takes its options, where there is one."""
    if shutil.which("ssh"):
        words = command.text.removesuffix("&").split()
        subprocess.run(["ssh", "-G", *words[1:]], capture_output=True, timeout=60, check=True)


def nft(command: Command) -> None:
    """nft takes it, where there is one and this process may ask: in a network of its own, with what comes before."""
    alone = ["unshare", "--net", "sh", "-ec"]
    if (
        shutil.which("nft")
        and not subprocess.run([*alone, "nft list ruleset"], capture_output=True, check=False).returncode
    ):
        page = (ROOT / command.page).read_text()
        before = re.findall(r"^nft .*$", page[: page.index(command.text)], re.MULTILINE)
        subprocess.run(
            [*alone, "\n".join([*before, command.text])], capture_output=True, timeout=60, check=True
        )


def release(command: Command) -> None:
    """The files that it names are there."""
    for path in re.findall(r"[\w./]+\.(?:py|yaml|md)\b|\.ci/run", command.text):
        assert (ROOT / path).is_file()


def packages(command: Command) -> None:
    """They are those that the script looks for."""
    script = (ROOT / "scripts/images_check.py").read_text()
    needed = re.search(r"^NEEDED = \{(.*?)^\}", script, re.DOTALL | re.MULTILINE)[1]
    named = [word for word in command.words[2:] if not word.startswith("-")]
    assert sorted(named) == sorted(re.findall(r': "([\w-]+)"', needed))


def form(_: Command) -> None:
    """There is nothing to look at but its form, for which bash was asked where it is in a block."""


class Exemption(NamedTuple):
    """What is not run."""

    pattern: str
    reason: str
    check: Callable[[Command], None]
    """Looks at it as far as can be."""


EXEMPT = [
    Exemption(r"make (?!demo)", "a script of its own, which CI runs, or who releases", make),
    Exemption(r"make demo$", "shown with its output on the same page", make),
    Exemption(
        r"kubectl |agents=app|for .*\n(.*\n)*.*kubectl ", "needs a cluster: `make kube-check`", kubectl
    ),
    Exemption(r"docker ", "needs an engine: `make images-check` does the same with Podman", docker),
    Exemption(r"systemctl ", "needs systemd as process 1", systemctl),
    Exemption(r"(\S*/)?pip install ", "loads packages: `make wheel-check` installs wheel and extras", pip),
    Exemption(r"python3 -m venv ", "takes seconds: `make wheel-check` does it", form),
    Exemption(r"useradd |install -d .*-g |reboot$", "needs root, and changes the machine", form),
    Exemption(r"apt-get ", "needs root, and changes the machine", packages),
    Exemption(r"nft ", "needs root, and changes the machine", nft),
    Exemption(r"ssh ", "needs another machine", ssh),
    Exemption(r"torchrun ", "of another program, to compare with", torchrun),
    Exemption(r"git |\$EDITOR |\.ci/run$", "makes a release", release),
    Exemption(r'eval "\$\(holdfast completion zsh', "needs zsh: tests/client/test_cli_completion.py", form),
    Exemption(r"holdfast run .*digits_ddp", "needs torch: tests/e2e/test_examples.py runs it", of_ours),
    Exemption(r"holdfast run .*torch -- ", "needs torch: tests/e2e/test_warm.py preloads numpy", of_ours),
    Exemption(r"holdfast coordinator .*--store", "needs PostgreSQL: tests/e2e/test_standby.py", of_ours),
    Exemption(r"holdfast backup (move$|.* --store)", "needs it, too: test_cli_backup.py", of_ours),
    Exemption(r"kill -9$|curl -d$|python (train\.py|-m module|-c code)$", "a word of prose", form),
    Exemption(r"pytest |npm (ci|test)$", "runs tests: CI does", form),
    Exemption(r"sqlite3 ", "of another program", form),
]
"""What is not run, and why. The first that matches from the beginning of a command on says it."""


def exemption(command: Command) -> Exemption | None:
    """Why a command is not run; None: it is, as is all that is shown with what it prints."""
    if command.shown:
        return None
    text = re.sub(r"\s+#.*", "", command.text)
    if text.startswith("curl ") and shutil.which("curl") is None:
        return Exemption("curl ", "curl is not on this machine", form)
    return next((each for each in EXEMPT if re.match(each.pattern, text)), None)
