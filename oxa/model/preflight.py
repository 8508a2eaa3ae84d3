"""Whether a checkpoint can be a student at all: what is wrong with it, a sentence each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oxa.config.prompt import Prompt
from oxa.errors import DataError
from oxa.model import adapters, limits, loading
from oxa.prompts import END_THINK, PLAIN_TEMPLATE, THINK, prompt_ids, user_turn

QUESTION = "What is 4 + 5?"


PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


REMEDY = "set base.chat_template: plain, or to the name of a template's file in sources.folder"
PLAIN = "plain"
DATES = ("02 Jan 2020", "31 Dec 2039")  # no template gives both


RESPONSE = f"{THINK} 4 + 5 is 9. {END_THINK} \\boxed{{9}}"


def check_files(folder: Path) -> None:
    """Refuses a checkpoint folder that wants to run code, or whose weights are not whole safetensors within it.

    Raises DataError, one sentence that names the file. Nothing of the folder is executed or unpickled for that. Links
    are followed: the hub's own cache consists of them.
    """
    if (folder / adapters.CONFIG).exists():
        raise DataError(
            f"{folder}: an adapter, which base.model alone takes; merge it into its base (peft's merge_and_unload)"
        )
    _check_settings(folder)
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
        weights = f"only {pickled[0]}, a pickle, which may run code when it is read" if pickled else "none"
        raise DataError(
            f"{folder}: no usable model: weights are read from model.safetensors, and there is {weights}; convert them "
            "(save_pretrained writes safetensors)"
        )
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise DataError(f"{index}: names {name!r}, which is no .safetensors file beside it; take it anew")
        if not (folder / name).exists():
            raise DataError(f"{folder / name}: missing, though {index.name} names it; take the rest of it")
        _check_whole(folder / name)


def check_adapter(folder: Path) -> adapters.Based:
    """What the adapter in a folder changes; refused where its files are not sound, or it is none that can be merged."""
    _check_settings(folder)
    if not (folder / adapters.WEIGHTS).exists():
        raise DataError(f"{folder}: an adapter without {adapters.WEIGHTS}; {adapters.REMEDY}")
    _check_whole(folder / adapters.WEIGHTS)
    return adapters.stands_on(folder, _read_object(folder / adapters.CONFIG))


def _check_settings(folder: Path) -> None:
    for path in folder.iterdir():
        if not (path.is_file() or path.is_dir()):
            raise DataError(
                f"{path}: neither a file nor a folder, or a link to nowhere; take the checkpoint anew"
            )
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_object(folder / name):
            raise DataError(wants_code(folder, name))
    for name in ("tokenizer.json", "generation_config.json"):
        _read_object(folder / name)


def _check_whole(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not whole safetensors ({error}); take it anew") from None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one where there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); take it anew") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(value).__name__}; take it anew")
    return value


def wants_code(model: str | Path, name: str) -> str:
    return (
        f"{model}: its {name} asks for code of its own (auto_map), which never runs here; take a checkpoint in the "
        "layout of transformers, or, where transformers knows this architecture itself, take `auto_map` out of the file"
    )


def chosen_template(name: str | None, folder: Path) -> str | None:
    """The text of `base.chat_template`; `folder` is sources.folder. None: the model's own."""
    if name is None or name == PLAIN:
        return PLAIN_TEMPLATE if name else None
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise DataError(
            f"base.chat_template: {folder / name}: {why}; name a Jinja file in sources.folder, or `{PLAIN}`"
        ) from None


def check_checkpoint(
    model: str | Path,
    prompt: Prompt,
    revision: str | None = None,
    *,
    template: str | None = None,
    is_student: bool = True,
) -> list[str]:
    """`check_student` of a checkpoint folder or hub id, or `check_sampler`; of folders the weights' values, too.

    A student may be an adapter, which is checked with its base. `template` stands in place of its own.
    """
    faults = read(model, prompt, revision, template=template, is_student=is_student)
    if Path(model).is_dir():
        based = find_base(model) if is_student else None
        for part in (model, *((based.base,) if based else ())):
            faults += _weight_faults(Path(part)) if Path(part).is_dir() else []
    return faults


