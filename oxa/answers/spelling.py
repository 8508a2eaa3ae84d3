r"""One spelling for what people write in many: Unicode, fonts, spaces, brackets and half-written LaTeX of an answer.

`canonical` turns an answer into a short LaTeX string that the readers of oxa/answers/ and math-verify's parser take:
`²` is `^{2}`, `\dfrac12` is `\frac{1}{2}`, `\left(` is `(`, `\leqslant` is `\le`, `\mathbf{5}` is 5. What stood in
`\text{…}` lies between the marks TEXT and END, so that the unit in `5\text{ m}` is told from the variable in `5m`.
No meaning is read here, and no text is evaluated; the time is linear in its length but for nested braces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

TEXT, END = "\ue000", "\ue001"
"""Marks round what was written as text; private characters, which an answer loses first."""
DOLLAR = "\ue002"
"""A dollar sign that means money."""
ROW = "\ue003"
r"""The end of a matrix's or an environment's row, `\\\\`."""
THIN = "\u2009"
r"""A space that was typed on purpose (`\,`, `\;`, `\quad`), as before a unit."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₘₓ", "0123456789+-=()nkmx")
_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ",
    "λ": r"\lambda ", "μ": r"\mu ", "ω": r"\omega ", "φ": r"\phi ", "ϕ": r"\phi ", "ρ": r"\rho ", "σ": r"\sigma ",
    "τ": r"\tau ", "ε": r"\epsilon ", "η": r"\eta ", "ξ": r"\xi ", "ψ": r"\psi ", "Δ": r"\Delta ", "Ω": r"\Omega ",
    "Σ": r"\Sigma ", "Φ": r"\Phi ", "Γ": r"\Gamma ", "Λ": r"\Lambda ",
    "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≦": r"\le ", "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
    "≡": r"\equiv ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "∖": r"\setminus ", "∣": "|",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "÷": r"\div ", "±": r"\pm ",
    "∓": r"\mp ",
    "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "√": r"\sqrt ", "∛": r"\sqrt[3]", "∑": r"\sum ",
    "∏": r"\prod ", "∫": r"\int ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "∠": r"\angle ", "△": r"\triangle ", "∧": r"\land ", "∨": r"\lor ", "→": r"\to ", "⁄": "/",
    "∕": "/", "∶": ":", "∴": r"\therefore ", "‘": "'", "’": "'", "′": "'", "“": '"', "”": '"', "º": "°", "˚": "°",
    "…": "...",
    "，": ",", "、": ",", "；": ";", "：": ":", "（": "(", "）": ")", "【": "[", "】": "]", "。": ".", "｛": "{",
    "｝": "}",
    "℃": "°C", "℉": "°F", "㎡": TEXT + "m" + END + "^{2}", "㎝": TEXT + "cm" + END,
    "㎞": TEXT + "km" + END, "㎏": TEXT + "kg" + END,
    "µ": r"\mu ", "ℓ": "l", "ｘ": "x",
}  # fmt: skip
_SYMBOL = re.compile("|".join(map(re.escape, _SYMBOLS)))
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\ue004-\uf8ff]")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₘₓ]+")
_RAISED_FRACTION = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/]([₀₁₂₃₄₅₆₇₈₉]+)")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_CIRCLED = re.compile("[①-⑳]")
# LaTeX that went through a string literal: \f of \frac, \b of \boxed, … are control characters by then
_ESCAPES = (("\x08", r"\b"), ("\x0c", r"\f"), ("\x0b", r"\v"), ("\x07", r"\a"))
_ESCAPED_LETTER = re.compile(
    r"\t(?=imes|ext|heta|frac|an\b|o\b)|\r(?=ight|angle|ho\b|m\b)|\n(?=eq\b|e\b|u\b)"
)
_LOST_BACKSLASH = re.compile(
    r"(?<![\\A-Za-z])(frac|dfrac|tfrac|sqrt|boxed|text|mathrm|mathbf|overline|binom)(?=\s*[\[{])"
    r"|(?<![\\A-Za-z])(infty|cup|cap|cdot|times|leq|geq|neq|pi|theta|alpha|beta|circ|pm)(?![A-Za-z])"
    r"|(?<![\\A-Za-z])(sqrt)(?=\s*\()"
)
_DOUBLE_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z]{2})")

