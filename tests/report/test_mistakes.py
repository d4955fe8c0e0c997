"""The mistakes on the page: every image with its label and what both networks say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.ops.softmax import softmax_forward
from refkd.report.attachments import Attachments
from refkd.report.examples import Examples
from refkd.report.mistakes import mistakes_section, shown_classes
from refkd.report.pixels import data_url

Result = dict[str, Any]
Made = Callable[..., tuple[Result, Attachments]]
HOSTILE = "<script>alert('x')</script>"


def some(attachments: Attachments) -> Examples:
    assert attachments.examples is not None
    return attachments.examples


def items(html: str) -> list[str]:
    return re.findall(r"<li>(.*?)</li>", html, flags=re.DOTALL)


def bars(item: str, role: str) -> list[float]:
    """The widths of a network's bars in percent."""
    found = re.findall(rf'width: ([\d.]+)%; background: var\(--{role}\)"', item)
    return [float(width) for width in found]


def figures(item: str, role: str) -> list[float]:
    found = re.findall(rf'<td class="{role}">(\d*)</td>', item)
    return [float(figure or 0) for figure in found]


def test_every_image_is_shown_with_its_label_and_place(result: Result, with_images: Made) -> None:
    result, attachments = with_images(result)
    result["data"]["class_names"] = [f"class {i}" for i in range(10)]
    examples = some(attachments)
    found = items(mistakes_section(result, examples))
    assert len(found) == len(examples) == 24
    for i, item in enumerate(found):
        assert data_url(examples.images[i]) in item
        assert f'alt="test image {examples.rows[i]}"' in item
        assert f"<b>class {examples.labels[i]}</b> " in item


def test_bars_are_the_soft_targets_of_both_networks(result: Result, with_images: Made) -> None:
    result, attachments = with_images(result)
    examples = some(attachments)
    assert examples.teacher is not None
    found = items(mistakes_section(result, examples))
    for role, logits in (("teacher", examples.teacher), ("distilled", examples.student)):
        soft = 100 * softmax_forward(logits.astype(np.float64), temperature=4.0)
        for item, expected in zip(found, soft, strict=True):
            np.testing.assert_allclose(bars(item, role), expected, atol=0.051)
            np.testing.assert_allclose(figures(item, role), expected, atol=0.501)


def test_words_say_what_each_network_says_and_how_surely(result: Result, with_images: Made) -> None:
    result, attachments = with_images(result)
    examples = some(attachments)
    assert examples.teacher is not None
    for i, item in enumerate(items(mistakes_section(result, examples))):
        for name, logits in (("teacher", examples.teacher), ("student", examples.student)):
            sure = 100 * float(softmax_forward(logits[i]).max())
            assert f">{name}: {logits[i].argmax()} ({sure:.1f}%)<" in item


def test_what_rounds_to_certainty_is_not_called_certain(result: Result, with_images: Made) -> None:
    result, attachments = with_images(result)
    examples = some(attachments)
    sure = dataclasses.replace(examples, student=100 * examples.student)
    assert "(&gt;99.9%)" in mistakes_section(result, sure)
    assert "(100.0%)" not in mistakes_section(result, sure)


def test_the_introduction_counts_mistakes_and_those_the_teacher_shares(
    result: Result, with_images: Made
) -> None:
    result, attachments = with_images(result)
    examples = some(attachments)
    counts = np.array(result["confusion"]["student_distilled"])
    wrong = counts.sum() - counts.trace()
    html = mistakes_section(result, examples)
    assert f"gets {wrong} of 400 test images wrong. The 24 that it is surest of" in html
    same = dataclasses.replace(examples, teacher=2 * examples.student)
    assert "on 24 of these the teacher says the same" in mistakes_section(result, same)
    other = dataclasses.replace(examples, teacher=np.roll(examples.student, 1, axis=1))
    assert "on none of these the teacher says the same" in mistakes_section(result, other)
    few = dataclasses.replace(
        examples,
        **{
            field.name: getattr(examples, field.name)[:3]
            for field in dataclasses.fields(examples)
            if isinstance(getattr(examples, field.name), np.ndarray)
        },
    )
    result["confusion"]["student_distilled"] = np.diag([9] * 10).tolist()
    result["confusion"]["student_distilled"][0][1] = 3
    assert "gets 3 of 93 test images wrong. All of them" in mistakes_section(result, few)


