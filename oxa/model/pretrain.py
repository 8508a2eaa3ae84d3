"""Pretrains a tiny Llama from scratch: tokenizer, batches, transformers' Trainer.

- The Llama architecture, not Qwen2's: transformers 5 gives every checkpoint of type `qwen2` Qwen's own tokenizer,
  whatever it was saved with, and other words would be read.
- `words` tokenizer: words and punctuation marks with the space before them, single digits and other white space are
  the tokens. Their concatenation is the text, so every text whose pieces are known comes back as it was, and a
  number's digits are never joined to anything. `bpe`: byte-level BPE, knows every text.
- <think> and </think> are ordinary text in both, only the roles, padding and end of sequence are special.
- Batches are made beforehand: documents of similar length, at most `batch_tokens` tokens, padding included. In a
  chat, the response and its end carry the loss; the question is what the response is conditioned on. In plain text
  every token does.
- What the corpus holds and is not used is counted by reason: each row and response of a finite source once, however
  often the source is repeated; for `prompt_too_long`, the distinct documents met by the time the last batch was full.
- AdamW (betas 0.9, 0.95), or Muon with it (muon.py), linear warm-up, cosine to 0. Weights, optimiser and step are
  kept every `checkpoint_every` steps; a run that resumes from there ends with the weights of an unbroken one.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oxa.config.base import FromScratch
from oxa.config.prompt import Prompt
from oxa.config.sources import Source, Sources
from oxa.data import mappings
from oxa.data.sources import documents
from oxa.errors import DataError
from oxa.prompts import END_THINK, THINK, holds_control, prompt_ids, text_ids, user_turn
from oxa.runtime.journal import Log

if TYPE_CHECKING:
    from oxa.data.world import Document

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unk|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
PIECE = r" ?</?think>| ?\\boxed\{| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"
NEEDED = f"{THINK} {THINK}{END_THINK} {END_THINK}\\boxed{{ \\boxed{{}} }} \n0123456789"  # whatever the corpus holds
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TOKENIZER_DOCUMENTS = (
    20_000  # from which the vocabulary is taken; rarer words than that are unknown to `words`
)
CHUNK = 1024  # documents tokenised together
POOL = 32  # batches whose documents are sorted by length together
LOG_EVERY = 10
COMPLETE = "complete"  # file that marks a whole checkpoint

Encoded = tuple[list[int], int]
"""Token ids, and how many of the first carry no loss."""


def pretrain(
    section: FromScratch,
    prompt: Prompt,
    sources: Sources,
    *,
    output: Path,
    scratch: Path,
    log: Log,
) -> dict[str, Any]:
    """Writes the pretrained checkpoint to `output`; returns its sizes and the last training loss (nats a token)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    first = islice(stream(section, sources, Counter()), TOKENIZER_DOCUMENTS)
    tokenizer = build_tokenizer(section, prompt, first)
    dropped: Counter[str] = Counter()
    batches = make_batches(section, prompt, tokenizer, stream(section, sources, dropped), dropped)
    torch.manual_seed(section.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden_size,
            num_hidden_layers=section.num_layers,
            num_attention_heads=section.num_heads,
            num_key_value_heads=section.num_kv_heads,
            intermediate_size=section.intermediate_size,
            max_position_embeddings=section.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": section.rope_theta},
            attention_bias=True,  # as Qwen2 has it: a head can look at a distance, whatever stands there
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    loss = _fit(model, section, [_tensors(batch, tokenizer.pad_token_id) for batch in batches], scratch, log)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return {
        "num_parameters": model.num_parameters(),
        "vocab_size": len(tokenizer),
        "steps": section.steps,
        "num_documents": sum(map(len, batches)),
        "num_tokens": sum(len(ids) for batch in batches for ids, _ in batch),
        "num_cut": sum(ids[-1] != tokenizer.eos_token_id for batch in batches for ids, _ in batch),
        "dropped": dict(sorted(dropped.items())),
        "loss": loss,
    }


def stream(section: FromScratch, sources: Sources, dropped: Counter[str]) -> Iterator[Document]:
    """Endless documents, the listed sources taking turns; a finite one is repeated, each time in another order.

    `dropped` gains what the sources hold that is no document, by reason.
    """
    parts = [
        _endless(source, sources, f"{section.seed}/{i}", dropped) for i, source in enumerate(section.corpus)
    ]
    while True:
        for part in parts:
            yield next(part)


def _endless(source: Source, sources: Sources, seed: str, dropped: Counter[str]) -> Iterator[Document]:
    usable = _usable(documents(source, sources), dropped)
    if source.source == "world":
        yield from usable
    repeated = list(usable)
    if not repeated:
        raise DataError(
            f"{source.source}: no usable document to pretrain on; check base.corpus and its mapping"
        )
    for epoch in count():
        yield from random.Random(f"{seed}/{epoch}").sample(repeated, len(repeated))


def _usable(items: Iterator[Document | mappings.Reject], dropped: Counter[str]) -> Iterator[Document]:
    for item in items:
        if isinstance(item, mappings.Reject):
            dropped[item.reason] += 1
        else:
            yield item


def build_tokenizer(section: FromScratch, prompt: Prompt, documents: Iterator[Document]) -> Any:
    """The tokenizer of these documents, of the prompt's suffix, and of what every response needs."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, END, UNKNOWN, *ROLES]
    texts = [NEEDED, prompt.suffix, *(part for document in documents for part in document if part)]
    if section.tokenizer == "words":
        split = pre_tokenizers.Split(Regex(PIECE), "isolated")
        pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
        vocabulary = {token: index for index, token in enumerate([*special, *sorted(pieces)])}
        raw = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        raw.pre_tokenizer, raw.decoder = split, decoders.Fuse()
    else:
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        raw.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=section.vocab_size - 2,  # <think> and </think> follow
                special_tokens=special,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        raw.add_tokens([AddedToken(tag, normalized=False) for tag in (THINK, END_THINK)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=section.max_position_embeddings,
    )


def make_batches(
    section: FromScratch,
    prompt: Prompt,
    tokenizer: Any,
    documents: Iterator[Document],
    dropped: Counter[str],
) -> list[list[Encoded]]:
    """One batch a step, in the order of training; the same whatever was read before.

    `dropped` gains the documents whose prompt leaves no room for a response.
    """
    batches: list[list[Encoded]] = []
    encoded = _encode(section, prompt, tokenizer, documents, dropped)
    for pool in count():
        size, rows = 0, []
        while size < POOL * section.batch_tokens:
            rows.append(next(encoded))
            size += len(rows[-1][0])
        rows.sort(key=lambda row: len(row[0]))
        made: list[list[Encoded]] = [[]]
        for row in rows:
            if made[-1] and (len(made[-1]) + 1) * len(row[0]) > section.batch_tokens:
                made.append([])
            made[-1].append(row)
        random.Random(f"{section.seed}/order/{pool}").shuffle(made)
        batches += made
        if len(batches) >= section.steps:
            return batches[: section.steps]
    raise AssertionError


def _encode(
    section: FromScratch,
    prompt: Prompt,
    tokenizer: Any,
    documents: Iterator[Document],
    dropped: Counter[str],
) -> Iterator[Encoded]:
    """Prompt and response are tokenised as everywhere (oxa/prompts.py), but many at a time.

    A document whose prompt leaves no room for a response is passed over; DataError where these are all.
    """
    too_long: set[Document] = set()
    while True:
        some, used = list(islice(documents, CHUNK)), 0
        users = [user_turn(document.user, prompt.suffix) for document in some if document.user is not None]
        contexts = iter(_contexts(tokenizer, users))
        texts = text_ids(tokenizer, [document.text for document in some])
        for document, text in zip(some, texts, strict=True):
            before = next(contexts) if document.user is not None else []
            ids = [*before, *text, tokenizer.eos_token_id][: section.max_position_embeddings]
            if len(ids) > len(before):
                used += 1
                yield ids, max(1, len(before))
            elif document not in too_long:
                too_long.add(document)
                dropped["prompt_too_long"] += 1
        if not used:
            room = section.max_position_embeddings
            raise DataError(
                f"no document of base.corpus fits base.max_position_embeddings {room} tokens with its prompt; "
                "raise it or shorten prompt.suffix"
            )


def _contexts(tokenizer: Any, users: list[str]) -> list[list[int]]:
    """`prompt_ids` of each."""
    if not users:
        return []
    turns = [[{"role": "user", "content": user}] for user in users]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[list[int]] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return [
        prompt_ids(tokenizer, user) if holds_control(tokenizer, user) else plain
        for user, plain in zip(users, ids, strict=True)
    ]


def _tensors(batch: list[Encoded], pad: int) -> dict[str, Any]:
    """input_ids, labels [B, T]; padding is on the right, where a causal model needs no mask against it."""
    import torch

    longest = max(len(ids) for ids, _ in batch)
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in batch]),
        "labels": torch.tensor([[-100] * n + ids[n:] + [-100] * (longest - len(ids)) for ids, n in batch]),
    }


def _fit(model: Any, section: FromScratch, batches: list[dict[str, Any]], scratch: Path, log: Log) -> float:
    """Trains in place, resuming from the last whole checkpoint in `scratch`; returns the last logged loss."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    from oxa.model import log_probs
    from oxa.model.muon import MuonAdamW
    from oxa.model.trainer import SETTINGS, Bar, on_one_device

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                log(
                    state.global_step, **{name: logs[name] for name in ("loss", "learning_rate", "grad_norm")}
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            (scratch / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    class Pretrainer(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            with log_probs.products(self.args):
                return super().compute_loss(*args, **kwargs)

    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=section.steps,
        per_device_train_batch_size=1,  # an item is a whole batch
        train_sampling_strategy="sequential",
        learning_rate=section.learning_rate,
        warmup_steps=min(section.warmup, section.steps),
        lr_scheduler_type="cosine",
        weight_decay=section.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=min(LOG_EVERY, section.steps),
        save_steps=section.checkpoint_every,
        seed=section.seed % 2**32,
        dataloader_pin_memory=False,
        **SETTINGS,
    )
    optimizer = None
    if section.optimizer == "muon":
        optimizer = MuonAdamW(
            model, lr=section.learning_rate, weight_decay=section.weight_decay, betas=(0.9, 0.95)
        )
    trainer = Pretrainer(
        model=model,
        args=on_one_device(arguments),
        optimizers=(optimizer, None),
        data_collator=lambda items: items[0],
        train_dataset=batches,
        callbacks=[Bar("pretraining"), Keep()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(scratch))
    model.eval()
    return float([row["loss"] for row in trainer.state.log_history if "loss" in row][-1])


def _last_checkpoint(scratch: Path) -> str | None:
    """The newest whole checkpoint; what a kill left half-written is removed."""
    checkpoints = {int(path.name.rpartition("-")[2]): path for path in scratch.glob("checkpoint-*")}
    for step in sorted(checkpoints):
        if not (checkpoints[step] / COMPLETE).exists():
            shutil.rmtree(checkpoints.pop(step))
    return str(checkpoints[max(checkpoints)]) if checkpoints else None
