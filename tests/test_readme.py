"""README and docs keep their promises: fenced commands run, options and files exist, links lead somewhere.

Python blocks run here, and bash blocks of commands that are quick and change nothing (`QUICK`). Directly above every
other block stands a comment: `<!-- run by: TEST -->` with the file of the test that runs it, or
`<!-- not run: REASON -->`, which may end in `run by: TEST on ...`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CHINESE = ROOT / "README_zh-CN.md"
PAGES = [README, CHINESE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICK = re.compile(r"python (-m ops_dcnv3|-m internimage\.zoo|[\w/.]+ --help) *(#.*)?")
TWINS = {  # Chinese page: the English pages, or their sections, that it says again
    "README_zh-CN.md": ["README.md"],
    "docs/zh/install.md": ["docs/install.md"],
    "docs/zh/own_data.md": [
        "docs/classification.md#Fine-tune on your own images",
        "docs/detection.md#Your own data",
        "docs/segmentation.md#Your own data",
    ],
    "docs/zh/faq.md": ["docs/faq.md"],
    "docs/zh/layers.md": ["docs/layers.md"],
}
FOLDERS = ("benchmarks", "classification", "demo", "detection", "docs", "internimage", "ops_dcnv3", "segmentation")


class Block(NamedTuple):
    """A fenced block, with the comment above it."""

    page: str
    line: int
    comment: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: Path, section: str = "") -> str:
    text = page.read_text(encoding="utf-8")
    return re.search(rf"^## {section}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[0] if section else text


def blocks_of(page: Path, section: str = "") -> list[Block]:
    fence = re.compile(r"(?:^[ ]*<!--([^\n]*)-->\n)?^([ ]*)```(\w*)\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL)
    text = text_of(page, section)
    return [
        Block(str(page.relative_to(ROOT)), text[: match.start()].count("\n") + 1, match[1] or "", match[3], match[4])
        for match in fence.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.language in ("bash", "python")]
RUN = [block for block in BLOCKS if not block.comment and block.page not in TWINS]  # those have the English ones


def without_code(page: Path, section: str = "") -> str:
    return re.sub(r"^[ ]*```.*?^[ ]*```$", "", text_of(page, section), flags=re.MULTILINE | re.DOTALL)


# Blocks


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_run_or_names_its_test_or_says_why_not(block):
    comment = block.comment.strip()
    if comment:
        assert re.match(r"(not run: \w|run by: tests/)", comment), comment
    elif block.language == "bash":
        assert all(QUICK.fullmatch(line) for line in block.code.splitlines()), "add a comment above it, or to QUICK"
    for test in re.findall(r"tests/[\w/.]*\w", comment):
        assert (ROOT / test).exists(), f"{test} does not exist"


@pytest.mark.parametrize("block", [block for block in RUN if block.language == "python"], ids=str)
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, str(block), "exec"), {})


@pytest.mark.parametrize("block", [block for block in RUN if block.language == "bash"], ids=str)
def test_bash_blocks_run(block, outputs):
    for words in commands_of(block):
        assert outputs[" ".join(words[1:])]


# Commands and their options


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command of a bash block."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def scripts_with_options() -> list[tuple[Block, str, set[str]]]:
    """Every script or module of ours that a block calls, with the options it is given."""
    found = []
    for block in BLOCKS:
        for words in commands_of(block) if block.language == "bash" else ():
            script = next((word for word in words if re.fullmatch(r"[\w/]+\.(py|sh)", word)), None)
            # Options before a script are the launcher's.
            own = words[words.index(script) :] if script else words
            given = {word.partition("=")[0] for word in own if word.startswith("--")}
            if words[:2] == ["python", "-m"] and given:
                found.append((block, f"-m {words[2]}", given))
            elif script:
                # The shell scripts hand their options to the Python script beside them.
                target = re.sub(r"(dist|slurm)_(train\w*|test)\.sh", r"\2.py", script)
                found.append((block, target, given))
    return [item for item in found if re.match(rf"(-m )?({'|'.join(FOLDERS)}|tensorrt)[/.]|predict_onnx", item[1])]


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What the quick commands print, and every script that a page names with `--help`; nothing where one fails.

    In one process for all, because most of the time goes into imports.
    """
    quick = [words[1:] for block in RUN if block.language == "bash" for words in commands_of(block)]
    scripts = sorted({script for _, script, _ in scripts_with_options()})
    program = """if True:
        import contextlib, io, json, runpy, sys, traceback
        texts = {}
        for words in json.loads(sys.argv[1]):
            run = runpy.run_module if words[0] == "-m" else runpy.run_path
            sys.argv, text = words[words[0] == "-m":], io.StringIO()
            try:
                with contextlib.redirect_stdout(text):
                    run(sys.argv[0], run_name="__main__")
            except BaseException as error:
                if getattr(error, "code", 1):
                    text = io.StringIO()
                    traceback.print_exc()
            texts[" ".join(words)] = text.getvalue()
        print(json.dumps(texts))
    """
    commands = json.dumps(quick + [[*script.split(), "--help"] for script in scripts])
    run = subprocess.run([sys.executable, "-c", program, commands], cwd=ROOT, capture_output=True, text=True)
    print(run.stderr, file=sys.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def test_every_script_is_there_and_knows_the_options_it_is_given(outputs):
    wrong = []
    for block, script, options in scripts_with_options():
        if help := outputs[f"{script} --help"]:
            known = set(re.findall(r"--[\w-]+", help))
            wrong += [f"{block}: {script} has no {option}" for option in sorted(options - known)]
        else:
            wrong.append(f"{block}: {script} is not there, or fails")
    assert not wrong, "\n".join(wrong)


def test_modules_that_are_run_by_name_exist():
    names = {match for block in BLOCKS for match in re.findall(r"python -m ([\w.]+)", block.code)}
    paths = [ROOT / name.replace(".", "/") for name in names if name.partition(".")[0] in FOLDERS]
    assert paths
    assert not [path for path in paths if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists())]