_GONE = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|tiny|scriptsize|footnotesize|small|normalsize|large|Large"
    r"|LARGE|huge|Huge|bf|rm|it|sf|tt|boldmath|centering|noindent|therefore|because|nonumber|hfill|relax|strut|mathstrut"
    r"|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|bigm|Bigm|big|Big|bigg|Bigg|middle)(?![A-Za-z])\s*"
    r"|\\(?:color|tag\*?|label|phantom|vphantom|hphantom|hspace\*?|vspace\*?|kern|mspace|mskip|hskip)\s*\{[^{}]*\}"
)
_SIDES = re.compile(r"\\(?:left|right)(?![A-Za-z])\s*\.?")
_NO_SPACE = re.compile(r"\\!\s*")
_SPACES = re.compile(
    r"\\[,;:> ]|\\(?:quad|qquad|enspace|thinspace|medspace|thickspace|space|nobreakspace)(?![A-Za-z])|~"
)
_FONTS = "mathrm|mathbf|mathit|mathsf|mathtt|mathnormal|boldsymbol|bm|pmb|operatorname\\*?|mathop|mathbin|rm"
_WORDS = "text|textbf|textit|textrm|textsf|texttt|textnormal|textup|textsc|mbox|hbox|emph|textmd|textsl"
_BOXES = "boxed|fbox|framebox|underline|ensuremath|uline"
_GROUP = re.compile(
    rf"\\(?:(?P<font>{_FONTS})|(?P<text>{_WORDS})|(?P<box>{_BOXES})|(?P<color>textcolor|colorbox))\s*\{{"
)
_SYNONYMS = (
    (re.compile(r"\\(?:d|t|c)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:s|nice|x)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:d|t)binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])\s*"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])\s*"), r"\\ge "),
    (re.compile(r"\\(?:neq|ne)(?![A-Za-z])\s*|\\not\s*=|!=|/="), r"\\ne "),
    (re.compile(r"<=|=<"), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])\s*"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])\s*"), ">"),
    (re.compile(r"\\(?:simeq|approxeq|thickapprox|doteq|cong)(?![A-Za-z])\s*|\\?~="), r"\\approx "),
    (re.compile(r"\\(?:mid|vert|lvert|rvert)(?![A-Za-z])\s*"), "|"),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])\s*"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])\s*"), r"\\}"),
    (re.compile(r"\\(?:lbrack)(?![A-Za-z])\s*"), "["),
    (re.compile(r"\\(?:rbrack)(?![A-Za-z])\s*"), "]"),
    (re.compile(r"\\(?:varnothing|emptyset|O)(?![A-Za-z])\s*"), r"\\emptyset "),
    (re.compile(r"\\(?:bigcup)(?![A-Za-z])\s*"), r"\\cup "),
    (re.compile(r"\\(?:bigcap)(?![A-Za-z])\s*"), r"\\cap "),
    (re.compile(r"\\(?:backslash|smallsetminus)(?![A-Za-z])\s*"), r"\\setminus "),
    (re.compile(r"\\(?:wedge|land)(?![A-Za-z])\s*"), r"\\land "),
    (re.compile(r"\\(?:vee|lor)(?![A-Za-z])\s*"), r"\\lor "),
    (re.compile(r"\\(?:imath|jmath)(?![A-Za-z])\s*"), "i"),
    (re.compile(r"\\(?:varphi)(?![A-Za-z])\s*"), r"\\phi "),
    (re.compile(r"\\(?:varepsilon)(?![A-Za-z])\s*"), r"\\epsilon "),
    (re.compile(r"\\(?:lg)(?![A-Za-z])\s*"), r"\\log_{10} "),
    (re.compile(r"\\(?:tg|textnormal\{tg\})(?![A-Za-z])"), r"\\tan"),
    (re.compile(r"\\(?:ctg|cotg)(?![A-Za-z])"), r"\\cot"),
    (re.compile(r"\\(?:arctg)(?![A-Za-z])"), r"\\arctan"),
        (re.compile(r"\\(?:pounds|textsterling)(?![A-Za-z])\s*"), "£"),
    (re.compile(r"\\(?:euro|texteuro)(?![A-Za-z])\s*"), "€"),
    (re.compile(r"\\(?:yen|textyen)(?![A-Za-z])\s*"), "¥"),
    (re.compile(r"\\textdegree(?![A-Za-z])"), "°"),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])|\^\s*°|\^\s*\{\s*°\s*\}"), "°"),
    (re.compile(r"\\%|％"), "%"),
    (re.compile(r"\\#"), "#"),
    (re.compile(r"\\&"), "&"),
    (re.compile(r"\\(?:ldots|dots|cdots|dotsc|dotsb)(?![A-Za-z])\s*"), "..."),
    (re.compile(r"\\colon(?![A-Za-z])\s*"), ":"),
    (re.compile(r"\\prime(?![A-Za-z])\s*"), "'"),
    (re.compile(r"\^\s*\{\s*'\s*'\s*\}"), "''"),
    (re.compile(r"\^\s*\{\s*'\s*\}|\^\s*'"), "'"),
    (re.compile(r"\{\s*([+-])\s*\}"), r"\1"),
    (re.compile(rf"(?<=\d)\s*\^\s*\{{?\s*{TEXT}?\s*(?:st|nd|rd|th)\s*{END}?\s*\}}?"), ""),
    (re.compile(rf"(?<![a-z])ms\s*({END}?)\s*\^\s*\{{?\s*-1\s*\}}?"), r"m/s\1"),
    (re.compile(r"(?<![\\A-Za-z])infinity(?![A-Za-z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"\*\*(?=[\d({])"), "^"),
)  # fmt: skip
_LONG_POWER = re.compile(r"\^\s*([+-]?\d{2,}|-\d|-[a-z]\b)")
_PLAIN_POWER = re.compile(r"\^\s*\(([^()]*)\)")
_SLASHED = re.compile(r"\^\{?(\d+)\}?/_\{?(\d+)\}?")
_SPACE = re.compile(r"[ \t\n\r\f\v\u00a0]+")
_ROOT = re.compile(r"\\sqrt\s*(?![\[{\s])(\\[A-Za-z]+|[A-Za-z]|\d+|\()")
_ONE_ARGUMENT = re.compile(r"\\frac\s*")


def canonical(text: str) -> str:
    r"""The one spelling of an answer; an answer of this spelling stays as it is."""
    text = _unicode(_unescaped(re.sub("[\ue000-\uf8ff]", "", text)))
    text = _money(text)
    for pattern in (_GONE, _SIDES, _NO_SPACE):
        text = pattern.sub("", text)
    text = _groups(text)
    for pattern, other in _SYNONYMS:
        text = pattern.sub(other, text)
    text = re.sub(rf"[ {THIN}]*{THIN}[ {THIN}]*", THIN, _SPACES.sub(THIN, text))
    text = _LOST_BACKSLASH.sub(lambda match: "\\" + match[0], text)
    text = _SLASHED.sub(r"\1/\2", text)
    text = _fractions(_infix(text))
    text = _roots(text)
    text = _LONG_POWER.sub(r"^{\1}", text)
    text = _PLAIN_POWER.sub(r"^{\1}", text)
    return re.sub(r"\\\s*$", "", _SPACE.sub(" ", text)).strip()


def _unescaped(text: str) -> str:
    for control, letters in _ESCAPES:
        text = text.replace(control, letters)
    text = _ESCAPED_LETTER.sub(lambda match: {"\t": r"\t", "\r": r"\r", "\n": r"\n"}[match[0]], text)
    if r"\begin" in text:
        return re.sub(r"\\\\\s*(?:\[[^\]]*\])?", ROW, text)
    return _DOUBLE_BACKSLASH.sub(r"\\", text).replace(r"\\", ", ")


def _unicode(text: str) -> str:
    """Plain characters and LaTeX for what Unicode has signs for."""
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", text)
    text = _CIRCLED.sub(lambda match: rf"\textcircled{{{ord(match[0]) - ord('①') + 1}}}", text)
    text = _RAISED_FRACTION.sub(
        lambda match: rf"\frac{{{match[1].translate(_SUPERSCRIPTS)}}}{{{match[2].translate(_SUBSCRIPTS)}}}",
        text,
    )
    text = _VULGAR.sub(
        lambda match: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match[0]).split("⁄")), text
    )
    text = _RAISED.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub("[\u2000-\u200a\u202f\u205f\u3000]", THIN, text)
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    text = re.sub(r"(\d)\u0305", r"\\overline{\1}", text)
    kept = "".join(
        char if char in (THIN, TEXT, END, ROW) else unicodedata.normalize("NFKC", char) for char in text
    )
    return _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], kept)


