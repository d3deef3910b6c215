"""The how-tos name keys, flags, commands, metrics and files that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainer.config.compose import METHODS
from trainer.config.flags import NAMES
from trainer.config.published import REASONS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
KEYS = (ROOT / "tests/trainer/config_keys.txt").read_text().split()
KEY = re.compile(
    r"\b(?:data|actor_rollout_ref|algorithm|reward|reward_model|custom_reward_function|trainer|self_distillation|policy_loss)"
    r"(?:\.[a-z][a-z0-9_]*)+(?![\w.*]*\*|/)"
)
COLUMNS = {"reward_model.ground_truth"}
LATER = {"mine"}
"""What the reader is told to make."""


def is_known(key: str, line: str) -> bool:
    """Whether a dotted name is a key, a section of keys, a module, or one that its line says is refused."""
    whole = f"actor_rollout_ref.actor.{key}" if key.startswith(("self_distillation", "policy_loss")) else key
    if any(known == whole or known.startswith(whole + ".") for known in KEYS):
        return True
    if key in COLUMNS or (ROOT / f"{key.replace('.', '/')}.py").is_file():
        return True
    return whole in REASONS and "refused" in line


def unknown_keys(text: str) -> list[str]:
    """Dotted names that are none."""
    text = re.sub(r"-m [\w.]+|[\w/]+\.(?:py|yaml|md|json|jsonl|parquet)\b", "", text)
    return [key for line in text.splitlines() for key in KEY.findall(line) if not is_known(key, line)]


def sections(text: str) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_how_to_names_what_there_is(page: Path) -> None:
    text = page.read_text()
    assert not unknown_keys(text)
    named = set(re.findall(r"\b([A-Z][A-Z_]*[A-Z])=", text)) - {"S"}
    scripts = [
        path.read_text() for path in [*ROOT.glob("*.sh"), *ROOT.glob("trainer/*.sh"), *ROOT.glob("experiments/**/*.s*")]
    ]
    assert {name for name in named - NAMES if not any(name in script for script in scripts)} == set()
    modules = set(re.findall(r"-m (trainer\.[\w.]+)", text))
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)
    called = set(re.findall(r"(?:bash|python) ((?:\w+/)*\w+\.(?:sh|py))\b", text))
    assert all((ROOT / script).is_file() for script in called)
    assert set(re.findall(r"--config-name ([a-z_]+)", text)) <= {*METHODS, *LATER}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "docs" / "images.md", ROOT / "docs" / "export.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.is_file(), target
        assert not anchor or anchor in sections(linked.read_text()), target


def test_the_metrics_of_the_report_are_documented() -> None:
    named = set(
        re.findall(r"`((?:critic|self_distillation|rollout_corr|response_length)/[\w/]+)`", page("reading-the-report"))
    )
    documented = (ROOT / "docs" / "metrics.md").read_text()
    assert named
    assert all(f"`{name}`" in documented for name in named)


def test_the_preset_of_the_page_is_one() -> None:
    """Its keys are checked above; here, that it is built like the project's own."""
    [preset] = re.findall(r"```yaml\n(.*?)```", page("own-method"), re.S)
    own = (ROOT / "trainer" / "config" / "opsd.yaml").read_text()
    start = "actor_rollout_ref:"
    assert preset.partition(start)[0].splitlines()[1:] == own.partition(start)[0].splitlines()[1:]


def test_the_reward_function_of_the_page_works(tmp_path: Path) -> None:
    [source] = re.findall(r"```python\n(.*?)```", page("own-verifier"), re.S)
    space: dict[str, object] = {}
    exec(source, space)
    score = space["compute_score"]
    assert callable(score)
    scores = [
        score(data_source="", solution_str=text, ground_truth="12")["score"]
        for text in ("It is 12", "It is 13.", "no", "")
    ]
    assert scores == [1.0, 0.5, 0.0, 0.0]


def test_a_key_that_is_not_there_would_be_noticed() -> None:
    assert unknown_keys("set `actor_rollout_ref.rollout.nn=8`") == ["actor_rollout_ref.rollout.nn"]
    assert unknown_keys("`trainer.val_only` works") == ["trainer.val_only"]
    assert not unknown_keys("`trainer.val_only` is refused")


def page(name: str) -> str:
    """The text of a how-to."""
    return (ROOT / "docs" / "howto" / f"{name}.md").read_text()
