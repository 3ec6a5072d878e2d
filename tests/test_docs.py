"""What code, configurations and texts cite exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORMULAS = ROOT / "docs/formulas.md"
PLACES = ("benchmarks", "conf", "distill", "docs", "kernels", "student", "teacher_dump", "tests")
FILES = [file for place in PLACES for file in (ROOT / place).rglob("*") if file.suffix in {".md", ".py", ".yaml"}]
FILES += ROOT.glob("*.md")
CITATION = re.compile(r"docs/formulas\.md((?:(?:,| and| to)? \d+\.\d+)+)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
TEXTS = [file for file in FILES if file.suffix == ".md"]


def test_cited_documents_are_in_the_repository():
    cited = {(name, file) for file in FILES for name in re.findall(r"[\w./-]*\w\.md\b", file.read_text())}
    assert len({file for name, file in cited if name == "docs/formulas.md"}) > 30
    absent = [(name, file) for name, file in cited if not any((at / name).is_file() for at in (ROOT, file.parent))]
    assert not absent


def test_links_lead_somewhere():
    linked = {(file, link) for file in TEXTS for link in LINK.findall(file.read_text())}
    assert len(linked) > 20
    for file, link in linked:
        path, _, section = link.partition("#")
        if not path.startswith("https://"):
            page = (file.parent / path).resolve() if path else file
            assert page.exists(), f"{file} links to {link}"
            assert not section or section in sections_of(page), f"{file} links to {link}"


def sections_of(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_named_files_and_modules_exist():
    """Those that a text names by their path in the repository."""
    for file in TEXTS:
        for name in re.findall(rf"(?<![\w./-])((?:{'|'.join(PLACES)})/[\w./-]*\w)", file.read_text()):
            assert (ROOT / name).exists() or (file.parent / name).exists(), f"{file} names {name}"
        for module in re.findall(r"python -m ([\w.]+)", file.read_text()):
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), f"{file} names {module}"


def test_cited_sections_exist():
    sections = set(re.findall(r"^\*\*(\d+\.\d+) ", FORMULAS.read_text(), re.MULTILINE))
    for file in set(FILES) - {FORMULAS, Path(__file__)}:
        text = re.sub(r"\s+(# )?\s*", " ", file.read_text())  # citations may be broken across lines
        text = re.sub(r"\[[^]]*\]\([^)]*\)", "", text)  # links are to the whole page
        cited = CITATION.findall(text)
        assert len(cited) == text.count("docs/formulas.md"), f"{file} cites no section"
        absent = set(re.findall(r"\d+\.\d+", " ".join(cited))) - sections
        assert not absent, file


def test_sections_are_in_order_and_their_references_are_listed():
    text = FORMULAS.read_text()
    sections = [(int(n), int(m)) for n, m in re.findall(r"^\*\*(\d+)\.(\d+) ", text, re.MULTILINE)]
    assert sections == sorted(set(sections))
    listed = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    cited = {number for numbers in re.findall(r"\[(\d+(?:, \d+)*)\]", text) for number in numbers.split(", ")}
    assert cited == set(listed)
