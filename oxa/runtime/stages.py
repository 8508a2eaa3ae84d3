"""The table of stages: which sections of params.yaml each is handed, which paths it reads and which it writes.

dvc.yaml alone knows where those lie; tests/test_architecture.py holds the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """How the command line runs one stage."""

    help: str
    module: str
    sections: tuple[str, ...]
    """Keys of params.yaml, handed over in this order; `{arm}` stands for the option of that name."""
    names: tuple[str, ...] = ()
    """Keys of params.yaml of which the stage is handed the names alone. A params file may leave them out, so DVC does
    not track them: what they name shows in what the stage depends on."""
    inputs: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()
    """Inputs, folders, of which dvc.yaml names some contents only: DVC has no md5 of these, so tracking tells none."""
    outputs: tuple[str, ...] = ("output",)
    items: tuple[str, ...] = ()
    """Options that tell the stage's runs apart; `seed` is handed to the stage, too."""
    metrics: bool = True
    """Whether what the stage returns is written to --metrics."""
    journal: bool = False
    """Whether what the stage logs is kept as --journal."""
    launched: bool = False
    """Whether the stage runs on several processes where OXA_LAUNCH names what starts them."""
    assets: tuple[str, ...] = ()
    """Files in the package that the stage reads; like its modules, they belong to what it depends on."""
    shown: tuple[str, ...] = ()
    """Outputs, made to be looked at, of which tracking keeps a copy; it keeps metrics and journal anyway."""

    @property
    def written(self) -> tuple[str, ...]:
        """Options of all that is written: the stage's own outputs, then what the command line adds."""
        return self.outputs + self.records

    @property
    def records(self) -> tuple[str, ...]:
        """Options of what the command line writes itself."""
        return ("metrics",) * self.metrics + ("journal",) * self.journal


STAGES = {
    "base": Stage(
        "make the student: pretrain a tiny one, or take over a checkpoint",
        "oxa.stages.base",
        ("base", "prompt", "sources"),
        journal=True,
    ),
    "gates": Stage(
        "measure whether the small world's student can answer the question at all",
        "oxa.stages.gates",
        ("gates.{exam}", "sources.world", "generate", "prompt", "verify"),
        inputs=("model",),
        items=("exam",),
    ),
    "ingest": Stage(
        "read teacher data and benchmarks, clean and decontaminate them",
        "oxa.stages.ingest",
        ("ingest", "sources", "verify"),
        outputs=("problems", "responses", "rejects", "contamination"),
    ),
    "pass_rate": Stage(
        "measure how often the base, or another model, solves each problem",
        "oxa.stages.pass_rate",
        ("pass_rate", "generate", "prompt", "verify"),
        inputs=("model", "problems"),
    ),
    "warm_up": Stage(
        "make what samples out of a base that does not write <think> yet",
        "oxa.stages.warm_up",
        ("sample", "generate", "prompt", "verify"),
        inputs=("model", "problems", "responses", "verdicts"),
        outputs=("output", "apart"),
        journal=True,
        launched=True,
    ),
    "sample": Stage(
        "let the student answer the training problems",
        "oxa.stages.sample",
        ("sample", "generate", "prompt"),
        inputs=("model", "sampler", "problems", "apart"),
        launched=True,
    ),
    "verify": Stage(
        "grade responses against the gold answers",
        "oxa.stages.verify",
        ("verify",),
        inputs=("problems", "responses"),
        items=("origin",),
    ),
    "score": Stage(
        "perplexity of responses under the base",
        "oxa.stages.score",
        ("score", "prompt"),
        inputs=("model", "problems", "responses", "verdicts"),
        items=("origin",),
        launched=True,
    ),
    "selection_ce": Stage(
        "choose the teacher's responses that an arm learns from",
        "oxa.stages.selection_ce",
        ("selection.shared", "selection.ce.{arm}", "prompt", "train.shared"),
        inputs=("problems", "pass_rates", "apart", "responses", "verdicts", "scores"),
        items=("arm",),
    ),
    "selection_ul": Stage(
        "choose the student's own wrong responses that an arm unlearns",
        "oxa.stages.selection_ul",
        ("selection.shared", "selection.ul.{arm}", "prompt", "train.shared"),
        inputs=("problems", "apart", "responses", "verdicts", "scores"),
        items=("arm",),
    ),
    "begin": Stage(
        "say what an arm of two passes goes on from",
        "oxa.stages.begin",
        (),
        inputs=("trained",),
        items=("arm",),
        metrics=False,
    ),
    "train": Stage(
        "fine-tune the base, or what an earlier pass made of it, on an arm's training set",
        "oxa.stages.train",
        ("train.shared", "train.arms.{arm}"),
        inputs=("model", "data"),
        outputs=("output", "trained"),
        items=("arm", "seed"),
        journal=True,
        launched=True,
    ),
    "rlvr": Stage(
        "go on from an arm's checkpoint by reinforcement learning from verifiable rewards",
        "oxa.stages.rlvr",
        ("rlvr", "prompt", "verify"),
        inputs=("model", "problems", "pass_rates"),
        items=("arm", "seed"),
        journal=True,
        launched=True,
    ),
    "evaluate": Stage(
        "sample a checkpoint on every benchmark and grade it",
        "oxa.stages.evaluate",
        ("evaluate", "generate", "prompt", "verify"),
        inputs=("model", "problems"),
        outputs=("output", "entropies"),
        items=("checkpoint",),
    ),
    "predictors": Stage(
        "what an arm's model says before RL, to be held against what RL reaches",
        "oxa.stages.predictors",
        ("predictors", "prompt"),
        inputs=(
            "base",
            "model",
            "problems",
            "responses",
            "verdicts",
            "train_sets",
            "base_samples",
            "samples",
        ),
        items=("checkpoint",),
    ),
    "traces": Stage(
        "log-probabilities of training examples, token by token, before and after training",
        "oxa.stages.traces",
        ("traces", "prompt"),
        names=("selection.ul",),
        inputs=(
            "base",
            "model",
            "data",
            "problems",
            "teacher",
            "teacher_verdicts",
            "teacher_scores",
            "self_responses",
            "self_verdicts",
            "self_scores",
        ),
        items=("arm",),
    ),
    "report": Stage(
        "summary, comparison table, plots and the page that shows them",
        "oxa.stages.report",
        ("report", "arms", "seeds"),
        names=("gates", "selection.ul"),
        inputs=("metrics", "scores", "train_sets", "generations", "entropies", "traces"),
        gathers=("metrics",),
        outputs=("summary", "output"),
        assets=tuple(f"report/{name}.{end}" for name in ("page", "viewer") for end in ("html", "css", "js")),
        metrics=False,
        shown=("summary", "output"),
    ),
}
