"""The line without axes, the bar of parts and the switch."""

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication

from octavo.ui.theme import ThemeController
from octavo.ui.tokens import LIGHT
from octavo.ui.widgets.sparkline import LINE_WIDTH, Sparkline
from octavo.ui.widgets.stacked_bar import StackedBar
from octavo.ui.widgets.switch import Switch


@pytest.fixture
def line(app: QApplication, theme: ThemeController) -> Sparkline:
    widget = Sparkline(span_s=10)
    widget.resize(100, 40)
    return widget


def test_the_newest_value_is_at_the_right_and_the_top_at_the_top(line: Sparkline) -> None:
    line.show_values([0, 1, 2], [0, 50, 200], top=100)
    (points,) = line.stretches()
    assert [point.x() for point in points] == [80, 90, 100]
    assert points[0].y() == line.height() - LINE_WIDTH
    assert points[2].y() == LINE_WIDTH, "what is above the top is drawn at it"


def test_the_line_breaks_where_nothing_was_read(line: Sparkline) -> None:
    line.show_values([0, 1, 2, 3], [1, None, 1, 1], top=2)
    assert [len(points) for points in line.stretches()] == [1, 2]


def test_the_line_breaks_where_nobody_looked_for_a_while(line: Sparkline) -> None:
    line.show_values([0, 1, 5, 6], [1, 1, 1, 1], top=2)
    assert [len(points) for points in line.stretches()] == [2, 2]


def test_what_is_older_than_the_span_is_left_out(line: Sparkline) -> None:
    line.show_values([0, 19, 20], [1, 1, 1], top=2)
    assert [len(points) for points in line.stretches()] == [2]


def test_an_empty_or_flat_line_is_drawn(line: Sparkline) -> None:
    line.grab()
    line.show_values([0, 1], [0, 0], top=0)
    line.grab()


def test_the_area_fades_towards_the_foot_in_both_themes(
    line: Sparkline, theme: ThemeController
) -> None:
    line.show_values([0, 10], [100, 100], top=100)
    for mode in ("light", "dark"):
        theme.set_mode("light" if mode == "light" else "dark")
        image = line.grab().toImage()
        ground = QColor(theme.theme.paper)
        distance = [
            abs(image.pixelColor(50, y).lightness() - ground.lightness()) for y in (6, 20, 36)
        ]
        assert distance == sorted(distance, reverse=True)


def test_parts_of_a_bar_stand_side_by_side(app: QApplication, theme: ThemeController) -> None:
    bar = StackedBar((0, 1, None))
    bar.resize(200, 8)
    bar.show_amounts((1, 2, 1))
    image = bar.grab().toImage()
    colors = [image.pixelColor(x, 4) for x in (25, 100, 175)]
    assert colors == [QColor(LIGHT.series[0]), QColor(LIGHT.series[1]), QColor(LIGHT.rule)]


def test_a_bar_of_nothing_is_empty(app: QApplication, theme: ThemeController) -> None:
    bar = StackedBar((0, None))
    bar.resize(200, 8)
    bar.show_amounts((0, 0))
    assert bar.grab().toImage().pixelColor(100, 4) == QColor(LIGHT.rule)


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
