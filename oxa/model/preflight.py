"""Whether a checkpoint can be a student at all: what is wrong with it, a sentence each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oxa.config.prompt import Prompt
from oxa.errors import DataError
from oxa.model import limits, loading
from oxa.prompts import END_THINK, THINK, prompt_ids, response_ids, user_turn

QUESTION = "What is 4 + 5?"


PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


RESPONSE = f"{THINK} 4 + 5 is 9. {END_THINK} \\boxed{{9}}"


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


def check_checkpoint(model: str | Path, prompt: Prompt, revision: str | None = None) -> list[str]:
    """What makes a checkpoint folder or hub id unusable as a student, the values of a folder's weights included."""
    return read(model, prompt, revision) + (_weight_faults(Path(model)) if Path(model).is_dir() else [])


def read(model: str | Path, prompt: Prompt, revision: str | None = None) -> list[str]:
    """`check_student` of a checkpoint folder, or of a hub id's configuration and tokenizer; no weights are loaded.

    In a process with limits: a configuration from elsewhere may ask for a billion layers, a template loop for ever.
    Raises DataError where they cannot be read within them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401  # or each fork would

    if Path(model).is_dir():
        limits.call(f"{model}: no usable model", check_files, Path(model))
    limits.call(f"{model}: no usable model: config.json or the tokenizer's files", _read, model, revision)
    template = f"{model}: not usable as a student: its chat template"
    return limits.call(template, _check, model, prompt, revision)


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


def _check(model: str | Path, prompt: Prompt, revision: str | None) -> list[str]:
    tokenizer = loading.load_tokenizer(model, revision=revision)
    model_config = loading.load_config(model, revision=revision)
    generation_config = _generation_config(model, revision, model_config)
    return check_student(tokenizer, model_config, generation_config, prompt)


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
    import jinja2

    user = user_turn(QUESTION, prompt.suffix)
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": RESPONSE}]
    if not getattr(tokenizer, "chat_template", None):
        return ["The tokenizer has no chat template; add one (tokenizer.chat_template) to the checkpoint."]
    try:
        question = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
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
    if user not in question:
        faults.append("The chat template rewrites the user's message; use one that keeps it as it is.")
    if THINK in question.rpartition(user)[2]:
        faults.append(
            "The chat template opens <think> in the generation prompt, and a response's own <think> would be doubled; "
            "use a template whose generation prompt ends with the assistant's role."
        )
    faults += _end_faults(tokenizer, model_config, generation_config)
    decoded = tokenizer.decode(response_ids(tokenizer, RESPONSE, end=False), skip_special_tokens=True)
    for part in (THINK, END_THINK, "\\boxed{9}"):
        if part not in decoded:
            faults.append(f"The tokenizer does not give {part} back: it reads {RESPONSE!r} as {decoded!r}.")
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
