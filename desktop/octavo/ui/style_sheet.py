"""The Qt style sheet, filled with the tokens of one theme at one type scale.

Widgets choose their look by dynamic properties: `role` and `tone` on labels, `variant` on buttons,
`surface` on frames. The words are those used below.
"""

from dataclasses import asdict
from string import Template

from octavo.ui.tokens import (
    CONTROL_HEIGHT,
    FONT_BODY,
    FONT_HEADING,
    FONT_MONO,
    FONT_READING,
    FONT_SMALL,
    FONT_TITLE,
    RADIUS_CARD,
    RADIUS_CONTROL,
    Theme,
    scaled,
)

_TEMPLATE = Template("""
QMainWindow, QDialog, QWidget[surface="paper"] { background: $paper; }
QWidget[surface="sheet"] { background: $sheet; }
QWidget[surface="well"] { background: $well; }
QFrame[surface="card"] {
    background: $sheet; border: 1px solid $rule; border-radius: ${radius_card}px;
}
QFrame[surface="notice"] {
    background: $well; border: 1px solid $rule; border-radius: ${radius_card}px;
}
QFrame[surface="error"] {
    background: $sheet; border: 1px solid $bad; border-radius: ${radius_card}px;
}
QFrame[surface="rule"] { background: $rule; border: none; }
QWidget#sidebar { background: $well; border: none; border-right: 1px solid $rule; }

QLabel { color: $ink; background: transparent; }
QLabel[role="title"] { font-size: ${title}px; font-weight: 600; }
QLabel[role="heading"] { font-size: ${heading}px; font-weight: 600; }
QLabel[role="strong"] { font-weight: 600; }
QLabel[role="reading"] { font-size: ${reading}px; }
QLabel[role="soft"] { color: $ink_soft; }
QLabel[role="caption"] { font-size: ${small}px; color: $ink_soft; }
QLabel[role="figure"] { font-family: "$mono_family"; font-size: ${figure}px; color: $ink_soft; }
QLabel[role="mark"] { font-size: ${reading}px; font-weight: 600; }
QLabel[tone="soft"] { color: $ink_soft; }
QLabel[tone="accent"] { color: $accent; }
QLabel[tone="good"] { color: $good; }
QLabel[tone="caution"] { color: $caution; }
QLabel[tone="bad"] { color: $bad; }
QLabel:disabled { color: $ink_faint; }
QLabel[focusable="true"] { border: 2px solid transparent; border-radius: 4px; }
QLabel[focusable="true"]:focus { border-color: $accent; }

QPushButton {
    color: $ink; background: $sheet; border: 1px solid $edge; border-radius: ${radius_control}px;
    padding: 1px 13px; min-height: ${control}px; font-weight: 500;
}
QPushButton:hover { background: $hover; }
QPushButton:pressed { background: $pressed; }
QPushButton:focus { border: 2px solid $accent; padding: 0px 12px; }
QPushButton:disabled { color: $ink_faint; background: transparent; border-color: $rule; }
QPushButton[variant="primary"] { color: $accent_on; background: $accent; border-color: $accent; }
QPushButton[variant="primary"]:hover { background: $accent_hover; border-color: $accent_hover; }
QPushButton[variant="primary"]:pressed { background: $accent; }
QPushButton[variant="primary"]:focus { border: 2px solid $ink; }
QPushButton[variant="primary"]:disabled {
    color: $ink_faint; background: $well; border-color: $rule;
}
QPushButton[variant="danger"] { color: $bad; }
QPushButton[variant="danger"]:disabled { color: $ink_faint; }
QPushButton[variant="quiet"] { background: transparent; border-color: transparent; }
QPushButton[variant="quiet"]:hover { background: $hover; }
QPushButton[variant="quiet"]:pressed { background: $pressed; }
QPushButton[variant="quiet"]:focus { border: 2px solid $accent; }
QPushButton[variant="link"] {
    background: transparent; border-color: transparent; color: $accent; padding: 1px 5px;
    text-align: left;
}
QPushButton[variant="link"]:hover { color: $accent_hover; text-decoration: underline; }
QPushButton[variant="link"]:focus { border: 2px solid $accent; padding: 0px 4px; }
QPushButton[variant="verdict"] {
    background: transparent; border-color: transparent; padding: 1px 3px; text-align: left;
}
QPushButton[variant="verdict"]:hover { background: $hover; }
QPushButton[variant="verdict"]:focus { border: 2px solid $accent; padding: 0px 2px; }
QPushButton[variant="verdict"]:disabled { color: $ink_soft; border-color: transparent; }
QPushButton[tone="good"] { color: $good; }
QPushButton[tone="caution"] { color: $caution; }
QPushButton[tone="bad"] { color: $bad; }
QPushButton[variant="link"]:disabled { color: $ink_soft; border-color: transparent; }
QPushButton[variant="nav"] {
    background: transparent; border-color: transparent; text-align: left; padding: 1px 9px;
}
QPushButton[variant="nav"]:hover { background: $hover; }
QPushButton[variant="nav"]:checked { background: $selection; color: $ink; font-weight: 600; }
QPushButton[variant="nav"]:focus { border: 2px solid $accent; padding: 0px 8px; }
QPushButton[variant="rail"] {
    background: transparent; border-color: transparent; padding: 1px;
    min-width: ${rail_button}px; max-width: ${rail_button}px; text-align: center;
}
QPushButton[variant="rail"]:hover { background: $hover; }
QPushButton[variant="rail"]:checked { background: $selection; }
QPushButton[variant="rail"]:focus { border: 2px solid $accent; padding: 0px; }
QPushButton[variant="segment"] {
    background: transparent; border: 1px solid transparent; border-radius: 4px;
    color: $ink_soft; min-height: ${segment}px; padding: 1px 13px;
}
QPushButton[variant="segment"]:hover { color: $ink; }
QPushButton[variant="segment"]:checked {
    background: $sheet; color: $ink; border: 1px solid $edge;
}
QPushButton[variant="segment"]:focus { border: 2px solid $accent; padding: 0px 12px; }
QFrame[surface="segments"] {
    background: $well; border: 1px solid $rule; border-radius: ${radius_control}px;
}

QToolButton {
    background: transparent; border: 1px solid transparent; color: $ink;
    border-radius: ${radius_control}px; padding: 5px;
}
QToolButton:hover { background: $hover; }
QToolButton:pressed, QToolButton:checked { background: $pressed; }
QToolButton:focus { border: 2px solid $accent; padding: 4px; }
QToolButton:disabled { color: $ink_faint; }
QToolButton::menu-indicator { image: none; }

QLineEdit, QPlainTextEdit, QTextEdit, QAbstractSpinBox, QComboBox {
    color: $ink; background: $well; border: 1px solid $rule;
    border-radius: ${radius_control}px; padding: 1px 9px;
    selection-background-color: $selection; selection-color: $ink;
    placeholder-text-color: $ink_soft;
}
QLineEdit, QAbstractSpinBox, QComboBox { min-height: ${control}px; }
QPlainTextEdit, QTextEdit { padding: 5px 7px; }
QLineEdit:hover, QAbstractSpinBox:hover, QComboBox:hover, QPlainTextEdit:hover, QTextEdit:hover {
    border-color: $edge;
}
QLineEdit:focus, QAbstractSpinBox:focus, QComboBox:focus {
    border: 2px solid $accent; padding: 0px 8px;
}
QPlainTextEdit:focus, QTextEdit:focus { border: 2px solid $accent; padding: 4px 6px; }
QLineEdit:disabled, QAbstractSpinBox:disabled, QComboBox:disabled, QPlainTextEdit:disabled {
    color: $ink_faint;
}
QTextBrowser { background: transparent; border: none; padding: 0px; }
QTextBrowser:focus, QTextBrowser:hover { border: none; padding: 0px; }
QComboBox::drop-down { border: none; width: 28px; }
QComboBox::down-arrow { image: none; }
QComboBox QAbstractItemView {
    background: $sheet; color: $ink; border: 1px solid $edge; padding: 4px; outline: none;
    selection-background-color: $selection; selection-color: $ink;
}
QAbstractSpinBox QLineEdit, QAbstractSpinBox QLineEdit:focus {
    background: transparent; border: none; padding: 0px 8px; min-height: 0px;
}
QAbstractSpinBox, QAbstractSpinBox:focus { padding: 0px; }
QAbstractSpinBox::up-button, QAbstractSpinBox::down-button { width: 0px; border: none; }

QListView, QTreeView, QTableView {
    background: transparent; border: none; outline: none; color: $ink;
    selection-background-color: $selection; selection-color: $ink;
}
QListView::item { border-radius: ${radius_control}px; padding: 6px 8px; }
QListView::item:hover { background: $hover; }
QListView::item:selected { background: $selection; color: $ink; }

QScrollArea { background: transparent; border: none; }
QScrollBar:vertical { background: transparent; width: 12px; margin: 0px; }
QScrollBar:horizontal { background: transparent; height: 12px; margin: 0px; }
QScrollBar::handle { background: $edge; border-radius: 4px; margin: 2px; }
QScrollBar::handle:vertical { min-height: 32px; }
QScrollBar::handle:horizontal { min-width: 32px; }
QScrollBar::handle:hover, QScrollBar::handle:pressed { background: $ink_faint; }
QScrollBar::add-line, QScrollBar::sub-line { width: 0px; height: 0px; border: none; }
QScrollBar::add-page, QScrollBar::sub-page { background: transparent; }
QAbstractScrollArea::corner { background: transparent; border: none; }

QRadioButton {
    color: $ink; font-weight: 500; spacing: 8px; padding: 2px 4px;
    border: 2px solid transparent; border-radius: 4px;
}
QRadioButton:focus { border-color: $accent; }
QRadioButton:disabled { color: $ink_faint; }
QRadioButton::indicator {
    width: 14px; height: 14px; border: 1px solid $ink_faint; border-radius: 8px;
    background: $sheet;
}
QRadioButton::indicator:hover { border-color: $accent; }
QRadioButton::indicator:checked {
    width: 6px; height: 6px; border: 5px solid $accent; border-radius: 8px; background: $sheet;
}

QSlider { min-height: ${control}px; }
QSlider::groove:horizontal { height: 4px; background: $rule; border-radius: 2px; }
QSlider::sub-page:horizontal { height: 4px; background: $accent; border-radius: 2px; }
QSlider::handle:horizontal {
    width: 14px; height: 14px; margin: -6px 0px; border-radius: 8px;
    background: $sheet; border: 1px solid $ink_faint;
}
QSlider::handle:horizontal:hover { border-color: $accent; }
QSlider::handle:horizontal:focus { border: 2px solid $accent; width: 14px; height: 14px; }

QProgressBar {
    background: $rule; border: none; border-radius: 2px; min-height: 4px; max-height: 4px;
}
QProgressBar::chunk { background: $accent; border-radius: 2px; }

QMenu { background: $sheet; color: $ink; border: 1px solid $edge; padding: 4px; }
QMenu::item { padding: 6px 24px 6px 12px; border-radius: 4px; }
QMenu::item:selected { background: $selection; color: $ink; }
QMenu::item:disabled { color: $ink_faint; }
QMenu::icon { padding-left: 8px; }
QMenu::separator { height: 1px; background: $rule; margin: 4px 8px; }
QToolTip {
    background: $sheet; color: $ink; border: 1px solid $edge; padding: 6px 8px;
    font-size: ${small}px;
}
QSplitter::handle { background: $rule; }
""")


def build_style_sheet(theme: Theme, scale: float = 1.0) -> str:
    """Fills the style sheet with a theme's colours and the type sizes at this scale."""
    colors = {name: value for name, value in asdict(theme).items() if isinstance(value, str)}
    return _TEMPLATE.substitute(
        colors,
        hover=theme.hover,
        pressed=theme.pressed,
        accent_hover=theme.accent_hover,
        edge=theme.edge,
        radius_card=RADIUS_CARD,
        radius_control=RADIUS_CONTROL,
        small=scaled(FONT_SMALL, scale),
        figure=scaled(FONT_BODY - 1, scale),
        reading=scaled(FONT_READING, scale),
        heading=scaled(FONT_HEADING, scale),
        title=scaled(FONT_TITLE, scale),
        # The box model adds one pixel of border and one of padding above and below.
        control=scaled(CONTROL_HEIGHT, scale) - 4,
        segment=scaled(CONTROL_HEIGHT, scale) - 10,
        rail_button=scaled(CONTROL_HEIGHT, scale),
        mono_family=FONT_MONO,
    )
