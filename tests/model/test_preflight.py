"""The preflight: what makes a checkpoint unusable as a student."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from conftest import CHAT_TEMPLATE, SHARED_DATA
from oxa.config.prompt import Prompt
from oxa.errors import DataError
from oxa.model import loading, preflight

SHARED_CASES = SHARED_DATA.parent / "cases"
NO_SUFFIX = Prompt(suffix="")


@pytest.fixture(scope="module")
def student(checkpoint: Path) -> tuple[Any, Any, Any]:
    """A sound student's tokenizer, model configuration and generation configuration."""
    return (
        AutoTokenizer.from_pretrained(checkpoint),
        AutoConfig.from_pretrained(checkpoint),
        GenerationConfig.from_pretrained(checkpoint),
    )


def faults(student: tuple[Any, Any, Any], prompt: Prompt = NO_SUFFIX, **changes: Any) -> list[str]:
    """What the preflight says when the student's tokenizer has these attributes changed."""
    import copy

    tokenizer, model_config, generation_config = copy.deepcopy(student)
    for name, value in changes.items():
        holder = generation_config if name == "generation_eos" else tokenizer
        setattr(holder, "eos_token_id" if name == "generation_eos" else name, value)
    return preflight.check_student(tokenizer, model_config, generation_config, prompt)


def test_a_sound_student_passes_with_and_without_the_papers_suffix(student: tuple[Any, Any, Any]) -> None:
    assert faults(student) == []
    assert faults(student, Prompt()) == []  # the suffix itself speaks of <think>


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("message['content'].split('</think>')[-1]", "drops or rewrites"),
        ("'<think>\\n' + message['content'].split('<think>')[-1].strip()", "drops or rewrites"),
    ],
)
def test_a_template_that_touches_think_is_refused(
    student: tuple[Any, Any, Any], content: str, why: str
) -> None:
    template = CHAT_TEMPLATE.replace("message['content']", content)
    found = faults(student, chat_template=template)
    assert len(found) == 1
    assert why in found[0]


def test_a_template_that_opens_think_itself_is_refused(student: tuple[Any, Any, Any]) -> None:
    template = CHAT_TEMPLATE.replace(
        "{{ '<|assistant|>' }}{% endif %}", "{{ '<|assistant|><think>\\n' }}{% endif %}"
    )
    for prompt in (NO_SUFFIX, Prompt()):
        (found,) = faults(student, prompt, chat_template=template)
        assert "doubled" in found


def test_a_template_that_rewrites_the_question_or_cannot_be_rendered_is_refused(
    student: tuple[Any, Any, Any],
) -> None:
    template = CHAT_TEMPLATE.replace("message['content']", "(message['content'] | replace('+', 'plus'))")
    assert any("rewrites the user's message" in fault for fault in faults(student, chat_template=template))
    (found,) = faults(student, chat_template="{{ raise_exception('only in French') }}")
    assert "only in French" in found
    (found,) = faults(student, chat_template=None)
    assert "no chat template; set base.chat_template: plain" in found


LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}"
    "{%- endif %}{%- endif %}{{- 'Today: ' + date_string }}"
)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE, "today's date"),
        (LLAMA + CHAT_TEMPLATE, "today's date"),
        (
            CHAT_TEMPLATE + "{% if not add_generation_prompt %}{{ strftime_now('%Y') }}{% endif %}",
            "today's date",
        ),
        ("{{ ['Hi', 'Hello'] | random }}" + CHAT_TEMPLATE, "drawn at random"),
        ("{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + CHAT_TEMPLATE, None),
    ],
)
def test_a_template_whose_prompts_change_overnight_is_refused(
    student: tuple[Any, Any, Any], template: str, why: str | None
) -> None:
    found = faults(student, chat_template=template)
    assert len(found) == (why is not None)
    assert all(why in fault and "base.chat_template: plain" in fault for fault in found)


def test_the_dated_template_of_a_public_report_is_refused(student: tuple[Any, Any, Any]) -> None:
    template = (SHARED_CASES / "inputs" / "dated_template.jinja").read_text()
    (found,) = faults(student, chat_template=template)
    assert "writes today's date into the prompt" in found