def _money(text: str) -> str:
    r"""Dollar signs that delimit mathematics go; `\$`, and a single one before a number, mean money."""
    text = text.replace(r"\$", DOLLAR).replace(r"\(", "").replace(r"\)", "")
    if text.startswith(r"\[") and text.endswith(r"\]"):
        text = text[2:-2]
    if text.count("$") % 2 and re.search(r"\$\s*\d", text):
        text = re.sub(r"\$(?=\s*\d)", DOLLAR, text, count=1)
    return text.replace("$", "")


def closing(text: str, start: int, opening: str = "{", close: str = "}") -> int | None:
    """Where the bracket that opens at `start` closes, escaped ones aside; None where it does not."""
    depth, i = 0, start
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        depth += (text[i] == opening) - (text[i] == close)
        if not depth:
            return i
        i += 1
    return None


def _groups(text: str) -> str:
    r"""Fonts, frames and colours go; text of words keeps its marks."""

    def replace(match: re.Match[str], content: str) -> str:
        inner = _groups(content)
        if match["box"]:
            return inner
        bare = inner.replace(TEXT, "").replace(END, "")
        if match["text"]:
            plain = (
                not _LETTER.search(_COMMAND.sub("", bare))
                or bool(re.search(r"[=<>^]", bare))
                or bare.strip() in _CONSTANTS
            )
        else:
            upright = (
                match["font"] in ("mathrm", "rm")
                and _LETTER.search(_COMMAND.sub("", bare))
                and bare.strip() not in _CONSTANTS
            )
            plain = not _WORD.search(bare) and not upright
        if plain:
            return bare
        if match["font"] and bare.strip() in _FUNCTIONS:
            return rf"\{bare.strip()} "
        return TEXT + bare + END

    return _each(text, _GROUP, replace)


