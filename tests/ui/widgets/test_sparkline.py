"""The line without axes, the bar of parts and the switch."""

from collections.abc import Sequence

import pytest
from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QColor, QImage, QPainter
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from octavo.ui.theme import ThemeController
from octavo.ui.tokens import DARK, LIGHT, Theme
from octavo.ui.widgets.sparkline import LINE_WIDTH, Sparkline
from octavo.ui.widgets.stacked_bar import paint_bar
from octavo.ui.widgets.switch import Switch

SIZE = QSize(100, 40)


@pytest.fixture
def line(app: QApplication, theme: ThemeController) -> Sparkline:
    return Sparkline(span_s=10)


def draw(line: Sparkline, theme: Theme = LIGHT) -> QImage:
    image = QImage(SIZE, QImage.Format.Format_ARGB32_Premultiplied)
    image.fill(QColor(theme.paper))
    painter = QPainter(image)
    line.paint(painter, image.rect(), 1.0, theme)
    painter.end()
    return image


def test_the_newest_value_is_at_the_right_and_the_top_at_the_top(line: Sparkline) -> None:
    line.show_values([0, 1, 2], [0, 50, 200], top=100)
    (points,) = line.stretches(SIZE)
    assert [point.x() for point in points] == [80, 90, 100]
    assert points[0].y() == SIZE.height() - LINE_WIDTH
    assert points[2].y() == LINE_WIDTH, "what is above the top is drawn at it"


def test_the_line_breaks_where_nothing_was_read(line: Sparkline) -> None:
    line.show_values([0, 1, 2, 3], [1, None, 1, 1], top=2)
    assert [len(points) for points in line.stretches(SIZE)] == [1, 2]


def test_the_line_breaks_where_nobody_looked_for_a_while(line: Sparkline) -> None:
    line.show_values([0, 1, 5, 6], [1, 1, 1, 1], top=2)
    assert [len(points) for points in line.stretches(SIZE)] == [2, 2]


def test_what_is_older_than_the_span_is_left_out(line: Sparkline) -> None:
    line.show_values([0, 19, 20], [1, 1, 1], top=2)
    assert [len(points) for points in line.stretches(SIZE)] == [2]


def test_an_empty_or_flat_line_is_drawn(line: Sparkline) -> None:
    draw(line)
    line.show_values([0, 1], [0, 0], top=0)
    draw(line)


def test_the_area_fades_towards_the_foot_in_both_themes(line: Sparkline) -> None:
    line.show_values([0, 1.5, 3, 4.5, 6, 7.5, 9, 10], [100] * 8, top=100)
    for theme in (LIGHT, DARK):
        image = draw(line, theme)
        ground = QColor(theme.paper)
        distance = [
            abs(image.pixelColor(50, y).lightness() - ground.lightness()) for y in (6, 20, 36)
        ]
        assert distance == sorted(distance, reverse=True)
        assert distance[0] > distance[-1]


@pytest.mark.parametrize("missing", [None, 7])
def test_a_line_that_grew_looks_like_one_drawn_at_once(
    line: Sparkline, missing: int | None
) -> None:
    """What was drawn before is only moved; after 30 moves it must still be the same picture."""
    times_s: list[float | None] = []
    values: list[float | None] = []
    line.show_values(times_s, values, top=100)
    for number in range(61):  # every second one is drawn, the last among them
        times_s.append(1000.0 + number * 0.503)
        values.append(None if number % 10 == missing else float((number * 37) % 100))
        draw(line)
    assert line.num_whole_drawings == 1
    whole = Sparkline(span_s=10)
    whole.show_values(times_s, values, top=100)
    grown, anew = draw(line), draw(whole)
    off = [
        (x, y)
        for x in range(SIZE.width())
        for y in range(SIZE.height())
        if abs(grown.pixelColor(x, y).lightness() - anew.pixelColor(x, y).lightness()) > 40
    ]
    assert off == []


def test_another_size_top_or_theme_is_drawn_anew(line: Sparkline) -> None:
    line.show_values([0, 1, 2], [1, 2, 3], top=3)
    draw(line)
    draw(line)
    assert line.num_whole_drawings == 1
    draw(line, DARK)
    line.show_values([0, 1, 2], [1, 2, 3], top=6)
    draw(line, DARK)
    assert line.num_whole_drawings == 3


def draw_bar(series: Sequence[int | None], amounts: Sequence[float]) -> QImage:
    image = QImage(200, 8, QImage.Format.Format_ARGB32_Premultiplied)
    painter = QPainter(image)
    paint_bar(painter, image.rect(), series, amounts, LIGHT)
    painter.end()
    return image


def test_parts_of_a_bar_stand_side_by_side(app: QApplication) -> None:
    image = draw_bar((0, 1, None), (1, 2, 1))
    colors = [image.pixelColor(x, 4) for x in (25, 100, 175)]
    assert colors == [QColor(LIGHT.series[0]), QColor(LIGHT.series[1]), QColor(LIGHT.rule)]


def test_a_bar_of_nothing_is_empty(app: QApplication) -> None:
    assert draw_bar((0, None), (0, 0)).pixelColor(100, 4) == QColor(LIGHT.rule)


def test_a_switch_is_turned_by_pointer_and_keyboard_and_looks_it(
    app: QApplication, theme: ThemeController
) -> None:
    switch = Switch("Use it")
    switch.resize(switch.sizeHint())
    turned: list[bool] = []
    switch.toggled.connect(turned.append)
    off = switch.grab().toImage()
    QTest.mouseClick(switch, Qt.MouseButton.LeftButton)
    assert switch.grab().toImage() != off
    QTest.keyClick(switch, Qt.Key.Key_Space)
    assert turned == [True, False]
