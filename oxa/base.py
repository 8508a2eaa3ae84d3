"""Stage `base`: the student that everything starts from, as a checkpoint folder in safetensors.

Either a tiny one, pretrained here (oxa/pretrain.py), or a published one with small edits: the rotary base, the context
length, and no default system prompt in the chat template. Both pass the preflight, which refuses a student on which
the pipeline would silently measure something else:

- its template drops or rewrites <think>, or opens <think> itself, so that a response's own would be doubled;
- its end of sequence is missing or does not end generation;
- no token of a response would carry loss;
- its tokenizer does not give <think>, </think> or \\boxed{} back.

A published student's files are untrusted, too. Its weights must be whole safetensors that lie in its folder, and it is
refused where it wants to run code of its own. Its chat template runs in Jinja's sandbox, which keeps it from files and
from Python, and `range` below 100,000; but nested loops may still take for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oxa import config, lm
from oxa.errors import DataError
from oxa.pretrain import pretrain
from oxa.prompts import END_THINK, THINK, prompt_ids, response_ids, user_turn
from oxa.records import Log

QUESTION = "What is 4 + 5?"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
RESPONSE = f"{THINK} 4 + 5 is 9. {END_THINK} \\boxed{{9}}"


def run(
    section: config.FromScratch | config.Checkpoint,
    prompt: config.Prompt,
    world: config.World,
    sources: config.Sources,
    *,
    output: Path,
    scratch: Path,
    log: Log,
) -> dict[str, Any]:
    """Writes the student to `output`; DataError where it could not be used."""
    if isinstance(section, config.FromScratch):
        metrics = pretrain(
            section, prompt, world, Path(sources.folder), output=output, scratch=scratch, log=log
        )
    else:
        metrics = take_over(section, output)
    faults = check_checkpoint(output, prompt)
    if faults:
        name = section.model if isinstance(section, config.Checkpoint) else "the pretrained student"
        raise DataError(f"{name}: not usable as a student: {' '.join(faults)}")
    return metrics


def take_over(section: config.Checkpoint, output: Path) -> dict[str, Any]:
    """Writes a published checkpoint with the edits, its weights in their own precision."""
    import torch
    from transformers import AutoConfig

    path = Path(section.model) if Path(section.model).is_dir() else section.model
    if isinstance(path, Path):
        check_files(path)
    try:
        found = AutoConfig.from_pretrained(
            str(path), revision=section.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no usable model: {str(error).splitlines()[0]}") from None
    if getattr(found, "auto_map", None):
        raise DataError(_wants_code(path, "config.json"))
    dtype = found.dtype if isinstance(found.dtype, torch.dtype) else torch.float32
    model, tokenizer = lm.load(path, dtype=dtype, device=torch.device("cpu"), revision=section.revision)
    if tokenizer.init_kwargs.get("auto_map"):
        raise DataError(_wants_code(path, "tokenizer_config.json"))
    if section.rope_theta is not None:
        rope = getattr(model.config, "rope_parameters", None)
        if not rope or "rope_theta" not in rope:
            raise DataError(f"{path}: base.rope_theta cannot be set, the model has no single rotary base")
        rope["rope_theta"] = section.rope_theta
    if section.max_position_embeddings is not None:
        model.config.max_position_embeddings = section.max_position_embeddings
        tokenizer.model_max_length = section.max_position_embeddings
    if section.drop_system_prompt:
        tokenizer.chat_template = without_system_prompt(tokenizer)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return {"num_parameters": model.num_parameters(), "vocab_size": len(tokenizer)}


def check_files(folder: Path) -> None:
    """Refuses a checkpoint folder that wants to run code, or whose weights are not whole safetensors within it.

    Raises DataError, one sentence that names the file. Nothing of the folder is executed or unpickled for that. Links
    are followed: the hub's own cache consists of them.
    """
    from safetensors import SafetensorError, safe_open

    if (folder / "adapter_config.json").exists():
        raise DataError(
            f"{folder}: an adapter, not a model; merge it into its base (peft's merge_and_unload) first"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_object(folder / name):
            raise DataError(_wants_code(folder, name))
    for name in ("tokenizer.json", "generation_config.json"):
        _read_object(folder / name)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        names = ["model.safetensors"]
    elif index.exists():
        shards = _read_object(index).get("weight_map")
        if (
            not isinstance(shards, dict)
            or not shards
            or not all(isinstance(one, str) for one in shards.values())
        ):
            raise DataError(
                f"{index}: its weight_map does not say which file holds which weight; take it anew"
            )
        names = sorted(set(shards.values()))
    else:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = f"only {pickled[0]}, a pickle, which may run code when it is read" if pickled else "none"
        raise DataError(
            f"{folder}: no usable model: weights are read from model.safetensors, and there is {found}; convert them "
            "(save_pretrained writes safetensors)"
        )
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DataError(f"{index}: names {name!r}, which is no .safetensors file beside it; take it anew")
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except FileNotFoundError:
            raise DataError(
                f"{folder / name}: missing, though {index.name} names it; take the rest of it"
            ) from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{folder / name}: not whole safetensors ({error}); take it anew") from None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); take it anew") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(found).__name__}; take it anew")
    return found


def _wants_code(model: str | Path, name: str) -> str:
    return (
        f"{model}: its {name} asks for code of its own (auto_map), which never runs here; take a checkpoint in the "
        "layout of transformers, or, where transformers knows this architecture itself, take `auto_map` out of the file"
    )


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
    before, found, after = explicit.partition(mark)
    default = (
        plain[len(before) : len(plain) - len(after)]
        if plain.startswith(before) and plain.endswith(after)
        else ""
    )
    if not found or not default or len(before) + len(after) >= len(plain):
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


def check_checkpoint(model: str | Path, prompt: config.Prompt, revision: str | None = None) -> list[str]:
    """`check_student` of a checkpoint folder or hub id; no weights are loaded."""
    from transformers import AutoConfig, GenerationConfig

    tokenizer = lm.load_tokenizer(model, revision=revision)
    version = revision or "main"
    try:
        model_config = AutoConfig.from_pretrained(str(model), revision=version, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{model}: no usable model: {str(error).splitlines()[0]}") from None
    try:
        generation_config = GenerationConfig.from_pretrained(str(model), revision=version)
    except OSError:  # a checkpoint may do without one; the model's own configuration then tells the end
        generation_config = GenerationConfig.from_model_config(model_config)
    return check_student(tokenizer, model_config, generation_config, prompt)


def check_student(
    tokenizer: Any, model_config: Any, generation_config: Any, prompt: config.Prompt
) -> list[str]:
    """What makes the student unusable, a sentence each; empty if nothing does."""
    import jinja2

    user = user_turn(QUESTION, prompt.suffix)
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": RESPONSE}]
    if not getattr(tokenizer, "chat_template", None):
        return ["The tokenizer has no chat template; add one (tokenizer.chat_template) to the checkpoint."]
    try:
        asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template(turns, tokenize=False)
    except (
        jinja2.TemplateError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        return [f"The chat template cannot render one user and one assistant turn ({error})."]
    except (MemoryError, RecursionError) as error:
        return [f"The chat template asks for too much to render two turns ({type(error).__name__})."]
    faults = []
    if RESPONSE not in answered:
        faults.append(
            "The chat template drops or rewrites <think>…</think> in an assistant message; use a template that keeps "
            "the message's content as it is."
        )
    if user not in asked:
        faults.append("The chat template rewrites the user's message; use one that keeps it as it is.")
    if THINK in asked.rpartition(user)[2]:
        faults.append(
            "The chat template opens <think> in the generation prompt, and a response's own <think> would be doubled; "
            "use a template whose generation prompt ends with the assistant's role."
        )
    faults += _end_faults(tokenizer, model_config, generation_config)
    kept = tokenizer.decode(response_ids(tokenizer, RESPONSE, end=False), skip_special_tokens=True)
    for part in (THINK, END_THINK, "\\boxed{9}"):
        if part not in kept:
            faults.append(f"The tokenizer does not give {part} back: it reads {RESPONSE!r} as {kept!r}.")
    num_prompt, longest = (
        len(prompt_ids(tokenizer, user)),
        getattr(model_config, "max_position_embeddings", None),
    )
    if not response_ids(tokenizer, RESPONSE, end=False):
        faults.append("The tokenizer gives a response no tokens, so that nothing would carry loss.")
    elif longest is not None and num_prompt >= longest:
        faults.append(
            f"The prompt alone takes {num_prompt} of {longest} positions, so that no token of a response would carry "
            "loss; shorten prompt.suffix or raise max_position_embeddings."
        )
    return faults


def _end_faults(tokenizer: Any, model_config: Any, generation_config: Any) -> list[str]:
    if tokenizer.eos_token_id is None:
        return ["The tokenizer has no end-of-sequence token, so that no response would ever end."]
    ends = generation_config.eos_token_id
    if ends is None:
        ends = getattr(model_config, "eos_token_id", None)
    if tokenizer.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        return [
            f"The tokenizer ends a response with {tokenizer.eos_token!r} ({tokenizer.eos_token_id}), but generation "
            f"ends at {ends}; set eos_token_id in generation_config.json."
        ]
    return []
