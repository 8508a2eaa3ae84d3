"""Stage `base`: the student that everything starts from, as a checkpoint folder in safetensors.

Either a tiny one, pretrained here (oxa/model/pretrain.py), or a published one with small edits: the rotary base, the
context length, another chat template, or its own without the default system prompt. An adapter (LoRA) is taken, too,
merged into the base that it names (oxa/model/adapters.py). All pass the preflight, which refuses a student on which the
pipeline would silently measure something else:

- its template drops or rewrites <think>, or opens <think> itself, so that a response's own would be doubled;
- its template writes today's date, so that prompts change overnight;
- its end of sequence is missing or does not end generation;
- no token of a response would carry loss;
- its tokenizer does not give <think>, </think> or \\boxed{} back.

A published student's files are untrusted, too, and so are those of an adapter's base. Its weights must be whole
safetensors that lie in its folder, each of them a finite number, and it is refused where it wants to run code of its
own. Its configuration and its chat template, which Jinja's sandbox keeps from files and from Python, are first read and
rendered in a process with limits of time and memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oxa.config.base import Checkpoint, FromScratch
from oxa.config.prompt import Prompt
from oxa.config.sources import Sources
from oxa.errors import DataError
from oxa.model import adapters, limits, loading
from oxa.model.preflight import QUESTION, check_checkpoint, chosen_template, find_base, read, wants_code
from oxa.model.pretrain import pretrain
from oxa.runtime.journal import Log


def run(
    section: FromScratch | Checkpoint,
    prompt: Prompt,
    sources: Sources,
    *,
    output: Path,
    scratch: Path,
    log: Log,
) -> dict[str, Any]:
    """Writes the student to `output`; DataError where it could not be used."""
    if isinstance(section, FromScratch):
        metrics = pretrain(section, prompt, sources, output=output, scratch=scratch, log=log)
    else:
        metrics = take_over(section, output, chosen_template(section.chat_template, Path(sources.folder)))
    faults = check_checkpoint(output, prompt)
    if faults:
        name = section.model if isinstance(section, Checkpoint) else "the pretrained student"
        raise DataError(f"{name}: not usable as a student: {' '.join(faults)}")
    return metrics


def take_over(section: Checkpoint, output: Path, template: str | None = None) -> dict[str, Any]:
    """Writes a published checkpoint with the edits, its weights in their own precision.

    `template` stands in place of its own.
    """
    import torch
    from transformers import GenerationConfig

    path = Path(section.model) if Path(section.model).is_dir() else section.model
    read(path, Prompt(), section.revision, template=template)  # its faults may be mended below
    based = find_base(path, section.revision)
    network, revision = (based.base, based.revision) if based else (path, section.revision)
    config = loading.load_config(network, revision=revision)
    if getattr(config, "auto_map", None):
        raise DataError(wants_code(path, "config.json"))
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    model, tokenizer = loading.load(network, dtype=dtype, device=torch.device("cpu"), revision=revision)
    if based:
        model = adapters.merge(model, based.folder)
        tokenizer = loading.load_tokenizer(based.tokenizer, revision=revision)
    if tokenizer.init_kwargs.get("auto_map"):
        raise DataError(wants_code(path, "tokenizer_config.json"))
    if section.rope_theta is not None:
        rope = getattr(model.config, "rope_parameters", None)
        if not rope or "rope_theta" not in rope:
            raise DataError(f"{path}: base.rope_theta cannot be set, the model has no single rotary base")
        rope["rope_theta"] = section.rope_theta
    if section.max_position_embeddings is not None:
        model.config.get_text_config().max_position_embeddings = section.max_position_embeddings
        tokenizer.model_max_length = section.max_position_embeddings
    if template is not None:
        tokenizer.chat_template = template
    if section.drop_system_prompt:
        reading = f"{path}: not usable as a student: its chat template"
        tokenizer.chat_template = limits.call(reading, without_system_prompt, tokenizer)
    try:
        model.generation_config.validate(strict=True)
    except (
        ValueError
    ):  # a temperature where nothing is drawn, say: transformers reads it and does not write it
        ends = model.generation_config.eos_token_id  # all that is read of it here
        model.generation_config = GenerationConfig(eos_token_id=ends)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return {"num_parameters": model.num_parameters(), "vocab_size": len(tokenizer)}


def without_system_prompt(tokenizer: Any) -> Any:
    """The chat template without the system message that it adds by itself; one given in the chat still works.

    The default is what stands in the place of the content when a system message is added; the template's quoted text
    that holds it goes. Raises DataError where that does not give the same chat without the default.
    """
    import jinja2

    template = tokenizer.chat_template
    if not isinstance(template, str):
        return template  # none at all, which the preflight reports, or several by name, of which none has a default
    mark, user = "\x01system\x01", {"role": "user", "content": QUESTION}

    def render(source: str, *messages: dict[str, str]) -> str:
        return str(tokenizer.apply_chat_template(list(messages), chat_template=source, tokenize=False))

    plain = render(template, user)
    try:
        explicit = render(template, {"role": "system", "content": mark}, user)
    except jinja2.TemplateError:
        return template  # it knows no system messages
    before, is_given, after = explicit.partition(mark)
    default = (
        plain[len(before) : len(plain) - len(after)]
        if plain.startswith(before) and plain.endswith(after)
        else ""
    )
    if not is_given or not default or len(before) + len(after) >= len(plain):
        return template
    edited = template
    for _, kind, literal in jinja2.Environment().lex(template):
        if kind == "string" and default in _unescape(literal):
            edited = edited.replace(literal, "''")
        elif kind == "data" and default in literal:
            edited = edited.replace(literal, "")
    header = before.strip().splitlines()[-1]
    if header in render(edited, user) or explicit != render(
        edited, {"role": "system", "content": mark}, user
    ):
        raise DataError(
            f"the chat template's default system prompt ({default[:60]!r}) cannot be taken out; set "
            "base.drop_system_prompt: false, or give base.model a folder whose template has none"
        )
    return edited


def _unescape(literal: str) -> str:
    """What a quoted text in a template stands for (as Jinja's own parser reads it)."""
    return literal[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