_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}|[\u3400-\u9fff]")
_LETTER = re.compile(r"[A-Za-z\u3400-\u9fff]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CONSTANTS = frozenset("eidCAP")  # in upright letters: \\mathrm{e}, \\mathrm{i}, \\mathrm{C}_n^k
_UPRIGHT = "sin cos tan cot sec csc ln log exp arcsin arccos arctan gcd lcm max min"
_FUNCTIONS = frozenset(_UPRIGHT.split())


def _each(text: str, pattern: re.Pattern[str], replace: Callable[[re.Match[str], str], str]) -> str:
    """The text with every `\\command{…}` replaced; one that does not close stays."""
    parts, at = [], 0
    while match := pattern.search(text, at):
        end = closing(text, match.end() - 1)
        if end is not None and match["color"]:
            second = re.compile(r"\s*\{").match(text, end + 1)
            parts.append(text[at : match.start()])
            at = end + 1
            if second and (last := closing(text, second.end() - 1)) is not None:
                parts.append(_groups(text[second.end() : last]))
                at = last + 1
            continue
        if end is None:
            parts.append(text[at : match.end()])
            at = match.end()
            continue
        parts += [text[at : match.start()], replace(match, text[match.end() : end])]
        at = end + 1
    return "".join([*parts, text[at:]])


def _infix(text: str) -> str:
    r"""`{a \over b}` and `{n \choose k}` as `\frac{a}{b}` and `\binom{n}{k}`."""
    for word, command in ((r"\over", "frac"), (r"\choose", "binom")):
        for _ in range(text.count(word)):
            match = re.search(re.escape(word) + r"(?![A-Za-z])", text)
            if not match:
                break
            start, depth = match.start() - 1, 0
            while start >= 0:
                depth += (text[start] == "}") - (text[start] == "{")
                if depth < 0:
                    break
                start -= 1
            end = closing(text, start) if start >= 0 else len(text)
            if end is None:
                break
            above, below = text[start + 1 : match.start()].strip(), text[match.end() : end].strip()
            text = f"{text[: max(start, 0)]}\\{command}{{{above}}}{{{below}}}{text[end + 1 :]}"
    return text


def argument(text: str, at: int) -> tuple[str, int] | None:
    r"""The argument of a command at a place, without its braces, and where it ends; None where there is none."""
    while at < len(text) and text[at].isspace():
        at += 1
    if at >= len(text) or text[at] in "}])":
        return None
    if text[at] == "{":
        end = closing(text, at)
        return None if end is None else (text[at + 1 : end], end + 1)
    if text[at] == "\\":
        match = re.compile(r"\\(?:[A-Za-z]+|.)").match(text, at)
        assert match or at + 1 == len(text)
        return (match[0], match.end()) if match else None
    return text[at], at + 1


def _fractions(text: str) -> str:
    r"""`\frac12`, `\frac 3{4}` with their braces."""
    parts, at = [], 0
    while match := _ONE_ARGUMENT.search(text, at):
        parts.append(text[at : match.start()])
        above = argument(text, match.end())
        below = argument(text, above[1]) if above else None
        if above is None or below is None:
            parts.append(match[0])
            at = match.end()
            continue
        parts.append(rf"\frac{{{_fractions(above[0])}}}{{{_fractions(below[0])}}}")
        at = below[1]
    return "".join([*parts, text[at:]])


def _roots(text: str) -> str:
    r"""`\sqrt2`, `\sqrt x` and `\sqrt(x+1)` with their braces."""
    at = 0
    while match := _ROOT.search(text, at):
        content, end = match[1], match.end()
        if content == "(":
            close = closing(text, end - 1, "(", ")")
            if close is None:
                at = end
                continue
            content, end = text[end:close], close + 1
        text = rf"{text[: match.start()]}\sqrt{{{content}}}{text[end:]}"
        at = match.start() + 6
    text = re.sub(r"\\sqrt\s+(?=[\[{])", r"\\sqrt", text)
    return re.sub(r"(\\sqrt\[[^\[\]]*\])\s*(\\[A-Za-z]+|[A-Za-z]|\d+)", r"\1{\2}", text)
