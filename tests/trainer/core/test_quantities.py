"""The number that an answer comes to."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kubedistill_trainer.core.quantities import Number, number_in, several_in

WRITTEN = {
    "plain": ("42", 42),
    "sign": ("-5", -5),
    "unicode-minus": ("x = −5", -5),
    "minus-before-currency": ("-$5", -5),
    "minus-after-currency": ("$-5", -5),
    "minus-after-an-equals-sign": ("x = - 3", -3),
    "negative-in-words": ("negative 5 degrees", -5),
    "a-difference-is-no-sign": ("10-15", 15),
    "a-bullet-is-no-sign": ("- 3 apples", 3),
    "minus-between-numbers": ("7 minus 5", 5),
    "thousands": ("$1,234.50", Fraction(2469, 2)),
    "thousands-with-points": ("1.234.567", 1234567),
    "thousands-with-points-and-decimal-comma": ("1.234,5", Fraction(12345, 10)),
    "thousands-with-spaces": ("12 345 678", 12345678),
    "thousands-with-apostrophes": ("1’234.50", Fraction(12345, 10)),
    "lakh-and-crore": ("12,34,567", 1234567),
    "english-where-both-are-possible-comma": ("1,234", 1234),
    "english-where-both-are-possible-point": ("1.234", Fraction(1234, 1000)),
    "decimal-comma": ("12,5", Fraction(25, 2)),
    "decimal-comma-after-zero": ("0,125", Fraction(1, 8)),
    "no-leading-zero": (".5", Fraction(1, 2)),
    "trailing-zero": ("42.0", 42),
    "a-list-is-no-number": ("3,4,5", 5),
    "fraction": ("-3/4", Fraction(-3, 4)),
    "mixed-number": ("2 3/4 cups", Fraction(11, 4)),
    "vulgar-fraction": ("2½", Fraction(5, 2)),
    "tex-fraction": (r"$-\frac{1}{2}$", Fraction(-1, 2)),
    "tex-fraction-short": (r"\frac12", Fraction(1, 2)),
    "tex-mixed-number": (r"2\dfrac{1}{2}", Fraction(5, 2)),
    "tex-thousands": ("1{,}000", 1000),
    "tex-percent": (r"50\%", 50),
    "tex-dollars": (r"$\$18$", 18),
    "e-notation": ("1.5e-3", Fraction(15, 10000)),
    "power-of-ten": ("1.5 × 10^3", 1500),
    "tex-power-of-ten": (r"6 \times 10^{-2}", Fraction(6, 100)),
    "superscript": ("10⁵", 100000),
    "power": ("2^10", 1024),
    "unit": ("72 km/h", 72),
    "unit-with-a-power": ("5 m²", 5),
    "currency-code": ("USD5", 5),
    "full-width-digits": ("１２３", 123),
    "arabic-digits": ("٣", 3),
    "digits-inside-words-do-not-count": ("x_2 of H2O costs 7", 7),
    "no-space-in-chinese": ("价格500元", 500),
}
STANDS = {
    "the-answer-is": ("3 + 4 is 7, so the answer is 7. Check 2 of 2 done", 7),
    "answer-with-markdown": ("**Answer:** 42, from 6 * 7", 42),
    "answer-of-an-equation": ("The answer is 6 + 7 = 13", 13),
    "the-clause-ends-before-the-reason": ("The answer is x = 5, since 2x = 10", 5),
    "the-answer-to": ("The answer to question 3 is 12 dollars.", 12),
    "on-the-next-line": ("The answer is:\n\n$$x = 5$$", 5),
    "answer-that-explains-first": ("The answer is as follows. We have 3 + 4 = 7.", 7),
    "the-last-answer-counts": ("Answer: 5. No. Answer: 6.", 6),
    "what-it-is-not": ("The answer is not 5 but 6", 6),
    "boxed-first": (r"The answer is 3, no: \boxed{4}. It took 2 steps.", 4),
    "the-last-box": (r"\boxed{3} and \boxed{\frac{3}{4}}", Fraction(3, 4)),
    "boxed-with-unit": (r"\boxed{42\text{ cm}}", 42),
    "hashes": ("5 * 3 = <<5*3=15>>15\n#### 1,500", 1500),
    "the-last-number": ("First 3, then 4 of them make 12 in all.", 12),
    "before-the-word": ("So 7 is the answer.", 7),
    "a-heading-of-four-hashes": (
        "#### Step 1: Add\n3 + 4 = 7\n#### Step 2: Multiply\n7 * 2 = 14\nThe answer is 14.",
        14,
    ),
    "a-heading-without-a-number": ("#### Verification\nIt holds.\n\nThe answer is 12.", 12),
    "hashes-and-blank-lines-after": ("9 - 4 = 5\n####5\n\n", 5),
    "bold-before-a-parenthesis": ("The answer is **18** (9 eggs a day times 2)", 18),
    "a-bold-total-before-a-remark": ("Total: **18**\n\n2 of them are left", 18),
    "a-bold-total-before-a-remark-on-its-line": ("- 3 a day\n- **Total:** **18**, and 2 of them are left", 18),
    "a-total-in-bold-as-a-whole": ("**Total cost: $18**\nThat is for 2 people.", 18),
    "a-result-before-a-remark": ("Result: 18\nYou may round it to 20.", 18),
    "a-total-on-the-way": ("Total: 20 apples. She gives 2 away and keeps 18.", 18),
    "a-bold-total-on-the-way": ("Total: **20**\nShe gives 2 away, so 18 are left.", 18),
    "a-bold-total-that-is-calculated-with": ("Total: **20**\n20 - 2 = 18", 18),
    "a-bold-total-and-two-numbers-after": ("Total: **20**\nShe gives 2 away. 18 are left.", 18),
    "a-bold-step-is-no-total": ("First she has **7**. She gives 2 away and has 5", 5),
    "the-answer-is-before-a-total": ("The answer is 5.\n\nTotal: **18**", 5),
    "bold-at-the-end": ("9 * 2 is **18**", 18),
    "bold-negative": ("The answer is **-5**.", -5),
    "stars-are-a-power-between-numbers": ("2**3", 8),
    "stars-with-spaces-are-a-power": ("It is 2 ** 3", 8),
    "sign-before-a-gap": ("The answer is - 5", -5),
    "sign-before-a-gap-in-an-equation": ("The answer is x = - 5", -5),
    "sign-before-a-gap-in-bold": ("The answer is **- 5**.", -5),
    "sign-before-a-gap-in-a-box": (r"\boxed{- 5}", -5),
    "sign-before-a-thin-space-in-a-box": (r"\boxed{-\,5}", -5),
    "sign-before-a-gap-after-hashes": ("3 - 8\n#### - 5", -5),
    "a-bullet-after-the-mark-is-no-sign": ("The answer is:\n- 5 apples", 5),
    "a-mark-that-states-no-number": (
        "The answer is 12. Let me check: the answer is correct because 12 / 4 = 3.",
        12,
    ),
}
NOTHING = {
    "no-number": "I cannot tell.",
    "empty": "",
    "a-number-word": "The answer is five.",
    "a-root": r"\boxed{2\sqrt{3}}",
    "a-multiple-of-pi": "The area is 4π",
    "pi-over-two": r"It is \frac{\pi}{2}",
    "an-open-box-with-no-number": r"\boxed{x}",
    "division-by-zero": "5/0",
    "a-date": "12/05/2024",
    "gigabytes-in-an-exponent": "1e999999999",
    "a-loop-of-digits": "9" * 5000,
}


@pytest.mark.parametrize(("text", "value"), [*WRITTEN.values(), *STANDS.values()], ids=[*WRITTEN, *STANDS])
def test_the_number_is_found_and_read(text, value):
    found = number_in(text)
    assert found is not None
    assert found.value == value


ONE = {
    "gsm8k": "5 * 3 = <<5*3=15>>15 and 3 more\n#### 18",
    "boxed-after-reasoning": r"Of 20 there are 2 left, so \boxed{18}.",
    "mixed-number": "1 1/2",
    "mixed-number-in-words": "2 and 3/4 cups",
    "thousands": "1,234",
    "thousands-in-groups": "12 345 678",
    "power-of-ten": "3 × 10^5",
    "percent": "25 %",
    "percent-and-the-same-share": "25 % (1/4)",
    "twice-the-same": "$5 (5 dollars)",
    "an-equation": "x = 5",
    "an-equation-from-numbers": "3 + 4 = 7",
    "a-chain-of-equations": "x = 3 + 4 = 7",
    "unit-with-a-power": "5 m²",
    "negative": "-5",
    "fraction": r"\frac{3}{4}",
    "decimal-comma": "12,5",
    "millions": "$3 million",
    "stated-with-its-reason": "The answer is 12, since 3 * 4 = 12.",
    "stated-after-reasoning": "There are 3 bags of 4. The answer is 12.",
    "a-bold-total": "3 bags of 4\nTotal: **12**",
}
SEVERAL = {
    "a-point": "(3, 4)",
    "a-point-without-a-gap": "(3,4)",
    "a-point-in-a-box": r"\boxed{(3, 4)}",
    "a-point-in-tex": r"$\left(3, \frac{1}{2}\right)$",
    "a-set": r"\{2,5\}",
    "a-ratio": "3:4",
    "two-solutions": "x = 2 or 3",
    "two-solutions-in-equations": "x = 2 or x = 3",
    "two-unknowns": "x = 2, y = 3",
    "two-unknowns-stated": "The answer is x = 2, y = 3.",
    "two-signs": "±2",
    "two-signs-in-tex": r"\boxed{\pm 2}",
    "a-range": "10-15",
    "an-interval": "[0, 5]",
    "a-list": "3, 4, 5",
    "hours-and-minutes": "3 hours 20 minutes",
    "after-hashes": "we solve it\n#### 2 or 3",
    "a-number-and-an-unreadable-one": "5 or 2√3",
    "out-of": "2 out of 5",
}


@pytest.mark.parametrize("text", ONE.values(), ids=ONE)
def test_a_label_that_means_one_number_is_told_from(text):
    assert number_in(text) is not None
    assert not several_in(text)


@pytest.mark.parametrize("text", SEVERAL.values(), ids=SEVERAL)
def test_one_that_could_mean_several(text):
    assert several_in(text)


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING)
def test_what_is_no_number_is_none(text):
    assert number_in(text) is None


def groups_of(digits: str, mark: str) -> str:
    """`1234567` with a mark before every three digits from the right."""
    head = len(digits) % 3 or 3
    return mark.join([digits[:head], *(digits[at : at + 3] for at in range(head, len(digits), 3))])


wholes = st.integers(0, 10**12)
decimals = st.text("0123456789", min_size=1, max_size=6)
signs = st.sampled_from(["", "-", "−"])
FRAMES = [
    "{}", "{}.", "The answer is {}.", "The answer is ${}$.", "**Answer: {}**", r"So we get \boxed{{{}}}.",
    "3 steps later\n#### {}", "First 12, then 7. In all it is {} apples.", "x = {}", "≈ {} km", "({})", "`{}`",
]  # fmt: skip
frames = st.sampled_from(FRAMES)


@st.composite
def written_wholes(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A whole number in one of the ways to group its digits."""
    number = draw(wholes)
    mark = draw(st.sampled_from(["", ",", "'", "_", "\u00a0", "\u202f", " ", "{,}", r"\,"]))
    return groups_of(str(number), mark), Fraction(number)


