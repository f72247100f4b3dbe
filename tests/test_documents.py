"""The documents: their links, and the scripts, flags and files that they name."""

import ast
import re
import subprocess

import pytest
import torch
from demo_inputs import ROOT

from defaults import load_cfg
from model import build_model
from preprocess.columns import ALIGNED, COLUMNS

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# Of pip, TensorBoard, Slurm, GNU parallel, torchrun and docker.
FOREIGN_FLAGS = {"--index-url", "--no-deps", "--logdir", "--array", "--wrap", "--wd",
                 "--local_addr", "--shm-size"}
OF_OTHERS = {"ImportError: libGL.so.1: cannot open shared object file"}
TORCHRUN = re.compile(r"torchrun .*?(?=train\.py|-m |$)")  # torchrun and its own flags


def text_of(path):
    return path.read_text(encoding="utf-8")


def anchors_of(path):
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_one_page():
    assert len(text_of(ROOT / "README.md").encode()) <= 9000


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_figure_is_left_to_be_filled_in(path):
    assert not re.search(r"@[A-Z]\w*@|TODO|TBD|\?\?\?", text_of(path))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)]+)\)", text_of(path)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_scripts_and_flags_that_there_are(path):
    sources = "".join(map(text_of, ROOT.glob("[!.]*/*.py"))) + "".join(
        map(text_of, ROOT.glob("*.py")))
    flags = set(re.findall(r'"(--\w+)"', sources)) | FOREIGN_FLAGS
    text = text_of(path)
    for script in re.findall(r"python (\w+\.py)", text):
        assert script == "your_script.py" or (ROOT / script).is_file(), script
    for module in re.findall(r"python -m ((?:preprocess|training|benchmarks)\.\w+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    for line in text.splitlines():
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", TORCHRUN.sub("", line)):
            assert flag in flags, flag


def test_another_network_fits_the_recipe_of_the_readme():
    text = text_of(ROOT / "README.md")
    recipe = re.search(r"--cfg (\S+)", text)[1]
    pairs = re.search(r"`(MODEL\.ARCH [^`]+)`", text)[1].split()
    with torch.device("meta"):
        build_model(load_cfg(ROOT / recipe, [*pairs, "MODEL.PRETRAINED", "none"]))


def templates_of(path):
    """The texts in a file of Python, with … for what is filled in."""
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…"
                          for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_that_are_explained_are_those_of_the_code():
    document = text_of(ROOT / "docs" / "troubleshooting.md")
    quoted = re.findall(r"^\*\*`(?:warning: )?([^`]+)`\*\*$", document, re.M)
    assert len(quoted) >= 20
    texts = [text for path in ROOT.glob("**/*.py") if not {".venv", "tests"} & {*path.parts}
             for text in templates_of(path)]
    for message in quoted:
        pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert message in OF_OTHERS or any(map(pattern.search, texts)), message


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_readme_map_names_every_module_and_folder_of_the_root():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True,
                            check=True).stdout.split("\n")
    tree = {name.split("/")[0] + ("/" if "/" in name else "") for name in listed}
    named = set(re.findall(r"`(\w+(?:\.py|/))`", text_of(ROOT / "README.md")))
    there = {name for name in tree if name.endswith((".py", "/")) and not name.startswith(".")}
    assert there <= named


def test_every_column_of_a_list_is_documented():
    table = text_of(ROOT / "docs" / "data.md").split("## Columns of a list")[1].split("\n## ")[0]
    named = {name for cell in re.findall(r"^\| `([^`]+)`", table, re.M) for name in cell.split()}
    assert set(COLUMNS) | set(ALIGNED) <= named