def find_base(model: str | Path, revision: str | None = None) -> adapters.Based | None:
    """What a folder's or hub id's adapter changes; None of a model. Raises DataError of an adapter that is refused."""
    folder = adapters.folder(model, revision)
    return limits.call(f"{model}: no usable adapter", check_adapter, folder) if folder else None


def read(
    model: str | Path,
    prompt: Prompt,
    revision: str | None = None,
    *,
    template: str | None = None,
    is_student: bool = True,
) -> list[str]:
    """The same without the weights' values: of a folder, or of a hub id's configuration and tokenizer.

    In a process with limits: a configuration from elsewhere may ask for a billion layers, a template loop for ever.
    Raises DataError where they cannot be read within them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401  # or each fork would

    based = find_base(model, revision) if is_student else None
    network, tokenizer = (based.base, based.tokenizer) if based else (model, model)
    revision = based.revision if based else revision
    if Path(network).is_dir():
        limits.call(f"{network}: no usable model", check_files, Path(network))
    limits.call(f"{network}: no usable model: config.json or the tokenizer's files", _read, network, revision)
    if based:
        limits.call(f"{model}: no usable adapter", adapters.check_fit, based)
    reading = f"{model}: not usable as a student: its chat template"
    return limits.call(reading, _check, tokenizer, network, prompt, revision, template, is_student)


def _read(model: str | Path, revision: str | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    config = loading.load_config(model, revision=revision)
    _generation_config(model, revision, config)
    if Path(model).is_dir():
        loading.load(model, device=torch.device("meta"), dtype=torch.float32)
        return
    loading.load_tokenizer(model, revision=revision)
    quantised = getattr(config, "quantization_config", None)
    if quantised and AutoHfQuantizer.supports_quant_method(quantised):  # else it is read as if it were not
        quantiser = AutoHfQuantizer.from_config(quantised, pre_quantized=True)
        quantiser.validate_environment(device_map=None, weights_only=True)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config)


def _generation_config(model: str | Path, revision: str | None, model_config: Any) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(model), revision=revision or "main")
    except OSError:  # a checkpoint may do without one; the model's own configuration then tells the end
        return GenerationConfig.from_model_config(model_config)
    except ValueError as error:
        raise DataError(
            f"{model}: no usable generation_config.json: {loading.first_line(error)}; take it anew, or take it away"
        ) from None


def _check(
    tokenizer_at: str | Path,
    model: str | Path,
    prompt: Prompt,
    revision: str | None,
    template: str | None,
    is_student: bool,
) -> list[str]:
    tokenizer = loading.load_tokenizer(tokenizer_at, revision=revision)
    if template is not None:
        tokenizer.chat_template = template
    model_config = loading.load_config(model, revision=revision)
    generation_config = _generation_config(model, revision, model_config)
    check = check_student if is_student else check_sampler
    return check(tokenizer, model_config, generation_config, prompt)


def _weight_faults(folder: Path) -> list[str]:
    import torch
    from safetensors import safe_open

    wrong = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel():
                    # which takes no memory, and knows no 8-bit numbers
                    ends = torch.stack((tensor if tensor.element_size() > 1 else tensor.float()).aminmax())
                    if not ends.isfinite().all():
                        wrong.append(name)
    if not wrong:
        return []
    return [
        f"{len(wrong)} of its weights hold NaN or infinity, {wrong[0]} for one; take the checkpoint anew."
    ]


def check_student(tokenizer: Any, model_config: Any, generation_config: Any, prompt: Prompt) -> list[str]:
    """What makes the student unusable, a sentence each; empty if nothing does."""
    user = user_turn(QUESTION, prompt.suffix)
    if faults := _unshown(tokenizer, user, REMEDY):
        return faults
    question, answered = _turns(tokenizer, user)
    if RESPONSE not in answered:
        faults.append(
            "The chat template drops or rewrites <think>…</think> in an assistant message, which must stay as it is; "
            f"{REMEDY}."
        )
    faults += _question_faults(tokenizer, user, REMEDY)
    if THINK in question.rpartition(user)[2]:
        faults.append(
            "The chat template opens <think> in the generation prompt, and a response's own <think> would be doubled; "
            f"the generation prompt must end with the assistant's role: {REMEDY}."
        )
    faults += _end_faults(tokenizer, model_config, generation_config)
    # as the tokenizer reads it by itself: a tag that is a control token of its own would be cut out of the text
    spelt = tokenizer(RESPONSE, add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(spelt, skip_special_tokens=True)
    for part in (THINK, END_THINK, "\\boxed{9}"):
        if part not in decoded:
            faults.append(f"The tokenizer does not give {part} back: it reads {RESPONSE!r} as {decoded!r}.")
    if not spelt:
        faults.append("The tokenizer gives a response no tokens, so that nothing would carry loss.")
    else:
        faults += _room_faults(tokenizer, model_config, user)
    return faults


def check_sampler(tokenizer: Any, model_config: Any, generation_config: Any, prompt: Prompt) -> list[str]:
    """What makes a model unusable as `sample.model`: less than of a student, since it only answers."""
    remedy = "put one into its folder (chat_template.jinja); a hub's model is to be downloaded for that"
    user = user_turn(QUESTION, prompt.suffix)
    return _unshown(tokenizer, user, remedy) or [
        *_question_faults(tokenizer, user, remedy),
        *_end_faults(tokenizer, model_config, generation_config),
        *_room_faults(tokenizer, model_config, user),
    ]


def _turns(tokenizer: Any, user: str, **variables: Any) -> tuple[str, str]:
    """The rendered question with the generation prompt, and with an answer; `variables` of the template."""
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": RESPONSE}]
    return (
        str(
            tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True, **variables)
        ),
        str(tokenizer.apply_chat_template(turns, tokenize=False, **variables)),
    )


def _unshown(tokenizer: Any, user: str, remedy: str) -> list[str]:
    """Why the template shows nothing at all; empty where it does."""
    import jinja2

    if not getattr(tokenizer, "chat_template", None):
        return [f"The tokenizer has no chat template; {remedy}."]
    try:
        _turns(tokenizer, user)
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
    return []


def _question_faults(tokenizer: Any, user: str, remedy: str) -> list[str]:
    """Prompts that are not the question's own, or not the same from one day to the next."""
    faults = []
    question = _turns(tokenizer, user)[0]
    if user not in question:
        faults.append(f"The chat template rewrites the user's message, which must stay as it is; {remedy}.")
    # a template that writes a date asks transformers' function for it; what it is given here stands in its place
    dated = {_turns(tokenizer, user, strftime_now=lambda _, date=date: date) for date in DATES}
    draws = _draws(tokenizer.get_chat_template())
    if draws or len(dated) > 1:
        what = "what is drawn at random" if draws else "today's date"
        faults.append(
            f"The chat template writes {what} into the prompt, so that prompts would change while nothing that DVC "
            f"watches does; take a template without it: {remedy}."
        )
    return faults


def _draws(template: str) -> bool:
    """Whether it names what Jinja draws at random: the filter `random`, the function `lipsum`."""
    import jinja2

    names = [text for _, kind, text in jinja2.Environment().lex(template) if kind == "name"]
    return not {"random", "lipsum"}.isdisjoint(names)


def _room_faults(tokenizer: Any, model_config: Any, user: str) -> list[str]:
    num_prompt, longest = len(prompt_ids(tokenizer, user)), loading.context_length(model_config)
    if num_prompt < longest:
        return []
    return [
        f"The prompt alone takes {num_prompt} of {longest} positions, so that no token of a response would carry "
        "loss; shorten prompt.suffix or raise max_position_embeddings."
    ]


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