@st.composite
def written_decimals(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A decimal number: English, German, French, Swiss, or plain. A lone decimal comma is used where it can be nothing
    else: not before exactly three digits.
    """
    whole, part = str(draw(wholes)), draw(decimals)
    mark, point = draw(st.sampled_from([("", "."), (",", "."), (".", ","), (" ", ","), ("'", "."), ("", ",")]))
    alone = not mark or len(whole) <= 3
    assume(point == "." or not alone or len(part) != 3 or whole == "0" or len(whole) > 3)
    return groups_of(whole, mark) + point + part if mark else whole + point + part, Fraction(f"{whole}.{part}")


@st.composite
def written_fractions(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A fraction or a mixed number, plain or as TeX."""
    over, under = draw(st.integers(0, 999)), draw(st.integers(1, 999))
    whole = draw(st.integers(1, 999)) if over < under and draw(st.booleans()) else 0
    form = draw(st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}"]))
    text = form.format(over, under)
    return f"{whole} {text}" if whole else text, whole + Fraction(over, under)


@st.composite
def written_powers(draw: st.DrawFn) -> tuple[str, Fraction]:
    """Scientific notation."""
    first, part, exponent = draw(st.integers(1, 9)), draw(decimals), draw(st.integers(-12, 12))
    form = draw(st.sampled_from(["{}e{}", "{}E{:+}", "{} × 10^{}", r"{} \times 10^{{{}}}", "{}*10**{}", "{} x 10^{}"]))
    return form.format(f"{first}.{part}", exponent), Fraction(f"{first}.{part}") * Fraction(10) ** exponent


written = st.one_of(written_wholes(), written_decimals(), written_fractions(), written_powers())


@given(written, signs, frames)
def test_a_number_written_in_any_way_and_anywhere_reads_as_itself(number, sign, frame):
    text, value = number
    found = number_in(frame.format(sign + text))
    assert found is not None
    assert found.value == (-value if sign else value)


@given(
    written, signs, st.sampled_from(["{}", "{}.", "x = {}", "The answer is {}.", "9 and 7\n#### {}", r"\boxed{{{}}}"])
)
def test_a_number_written_in_any_way_is_one(number, sign, frame):
    assert not several_in(frame.format(sign + number[0]))


@given(
    st.integers(0, 999), st.integers(0, 999), st.sampled_from(["({}, {})", "{}:{}", "{} or {}", "{}; {}", "{} and {}"])
)
def test_two_numbers_are_several(one, other, frame):
    assume(one != other)
    assert several_in(frame.format(one, other))


@given(
    st.one_of(written_wholes(), written_decimals()),
    signs,
    st.sampled_from(["${}", "€ {}", "£{}", "{} €", "USD {}", "{}kg", "{} m/s", "{}°", "{} m²", r"{}\text{{ cm}}"]),
)
def test_currencies_and_units_are_dress(number, sign, dress):
    text, value = number
    found = number_in(dress.format(sign + text))
    assert found is not None
    assert found.value == (-value if sign else value)


@given(st.text(max_size=200))
def test_any_text_has_a_number_or_none(text):
    found = number_in(text)
    assert found is None or isinstance(found.value, Fraction)


SAME = {
    "another-form": ("1,000", "1e3", True),
    "a-fraction-and-its-decimal": ("3/4", "0.75", True),
    "rounding-is-not-equality": ("1/3", "0.333", False),
    "percent-and-bare": ("25 %", "25", True),
    "percent-and-share": ("25%", "0.25", True),
    "two-percentages": ("25%", "0.25%", False),
    "a-quarter-is-not-twenty-five": ("0.25", "25", False),
    "millions-and-bare": ("3 million", "3", True),
    "millions-in-full": ("$3 million", "3,000,000", True),
    "millions-and-thousands": ("3 million", "3 thousand", False),
    "another-sign": ("-3", "3", False),
}


@pytest.mark.parametrize(("one", "other", "same"), SAME.values(), ids=SAME)
def test_numbers_are_compared_as_numbers(one, other, same):
    first, second = number_in(one), number_in(other)
    assert first is not None
    assert second is not None
    assert first.same(second) is second.same(first) is same


@given(wholes, st.sampled_from([Fraction(1), Fraction(1, 100), Fraction(10**6)]))
def test_every_number_is_itself(value, scale):
    assert Number(Fraction(value), scale).same(Number(Fraction(value), scale))