def test_the_plain_template_serves_any_student(student: tuple[Any, Any, Any], tmp_path: Path) -> None:
    plain = preflight.chosen_template("plain", tmp_path)
    assert faults(student, chat_template=plain) == []
    (tmp_path / "own.jinja").write_text(CHAT_TEMPLATE)
    assert preflight.chosen_template("own.jinja", tmp_path) == CHAT_TEMPLATE
    assert preflight.chosen_template(None, tmp_path) is None
    with pytest.raises(
        DataError, match=r"base.chat_template: .*none.jinja: No such file.*name a Jinja file in"
    ):
        preflight.chosen_template("none.jinja", tmp_path)
    (tmp_path / "own.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="not UTF-8"):
        preflight.chosen_template("own.jinja", tmp_path)


def test_a_model_that_only_samples_may_open_think_but_needs_a_template(student: tuple[Any, Any, Any]) -> None:
    tokenizer, *configs = student
    opens = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}")
    with_template = {None: 1, opens: 0, "{{ strftime_now('%d') }}" + opens: 1}
    for template, number in with_template.items():
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        found = preflight.check_sampler(other, *configs, NO_SUFFIX)
        assert len(found) == number
        assert all("chat_template.jinja" in fault for fault in found)


def test_an_end_that_is_missing_or_does_not_end_generation_is_refused(student: tuple[Any, Any, Any]) -> None:
    (found,) = faults(student, generation_eos=0)
    assert "generation ends at 0" in found
    assert faults(student, generation_eos=[0, student[0].eos_token_id]) == []
    assert faults(student, generation_eos=None) == []  # then the model's own configuration tells
    assert any("no end-of-sequence token" in fault for fault in faults(student, eos_token=None))


def test_a_prompt_that_leaves_no_room_for_a_response_is_refused(student: tuple[Any, Any, Any]) -> None:
    (found,) = faults(student, Prompt(suffix=" and" * 300))
    assert "of 1024 positions" in found


def test_a_model_that_names_no_longest_sequence_has_room(student: tuple[Any, Any, Any]) -> None:
    tokenizer, _, generation_config = student
    bloom = AutoConfig.for_model("bloom")
    assert not hasattr(bloom, "max_position_embeddings")
    assert preflight.check_student(tokenizer, bloom, generation_config, Prompt()) == []
    assert loading.context_length(bloom) > 10**9
    nested = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 77})
    assert loading.context_length(nested) == 77


def test_generation_settings_that_cannot_be_read_are_told_in_a_sentence(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"num_beams": 3, "num_return_sequences": 8}')
    with pytest.raises(
        DataError, match=r"no usable generation_config.json: .*; take it anew, or take it away"
    ):
        preflight.check_checkpoint(folder, NO_SUFFIX)


def test_a_tokenizer_that_does_not_give_the_tags_back_is_refused(student: tuple[Any, Any, Any]) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(vocab={"<|end|>": 0, "W": 1}, merges=[]))  # what it does not know, it drops
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|end|>", chat_template=CHAT_TEMPLATE.replace("<|end|>", "")
    )
    generation = GenerationConfig(eos_token_id=0)
    found = preflight.check_student(tokenizer, student[1], generation, NO_SUFFIX)
    assert sum("does not give" in fault for fault in found) == 3
    assert any("nothing would carry loss" in fault for fault in found)


def test_a_tokenizer_that_hides_think_as_a_special_token_is_refused(student: tuple[Any, Any, Any]) -> None:
    import copy

    tokenizer = copy.deepcopy(student[0])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    found = preflight.check_student(tokenizer, student[1], student[2], NO_SUFFIX)
    assert len(found) == 1
    assert "does not give <think> back" in found[0]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('touch owned') }}", "unsafe"),
        ("{{ lipsum.__globals__['os'].popen('touch owned').read() }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages[7].content.strip() }}", "no element 7"),
        ("{{ 'a' * 10**15 }}", "asks for too much"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "asks for too much"),
    ],
)
def test_a_template_neither_leaves_its_sandbox_nor_crashes_the_stage(
    student: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = faults(student, chat_template=template)
    assert said in found
    assert not (tmp_path / "owned").exists()