# Links and files


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return set(plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    if page.name in ("migration.md", "CHANGELOG.md"):
        pytest.skip("it names files that are gone")
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.$])((?:{'|'.join(FOLDERS)}|tests|tensorrt)/[\w/.-]*\w\.\w+)(?![\w*<])", text)
    made = re.compile(r"tensorrt/plugin/build/|/_c(pu|uda)\.so")
    assert not [path for path in named if not (ROOT / path).exists() and not made.search(path)]


# README


def test_the_readme_is_short_and_starts_with_a_command():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert "```bash" in lines[:30]


def test_both_readmes_have_the_same_tables():
    tables = [
        re.findall(r"^\| .*https.*$", page.read_text(encoding="utf-8"), re.MULTILINE) for page in (README, CHINESE)
    ]
    assert tables[0] == tables[1]


# Chinese pages


def test_every_chinese_page_names_its_english_pages():
    assert set(TWINS) == {CHINESE.name, *(f"docs/zh/{page.name}" for page in (ROOT / "docs/zh").glob("*.md"))}


@pytest.mark.parametrize("chinese", TWINS)
def test_a_chinese_page_has_the_blocks_of_the_english_ones_apart_from_comments(chinese):
    def code(blocks: list[Block]) -> list[str]:
        return [re.sub(r"\s*#.*", "", block.code) for block in blocks]

    english = [
        block for twin in TWINS[chinese] for block in blocks_of(ROOT / twin.partition("#")[0], twin.partition("#")[2])
    ]
    assert code(blocks_of(ROOT / chinese)) == code(english)


@pytest.mark.parametrize("chinese", TWINS)
def test_a_chinese_page_writes_no_option_file_or_message_that_the_english_ones_do_not(chinese):
    def code(page: str) -> set[str]:
        spans = re.findall(r"`([^`]+)`", without_code(ROOT / page.partition("#")[0], page.partition("#")[2]))
        return {" ".join(span.split()) for span in spans}

    assert not code(chinese) - set.union(*map(code, TWINS[chinese]))


@pytest.mark.parametrize("chinese", TWINS)
def test_a_chinese_page_and_its_english_pages_link_to_each_other(chinese):
    def links(text: str) -> set[str]:
        return set(re.findall(r"\]\(([^)\s#]+)", text))

    page = ROOT / chinese
    for twin in TWINS[chinese]:
        english, _, section = twin.partition("#")
        for start, goal, text in (
            (page, ROOT / english, text_of(page)),
            (ROOT / english, page, text_of(ROOT / english, section)),
        ):
            assert os.path.relpath(goal, start.parent) in links("\n".join(text.splitlines()[:8])), start


def test_every_page_is_in_the_index_and_in_the_navigation_of_the_site():
    docs = ROOT / "docs"
    index, site = (docs / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md") if page.name != "index.md"]
    assert not [page for page in pages if f"]({page})" not in index or f": {page}" not in site]
