r"""The number that an answer comes to, however it is written: "$1,200.50", "−3", "1.5 × 10^3", "\frac{3}{4}", "25 %".

Where it stands: in the last `\boxed{}`; in a last line after `####` (the labels of GSM8K; elsewhere `####` is a
heading); after the last "the answer is" that a number follows; in a closing "Total: **18**" or "Result: 18"; else it
is the last number of the text. How it is read, where two readings are possible: "1,234" has a thousands separator and
"1.234" a decimal point, as in English; "1.234,5", "0,125" and "12,5" can only have decimal commas. Units are not
converted, and roots and multiples of π are no numbers. Numbers are exact fractions: nothing is rounded.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 200
"""Characters of a numeral: what is longer is noise, and costs quadratic time to read."""
LARGEST_EXPONENT = 308
"""That of a double. Beyond it a few characters would ask for gigabytes."""


@dataclass(frozen=True)
class Number:
    """A number as it was written: 25 % is 25 at the scale 1/100, 3 million is 3 at the scale 1,000,000."""

    value: Fraction
    scale: Fraction = Fraction(1)

    @property
    def amount(self) -> Fraction:
        """With the scale taken in."""
        return self.value * self.scale

    def same(self, other: Number) -> bool:
        """Whether both say the same. Where only one of them names its scale, the other may have left it to the
        question ("how many percent?"): 25 % is 25 as well as 0.25, though 25 is not 0.25.
        """
        bare = Fraction(1) in (self.scale, other.scale)
        return self.amount == other.amount or (bare and self.value == other.value)


def number_in(text: str) -> Number | None:
    """The number that an answer or a label comes to; None if there is none, or one that cannot be read."""
    plain = _plain(text)
    if (boxed := _last_box(plain)) is not None:
        found = _numbers(f"={boxed}")
        return found[-1] if found and None not in found else None
    if (last_line := _HASHES.search(plain)) and (found := _numbers(f"={last_line[1]}")):
        return found[0]
    stated = [rest for mark in _STATED.finditer(plain) if (rest := _what_follows(plain, mark))]
    for rest in reversed(stated):
        if found := _stated(rest):
            return found[0]
    if not stated and (concluded := _concluded(text)):
        return _stated(concluded)[0]
    found = _numbers(stated[-1] if stated else plain)
    return found[-1] if found else None


def several_in(text: str) -> bool:
    """Whether a label could mean another number, too: "(3, 4)", "3:4", "x = 2 or 3", "±2".

    Only what stands where `number_in` looks counts: reasoning before `#### 18` may hold any numbers. Of an equation
    its right-hand side counts. Equal numbers are one: "25 % (1/4)".
    """
    passage = _passage(text)
    if _PAIR.search(passage) or "±" in passage:
        return True
    found: list[Number | None] = []
    for part in _PARTS.split(passage):
        _, equals, right = part.rpartition("=")
        found += _numbers(equals + right) or _numbers(part)
    return any(one is None or first is None or not one.same(first) for first in found[:1] for one in found[1:])


_PAIR = re.compile(r"[(\[{]\s*-?[\d./]+\s*[,;|]\s*-?[\d./]+\s*\\?[)\]}]")
_PARTS = re.compile(r"[;\n]|,\s|\b(?:and|or)\b(?=[^=]*=)")
"""What may separate two equations. "2 and 3/4" is one number."""


def _passage(text: str) -> str:
    """Where the number of a label stands."""
    plain = _plain(text)
    if (boxed := _last_box(plain)) is not None:
        return f"={boxed}"
    if (last_line := _HASHES.search(plain)) and _numbers(f"={last_line[1]}"):
        return f"={last_line[1]}"
    stated = [rest for mark in _STATED.finditer(plain) if (rest := _what_follows(plain, mark))]
    for rest in reversed(stated):
        if _stated(rest):
            return _REASONS.split(rest, maxsplit=1)[0]
    return _concluded(text) or plain


_HASHES = re.compile(r"####[ \t]*([^\n]+)\s*\Z")
_STATED = re.compile(
    r"\b(?:answer|final\s+(?:result|solution|value|number))\b(?:\s+to\s+[^.:\n]{1,80}?)?\W{0,4}?"
    r"(?:\b(?:is|was|would\s+be|will\s+be|should\s+be|equals|comes\s+to)\b|[:=])",
    re.IGNORECASE,
)
_DENIED = re.compile(r"(?:not|neither|never)\b", re.IGNORECASE)
_REASONS = re.compile(r"[;\n]|[.!?](?=\s|$)|\b(?:because|since|as|where|which|given|so)\b", re.IGNORECASE)
_CLAUSE_ENDS = re.compile(
    r"[;\n]|[.!?](?=\s|$)|,(?=\s*[A-Za-z])|\b(?:because|since|as|where|which|given|so)\b", re.IGNORECASE
)


def _what_follows(plain: str, mark: re.Match[str]) -> str:
    """What follows "the answer is"; empty if it says what the answer is not.

    It begins with "=", so that the minus of "The answer is - 5" is a sign; at the start of a line it may be a bullet.
    """
    rest = plain[mark.end() :].lstrip(" \n\t:*$")
    between = plain[mark.end() : len(plain) - len(rest)]
    if not rest or _DENIED.match(rest):
        return ""
    return rest if between.rstrip(" \t").endswith("\n") else f"={rest}"


def _stated(rest: str) -> list[Number | None]:
    """The numbers of the first clause after "the answer is", of an equation those of the right-hand side."""
    clause = _CLAUSE_ENDS.split(rest, maxsplit=1)[0]
    _, equals, right = clause.rpartition("=")
    return _numbers(equals + right) or _numbers(clause)


_CONCLUDES = re.compile(
    r"""^[ \t>#*_-]*
    (?: (?:(?:final|grand|overall)[ \t])? total (?:[ \t][a-z]+){0,3}
      | (?:final[ \t])? (?P<result>result) | sum | in[ \t](?:total|all) )
    [ \t]*(?:\*\*)?[ \t]*[:=](?:\*\*)?[ \t]*
    (?: \*\*(?P<bold>[^*\n]+)\*\* | (?P<line>[^*\n]+)(?P<end>\*\*)? )""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_GOES_ON = re.compile(
    r"[=≈×]|\*\*|:\s|\b(?:so|therefore|thus|hence|then|leaves|leaving|finally|remain\w*)\b", re.IGNORECASE
)


def _concluded(text: str) -> str:
    """What a line such as "Total: **18**" or "Result: 18" states, if no more than a remark with one number follows.

    Empty if there is no such line, or if the text goes on to calculate: then its last number counts. A total that is
    not bold may be a step on the way, a result is none.
    """
    found = max(_CONCLUDES.finditer(text), key=re.Match.start, default=None)
    if found is None or not (found["result"] or found["bold"] or found["end"]):
        return ""
    said, remark = f"={_plain(found['bold'] or found['line']).strip()}", text[found.end() :]
    ends = not _GOES_ON.search(remark) and len(_numbers(_plain(remark))) <= 1
    return said if ends and _stated(said) else ""


def _last_box(plain: str) -> str | None:
    r"""What stands in the last `\boxed{}` whose braces are closed."""
    boxes = {found.end() - 1 for found in re.finditer(r"\\f?boxed\s*\{", plain)}
    opened: list[int] = []
    last: tuple[int, int] | None = None
    for brace in re.finditer(r"[{}]", plain) if boxes else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened and (start := opened.pop()) in boxes:
            last = max(last or (0, 0), (start, brace.start()))
    return plain[last[0] + 1 : last[1]] if last else None


_NUMERAL = r"""(?:
    [1-9]\d{{0,2}} (?P<{0}>[,'_ ]) \d{{3}} (?:(?P={0})\d{{3}})* (?:[.,]\d+)?  # 1,234,567.8  1 234,5
  | [1-9]\d{{0,2}} (?: (?:\.\d{{3}})+ ,\d+ | (?:\.\d{{3}}){{2,}} )             # 1.234,5  1.234.567
  | [1-9]\d? (?:,\d\d)+ ,\d{{3}} (?:\.\d+)?                                  # 12,34,567
  | \d+ (?:[.,]\d+)?
  | \.\d+
) (?!\d) (?![.,]\d)"""
_TOKEN = re.compile(
    rf"""(?<![A-Za-z0-9_^]) (?<!\d[.,'])
    (?P<root>√[\s({{]*)?
    (?: (?P<whole>\d+) \s (?:and\s)? (?=\d+\s?/\s?\d) )?
    (?P<numeral>{_NUMERAL.format("by")})
    (?: \s?/\s? (?P<over>-?{_NUMERAL.format("of")}) )?
    (?: e(?P<exponent>[-+]?\d+)
      | \s?(?:[×x·]|\*) \s?10\s? (?:\^|\*\*) [\s(]* (?P<ten>[-+]?\d+)
      | \s?(?:\^|\*\*) [\s(]* (?P<power>[-+]?\d+) )?
    (?P<unread> \s?[π√{chr(0xE000)}] | \s?/\s?[\dπ√] )?
    (?: \s?(?P<percent>%|per\s?cent\b) | \s(?P<scale>thousand|million|billion|trillion)\b )?""",
    re.VERBOSE | re.IGNORECASE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def _numbers(plain: str) -> list[Number | None]:
    """Every number in order; None stands for one that cannot be read, such as 2√3 or the day of a date."""
    return [_number(found, plain[max(0, found.start() - 24) : found.start()]) for found in _TOKEN.finditer(plain)]


def _number(found: re.Match[str], before: str) -> Number | None:
    if found["root"] or found["unread"] or re.search(r"[/√][\s({]*\Z", before):
        return None
    try:
        value = _value(found["numeral"])
        if found["over"]:
            value /= _value(found["over"])
        if found["whole"]:
            value = _value(found["whole"]) + _proper(value)
        if found["power"]:
            value = value ** _exponent(found["power"])
        value *= Fraction(10) ** _exponent(found["exponent"] or found["ten"] or "0")
    except (ArithmeticError, ValueError):
        return None
    scale = Fraction(1, 100) if found["percent"] else Fraction(_SCALES.get((found["scale"] or "").lower(), 1))
    return Number(-value if _negative(before) else value, scale)


def _value(numeral: str) -> Fraction:
    """Of digits with separators. Raises ValueError for one that is too long."""
    if len(numeral) > LONGEST:
        raise ValueError("too long for a number")
    sign, digits = numeral.startswith("-"), numeral.removeprefix("-")
    marks = list(dict.fromkeys(letter for letter in digits if not letter.isdigit()))
    if len(marks) == 1 and not _groups(digits, marks[0]):
        marks.insert(0, "")
    if len(marks) >= 1 and marks[0]:
        digits = digits.replace(marks[0], "")
    value = Fraction("0" + digits.replace(",", "."))
    return -value if sign else value


def _groups(digits: str, mark: str) -> bool:
    """Whether the one kind of mark in a numeral separates thousands."""
    match mark:
        case ",":
            return re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+|[1-9]\d?(,\d\d)+,\d{3}", digits) is not None
        case ".":
            return re.fullmatch(r"[1-9]\d{0,2}(\.\d{3}){2,}", digits) is not None
        case _:
            return True


def _proper(value: Fraction) -> Fraction:
    """The part of a mixed number that is below 1. Raises ValueError: this was no mixed number."""
    if not 0 <= value < 1:
        raise ValueError("no mixed number")
    return value


def _exponent(text: str) -> int:
    if len(text) > 4 or abs(int(text)) > LARGEST_EXPONENT:
        raise ValueError("too large an exponent")
    return int(text)


_SIGN = re.compile(r"(?P<left>.?)(?P<space>\s*)-(?P<gap>\s?)(?:[$€£¥₹]\s?|[A-Z]{3}\s)?\Z", re.DOTALL)


def _negative(before: str) -> bool:
    """Whether a minus before a number is its sign; after another number or a word it subtracts, joins or lists."""
    if re.search(r"(?:\bnegative|(?<![\d)] )\bminus)\s\Z", before, re.IGNORECASE):
        return True
    found = _SIGN.search(before)
    if found is None:
        return False
    if found["gap"]:
        return found["left"] != "" and found["left"] in "=:(≈<>"
    return bool(found["space"]) or not (found["left"].isalnum() or (found["left"] and found["left"] in ")}]%"))


_LETTERS = {
    **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "), **dict.fromkeys("−﹣－–", "-"),
    "’": "'", "＋": "+", "％": "%", "⁄": "/", "∕": "/", "＝": "=", "，": ",", "．": ".",
}  # fmt: skip
_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_TEX = (
    (re.compile(r"\\[!]|\\left\b|\\right\b|\\displaystyle\b"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;: ]|~"), " "),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\\(?:cdot|times)\b\s?"), "×"),
    (re.compile(r"\\pi\b"), "π"),
    (re.compile(r"\\pm\b|\+/-"), "±"),
    (re.compile(r"\\sqrt\b(?:\[\d+\])?"), "√"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"\\[\[\]()]"), " "),
)
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[^\s*])([^*\n]+)(?<!\s)\*\*(?!\*)")
_SIMPLE = r"\s*(-?[\d.,]*\d)\s*"
_FRACTION = re.compile(rf"(?P<whole>\d\s*)?\\[dt]?frac\s*(?:\{{{_SIMPLE}\}}|(\d)|\s(\d))\s*(?:\{{{_SIMPLE}\}}|(\d))")
_ANY_FRACTION = re.compile(r"\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}")
_LIST = re.compile(r"(?<![\d.,])\d+(?:,\d+){2,}(?!\d)")
_CURRENCY_CODES = re.compile(r"\b(USD|EUR|GBP|CHF|JPY|CNY|INR|Rs\.?)(?=[-\d])")


