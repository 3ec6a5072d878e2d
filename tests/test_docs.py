"""What code, configurations and texts cite exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORMULAS = ROOT / "docs/formulas.md"
PLACES = ("benchmarks", "conf", "distill", "docs", "kernels", "student", "teacher_dump", "tests")
FILES = [file for place in PLACES for file in (ROOT / place).rglob("*") if file.suffix in {".md", ".py", ".yaml"}]
FILES += ROOT.glob("*.md")
CITATION = re.compile(r"docs/formulas\.md((?:(?:,| and| to)? \d+\.\d+)+)")


def test_cited_documents_are_in_the_repository():
    cited = {(name, file) for file in FILES for name in re.findall(r"[\w./-]*\w\.md\b", file.read_text())}
    assert len({file for name, file in cited if name == "docs/formulas.md"}) > 30
    absent = [(name, file) for name, file in cited if not any((at / name).is_file() for at in (ROOT, file.parent))]
    assert not absent


def test_cited_sections_exist():
    sections = set(re.findall(r"^\*\*(\d+\.\d+) ", FORMULAS.read_text(), re.MULTILINE))
    for file in set(FILES) - {FORMULAS, Path(__file__)}:
        text = re.sub(r"\s+(# )?\s*", " ", file.read_text())  # citations may be broken across lines
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
