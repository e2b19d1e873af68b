"""Colours, spaces, radii and type sizes: the only module in `ui/` that names a literal colour."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Theme:
    """Every colour of one appearance, as `#RRGGBB`."""

    is_dark: bool
    paper: str
    """The window."""
    sheet: str
    """Cards, composer, menus."""
    well: str
    """Sidebar, code, inputs."""
    rule: str
    """Hairlines."""
    ink: str
    ink_soft: str
    ink_faint: str
    """Large text, icons and disabled controls only: too light for small print."""
    accent: str
    accent_on: str
    """Text on the accent."""
    selection: str
    """Behind selected text and rows; only ink and accent are readable on it."""
    good: str
    caution: str
    bad: str
    series: tuple[str, ...]
    """Lines of plots, in order; told apart by colour-blind eyes, but never the only sign."""

    @property
    def hover(self) -> str:
        """Behind a quiet control under the pointer, on paper, sheet or well."""
        return mix(self.well if self.is_dark else self.paper, self.ink, 0.08)

    @property
    def pressed(self) -> str:
        return mix(self.well if self.is_dark else self.paper, self.ink, 0.14)

    @property
    def accent_hover(self) -> str:
        return mix(self.accent, self.ink, 0.16)

    @property
    def edge(self) -> str:
        """The outline of inputs and buttons: a stronger hairline."""
        return mix(self.rule, self.ink, 0.14)


def mix(first: str, second: str, amount: float) -> str:
    """Moves the first colour towards the second; 0 is the first, 1 the second."""
    channels = (
        round(int(first[i : i + 2], 16) * (1 - amount) + int(second[i : i + 2], 16) * amount)
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02X}" for channel in channels)


LIGHT = Theme(
    is_dark=False,
    paper="#FBFAF7",
    sheet="#FFFFFF",
    well="#F1EFE9",
    rule="#DEDAD1",
    ink="#1F1D1A",
    ink_soft="#5C574F",
    ink_faint="#857F75",
    accent="#2F5D50",
    accent_on="#FFFFFF",
    selection="#D8E6E0",
    good="#2E6B3F",
    caution="#8A5A00",
    bad="#A3332B",
    series=("#2F5D50", "#B0662A", "#3C6EA5", "#8A5A9A", "#7C7A2B", "#A3332B"),
)

DARK = Theme(
    is_dark=True,
    paper="#17181A",
    sheet="#1F2123",
    well="#121314",
    rule="#303336",
    ink="#E9E6E0",
    ink_soft="#A9A59D",
    ink_faint="#7F7B74",
    accent="#7FB7A3",
    accent_on="#10201B",
    selection="#2B4239",
    good="#7CC08F",
    caution="#E0B05A",
    bad="#EE8A7F",
    series=("#7FB7A3", "#E0A06A", "#86B1E0", "#C39BD3", "#C6C26A", "#EE8A7F"),
)

SPACE_TIGHT = 4
SPACE_WITHIN = 8
SPACE_INSET = 12
SPACE_GROUP = 16
SPACE_PAGE = 24
SPACE_SECTION = 32

RADIUS_CARD = 8
RADIUS_CONTROL = 6

FONT_SMALL = 11
FONT_BODY = 13
FONT_READING = 15
FONT_HEADING = 18
FONT_TITLE = 24

FONT_UI = "Inter"
FONT_MONO = "JetBrains Mono"

CONTROL_HEIGHT = 32


def scaled(pixels: int, scale: float) -> int:
    """Pixels at the person's type scale."""
    return max(1, round(pixels * scale))
