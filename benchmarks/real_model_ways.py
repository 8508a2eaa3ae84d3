"""One way of real_model.py, in a process of its own: `python real_model_ways.py WAY WORK`, a line of JSON to stdout.

WORK is a file of JSON that real_model.py writes: the model's folder, token ids and settings. The answer maps each part
of the work to its tokens, seconds by the clock and of processor time, and what was computed; and `peak`, MiB. Loading
and a first short batch are outside the clock; processor time and peak are of the process and those that it started.
vLLM's interpreter, which has neither oxa nor transformers' newest, runs this file too: what a way needs it imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

Result = dict[str, Any]
Ways = dict[str, Callable[[Any], Result]]


def processes() -> list[psutil.Process]:
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def processor_seconds() -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes())


def peak() -> float:
    """MiB; what two processes share counts twice."""
    lines = (line for one in processes() for line in Path(f"/proc/{one.pid}/status").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    begun, processor = time.perf_counter(), processor_seconds()
    value = work()
    return value, {"seconds": time.perf_counter() - begun, "processor": processor_seconds() - processor}


def scored(work: Any, score: Callable[[list[list[int]], list[int]], list[float]]) -> Result:
    """Of every set of texts; `score` takes ids and starts, and gives mean NLLs."""
    found: Result = {}
    for name, texts in work["scoring"].items():
        score([texts["ids"][0][: texts["starts"][0] + 16]], texts["starts"][:1])
        nll, spent = timed(lambda texts=texts: score(texts["ids"], texts["starts"]))  # type: ignore[misc]
        found[name] = {"tokens": sum(map(len, texts["ids"])), "nll": nll, **spent}
    return found


def _model(work: Any, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(work["model"], dtype=getattr(torch, dtype)).eval()


def score_by_oxa(work: Any, dtype: str = "float32", *, products: bool = False) -> Result:
    import numpy as np
    from scoring import multiply_only, score_ours

    from oxa.config.score import Score

    model, way = _model(work, dtype), multiply_only if products else score_ours
    return scored(
        work,
        lambda ids, starts: way(model, [np.array(row, np.int32) for row in ids], Score(), starts)[0],
    )


def score_one_by_one(work: Any, dtype: str = "float32") -> Result:
    """Batch 1 and all logits, as the released code scores."""
    import torch

    model = _model(work, dtype)

    @torch.no_grad()
    def score(ids: list[list[int]], starts: list[int]) -> list[float]:
        nll = []
        for row, start in zip(ids, starts, strict=True):
            inputs = torch.tensor([row])
            labels = inputs.clone()
            labels[:, :start] = -100
            nll.append(model(input_ids=inputs, labels=labels, use_cache=False).loss.item())
        return nll

    return scored(work, score)


def score_by_vllm(work: Any) -> Result:
    from vllm import SamplingParams

    llm = _vllm(work, max_model_len=work["context"])
    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)

    def score(ids: list[list[int]], starts: list[int]) -> list[float]:
        made = llm.generate([{"prompt_token_ids": row} for row in ids], settings, use_tqdm=False)
        nll = []
        for one, row, start in zip(made, ids, starts, strict=True):
            each = [one.prompt_logprobs[i][row[i]].logprob for i in range(start, len(row))]
            nll.append(-sum(each) / len(each))
        return nll

    return scored(work, score)


def score_by_llama_factory(work: Any) -> Result:
    """Its script as it comes, watched from here: its clock runs from when its progress bar appears to its end."""
    found: Result = {"peak": 0.0}
    for name, texts in work["scoring"].items():
        folder = Path(work["scratch"]) / f"llama-factory-{name}"
        folder.mkdir()
        (folder / "rows.json").write_text(json.dumps(texts["turns"]))
        columns = {"prompt": "question", "response": "text", "system": "system"}
        info = {"rows": {"file_name": "rows.json", "columns": columns}}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        command = [work["llama_factory"], work["cal_ppl"], f"--model_name_or_path={work['model']}"]
        command += [
            "--dataset=rows",
            "--dataset_dir=.",
            "--template=chatml",
            f"--cutoff_len={work['context']}",
        ]
        command += [f"--batch_size={texts['batch']}", "--save_name=ppl.json"]
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                env=os.environ | {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"},
            )
            watched, before = psutil.Process(child.pid), 0.0
            # poll would take the usage away from wait4
            while (
                watched.status() != psutil.STATUS_ZOMBIE and b"Computing" not in (folder / "log").read_bytes()
            ):
                time.sleep(0.05)
                begun, before = time.perf_counter(), sum(watched.cpu_times()[:4])
            _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit((folder / "log").read_text()[-2000:])
        found[name] = {
            "tokens": sum(map(len, texts["ids"])),
            "seconds": time.perf_counter() - begun,
            "processor": usage.ru_utime + usage.ru_stime - before,
        }
        found["peak"] = max(found["peak"], usage.ru_maxrss / 1024)
    return found


def _vllm(work: Any, **settings: Any) -> Any:
    from vllm import LLM

    return LLM(
        model=work["model"],
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_num_seqs=len(work["sampling"]["prompts"]),
        seed=0,
        **settings,
    )


def sampled(work: Any, sample: Callable[[list[list[int]], int], int]) -> Result:
    """`sample` takes one prompt for every answer and the longest answer, tokens, and gives the tokens drawn."""
    prompts = work["sampling"]["prompts"]
    sample(prompts[:1], 4)
    tokens, spent = timed(lambda: sample(prompts, work["sampling"]["max_tokens"]))
    return {"answers": {"tokens": tokens, **spent}}


def sample_by_oxa(work: Any) -> Result:
    from oxa.config.section import Sampling
    from oxa.generation import attention, sampler
    from oxa.generation.requests import Request
    from oxa.model import loading

    settings = work["sampling"]
    model, tokenizer = loading.load(Path(work["model"]))
    attention.share_keys_among_query_heads(model)
    ends = loading.end_ids(model, tokenizer)

    def sample(prompts: list[list[int]], longest: int) -> int:
        sampling = Sampling(
            temperature=settings["temperature"], top_p=settings["top_p"], max_tokens=longest, seed=0
        )
        requests = [Request(str(i), prompt) for i, prompt in enumerate(prompts)]
        num_tokens = 0
        for start in range(0, len(requests), settings["batch"]):
            shard = requests[start : start + settings["batch"]]
            num_tokens += int(sampler.complete(model, shard, [longest] * len(shard), ends, sampling)[1].sum())
        return num_tokens

    return sampled(work, sample)


def sample_by_generate(work: Any) -> Result:
    import torch

    from oxa.model import loading

    settings = work["sampling"]
    model, tokenizer = loading.load(Path(work["model"]))
    ends = loading.end_ids(model, tokenizer)

    def sample(prompts: list[list[int]], longest: int) -> int:
        num_tokens = 0
        for start in range(0, len(prompts), settings["batch"]):
            part = prompts[start : start + settings["batch"]]
            width = max(map(len, part))
            padding = [width - len(prompt) for prompt in part]
            made = model.generate(
                torch.tensor([[0] * n + prompt for n, prompt in zip(padding, part, strict=True)]),
                attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in padding]),
                do_sample=True,
                temperature=settings["temperature"],
                top_p=settings["top_p"],
                top_k=0,
                max_new_tokens=longest,
            )[:, width:]
            ended = torch.isin(made, ends).cumsum(-1)
            num_tokens += int((ended == 0).sum() + (ended[:, -1] > 0).sum())  # the end token counts
        return num_tokens

    return sampled(work, sample)


def sample_by_vllm(work: Any) -> Result:
    from vllm import SamplingParams

    settings = work["sampling"]
    llm = _vllm(work, max_model_len=max(map(len, settings["prompts"])) + settings["max_tokens"])

    def sample(prompts: list[list[int]], longest: int) -> int:
        of_one = SamplingParams(
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            max_tokens=longest,
            stop_token_ids=settings["ends"],
            detokenize=False,
        )
        made = llm.generate([{"prompt_token_ids": one} for one in prompts], of_one, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in made)

    return sampled(work, sample)


def sampling_products(work: Any) -> Result:
    """A step's products at the batch's rows; reading the prompts is left out."""
    from sampling import products_alone

    rate = products_alone(Path(work["model"]), work["sampling"]["batch"], time.process_time)
    return {"answers": {"tokens": rate, "seconds": 1.0, "processor": 1.0}}


def trained(work: Any, way: str, *, adapted: bool = False) -> Result:
    import numpy as np
    import training_step

    from oxa.config.fine_tuning import Adapter

    settings = work["training"]
    setting = training_step.Setting(
        Path(work["model"]),
        settings["rows"],
        np.array(settings["lengths"]),
        settings["micro"],
        Path(work["scratch"]),
        settings["sequences"],
        Adapter() if adapted else None,
    )
    steps = {
        "oxa": lambda: training_step.ours(setting, 0),
        "trl": lambda: training_step.trl(setting),
        "products": lambda: training_step.products(setting),
    }[way]()
    spent = {"seconds": steps.seconds.sum(), "processor": steps.processor.sum()}
    tokens = setting.lengths[setting.steps].sum(1)[1:].sum()
    return {"steps": {"tokens": int(tokens), "padded": int(steps.padded.sum()), **spent}}


WAYS: Ways = {
    "score-oxa": score_by_oxa,
    "score-one": score_one_by_one,
    "score-llama-factory": score_by_llama_factory,
    "score-vllm": score_by_vllm,
    "score-products": lambda work: score_by_oxa(work, products=True),
    "score-oxa-bf16": lambda work: score_by_oxa(work, "bfloat16"),
    "score-one-bf16": lambda work: score_one_by_one(work, "bfloat16"),
    "sample-oxa": sample_by_oxa,
    "sample-generate": sample_by_generate,
    "sample-vllm": sample_by_vllm,
    "sample-products": sampling_products,
    "train-oxa": lambda work: trained(work, "oxa"),
    "train-trl": lambda work: trained(work, "trl"),
    "train-oxa-lora": lambda work: trained(work, "oxa", adapted=True),
    "train-trl-lora": lambda work: trained(work, "trl", adapted=True),
    "train-products": lambda work: trained(work, "products"),
}


def main() -> None:
    way, work = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print
    found = WAYS[way](work)
    found.setdefault("peak", peak())
    print(json.dumps(found, default=float), file=answer, flush=True)


if __name__ == "__main__":
    main()