def _plain(text: str) -> str:
    """The text with one way to write each thing: ASCII digits and signs, a/b for fractions, ^ for powers."""
    plain = "".join(map(_letter, text))
    plain = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: "^" + found[0].translate(_POWERS), plain)
    plain = _BOLD.sub(r" \1 ", plain)  # or "**18** (9 eggs)" would be a power
    for pattern, instead in _TEX:
        plain = pattern.sub(instead, plain)
    plain = _ANY_FRACTION.sub(chr(0xE000), _FRACTION.sub(_over, plain))
    plain = _LIST.sub(lambda found: found[0] if _groups(found[0], ",") else found[0].replace(",", ", "), plain)
    return _CURRENCY_CODES.sub(r"\1 ", plain)


def _letter(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter in _LETTERS:
        return _LETTERS[letter]
    if "VULGAR FRACTION" in unicodedata.name(letter, "") and not letter.isdecimal():
        return " " + unicodedata.normalize("NFKC", letter).replace("⁄", "/")
    return str(unicodedata.decimal(letter, letter))


def _over(found: re.Match[str]) -> str:
    r"""`\frac{3}{4}` as 3/4, `2\frac{3}{4}` as 2 3/4."""
    over, under = (next(filter(None, found.groups()[at])) for at in (slice(1, 4), slice(4, 6)))
    return f"{found['whole'].strip()} {over}/{under}" if found["whole"] else f"{over}/{under}"