def test_a_student_without_mistakes_is_said_to_have_none(result: Result, with_images: Made) -> None:
    result, attachments = with_images(result)
    result["confusion"]["student_distilled"] = np.diag([9] * 10).tolist()
    examples = some(attachments)
    none = Examples(
        examples.rows[:0],
        examples.labels[:0],
        examples.images[:0],
        examples.student[:0],
        None,
        4.0,
        stretched=False,
    )
    html = mistakes_section(result, none)
    assert "gets all 90 test images right" in html
    assert "<ol" not in html


def test_without_the_teacher_s_logits_only_the_student_is_shown(
    result: Result, with_images: Made
) -> None:
    result, attachments = with_images(result, teacher=False)
    html = mistakes_section(result, some(attachments))
    assert "teacher" not in html
    assert len(bars(html, "distilled")) == 24 * 10


def test_stretched_images_are_said_to_be(result: Result, with_images: Made) -> None:
    result, attachments = with_images(result)
    examples = some(attachments)
    assert "least value" not in mistakes_section(result, examples)
    stretched = dataclasses.replace(examples, stretched=True)
    assert "from its own least value, black" in mistakes_section(result, stretched)


def test_large_images_are_shrunk_and_small_ones_enlarged_with_sharp_pixels(
    result: Result, with_images: Made
) -> None:
    small = mistakes_section(*_of_shape(result, with_images, (3, 16, 16)))
    assert small.count('<img class="small"') == 24
    large = mistakes_section(*_of_shape(result, with_images, (3, 224, 224)))
    assert large.count("<img src") == 24
    # Noise does not compress: 112 x 112 x 3 bytes each, and a third more in base64.
    assert len(large) < 24 * 1.4 * 3 * 112**2 + 100_000


def _of_shape(result: Result, with_images: Made, shape: Any) -> tuple[Result, Examples]:
    result, attachments = with_images(result, shape=shape)
    return result, some(attachments)


def test_of_many_classes_the_others_are_summed(
    make_result: Callable[..., Result], with_images: Made
) -> None:
    result, attachments = with_images(make_result(classes=40))
    for item in items(mistakes_section(result, some(attachments))):
        assert "32 others" in item
        for role in ("teacher", "distilled"):
            widths = bars(item, role)
            assert len(widths) == 9
            assert sum(widths) == pytest.approx(100, abs=0.5)


def test_names_are_escaped(result: Result, with_images: Made) -> None:
    result, attachments = with_images(result)
    result["data"]["class_names"] = [f"{HOSTILE}{i}" for i in range(10)]
    html = mistakes_section(result, some(attachments))
    assert "<script" not in html
    assert "&lt;script" in html


@given(st.integers(2, 30), st.integers(0, 99), st.data())
def test_shown_classes_hold_the_label_and_what_either_network_says(
    classes: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    soft = [softmax_forward(3 * rng.standard_normal(classes)) for _ in range(2)]
    label = data.draw(st.integers(0, classes - 1))
    shown = shown_classes(soft, label)
    assert len(shown) == len(set(shown)) == (classes if classes <= 10 else 8)
    assert {label, *(int(s.argmax()) for s in soft)} <= set(shown)
    if classes <= 10:
        assert shown == list(range(classes))
    likeliest = np.max(soft, axis=0)
    left = [c for c in range(classes) if c not in shown]
    assert all(likeliest[c] <= min(likeliest[s] for s in shown if s != label) for c in left)
